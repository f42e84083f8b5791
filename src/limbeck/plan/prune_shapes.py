"""Which smaller shapes of a model come down to a wanted number of parameters, FLOPs, bytes or milliseconds.

All combinations of sizes on a grid are counted from the configuration alone, as Model Optimizer's search does (NVIDIA,
`modelopt/torch/prune/plugins/mcore_minitron.py`): the grid is as fine as its own at the sizes it was made for (256 of 4,096
channels, 512 of some 12,000 neurons), and no axis of width loses more than 40 %, nor depth more than 20 %, unless no shape
of that kind meets the target; a cap that is given is kept. Nearness to the target says nothing of quality, so what is taken is
mixed: some that are narrower, some that are shallower, some of both. Free of torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, Literal

from limbeck.errors import SpecError
from limbeck.plan.prune_target import Costs, Workload, costs_of
from limbeck.plan.pruned import layer_types, pruned_config, sizes_of
from limbeck.plan.pruned_layers import choice as layer_choice
from limbeck.spec.base import parse
from limbeck.spec.prune import LAYER_CHOICE, Pruning

Kind = Literal["width", "depth", "mixed"]
KINDS: tuple[Kind, ...] = ("width", "depth", "mixed")
Sizes = dict[str, int]
"""By Pruning's keys."""
AmountOf = Callable[[Mapping[str, Any], Costs], float]
"""What a target is about, of a configuration and its costs."""

SIZE_KEYS = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "num_experts", "expert_size", "num_layers")
_WIDTHS: tuple[str, ...] = ("hidden_size", "intermediate_size", "expert_size")
_GRID = 16
"""A step is the power of two at or below this share of a size,"""
_LEAST_STEP, _SMALL = 64, 512
"""and no less than 64, below which matrix products gain little, but for sizes under 512."""
_GROUPED_MULTIPLE = 8
"""Grouped products of experts want rows of whole 16 bytes: so many numbers of bfloat16."""
_EXPERT_STEPS = 8
_COMBINATIONS = 20_000


@dataclass(frozen=True)
class Caps:
    """The largest share that may go."""

    width: float = 0.4
    """Of channels, neurons, heads, experts each."""
    depth: float = 0.2


RELAXED = Caps(width=0.8, depth=0.75)


@dataclass(frozen=True)
class GivenCaps:
    """Caps that are kept. None: those of `Caps`, and of `RELAXED` for kinds of shapes that have no member otherwise."""

    width: float | None = None
    depth: float | None = None

    def over(self, caps: Caps) -> Caps:
        """Those that are given, and the others of `caps`."""
        return Caps(
            width=caps.width if self.width is None else self.width, depth=caps.depth if self.depth is None else self.depth
        )


@dataclass(frozen=True)
class Shape:
    """A smaller shape of a model."""

    sizes: Sizes
    """Those that change, by Pruning's keys."""
    config: Mapping[str, Any]
    costs: Costs
    amount: float
    """Of what the target is about."""
    departure: float
    """amount / wanted - 1."""
    beyond_caps: bool = False

    @property
    def kind(self) -> Kind:
        """Which axes shrink."""
        return _kind(self.sizes)


@dataclass(frozen=True)
class Found:
    """Shapes that meet a target."""

    shapes: tuple[Shape, ...]
    """Taken to be measured, the kinds in turn, the nearest of each first."""
    counted: int
    """How many were counted,"""
    near: int
    """and how many of them are within the tolerance."""


def find_shapes(
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    wanted: float,
    amount_of: AmountOf,
    workload: Workload,
    tolerance: float,
    top: int,
    caps: GivenCaps | None = None,
) -> Found:
    """Shapes within `tolerance` of `wanted`. `values` are Pruning's without what is searched: sizes in it stay as they are.

    Kinds of shapes that the caps leave no member of go beyond those that are not given. `SpecError` where no shape meets the
    target.
    """
    asked = parse_values(values)
    base_pruning(values)  # says what is wrong with them, where no size is set either
    if asked is not None:
        pruned_config(dict(config), asked)  # what is set must be possible, or no shape is
    _require_choice(config, values)
    given = caps or GivenCaps()
    counted: list[Shape] = []
    seen: set[frozenset[tuple[str, int]]] = set()
    for limit, kinds in ((given.over(Caps()), KINDS), (given.over(RELAXED), ())):
        near = [shape for shape in counted if abs(shape.departure) <= tolerance]
        for sizes in candidates(config, asked, caps=limit, kinds=kinds or _missing(near)):
            if (name := frozenset(sizes.items())) in seen:
                continue
            seen.add(name)
            shape = _counted(config, values, sizes, wanted=wanted, amount_of=amount_of, workload=workload)
            if shape is not None:
                counted.append(replace(shape, beyond_caps=not kinds))
    near = [shape for shape in counted if abs(shape.departure) <= tolerance]
    if not near:
        raise SpecError(_none_near(counted, wanted, tolerance))
    return Found(taken(near, top=top), len(counted), len(near))


