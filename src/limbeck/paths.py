"""Where Limbeck keeps what can be made again (the user cache), and how files come to be: whole or not at all."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from limbeck.errors import LimbeckError


def cache_folder() -> Path:
    """`$LIMBECK_CACHE`, or `limbeck` under `$XDG_CACHE_HOME` or `~/.cache`. Everything in it can be deleted at any time."""
    configured = os.environ.get("LIMBECK_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "limbeck"


def put_in_place(building: Path, folder: Path) -> None:
    """Rename a finished folder to its name. Where another process was quicker, its folder stays: both hold the same."""
    try:
        os.replace(building, folder)
    except OSError:
        if not folder.is_dir():
            raise


def write_atomically(path: Path, data: str | Sequence[bytes]) -> None:
    """A reader sees the old file or the new one with all its bytes on the disk, never half of one.

    Several processes may write the same file at once: one of theirs stays. `OSError` where the disk refuses.
    """
    chunks = [data.encode("utf-8")] if isinstance(data, str) else data
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Before the work whose result `path` is to hold: its folder is made, and a file beside it, which is removed again.

    `LimbeckError` naming the path where either fails, and where something that is no file stands there already.
    """
    temporary = _temporary(path) if path.name else path
    try:
        if path.is_dir():
            raise LimbeckError(f"{path} is a folder: name a file")
        if path.exists() and not path.is_file():
            raise LimbeckError(f"{path} is a device or a pipe: name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except FileExistsError:  # what `mkdir` says of a parent that is a file
        raise LimbeckError(f"{path} can't be written ({path.parent} is no folder): name another path") from None
    except OSError as error:
        raise LimbeckError(f"{path} can't be written ({error.strerror}): name another path") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Bring a file or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_remote(path: Path | str) -> bool:
    """Whether a store's place is a URL and not a folder."""
    return "://" in str(path)


def same_place(one: Path | str, other: Path | str) -> bool:
    """Whether two names are those of one place."""
    if is_remote(one) or is_remote(other):
        return str(one).rstrip("/") == str(other).rstrip("/")
    return Path(one) == Path(other)
