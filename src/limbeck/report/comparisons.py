"""Arms held against others at an equal cost: at equal tokens, at equal seconds, at equal FLOPs with the teacher's added.

Differences are of the final bits per byte, seed by seed. Over two seeds or more their interval is Student's t (`seeds`); with
one it is the paired bootstrap over held-out documents (`statistics`), which knows nothing of other seeds. A comparison says
which it is. Costs that differ by more than `SAME` are not equal, and there is no number then.

Where a study has no control of equal cost, `equal_reading` reads two curves at the same cost by straight lines between
measurements and never beyond them. The one that is read before its end is read before its learning rate has decayed, and a
straight line lies above a convex curve: both count against it, so the result says which one it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from limbeck.report.arms import Arm, Arms, Cost, Member, same, same_heldout
from limbeck.report.seeds import mean_estimate
from limbeck.report.statistics import Estimate, interpolate, paired_difference
from limbeck.spec.study import Basis

BASES: tuple[Basis, ...] = get_args(Basis)
Outcome = Literal["ahead", "behind", "level", "unknown"]
Over = Literal["seeds", "documents", "nothing"]
"""What an interval is over."""
Pair = tuple[Member, Member]
"""A cell and what it is held against."""


@dataclass(frozen=True)
class Comparison:
    """An arm minus another on one basis, in bits per byte; negative is better."""

    arm: Arm
    against: str
    """The other arm's name."""
    basis: Basis
    role: Literal["control", "arm"]
    difference: Estimate | None
    over: Over
    by_seed: tuple[tuple[int | None, float], ...]
    """The seed and the difference of every pair that counts."""
    why: str
    """Why there is no number, or no interval; empty where there are both."""

    @property
    def outcome(self) -> Outcome:
        """Where the interval lies relative to zero."""
        return outcome_of(self.difference)

    @property
    def basis_of_interval(self) -> str:
        """`3 seeds`, `1 seed: 87 documents`, or a dash."""
        match self.over:
            case "seeds":
                return f"{len(self.by_seed)} seeds"
            case "documents":
                return "1 seed; documents"
            case "nothing":
                return "–" if not self.by_seed else f"{len(self.by_seed)} seed{'s' if len(self.by_seed) > 1 else ''}; none"


def outcome_of(value: Estimate | None) -> Outcome:
    """Where a difference lies relative to zero."""
    if value is None or value.low is None or value.high is None:
        return "unknown"
    if value.high < 0:
        return "ahead"
    return "behind" if value.low > 0 else "level"


def basis_words(basis: Basis, arms: Arms) -> str:
    """What is held equal, in words."""
    if basis != "flops":
        return {"tokens": "tokens", "seconds": "training seconds"}[basis]
    if not any(member.has_teacher for member in arms.members):
        return "FLOPs"
    match arms.teacher_share:
        case 0:
            return "FLOPs of the student"
        case 1:
            return "FLOPs, the teacher’s counted"
        case share:
            return f"FLOPs, the teacher’s counted to {share:.0%}"


def comparisons(arms: Arms) -> list[Comparison]:
    """Every arm against its controls, and against the arm that its study names, on every basis that they have."""
    found: list[Comparison] = []
    for arm in arms:
        for basis in BASES:
            pairs = control_pairs(arm, arms, basis)
            if pairs:
                found.append(_compare(arm, pairs, basis, arms=arms, role="control"))
        if arm.members[0].cell.compared_with is not None:
            other = arms.named(arm.members[0].cell.compared_with)
            pairs = seed_pairs(arm, other)
            found += [_compare(arm, pairs, basis, arms=arms, role="arm", against=other.name) for basis in BASES]
    return found


def control_pairs(arm: Arm, arms: Arms, basis: Basis) -> list[Pair]:
    """Every member with its control on this basis."""
    named = [(member, member.cell.controls.get(basis)) for member in arm.members]
    return [(member, arms.by_cell[name]) for member, name in named if name is not None]


