"""The catalogue of well-known teachers: sizes enough to price a teacher without a network or a download.

Entries are config.json mappings with two counts added, `total` and `active` parameters (see `limbeck.plan.accounting` for their
meaning), counted by instantiating each architecture without weights. `hub` lists ids of the models that share the sizes.
"""

import json
from importlib.resources import files
from typing import Any


def catalogue() -> dict[str, dict[str, Any]]:
    """Every entry by its name."""
    return json.loads(files("limbeck.plan").joinpath("teachers.json").read_text(encoding="utf-8"))


def find(name: str) -> dict[str, Any] | None:
    """The entry whose name or one of whose hub ids is `name`, whatever the case; None where there is none."""
    wanted = name.casefold()
    for key, entry in catalogue().items():
        if wanted in (known.casefold() for known in (key, *entry["hub"])):
            return entry
    return None