def _require_choice(config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """That layers can go as they are asked to, at one depth at least; where they cannot, what is wrong at the largest."""
    if values.get("layers") is not None or not any(name in values for name in (*LAYER_CHOICE, "num_layers")):
        return
    pruning, kinds, reasons = base_pruning(values), layer_types(config), []
    for depth in range(len(kinds) - 1, 0, -1) if pruning.num_layers is None else [pruning.num_layers]:
        try:
            found = layer_choice(kinds, pruning.model_copy(update={"num_layers": depth}))
            if pruning.contiguous and found.going:
                found.blocks()
            return
        except SpecError as error:
            reasons.append(error)
    if reasons:
        raise reasons[0]


def _none_near(counted: Sequence[Shape], wanted: float, tolerance: float) -> str:
    nearest = min(counted, key=lambda shape: abs(shape.departure), default=None)
    if nearest is None:
        return "every size is set, so there is no shape to choose: leave one out, or the target"
    sizes = " ".join(f"{name}={count}" for name, count in nearest.sizes.items())
    return (
        f"no shape on the grid comes within {tolerance:.0%} of {wanted:,.6g}; the nearest is "
        f"{nearest.departure:+.1%} off ({sizes}): "
        "raise --tolerance or a cap that is given, or ask for another amount"
    )


def parse_values(values: Mapping[str, Any]) -> Pruning | None:
    """What pruning is asked for so far; None where that is no size yet."""
    has_size = values.get("layers") is not None or any(values.get(name) is not None for name in SIZE_KEYS)
    return base_pruning(values) if has_size else None


def base_pruning(values: Mapping[str, Any]) -> Pruning:
    """All but the sizes that are searched, which are None. `SpecError` for what is wrong with the others."""
    names = ("hidden_size",) if values.get("layers") is not None else ("hidden_size", "num_layers")
    searched = [name for name in names if values.get(name) is None]
    stood_for = parse(Pruning, {**values, **dict.fromkeys(searched, 1)}, source="prune")
    return stood_for.model_copy(update=dict.fromkeys(searched))


def shaped(values: Mapping[str, Any], sizes: Mapping[str, int]) -> Pruning:
    """What is asked of pruning for a shape: how layers and channels are chosen is left out where the shape chooses none."""
    found = {**values, **sizes}
    idle = [*LAYER_CHOICE] if found.get("num_layers") is None else []
    idle += ["hidden_scores"] if found.get("hidden_size") is None else []
    return parse(Pruning, {key: value for key, value in found.items() if key not in idle}, source="prune")


def probe_sizes(config: Mapping[str, Any]) -> list[Sizes]:
    """Shapes that shrink a model along one axis each, and along all, to tell what latency depends on."""
    own = model_sizes(config)
    half = {name: size // 2 for name, size in own.items() if name in ("num_layers", *_WIDTHS) and size > 1}
    fewer = {"num_kv_heads": max(1, own["num_kv_heads"] // 2)}
    singles = [{name: size} for name, size in half.items()]
    return [*singles, *([fewer] if own["num_kv_heads"] > 1 else []), half]


def model_sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of a model, by Pruning's keys; those that it does not have are left out."""
    whole = sizes_of(config)
    return {name: found for name in SIZE_KEYS if (found := getattr(whole, name)) is not None}


def candidates(
    config: Mapping[str, Any], asked: Pruning | None, *, caps: Caps, kinds: Sequence[Kind] = KINDS
) -> Iterator[Sizes]:
    """Every combination of smaller sizes on the grid; sizes that are asked for are in each as they are."""
    fixed = asked.sizes if asked is not None else {}
    own, least_experts = model_sizes(config), sizes_of(config).experts_per_token
    least_step = _GROUPED_MULTIPLE if "num_experts" in own else 1
    axes: list[list[Sizes]] = [
        [{"num_layers": depth} for depth in _down(own["num_layers"], step=_depth_step(own), cap=caps.depth)],
        *(
            [{name: width} for width in _down(own[name], step=max(least_step, grid_step(own[name])), cap=caps.width)]
            for name in _WIDTHS
            if name in own
        ),
        _heads(own["num_heads"], own["num_kv_heads"], cap=caps.width),
    ]
    if "num_experts" in own:
        step = max(1, own["num_experts"] // _EXPERT_STEPS)
        counts = _down(own["num_experts"], step=step, cap=caps.width)
        axes.append([{"num_experts": count} for count in counts if count >= least_experts])
    if (asked is not None and asked.layers is not None) or ("depth" not in kinds and "mixed" not in kinds):
        axes[0] = [{"num_layers": own["num_layers"]}]
    if kinds == ("depth",):
        axes[1:] = []
    for choice in product(*_thinned([_unless_fixed(axis, fixed) for axis in axes])):
        every: Sizes = {**{name: count for sizes in choice for name, count in sizes.items()}, **fixed}
        changed = {name: count for name, count in every.items() if own.get(name) != count or name in fixed}
        if changed and _kind(changed) in kinds:
            yield changed


def taken(near: Sequence[Shape], *, top: int) -> tuple[Shape, ...]:
    """So many of those near the target: the kinds in turn, and of each one of every width and depth before a second."""
    queues = [_spread([shape for shape in near if shape.kind == kind]) for kind in KINDS]
    chosen: list[Shape] = []
    while len(chosen) < top and any(queues):
        for queue in queues:
            if queue and len(chosen) < top:
                chosen.append(queue.pop(0))
    return tuple(chosen)


def grid_step(whole: int) -> int:
    """Of channels or neurons."""
    step = 1 << max(0, (whole // _GRID).bit_length() - 1)
    return max(step, _LEAST_STEP) if whole >= _SMALL else step


def _missing(near: Sequence[Shape]) -> tuple[Kind, ...]:
    return tuple(kind for kind in KINDS if not any(shape.kind == kind for shape in near))


def _kind(sizes: Sizes) -> Kind:
    return "width" if "num_layers" not in sizes else "depth" if len(sizes) == 1 else "mixed"


def _depth_step(own: Sizes) -> int:
    return 1 if own["num_layers"] <= 32 else 2


def _down(whole: int, *, step: int, cap: float) -> list[int]:
    """The size itself and the multiples of the step below it, as far as the cap."""
    least = max(1, whole * (1 - cap) - 1e-9)
    below = range(whole - 1 - (whole - 1) % step, 0, -step)
    return [whole, *(each for each in below if each >= least)]


def _heads(heads: int, groups: int, *, cap: float) -> list[Sizes]:
    """Fewer groups, or fewer heads in every group; the groups stay equal."""
    per_group, least = heads // groups, heads * (1 - cap) - 1e-9
    group_counts = _down(groups, step=max(1, groups // 8), cap=cap)
    return [
        {"num_heads": count * each, "num_kv_heads": count}
        for count in group_counts
        for each in range(per_group, 0, -max(1, per_group // 8))
        if count * each >= least
    ]


def _unless_fixed(axis: list[Sizes], fixed: Mapping[str, int]) -> list[Sizes]:
    return [{}] if any(name in fixed for name in axis[0]) else axis


def _thinned(axes: list[list[Sizes]]) -> list[list[Sizes]]:
    """Every second size of the longest axis goes, until combinations are few enough to be counted in seconds."""
    axes = list(axes)
    while prod(map(len, axes)) > _COMBINATIONS:
        longest = max(range(len(axes)), key=lambda place: len(axes[place]))
        axes[longest] = [axes[longest][0], *axes[longest][2::2]]
    return axes


def _counted(
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    sizes: Sizes,
    *,
    wanted: float,
    amount_of: AmountOf,
    workload: Workload,
) -> Shape | None:
    """None where the model cannot be cut so."""
    try:
        smaller = pruned_config(dict(config), shaped(values, sizes))
    except SpecError:
        return None
    costs = costs_of(smaller, workload)
    amount = amount_of(smaller, costs)
    return Shape(sizes, smaller, costs, amount, amount / wanted - 1)


def _spread(near: Iterable[Shape]) -> list[Shape]:
    """The nearest first, but one of every width and depth before a second of any."""
    seen: dict[tuple[int | None, int | None], int] = {}
    ranked: list[tuple[int, int, Shape]] = []
    for shape in sorted(near, key=lambda shape: (shape.beyond_caps, abs(shape.departure))):
        place = (shape.sizes.get("hidden_size"), shape.sizes.get("num_layers"))
        seen[place] = seen.get(place, 0) + 1
        ranked.append((seen[place], len(ranked), shape))
    return [shape for _, _, shape in sorted(ranked, key=lambda item: item[:2])]
