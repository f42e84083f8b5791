"""What a study's axes show: which value of an axis is best, by how much, and the shape of the curve over ordered values.

Values are compared where everything else is the same: within a seed and a setting of the other axes, of which only those count
that have finished at every value. Differences are averaged over the settings of the other axes first and over seeds after, so
an interval is over seeds (`seeds`); with one seed it is over held-out documents (`statistics`). An average over other axes
hides where they interact; the figure shows them apart.

Suffixes: N held-out documents, 2 the pair (bytes, bits).
"""

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Member
from limbeck.report.comparisons import Over
from limbeck.report.seeds import Spread, mean_estimate, spread
from limbeck.report.statistics import Estimate, paired_difference

Shape = Literal["flat", "falling", "rising", "U-shaped", "one best", "unclear", "unknown"]
Block = tuple[str, Hashable]
"""A setting of the other axes and a seed."""


@dataclass(frozen=True)
class Value:
    """One value of an axis; `bits` over seeds, each a mean over the settings of the other axes."""

    value: Any
    bits: Spread
    minus_best: Estimate | None
    """None for the best itself."""


@dataclass(frozen=True)
class AxisFinding:
    """What an axis shows. `values` are in order: ascending numbers, or as they came."""

    title: str
    values: tuple[Value, ...]
    best: int
    """Its place among the values."""
    shape: Shape
    over: Over
    seeds: int
    settings: int
    """Of the other axes, over which the values are averaged."""
    lost: tuple[Any, ...]
    """Values at which no run has finished."""
    intervals: int = 0
    """Of the differences between any two values, how many have one."""

    @property
    def second(self) -> int:
        """The place of the value with the next fewest bits."""
        others = [place for place in range(len(self.values)) if place != self.best]
        return min(others, key=lambda place: self.values[place].bits.mean)


@dataclass(frozen=True)
class AxisOf:
    """An axis of the arms of one base, which all have a value on it and on the base's other axes."""

    axis: str
    base: str
    """Empty where a study has one."""
    arms: tuple[Arm, ...]

    @property
    def title(self) -> str:
        """`kd: lr`."""
        return f"{self.base}: {self.axis}" if self.base else self.axis


def axes_of(arms: Arms) -> list[AxisOf]:
    """Every axis of every base on which its arms take different values, in the order in which they come.

    Of a base's arms those count that have a value on all of its axes: controls that cells share have not.
    """
    by_base: dict[str, list[Arm]] = {}
    for arm in arms:
        by_base.setdefault(arm.members[0].cell.base, []).append(arm)
    found = []
    several = sum(any(arm.settings for arm in inside) for inside in by_base.values()) > 1
    for base, inside in by_base.items():
        names = dict.fromkeys(name for arm in inside for name in arm.settings)
        placed = tuple(arm for arm in inside if names and all(name in arm.settings for name in names))
        varied = [name for name in names if len({key_of(arm.settings[name]) for arm in placed}) > 1]
        found += [AxisOf(name, base if several else "", placed) for name in varied]
    return found


def split(placed: AxisOf) -> list[AxisOf]:
    """The same axis at every setting of the other axes, apart; its titles name the setting."""
    settings: dict[str, list[Arm]] = {}
    for arm in placed.arms:
        settings.setdefault(formats.pairs(other_settings(arm, placed.axis)), []).append(arm)
    return [AxisOf(placed.axis, setting, tuple(inside)) for setting, inside in settings.items()]


def key_of(value: Any) -> str:
    """A value of an axis as something to compare: lists and mappings too."""
    return json.dumps(value, sort_keys=True, default=str)


def other_settings(arm: Arm, axis: str) -> Mapping[str, Any]:
    """The arm's values on the other axes."""
    return {name: value for name, value in arm.settings.items() if name != axis}


def ordered(values: Sequence[Any]) -> list[Any]:
    """Numbers ascending, anything else as it came; each once."""
    distinct = list({key_of(value): value for value in values}.values())
    return sorted(distinct) if all(is_number(value) for value in distinct) else distinct


