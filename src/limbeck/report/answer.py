"""The answer of a study in sentences computed from its numbers: who is ahead on which basis, and what every axis shows.

"Ahead" and "behind" need a 95 % interval that excludes zero; what the interval is over stands beside every number.
"""

from collections.abc import Sequence
from typing import Literal

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms
from limbeck.report.axes import AxisFinding
from limbeck.report.blocks import Answer, Bullets
from limbeck.report.cells import StudyView
from limbeck.report.comparisons import BASES, Comparison, Outcome, basis_words
from limbeck.report.verdict import best_arm, verdict_on

Group = Literal["ahead", "behind", "level", "unknown", "no number"]
_GROUPS: dict[Group, str] = {
    "ahead": "ahead",
    "behind": "behind",
    "level": "cannot be told apart",
    "unknown": "without an interval",
    "no number": "no number",
}
_MOST_NAMED = 12
_MOST_REFERENCES = 2
_MOST_AXES = 3


def answer(view: StudyView, arms: Arms, *, found: Sequence[Comparison], axes: Sequence[AxisFinding]) -> Answer:
    """The headline and the paragraphs under it."""
    against_controls = [each for each in found if each.role == "control"]
    best = best_arm([each.arm for each in against_controls])
    if best is not None:
        verdict = verdict_on(best, arms, found=found, stores=view.stores)
        references = {each.against for each in against_controls if each.difference is not None}
        if len(references) > 1 and verdict.outcome != "unknown":
            return Answer(verdict.outcome, _tally(against_controls, arms), verdict.paragraphs)
        return verdict
    if against_controls:
        return _without_best(against_controls, arms)
    if any(each.difference is not None for each in found):
        return Answer(_common(found), _tally(found, arms), ())
    if found:
        return Answer("unknown", "Nothing to compare yet", (_why_nothing(found),))
    return _without_comparison(arms, axes)


def _without_best(found: Sequence[Comparison], arms: Arms) -> Answer:
    """Where arms have controls and none that learns from a teacher has finished."""
    if any(each.difference is not None for each in found):
        return Answer(_common(found), _tally(found, arms), ())
    return Answer("unknown", "Nothing to compare yet", ("No arm that learns from a teacher has finished.", _why_nothing(found)))


def _why_nothing(found: Sequence[Comparison]) -> str:
    reasons = dict.fromkeys(f"“{each.arm.name}”: {each.why}" for each in found)
    named = "; ".join(list(reasons)[:_MOST_NAMED])
    return f"{named}{'; …' if len(reasons) > _MOST_NAMED else ''}."


def _without_comparison(arms: Arms, axes: Sequence[AxisFinding]) -> Answer:
    told = [axis for axis in axes if axis.shape not in ("unknown", "unclear", "flat")][:_MOST_AXES]
    if told:
        best = "; ".join(f"{axis.title} = {formats.pairs(axis.values[axis.best].value)}" for axis in told)
        return Answer("level", f"Best: {best}", ())
    if any(axis.shape == "flat" for axis in axes):
        return Answer("level", "No value of an axis can be told from the best", ())
    ended = [arm for arm in arms if arm.bits is not None]
    if not ended:
        return Answer("unknown", "Nothing has finished yet", (f"{formats.plural(len(arms.members), 'run')}, none finished.",))
    sentences = tuple(_alone(arm) for arm in sorted(ended, key=lambda arm: arm.bits.mean if arm.bits else 0.0)[:_MOST_NAMED])
    return Answer(
        "unknown", "Nothing stands beside these runs to compare them with" if len(ended) > 1 else _one(arms), sentences
    )


def _one(arms: Arms) -> str:
    return "One arm, and nothing to compare it with" if len(arms) == 1 else "One arm has finished"


def _alone(arm: Arm) -> str:
    tokens = formats.count(arm.spent("tokens"))
    return f"“{arm.name}” needs {formats.spread(arm.bits)} bits per byte after {tokens} tokens ({_seeds(len(arm.finished))})."


def _common(found: Sequence[Comparison]) -> Outcome:
    """The one outcome of all clear comparisons on the first basis with a number; 'level' where they point both ways."""
    clear = {each.outcome for each in _on_first_basis(found)} & {"ahead", "behind"}
    return next(iter(clear)) if len(clear) == 1 else "level"


def _on_first_basis(found: Sequence[Comparison]) -> list[Comparison]:
    basis = next(
        (basis for basis in BASES if any(each.basis == basis and each.difference is not None for each in found)), "tokens"
    )
    return [each for each in found if each.basis == basis]


