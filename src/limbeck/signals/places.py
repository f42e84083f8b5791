"""Where signal stores lie: in folders, or at URLs (`s3://…`, `gs://…`, `memory://…`: whatever fsspec knows).

Only `store.json` is read here, so that who wants no rows needs no torch; `remote.py` brings and publishes shards.

    CACHE/signals/manifests/CHECKSUM/      `store.json` alone
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import StoreError
from limbeck.paths import cache_folder, is_remote
from limbeck.signals.manifest import PLAN_FILE, STORE_FILE, checksum_of, info, read_json, write_file


def is_published(path: Path | str) -> bool:
    """Whether a complete store lies there; `StoreError` where its URL cannot be reached."""
    if not is_remote(path):
        return (Path(path) / STORE_FILE).is_file()
    filesystem, root = open_place(str(path))
    with naming(str(path)):
        return bool(filesystem.exists(f"{root}/{STORE_FILE}"))


def info_at(path: Path | str) -> dict[str, Any]:
    """`limbeck.signals.manifest.info` of a store in a folder or at a URL."""
    return {**info(manifest_folder(path)), "path": str(path)}


def manifest_folder(path: Path | str) -> Path:
    """A folder that holds the store's `store.json`, and its shards only where it is the store itself."""
    if not is_remote(path):
        return Path(path)
    text, manifest = fetch_manifest(*open_place(str(path)), url=str(path))
    folder = signals_cache() / "manifests" / checksum_of(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / STORE_FILE, [text])
    return folder


def fetch_manifest(filesystem: Any, root: str, *, url: str) -> tuple[bytes, dict[str, Any]]:
    """A published store's `store.json`, as it lies there and as it reads; `StoreError` where there is none."""
    with naming(url):
        try:
            text = filesystem.cat_file(f"{root}/{STORE_FILE}")
        except FileNotFoundError:
            begun = filesystem.exists(f"{root}/{PLAN_FILE}")
            state = "is incomplete" if begun else "is not a signal store"
            raise StoreError(f"{url} {state}; `limbeck cache write` with a recipe and store={url} makes one") from None
    folder = signals_cache() / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    arrived = folder / f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        arrived.write_bytes(text)
        return text, read_json(arrived)
    except StoreError as error:
        raise StoreError(str(error).replace(str(arrived), f"{url}/{STORE_FILE}")) from error
    finally:
        arrived.unlink(missing_ok=True)


def open_place(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise StoreError(f"{url} cannot be opened: {error}") from error
    filesystem.invalidate_cache()  # listings are remembered for as long as the process lives
    return filesystem, root.rstrip("/")


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Whatever a file system raises, with the store's URL."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{url} lacks a file ({error}); {remedy_at(url)}") from error
    except Exception as error:  # every file system has errors of its own, and they share no base
        raise StoreError(f"{url} cannot be reached: {type(error).__name__}: {error}") from error


def remedy_at(url: str) -> str:
    """What helps where a store at a URL is damaged; one that is published is not written again."""
    return f"delete {url.rstrip('/')}/{STORE_FILE} and publish the store there again"


def signals_cache() -> Path:
    """Where copies of what lies at URLs are."""
    return cache_folder() / "signals"