def seed_pairs(arm: Arm, other: Arm) -> list[Pair]:
    """The members of two arms that share a seed."""
    by_seed = {member.cell.seed: member for member in other.members}
    return [(member, by_seed[member.cell.seed]) for member in arm.members if member.cell.seed in by_seed]


def nearest_pairs(arm: Arm, arms: Arms) -> list[Pair]:
    """The pairs of the first basis on which the arm has a control, or those with the arm that it is compared with."""
    for basis in BASES:
        if pairs := control_pairs(arm, arms, basis):
            return pairs
    other = arm.members[0].cell.compared_with
    return seed_pairs(arm, arms.named(other)) if other is not None else []


def _compare(
    arm: Arm, pairs: Sequence[Pair], basis: Basis, *, arms: Arms, role: Literal["control", "arm"], against: str = ""
) -> Comparison:
    against = against or ", ".join(dict.fromkeys(other.cell.arm for _, other in pairs))
    problems = [_problem(member, other) for member, other in pairs]
    sound = [pair for pair, problem in zip(pairs, problems, strict=True) if not problem]
    ratios = [_cost_ratio(pair, basis, arms) for pair in sound]
    usable = [pair for pair, ratio in zip(sound, ratios, strict=True) if same(ratio, 1.0, tolerance=arms.tolerance)]
    value, over, why = paired(usable)
    if value is None:
        reasons = [*([f"unequal, {_range(ratios)}"] if ratios else []), *filter(None, problems)]
        why = "; ".join(dict.fromkeys(reasons)) or "no seed in common"
    by_seed = tuple((member.cell.seed, _bits(member) - _bits(other)) for member, other in usable)
    return Comparison(arm, against, basis, role, value, over, by_seed, why)


def paired(pairs: Sequence[Pair]) -> tuple[Estimate | None, Over, str]:
    """The mean difference of finished pairs, what its interval is over, and why it has none."""
    if not pairs:
        return None, "nothing", ""
    differences = [_bits(member) - _bits(other) for member, other in pairs]
    if len(pairs) == 1:
        return _over_documents(*pairs[0])
    if len({other.name for _, other in pairs}) < len(pairs):
        return (
            Estimate(float(np.mean(differences))),
            "nothing",
            "seeds share one control, so their differences are not independent",
        )
    return mean_estimate(differences), "seeds", ""


def _over_documents(member: Member, other: Member) -> tuple[Estimate, Over, str]:
    if member.documents is None or other.documents is None or len(member.documents) < 2:
        return Estimate(_bits(member) - _bits(other)), "nothing", "one seed, and no documents kept one by one"
    return paired_difference(member.documents, other.documents), "documents", ""


def _range(ratios: Sequence[float]) -> str:
    """`1.31×`, or `0.81× to 1.38×` where seeds differ."""
    low, high = f"{min(ratios):.2f}×", f"{max(ratios):.2f}×"
    return low if low == high else f"{low} to {high}"


def _cost_ratio(pair: Pair, basis: Basis, arms: Arms) -> float:
    """What a cell has spent on a basis over what the other has."""
    mine, theirs = (_spent(member, basis, teacher_share=arms.teacher_share) for member in pair)
    return mine / theirs if theirs else math.inf if mine else 1.0


def _spent(member: Member, basis: Basis, *, teacher_share: float) -> float:
    if basis != "flops":
        return float(member.summary[basis])
    return float(member.summary["student_flops"]) + teacher_share * float(member.summary["teacher_flops"])