def _tally(found: Sequence[Comparison], arms: Arms) -> str:
    """`Of 8 arms, 3 are ahead of “base” at equal tokens, 4 behind, 1 cannot be told apart`."""
    chosen = _on_first_basis(found)
    basis = basis_words(chosen[0].basis, arms)
    against = list(dict.fromkeys(each.against for each in chosen))
    other = (
        f"“{against[0]}”" if len(against) == 1 else "their controls" if chosen[0].role == "control" else "their counterparts"
    )
    if len(chosen) == 1:
        words = {
            "ahead": "is ahead of",
            "behind": "is behind",
            "level": "cannot be told from",
            "unknown": "has no verdict against",
        }
        return f"“{chosen[0].arm.name}” {words[chosen[0].outcome]} {other} at equal {basis}"
    counts = {group: sum(_group(each) == group for each in chosen) for group in _GROUPS}
    words = {"ahead": f"ahead of {other}", "behind": f"behind {other}", "level": "cannot be told apart"}
    words |= {"unknown": "without an interval", "no number": "without a number"}
    parts = [f"{counts[group]} {words[group]}" for group in _GROUPS if counts[group]]
    return f"Of {len(chosen)} arms at equal {basis}: {', '.join(parts)}"


def _group(comparison: Comparison) -> Group:
    return "no number" if comparison.difference is None else comparison.outcome


def basis_sentences(found: Sequence[Comparison], arms: Arms) -> Bullets | None:
    """For every basis and what arms are held against, who is ahead, behind and neither, each with its number."""
    items = []
    for basis in BASES:
        for role in ("control", "arm"):
            inside = [each for each in found if each.basis == basis and each.role == role]
            names = list(dict.fromkeys(each.against for each in inside))
            if len(names) > _MOST_REFERENCES:
                items.append(_basis_sentence(inside, arms))
            else:
                items += [_basis_sentence([each for each in inside if each.against == name], arms) for name in names]
    return Bullets(tuple(items)) if items else None


def _basis_sentence(found: Sequence[Comparison], arms: Arms) -> str:
    first = found[0]
    kinds = {
        ("control", True): "the control ",
        ("arm", True): "",
        ("control", False): "their controls",
        ("arm", False): "others",
    }
    one = len({each.against for each in found}) == 1
    against = kinds[first.role, one] + (f"“{first.against}”" if one else "")
    over = {each.basis_of_interval for each in found if each.difference is not None}
    shared = f" (95% intervals over {over.pop()})" if len(over) == 1 else ""
    parts = []
    for group, words in _GROUPS.items():
        inside = [each for each in found if _group(each) == group]
        inside.sort(key=lambda each: each.difference.value if each.difference is not None else 0.0)
        if inside:
            parts.append(f"{words}: {', '.join(_with_number(each, alone=not shared) for each in inside)}")
    return f"At equal {basis_words(first.basis, arms)}, against {against}{shared}. {_capital('; '.join(parts))}."


def _with_number(comparison: Comparison, *, alone: bool) -> str:
    if comparison.difference is None:
        return f"“{comparison.arm.name}” ({comparison.why})"
    numbers = formats.interval(comparison.difference, sign=True)
    return f"“{comparison.arm.name}” {numbers}{f' ({comparison.basis_of_interval})' if alone else ''}"


def axis_sentence(finding: AxisFinding) -> str:
    """What an axis shows: the best value and by how much, and the shape."""
    best, second = finding.values[finding.best], finding.values[finding.second]
    over = _seeds(finding.seeds) if finding.over != "documents" else "1 seed; intervals over documents"
    averaged = f", averaged over {finding.settings} settings of the other axes" if finding.settings > 1 else ""
    opening = (
        f"{finding.title} ({over}{averaged}): the fewest bits per byte, {formats.spread(best.bits)}, at "
        f"{formats.pairs(best.value)}; the next, {formats.pairs(second.value)}, is "
        f"{formats.interval(second.minus_best, sign=True)} from it."
    )
    lost = f" No run has finished at {', '.join(map(formats.pairs, finding.lost))}." if finding.lost else ""
    return f"{opening} {_shape_sentence(finding)}{lost}"


def _shape_sentence(finding: AxisFinding) -> str:
    first, last = (formats.pairs(finding.values[place].value) for place in (0, -1))
    match finding.shape:
        case "flat":
            pairs = len(finding.values) * (len(finding.values) - 1) // 2
            return f"Flat: {_every(pairs)} contain{'s' if pairs == 1 else ''} zero, so no value can be told from another."
        case "U-shaped":
            neighbours = (formats.pairs(finding.values[finding.best + step].value) for step in (-1, 1))
            return f"U-shaped: both neighbours, {' and '.join(neighbours)}, are worse by more than their interval."
        case "falling":
            return f"Monotone: bits per byte fall at every step from {first} to {last}; the best may lie beyond {last}."
        case "rising":
            return f"Monotone: bits per byte rise at every step from {first} to {last}; the best may lie below {first}."
        case "one best":
            return "It is ahead of every other value by more than the interval."
        case "unclear":
            return "Some values can be told apart, but not the best from every other, and no monotone or U shape."
        case "unknown":
            return "Without intervals nothing more can be told."


def _every(pairs: int) -> str:
    return "the interval of the difference" if pairs == 1 else f"the intervals of all {pairs} pairwise differences"


def _seeds(number: int) -> str:
    return formats.plural(number, "seed")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
