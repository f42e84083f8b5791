"""The config.json of a model in a folder or in the Hugging Face cache of this machine. Free of torch; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

from limbeck.errors import TeacherError, first_line

SMOLLM2 = "SmolLM2-135M-Instruct"
SMOLLM2_HUB_ID = f"HuggingFaceTB/{SMOLLM2}"


def hub_revision(model: str, revision: str | None) -> str | None:
    """The revision to ask the hub for; None for a folder, which has but one."""
    return None if Path(model).is_dir() else revision


def config_path(model: str, *, revision: str | None = None) -> Path | None:
    """Where the config.json of a folder or hub id lies; None where it is not on this machine."""
    path = Path(model) / "config.json"
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=hub_revision(model, revision))
    except ValueError:  # not of the form of a hub id: a folder that does not exist
        return None
    return Path(cached) if isinstance(cached, str) else None


def read_model_config(model: str, *, revision: str | None = None) -> dict[str, Any] | None:
    """The config.json if it is on this machine, otherwise None; `TeacherError` where it is damaged."""
    path = config_path(model, revision=revision)
    if path is None:
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(f"{path} is no valid JSON ({first_line(error)}): restore it") from None
    return config
