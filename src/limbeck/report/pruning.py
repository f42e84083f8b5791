"""What `pruning.json` says of a pruned model, layer by layer, and as lines for a terminal. Free of torch.

A layer that stays has a share of every axis that the model has; hidden channels are the same for all layers. A layer's
influence is what bypassing it changes of its input's direction (1 - mean cosine); where layers were chosen by what they cost,
that is known besides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from limbeck.errors import LimbeckError

PRUNING = "pruning.json"
AXES = {
    "neurons": "intermediate_size",
    "shared": "shared_size",
    "heads": "num_heads",
    "groups": "num_kv_heads",
    "experts": "num_experts",
    "expert_neurons": "expert_size",
}
"""What stays of a layer, and the size that says how much there was."""
TITLES = {"groups": "KV heads", "shared": "shared expert", "expert_neurons": "expert neurons"}
_BAR = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class PrunedLayer:
    """One layer of the model before."""

    place: int
    kind: str
    """'sliding' or 'full'."""
    stays: bool
    influence: float | None
    cost: tuple[float, ...] | None
    """Of bypassing it alone; None where that was not measured."""
    kept: Mapping[str, tuple[bool, ...]]
    """Of each axis that this layer has, what stays; empty where the layer goes."""

    def share(self, axis: str) -> float | None:
        """Of an axis; None where the layer does not have it, or goes."""
        return sum(self.kept[axis]) / len(self.kept[axis]) if axis in self.kept else None


@dataclass(frozen=True)
class PruningView:
    """A pruned model against the one before."""

    parent: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    layers: tuple[PrunedLayer, ...]
    hidden: tuple[bool, ...]
    """Of every channel of the residual stream, whether it stays."""
    cost_measures: tuple[str, ...] = ()
    """What `cost` holds."""
    steps: int = 1
    """In which it was pruned; influence and cost are of the model before the first."""

    @property
    def axes(self) -> list[str]:
        """Those that some layer has."""
        return [axis for axis in AXES if any(axis in layer.kept for layer in self.layers)]

    @property
    def interleaved(self) -> bool:
        """Whether layers differ by what their attention sees."""
        return len({layer.kind for layer in self.layers}) > 1


def pruning_file(target: str | Path) -> Path | None:
    """The `pruning.json` of a pruned model's folder, or of the student of a run; None where there is none."""
    folder = Path(target)
    return next((path for path in (folder / PRUNING, folder / "student" / PRUNING) if path.is_file()), None)


def read_pruning(path: Path) -> PruningView:
    """What a `pruning.json` says; `LimbeckError` where it is damaged."""
    try:
        return _view(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))  # NaN: not known
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise LimbeckError(f"{path} is damaged: restore it, or prune again") from error


def _view(record: Mapping[str, Any]) -> PruningView:
    before, after, kept = record["before"], record["after"], record["kept"]
    stay = {layer: place for place, layer in enumerate(kept["layers"])}
    influence = record["influence"] or [None] * before["num_layers"]
    depth = record.get("depth") or {"measures": [], "costs": []}
    costs = {layers[0]: tuple(cost) for layers, cost in depth["costs"] if len(layers) == 1 and None not in cost}
    layers = tuple(
        PrunedLayer(
            place,
            kind.removesuffix("_attention"),
            place in stay,
            influence[place],
            costs.get(place),
            _kept(record, stay[place]) if place in stay else {},
        )
        for place, kind in enumerate(before["layer_types"])
    )
    hidden = _mask(kept["hidden"], before["hidden_size"])
    steps = int(record.get("pruning", {}).get("steps", 1))
    return PruningView(str(record["parent"]["model"]), before, after, layers, hidden, tuple(depth["measures"]), steps)


def _kept(record: Mapping[str, Any], place: int) -> dict[str, tuple[bool, ...]]:
    """Of the layer at that place among those that stay. A layer of experts has no neurons of its own, and the reverse."""
    before, kept = record["before"], record["kept"]
    found = {}
    for axis, size in AXES.items():
        places = kept[axis]
        if before[size] is not None and (places is None or places[place] is not None or _whole(record, axis)):
            found[axis] = _mask(None if places is None else places[place], before[size])
    return found


def _whole(record: Mapping[str, Any], axis: str) -> bool:
    """Whether an axis is left as it is in every layer: null then means all, and otherwise that a layer does not have it."""
    return record["before"][AXES[axis]] == record["after"][AXES[axis]]


def _mask(places: Sequence[int] | None, whole: int) -> tuple[bool, ...]:
    if places is None:
        return (True,) * whole
    stay = set(places)
    return tuple(place in stay for place in range(whole))


def pruning_lines(view: PruningView) -> list[Text]:
    """Sizes before and after, then a line for each layer, dim where it went."""
    lines = [Text(f"{view.parent}: {_count(view.before)} parameters, pruned to {_count(view.after)}"), *_sizes(view), Text()]
    largest = max((layer.influence for layer in view.layers if layer.influence is not None), default=0.0)
    with_costs = any(layer.cost is not None for layer in view.layers)
    titles = ["influence".ljust(_BAR + 7)] if largest else []
    titles += [_measures(view).ljust(18)] if with_costs else []
    titles += [TITLES.get(axis, axis).ljust(_BAR + 5) for axis in view.axes]
    kind = "type".ljust(9) if view.interleaved else ""
    lines.append(Text(f"layer  {'':9}{kind}{'  '.join(titles)}".rstrip(), style="bold"))
    lines += [_layer_line(layer, view, largest=largest, with_costs=with_costs) for layer in view.layers]
    if view.steps > 1 and titles[: len(titles) - len(view.axes)]:
        lines.append(Text("influence and cost: of the model before the first step"))
    return lines


def _count(sizes: Mapping[str, Any]) -> str:
    return f"{sizes['parameters']:,}"


def _sizes(view: PruningView) -> list[Text]:
    """Those that changed."""
    names = ("num_layers", "hidden_size", *AXES.values())
    changed = [name for name in names if view.before[name] != view.after[name]]
    return [
        Text(f"{name}: {view.before[name]:,} → {view.after[name]:,} ({view.after[name] / view.before[name]:.0%})")
        for name in changed
    ]


def _measures(view: PruningView) -> str:
    return "/".join(view.cost_measures)


def _layer_line(layer: PrunedLayer, view: PruningView, *, largest: float, with_costs: bool) -> Text:
    cells = []
    if largest and layer.influence is not None:
        cells.append(f"{_bar(layer.influence / largest)} {layer.influence:.4f}".ljust(_BAR + 7))
    if with_costs:
        sign = "+" if view.cost_measures == ("loss_rise_nats",) else ""  # others are no differences
        cells.append("/".join(f"{each:{sign}.4f}" for each in layer.cost or ()).ljust(18))
    for axis in view.axes:
        share = layer.share(axis)
        cells.append(("" if share is None else f"{_bar(share)} {share:4.0%}").ljust(_BAR + 5))
    kind = layer.kind.ljust(9) if view.interleaved else ""
    line = f"{layer.place:5}  {'stays' if layer.stays else 'goes':9}{kind}{'  '.join(cells)}".rstrip()
    return Text(line, style="" if layer.stays else "dim")


def _bar(share: float) -> str:
    """Of `_BAR` cells, filled to an eighth of one."""
    eighths = round(8 * _BAR * max(0.0, min(1.0, share)))
    return ("█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(_BAR)
