"""Which layers go, by what bypassing each of them costs, or each block of them.

What may go is `limbeck.plan.pruned_layers.Choice`: single layers, or whole groups of a pattern. Free of blocks, the cheapest
go, each by its own cost; contiguous, the cheapest block goes whole. Every candidate takes a pass over all that is read, so
costs are remembered in a file as they come, and a second asking, or a killed one, goes on from there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.paths import write_atomically
from limbeck.plan.pruned_layers import Choice
from limbeck.progress import progress

Cost = tuple[float, ...]
"""Compared from the left."""


@dataclass(frozen=True)
class Cheapest:
    """Layers chosen by cost."""

    stay: tuple[int, ...]
    costs: Mapping[tuple[int, ...], Cost]
    """Of every candidate: the layers that were bypassed together."""


def cheapest(
    choice: Choice,
    cost: Callable[[Sequence[int]], Cost],
    *,
    contiguous: bool,
    title: str,
    remembered: Path | None = None,
) -> Cheapest:
    """Choose what goes; ties go to the earlier. `remembered` is a file of costs, read and added to."""
    if not choice.going:
        return Cheapest(choice.without([]), {})
    candidates = choice.blocks() if contiguous else list(choice.units)
    known = _read(remembered)
    with progress(title, total=len(candidates)) as advance:
        for layers in candidates:
            if layers not in known:
                known[layers] = cost(layers)
                _write(known, remembered)
            advance(1, note=f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}")
    ranked = sorted(candidates, key=lambda layers: known[layers])
    return Cheapest(
        choice.without(ranked[:1] if contiguous else ranked[: choice.going]), {layers: known[layers] for layers in candidates}
    )


def _read(path: Path | None) -> dict[tuple[int, ...], Cost]:
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {tuple(layers): tuple(cost) for layers, cost in found}


def _write(costs: Mapping[tuple[int, ...], Cost], path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([[list(layers), list(cost)] for layers, cost in costs.items()]))
