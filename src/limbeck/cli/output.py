"""How verbs speak: results on stdout, as lines for people or one JSON object for machines; everything else on stderr."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.progress import is_first_process


def emit(values: Mapping[str, Any], *, as_json: bool, lines: list[str]) -> None:
    """Print a result, once where `torchrun` started several processes."""
    if is_first_process():
        print(json.dumps(values, indent=1, allow_nan=False) if as_json else "\n".join(lines))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: words to the left (the first column), numbers to the right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(aligned)
        ).rstrip()
        for aligned in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def human(amount: float, unit: str = "") -> str:
    """A number with a metric prefix: 229,555,968 is '229.6M'."""
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.4g}{prefix}{unit}"
    return f"{amount:.4g}{unit}"