def is_number(value: Any) -> bool:
    """Whether a value lies on a line; true and false do not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def axis_finding(placed: AxisOf) -> AxisFinding | None:
    """What the finished cells say of an axis; None where fewer than two values share a seed and a setting."""
    axis = placed.axis
    cells: dict[str, dict[Block, Member]] = {}
    every = ordered([arm.settings[axis] for arm in placed.arms])
    for arm in placed.arms:
        setting = key_of(other_settings(arm, axis))
        for member in arm.finished:
            cells.setdefault(key_of(arm.settings[axis]), {})[setting, member.cell.seed] = member
    values = [value for value in every if key_of(value) in cells]
    blocks = sorted(set.intersection(*(set(found) for found in cells.values())), key=str) if cells else []
    if len(values) < 2 or not blocks:
        return None
    columns = [[cells[key_of(value)][block] for block in blocks] for value in values]
    lost = tuple(value for value in every if key_of(value) not in cells)
    return _found(placed.title, values, columns, blocks=blocks, lost=lost)


def _found(
    title: str, values: list[Any], columns: list[list[Member]], *, blocks: list[Block], lost: tuple[Any, ...]
) -> AxisFinding:
    seeds = list(dict.fromkeys(seed for _, seed in blocks))
    spreads = [_spread(column, blocks, seeds) for column in columns]
    pairwise: dict[tuple[int, int], Estimate] = {}
    over: Over = "nothing"
    for first, second in itertools.combinations(range(len(values)), 2):
        estimate, over = _difference(columns[first], columns[second], blocks, seeds)
        pairwise[first, second] = estimate
        pairwise[second, first] = _negative(estimate)
    best = min(range(len(values)), key=lambda place: spreads[place].mean)
    found = [
        Value(value, spreads[place], None if place == best else pairwise[place, best]) for place, value in enumerate(values)
    ]
    shape = shape_of([each.mean for each in spreads], pairwise, in_order=all(map(is_number, values)))
    intervals = sum(each.low is not None for each in pairwise.values()) // 2  # each stands in both directions
    settings = len({setting for setting, _ in blocks})
    return AxisFinding(title, tuple(found), best, shape, over, len(seeds), settings, lost, intervals)


def shape_of(means: Sequence[float], pairwise: Mapping[tuple[int, int], Estimate], *, in_order: bool) -> Shape:
    """The shape over values in order, or, of values without one, whether one is best.

    Flat: every pairwise interval contains zero. U-shaped: the best is inside and both its neighbours are worse by more than
    their interval. Falling and rising: every step goes that way, and the ends differ by more than their interval. One best:
    it is ahead of every other by more than the interval. Otherwise the shape is unclear, and without intervals unknown.
    """
    if any(each.low is None or each.high is None for each in pairwise.values()):
        return "unknown"
    places, best = range(len(means)), min(range(len(means)), key=means.__getitem__)
    clear = {pair: each.low is not None and each.low > 0 for pair, each in pairwise.items()}
    if not any(clear.values()):
        return "flat"
    if in_order and len(means) > 2:
        steps, last = np.diff(means), len(means) - 1
        if 0 < best < last and clear[best - 1, best] and clear[best + 1, best]:
            return "U-shaped"
        if (steps < 0).all() and clear[0, last]:
            return "falling"
        if (steps > 0).all() and clear[last, 0]:
            return "rising"
    return "one best" if all(clear[place, best] for place in places if place != best) else "unclear"


def _by_seed(column: Sequence[Member], blocks: Sequence[Block], seeds: Sequence[Hashable]) -> list[float]:
    """The mean bits per byte of every seed over the settings of the other axes."""
    return [
        float(np.mean([member.bits_per_byte for member, (_, at) in zip(column, blocks, strict=True) if at == seed]))
        for seed in seeds
    ]


def _spread(column: Sequence[Member], blocks: Sequence[Block], seeds: Sequence[Hashable]) -> Spread:
    found = spread(_by_seed(column, blocks, seeds))
    assert found is not None, "a finding has at least one block"
    return found


def _difference(
    one: Sequence[Member], other: Sequence[Member], blocks: Sequence[Block], seeds: Sequence[Hashable]
) -> tuple[Estimate, Over]:
    mine, theirs = (np.array(_by_seed(column, blocks, seeds)) for column in (one, other))
    if len(seeds) > 1:
        return mean_estimate((mine - theirs).tolist()), "seeds"
    pooled_N2 = [_mean_documents(column) for column in (one, other)]
    if pooled_N2[0] is None or pooled_N2[1] is None or not np.array_equal(pooled_N2[0][:, 0], pooled_N2[1][:, 0]):
        return Estimate(float(mine[0] - theirs[0])), "nothing"
    return paired_difference(pooled_N2[0], pooled_N2[1]), "documents"


def _mean_documents(column: Sequence[Member]) -> np.ndarray | None:
    """(bytes, bits) of every document, the bits averaged over cells; None where cells do not share their documents."""
    kept = [member.documents for member in column if member.documents is not None]
    if len(kept) < len(column) or any(not np.array_equal(each[:, 0], kept[0][:, 0]) for each in kept) or len(kept[0]) < 2:
        return None
    return np.mean(kept, axis=0)


def _negative(estimate: Estimate) -> Estimate:
    low, high = estimate.low, estimate.high
    return Estimate(-estimate.value, None if high is None else -high, None if low is None else -low)
