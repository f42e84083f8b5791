"""Signal stores at URLs (`s3://…`, `gs://…`, `memory://…`: whatever fsspec knows), read and published through the user cache.

Reading. A store's shards never change: an extension adds shards and replaces `store.json`. So what has to be fetched is told by
checksums, never by times. `store.json` is fetched at every opening and tells the checksum of each shard; a shard is fetched
once, compared with that checksum byte by byte, and only then takes its name in the cache, which is the checksum. A folder of
links to them is the local store; its `store.json` comes last. Whatever is interrupted, what is in place is whole.

    CACHE/signals/shards/CHECKSUM.rows     every shard ever fetched
    CACHE/signals/stores/CHECKSUM/         one local store for each `store.json`
    CACHE/signals/outgoing/KEY/            what is written here and goes to a URL once it is complete

Publishing. Shards go first and `store.json` last, so that a reader finds a whole store or none, provided that the object store
shows an object under its name only once it is whole, as S3 and its like do (a plain web or FTP server may not). A shard that
is there with the right length and the right last 32 bytes, which hold the checksum of all others, is not sent again. A URL
where another store lies is refused. What was on its way out is removed once all of it has arrived. Processes on several
machines that write a store for a URL together need a cache that they share (`LIMBECK_CACHE`).
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.errors import StoreError
from limbeck.paths import is_remote
from limbeck.progress import progress
from limbeck.signals.manifest import (
    STORE_FILE,
    StoreIdentity,
    canonical,
    checksum_of,
    differences,
    discard,
    link_or_copy,
    put,
    read_manifest,
    write_file,
)
from limbeck.signals.places import fetch_manifest, is_published, naming, open_place, remedy_at, signals_cache
from limbeck.signals.shards import TRAILER, checksum_at_end, map_shard, read_index

AT_ONCE = 8
"""Files on their way at the same time."""
_CHUNK = 1 << 24


def local_folder(path: Path | str) -> Path:
    """A folder that holds the store: the one named, or a copy of what lies at the URL."""
    if not is_remote(path):
        return Path(path)
    filesystem, root = open_place(str(path))
    text, manifest = fetch_manifest(filesystem, root, url=str(path))
    shards = signals_cache() / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    folder = signals_cache() / "stores" / checksum_of(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [entry for entry in manifest["shards"] if not (folder / entry["file"]).is_file()]
    with progress(f"fetching {path}", total=sum(entry["bytes"] for entry in lacking)) as advance:

        def fetch(entry: Mapping[str, Any]) -> None:
            held = shards / f"{entry['checksum']}.rows"
            if not held.is_file():
                _fetch_shard(filesystem, f"{root}/{entry['file']}", held, entry=entry, url=str(path))
            put(folder / entry["file"], lambda temporary: link_or_copy(held, temporary), num_bytes=entry["bytes"])
            advance(entry["bytes"])

        _at_once(fetch, lacking)
    if not (folder / STORE_FILE).is_file():
        write_file(folder / STORE_FILE, [text])
    return folder


@contextmanager
def looking_at(path: Path | str, entry: Mapping[str, Any]) -> Iterator[Path]:
    """The file of one shard of a store; of one at a URL, what lies there now, until it has been looked at."""
    if not is_remote(path):
        yield Path(path) / entry["file"]
        return
    filesystem, root = open_place(str(path))
    signals_cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=signals_cache(), prefix="verify-") as folder:
        copy = Path(folder) / entry["file"]
        with naming(str(path)), suppress(FileNotFoundError):
            filesystem.get_file(f"{root}/{entry['file']}", str(copy))
        yield copy


def damage_remedy(path: Path | str, manifest: Mapping[str, Any]) -> str:
    """What helps where a shard is missing or damaged: of the store in a folder, of a copy of one, of one at a URL."""
    if is_remote(path):
        return remedy_at(str(path))
    if Path(path).is_relative_to(signals_cache() / "stores"):
        return f"delete {signals_cache() / 'stores'} and {signals_cache() / 'shards'}, and it is fetched again"
    if manifest["plan"]["shard_tokens"] is None:
        return f"restore it, or delete {path} and write all of it again: parts of a merged or extended store cannot be"
    return "restore it, or delete what is left of it and run `limbeck cache write` with its recipe, which scores it again"


def outgoing_folder(path: Path | str) -> Path:
    """Where a store is written: its own folder; for a URL, one of the cache, from which `publish` sends it there."""
    if not is_remote(path):
        return Path(path)
    return signals_cache() / "outgoing" / hashlib.sha256(str(path).encode("utf-8")).hexdigest()[:20]


def publish(url: str) -> None:
    """Send what was written in the outgoing folder of a URL there, and remove the folder."""
    upload(outgoing_folder(url), url)
    discard(outgoing_folder(url))


def is_published_as(path: Path | str, identity: StoreIdentity) -> bool:
    """Whether the store of this identity lies at a URL already; `StoreError` where another one does."""
    if not is_remote(path) or not is_published(path):
        return False
    held = fetch_manifest(*open_place(str(path)), url=str(path))[1]["plan"]["identity"]
    found = list(differences(held, json.loads(canonical(identity.as_json()))))
    if found:
        raise StoreError(f"{path} holds another store ({'; '.join(found)}); name another URL, or delete it there")
    return True


def upload(folder: Path, url: str) -> None:
    """Publish a complete local store at a URL, or finish doing so; `StoreError` where another store lies there."""
    manifest = read_manifest(folder)
    filesystem, root = open_place(url)
    with naming(url):
        if filesystem.exists(f"{root}/{STORE_FILE}"):
            _require_grown(fetch_manifest(filesystem, root, url=url)[1], manifest, url=url)
        lacking = [entry for entry in manifest["shards"] if not _is_there(filesystem, root, entry)]
        # Object stores have no folders; those file systems that have some make none by themselves.
        filesystem.makedirs(root, exist_ok=True)
    with progress(f"publishing {url}", total=sum(entry["bytes"] for entry in lacking)) as advance, naming(url):

        def send(entry: Mapping[str, Any]) -> None:
            filesystem.put_file(str(folder / entry["file"]), f"{root}/{entry['file']}")
            advance(entry["bytes"])

        _at_once(send, lacking)
        for entry in lacking:
            if not _is_there(filesystem, root, entry):
                raise StoreError(f"{url}/{entry['file']} did not arrive whole; the same command sends it again")
        filesystem.pipe_file(f"{root}/{STORE_FILE}", (folder / STORE_FILE).read_bytes())


def _require_grown(there: Mapping[str, Any], here: Mapping[str, Any], *, url: str) -> None:
    """What is published may be sent again, or have grown; its shards keep their names."""
    if list(there["shards"]) != list(here["shards"][: len(there["shards"])]):
        raise StoreError(f"{url} holds another store; name another URL, or delete it there")


def _is_there(filesystem: Any, root: str, entry: Mapping[str, Any]) -> bool:
    """Whether a shard was sent whole: its end holds a digest of its index, and that one of its rows."""
    place = f"{root}/{entry['file']}"
    if not filesystem.exists(place) or filesystem.size(place) != entry["bytes"]:
        return False
    end: bytes = filesystem.cat_file(place, start=entry["bytes"] - TRAILER)
    return checksum_at_end(end) == entry["checksum"]


def _fetch_shard(filesystem: Any, place: str, target: Path, *, entry: Mapping[str, Any], url: str) -> None:
    def fetch(temporary: Path) -> None:
        with naming(url):
            filesystem.get_file(place, str(temporary))
        _require_whole(temporary, entry=entry, url=url)

    put(target, fetch, num_bytes=entry["bytes"])


def _require_whole(file: Path, *, entry: Mapping[str, Any], url: str) -> None:
    """Raises `StoreError` unless every byte is that of the shard that the manifest speaks of."""
    try:
        index = read_index(file)
        rows = map_shard(file)[: index.payload_bytes]
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(rows), _CHUNK):
            digest.update(rows[start : start + _CHUNK].data)
        intact = (index.checksum, digest.hexdigest()) == (entry["checksum"], index.payload_checksum)
    except StoreError:
        intact = False
    if not intact:
        raise StoreError(
            f"{url}/{entry['file']} did not arrive as it was written; try again, and if it fails again, {remedy_at(url)}"
        )


def _at_once(work: Callable[[Mapping[str, Any]], None], entries: list[Mapping[str, Any]]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(work, entry) for entry in entries]
        try:
            for done in waiting:
                done.result()
        finally:
            for unneeded in waiting:
                unneeded.cancel()
