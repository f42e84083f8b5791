"""Where Limbeck keeps what can be made again: the user cache."""

import os
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
