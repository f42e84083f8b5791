"""How verbs speak: results on stdout, as lines for people or one JSON object for machines; everything else on stderr."""

import json
from collections.abc import Mapping
from typing import Any

from limbeck.progress import is_first_process


def emit(values: Mapping[str, Any], *, as_json: bool, lines: list[str]) -> None:
    """Print a result, once where `torchrun` started several processes."""
    if is_first_process():
        print(json.dumps(values, indent=1) if as_json else "\n".join(lines))


def human(amount: float, unit: str = "") -> str:
    """A number with a metric prefix: 229,555,968 is '229.6M'."""
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.4g}{prefix}{unit}"
    return f"{amount:.4g}{unit}"
