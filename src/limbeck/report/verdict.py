"""The verdict in words, computed from the numbers, for any outcome: ahead, behind, no difference, or nothing to compare.

The best arm is the one with the fewest held-out bits per byte among the finished arms that learn from a teacher. "Ahead" and
"behind" need an interval that excludes zero. At equal seconds and FLOPs there is no interval, since documents are measured
one by one at the end only; there the half-width of the final interval serves as the yardstick for "no difference".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.report import formats
from limbeck.report.arms import Arm, Axis, EqualCost, difference, equal_cost, reads, same, same_heldout
from limbeck.report.statistics import Estimate

Outcome = Literal["ahead", "behind", "level", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """A headline, the paragraphs under it, and the outcome at the end of the runs."""

    outcome: Outcome
    headline: str
    paragraphs: tuple[str, ...]


def best_arm(arms: Sequence[Arm]) -> Arm | None:
    """The finished arm with a teacher that has the fewest bits per byte."""
    taught = [(arm.bits_per_byte, arm) for arm in arms if arm.has_teacher and arm.bits_per_byte is not None]
    return min(taught, key=lambda pair: pair[0])[1] if taught else None


def outcome_of(value: Estimate | None) -> Outcome:
    """Where a difference to the control lies relative to zero."""
    if value is None or value.low is None or value.high is None:
        return "unknown"
    if value.high < 0:
        return "ahead"
    return "behind" if value.low > 0 else "level"


def outcome_at(point: EqualCost, yardstick: float | None) -> Outcome:
    """Where a difference at equal cost lies relative to plus or minus the yardstick."""
    if point.difference is None or yardstick is None:
        return "unknown"
    if abs(point.difference) <= yardstick:
        return "level"
    return "ahead" if point.difference < 0 else "behind"


def decide(arms: Sequence[Arm], *, control: Arm, stores: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on the best arm against the control."""
    best = best_arm(arms)
    if not control.finished:
        return Verdict("unknown", "Nothing to compare yet", (f"The control “{control.name}” is {control.status}.",))
    if best is None:
        return Verdict("unknown", "Nothing to compare yet", ("No arm that learns from a teacher has finished.",))
    if not same_heldout(best, control):
        sentence = (
            f"“{best.name}” and the control “{control.name}” were measured on different held-out documents, "
            "so their bits per byte do not compare."
        )
        return Verdict("unknown", "Not comparable", (sentence,))
    final = difference(best, control)
    assert final is not None, "both are finished and share their documents"
    paragraphs = (
        f"{_final_sentence(best, control, final)} {_tally_sentence(arms, control)}".strip(),
        f"{_cost_sentence(best, control)} {_scoring_sentence(best, stores)}".strip(),
        _equal_sentence(best, control, "seconds", final),
        _equal_sentence(best, control, "all_flops", final),
    )
    outcome = outcome_of(final)
    return Verdict(outcome, f"{_HEADLINES[outcome]} {_scope(best, control)}", paragraphs)


_HEADLINES: dict[Outcome, str] = {
    "ahead": "Distillation is ahead of the control",
    "behind": "Distillation is behind the control",
    "level": "No difference between distillation and the control can be told",
    "unknown": "Whether distillation differs from the control cannot be told",
}


def _scope(best: Arm, control: Arm) -> str:
    for key, words in (("tokens", "tokens"), ("seconds", "seconds"), ("student_flops", "student FLOPs")):
        if same(best.summary[key], control.summary[key]):
            return f"at equal {words}"
    return "at the end of unequal budgets"


def _final_sentence(best: Arm, control: Arm, final: Estimate) -> str:
    documents, tokens = best.summary.get("heldout_documents"), best.summary["tokens"]
    budget = "as many" if tokens == control.summary["tokens"] else formats.count(control.summary["tokens"])
    texts = formats.plural(documents, "held-out document") if documents else "the held-out documents"
    opening = (
        f"On {texts}, “{best.name}”, the best arm with a teacher, needs {formats.fixed(best.bits_per_byte)} bits per byte "
        f"after {formats.count(tokens)} tokens; the control “{control.name}” needs "
        f"{formats.fixed(control.bits_per_byte)} after {budget}."
    )
    difference_words = f"The difference is {formats.signed(final.value)} bits per byte"
    if final.low is None or final.high is None:
        return (
            f"{opening} {difference_words}; fewer than two documents were kept one by one, so it has no interval "
            "and whether it is more than chance cannot be told."
        )
    span = f"95% interval over documents {formats.signed(final.low)} to {formats.signed(final.high)}"
    meaning = {
        "ahead": "the interval excludes zero, so the distilled student is better on documents like these",
        "behind": "the interval excludes zero, so the distilled student is worse on documents like these",
        "level": "the interval contains zero, so no difference can be told",
    }[outcome_of(final)]
    return f"{opening} {difference_words} ({span}): {meaning}."


