"""The catalogue of well-known teachers: sizes enough to price a teacher without a network or a download.

Entries are config.json mappings with fields added: `total` and `active` parameters (see `limbeck.plan.accounting` for their
meaning), which follow from the sizes and were also counted by instantiating each architecture without weights; `hub`, ids of
the models that share the sizes; `pretraining_tokens` of the base model's first stage with `tokens_source`, or null where they
are not public.
"""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbeck.errors import TeacherError
from limbeck.spec.base import nearest


def catalogue() -> dict[str, dict[str, Any]]:
    """Every entry by its name."""
    return json.loads(files("limbeck.plan").joinpath("teachers.json").read_text(encoding="utf-8"))


def find(name: str) -> dict[str, Any] | None:
    """The entry whose name or one of whose hub ids is `name`, whatever the case and the punctuation; None where there is none.

    A hub id may lack its organisation. A path or another organisation's model of the same name is not found.
    """
    for key, entry in catalogue().items():
        if _plain(name) in _spellings(key, entry):
            return entry
    return None


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """A teacher's name and configuration, by what a user says of it.

    In this order: a folder with a config.json or such a file (named after the folder); a name or hub id as `find` takes it; the
    beginning of one name or hub id. Raises `TeacherError` naming the candidates where the beginning is of several, the nearest
    name where it is of none.
    """
    path = Path(name)
    if name and (path.is_dir() or path.is_file()):
        return _read(path)
    known = catalogue()
    exact = [key for key, entry in known.items() if _plain(name) in _spellings(key, entry)]
    begun = [key for key, entry in known.items() if any(each.startswith(_plain(name)) for each in _spellings(key, entry))]
    match exact or begun:
        case [key]:
            return key, known[key]
        case []:
            raise TeacherError(
                f"teacher {name!r} is neither in the catalogue nor a folder with a config.json{nearest(name, list(known))}"
            )
        case several:
            raise TeacherError(f"teacher {name!r} could be any of {', '.join(several)}: write more of its name")


def _plain(name: str) -> str:
    """Lower-case letters, digits and the slashes that tell a hub id or a path from a name."""
    return re.sub(r"[^a-z0-9/]", "", name.casefold())


def _spellings(key: str, entry: dict[str, Any]) -> set[str]:
    hub: list[str] = entry["hub"]
    return {_plain(each) for each in (key, *hub, *(hub_id.rsplit("/", 1)[-1] for hub_id in hub))}


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise TeacherError(f"{path} holds no config.json: name the folder of a Hugging Face model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(f"{file} is not JSON with a model_type: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise TeacherError(f"{file} is no model's configuration: it has no model_type")
    return file.resolve().parent.name, config