def cost_words(pairs: Sequence[Pair], arms: Arms) -> str:
    """On which bases finished cells have spent as much as the others; where on none, their ratios: `1.50× tokens, …`."""
    ratios = {basis: [_cost_ratio(pair, basis, arms) for pair in pairs] for basis in BASES}
    words = {basis: basis_words(basis, arms) for basis in BASES}
    equal = [basis for basis in BASES if all(same(ratio, 1.0, tolerance=arms.tolerance) for ratio in ratios[basis])]
    if equal:
        return f"equal {'; '.join(words[basis] for basis in equal)}"
    return f"unequal: {'; '.join(f'{_range(ratios[basis])} {words[basis]}' for basis in BASES)}"


def _problem(member: Member, other: Member) -> str:
    """Why two cells do not compare, whatever they have spent; empty where they do."""
    if not member.finished:
        return member.status
    if not other.finished:
        return f"“{other.name}” is {other.status}"
    if not same_heldout(member, other):
        return "measured on other documents"
    return ""


def _bits(member: Member) -> float:
    assert member.bits_per_byte is not None, "only finished cells are subtracted"
    return member.bits_per_byte


@dataclass(frozen=True)
class EqualReading:
    """Two arms read at one cost, where the one that ends first ends; means over the pairs that overlap there."""

    at: float
    arm: float | None
    control: float | None
    difference: Estimate | None
    """Over seeds; without an interval of one pair, or where seeds share a control; None where no curves overlap."""
    read_early: Literal["arm", "control", "neither"]
    """Whose values come from inside their curves rather than from their ends."""
    pairs: int = 1
    """That overlap, over which the numbers are means."""


def equal_reading(pairs: Sequence[Pair], cost: Cost, *, arms: Arms) -> EqualReading | None:
    """Finished pairs, measured on the same documents, at the largest cost that both have spent; None without such pairs.

    `arms` say which costs count as equal, and how much of the teacher's FLOPs counts.
    """
    usable = [pair for pair in pairs if pair[0].finished and pair[1].finished and same_heldout(*pair)]
    if not usable:
        return None
    readings = [_read(pair, cost, arms=arms) for pair in usable]
    at = float(np.mean([reading.at for reading in readings]))
    overlapping = [
        (one.arm, one.control, other.name)
        for one, (_, other) in zip(readings, usable, strict=True)
        if one.arm is not None and one.control is not None
    ]
    if not overlapping:
        return EqualReading(at, None, None, None, readings[0].read_early)
    mine, theirs = (float(np.mean([each[side] for each in overlapping])) for side in (0, 1))
    independent = len({name for *_, name in overlapping}) == len(overlapping)
    early = [reading.read_early for reading in readings]
    return EqualReading(
        at=at,
        arm=mine,
        control=theirs,
        difference=mean_estimate([first - second for first, second, _ in overlapping])
        if independent
        else Estimate(mine - theirs),
        read_early=max(("arm", "control", "neither"), key=early.count),
        pairs=len(overlapping),
    )


def _read(pair: Pair, cost: Cost, *, arms: Arms) -> EqualReading:
    mine, theirs = (member.curve(cost, teacher_share=arms.teacher_share) for member in pair)
    my_end, their_end = float(mine.costs[-1]), float(theirs.costs[-1])
    if same(my_end, their_end, tolerance=arms.tolerance):
        return EqualReading(their_end, float(mine.values[-1]), float(theirs.values[-1]), None, "neither")
    at = min(my_end, their_end)
    return EqualReading(
        at=at,
        arm=interpolate(mine.costs, mine.values, at=at),
        control=interpolate(theirs.costs, theirs.values, at=at),
        difference=None,
        read_early="arm" if their_end < my_end else "control",
    )


def outcome_at(reading: EqualReading, yardstick: float | None) -> Outcome:
    """Of a reading: by its interval over seeds; of one pair relative to plus or minus the yardstick, if there is one."""
    if reading.difference is None:
        return "unknown"
    if reading.difference.low is not None:
        return outcome_of(reading.difference)
    if yardstick is None or reading.pairs > 1:
        return "unknown"
    if abs(reading.difference.value) <= yardstick:
        return "level"
    return "ahead" if reading.difference.value < 0 else "behind"