def _tally_sentence(arms: Sequence[Arm], control: Arm) -> str:
    taught = [arm for arm in arms if arm.has_teacher]
    if len(taught) < 2:
        return ""
    outcomes = [outcome_of(difference(arm, control)) for arm in taught]
    named: dict[Outcome, str] = {
        "ahead": "ahead",
        "behind": "behind",
        "level": "not told apart",
        "unknown": "without a verdict",
    }
    parts = [f"{outcomes.count(outcome)} {words}" for outcome, words in named.items() if outcome in outcomes]
    return f"Of {len(taught)} arms with a teacher, against the control: {', '.join(parts)}."


def _cost_sentence(best: Arm, control: Arm) -> str:
    mine, theirs = best.summary, control.summary
    together = mine["student_flops"] + mine["teacher_flops"]
    return (
        f"It trained for {formats.seconds(mine['seconds'])} against {formats.seconds(theirs['seconds'])} "
        f"({formats.ratio(mine['seconds'], theirs['seconds'])}) and spent {formats.power(mine['student_flops'])} student FLOPs "
        f"against {formats.power(theirs['student_flops'])} ({formats.ratio(mine['student_flops'], theirs['student_flops'])}); "
        f"with the teacher’s {formats.power(mine['teacher_flops'])} FLOPs added it spent "
        f"{formats.ratio(together, theirs['student_flops'] + theirs['teacher_flops'])} the control’s."
    )


def _scoring_sentence(best: Arm, stores: Sequence[Mapping[str, Any]]) -> str:
    if best.run is None or not best.run.recipe.uses_store:
        return ""
    store = next((store for store in stores if reads(best, store)), None)
    speed = store.get("scoring_tokens_per_second") if store is not None else None
    if store is None or not speed:
        return "These seconds leave out the scoring of the signal store."
    took = formats.seconds(store["tokens"] / speed)
    return f"These seconds leave out the scoring of the signal store, which took about {took}."


_EQUAL: dict[Axis, str] = {
    "tokens": "tokens",
    "seconds": "training seconds",
    "student_flops": "student FLOPs",
    "all_flops": "FLOPs with the teacher counted",
}


def cost_text(axis: Axis, value: float) -> str:
    """A cost with its unit."""
    match axis:
        case "tokens":
            return f"{formats.count(value)} tokens"
        case "seconds":
            return formats.seconds(value)
        case _:
            return f"{formats.power(value)} FLOPs"


def _equal_sentence(best: Arm, control: Arm, axis: Axis, final: Estimate) -> str:
    point = equal_cost(best, control, axis)
    if point.read_early == "neither":
        return f"Both spent the same {_EQUAL[axis]}, so at equal {_EQUAL[axis]} the comparison is the one above."
    if point.difference is None:
        return _no_overlap(best, control, axis)
    outcome = outcome_at(point, final.half_width)
    conclusion = {
        "ahead": "the control does not catch up",
        "behind": "the control is ahead",
        "level": "no difference can be told",
        "unknown": "there is no interval to judge that by",
    }[outcome]
    early, late = (f"“{best.name}”", "the control’s end") if point.read_early == "arm" else ("the control", "its end")
    return (
        f"At equal {_EQUAL[axis]} ({cost_text(axis, point.at)}, {late}), “{best.name}” stands at {formats.fixed(point.arm)} "
        f"and the control at {formats.fixed(point.control)} ({formats.signed(point.difference)}): {conclusion}. "
        f"There {early} is read in the middle of its run, between two measurements and before its learning rate has decayed, "
        "which counts against it."
    )


def _no_overlap(best: Arm, control: Arm, axis: Axis) -> str:
    point = equal_cost(best, control, axis)
    late, early = (best, control) if point.read_early == "arm" else (control, best)
    first = float(late.curve(axis).costs[0])
    return (
        f"At equal {_EQUAL[axis]} nothing can be said: the curves do not overlap, since “{late.name}” is first measured at "
        f"{cost_text(axis, first)} and “{early.name}” ends at {cost_text(axis, point.at)}."
    )
