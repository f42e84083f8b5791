"""Where Limbeck keeps what can be made again (the user cache), and how files come to be: whole or not at all."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
