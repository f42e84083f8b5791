"""The best arm against its control in words, computed from the numbers, for any outcome: ahead, behind, no difference, nothing.

The best arm is the one with the fewest held-out bits per byte among those that learn from a teacher. "Ahead" and "behind" need
an interval that excludes zero. Where the study has no control of equal seconds or FLOPs, the curves are read at an equal cost;
with one seed there is no interval there, since documents are measured one by one at the end only, and the half-width of the
final interval serves as the yardstick for "no difference".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Cost, Member, cost_of, reads, same, same_heldout
from limbeck.report.blocks import Answer
from limbeck.report.comparisons import (
    Comparison,
    EqualReading,
    Outcome,
    Over,
    Pair,
    basis_words,
    equal_reading,
    nearest_pairs,
    outcome_at,
    outcome_of,
    paired,
)
from limbeck.report.statistics import Estimate
from limbeck.spec.study import Basis


def best_arm(arms: Sequence[Arm]) -> Arm | None:
    """The arm with a teacher that has the fewest bits per byte, the mean over its finished seeds."""
    taught = [(arm.bits.mean, arm) for arm in arms if arm.has_teacher and arm.bits is not None]
    return min(taught, key=lambda pair: pair[0])[1] if taught else None


def verdict_on(best: Arm, arms: Arms, *, found: Sequence[Comparison], stores: Sequence[Mapping[str, Any]]) -> Answer:
    """The verdict on the best taught arm against its control."""
    pairs = [pair for pair in nearest_pairs(best, arms) if pair[0].finished]
    if not any(other.finished for _, other in pairs):
        words = "; ".join(dict.fromkeys(f"The control “{other.name}” is {other.status}" for _, other in pairs))
        return Answer(
            "unknown", "Nothing to compare yet", (f"{words or 'No arm with a teacher has finished beside its control'}.",)
        )
    usable = [pair for pair in pairs if pair[1].finished and same_heldout(*pair)]
    if not usable:
        member, other = pairs[0]
        sentence = (
            f"“{member.name}” and the control “{other.name}” were measured on different held-out documents, "
            "so their bits per byte do not compare."
        )
        return Answer("unknown", "Not comparable", (sentence,))
    final, over, why = paired(usable)
    assert final is not None, "there is a usable pair"
    paragraphs = (
        f"{_final_sentence(best, usable, final, over, why, tolerance=arms.tolerance)} {_tally_sentence(arms, found)}".strip(),
        f"{_cost_sentence(usable)} {_scoring_sentence(best.first, stores)}".strip(),
        *_equal_sentences(best, arms, usable, final),
    )
    outcome = outcome_of(final)
    return Answer(outcome, f"{_HEADLINES[outcome]} {_scope(usable, arms)}", paragraphs)


_HEADLINES: dict[Outcome, str] = {
    "ahead": "Distillation is ahead of the control",
    "behind": "Distillation is behind the control",
    "level": "No difference between distillation and the control can be told",
    "unknown": "Whether distillation differs from the control cannot be told",
}


def _scope(pairs: Sequence[Pair], arms: Arms) -> str:
    costs: tuple[tuple[Cost, str], ...] = (
        ("tokens", "tokens"),
        ("seconds", "seconds"),
        ("all_flops", "FLOPs" if arms.teacher_share == 1 else basis_words("flops", arms)),
        ("student_flops", "student FLOPs"),
    )
    for cost, words in costs:
        spent = [[cost_of(each.summary, cost, teacher_share=arms.teacher_share) for each in pair] for pair in pairs]
        if all(same(mine, theirs, tolerance=arms.tolerance) for mine, theirs in spent):
            return f"at equal {words}"
    return "at the end of unequal budgets"


def _final_sentence(best: Arm, pairs: Sequence[Pair], final: Estimate, over: Over, why: str, *, tolerance: float) -> str:
    first, control = pairs[0]
    documents = first.summary.get("heldout_documents")
    texts = formats.plural(documents, "held-out document") if documents else "the held-out documents"
    mine, theirs = (_mean([pair[side] for pair in pairs], "tokens") for side in (0, 1))
    budget = "as many" if same(mine, theirs, tolerance=tolerance) else formats.count(theirs)
    opening = (
        f"On {texts}{_seeds_words(pairs)}, “{best.name}”, the best arm with a teacher, needs "
        f"{formats.fixed(_mean([pair[0] for pair in pairs], 'bits_per_byte'))} bits per byte after {formats.count(mine)} "
        f"tokens; the control “{control.cell.arm}” needs "
        f"{formats.fixed(_mean([pair[1] for pair in pairs], 'bits_per_byte'))} after {budget}."
    )
    words = f"The difference is {formats.signed(final.value)} bits per byte"
    if final.low is None or final.high is None:
        return f"{opening} {words}; it has no interval ({why}), and whether it is more than chance cannot be told."
    span = f"95% interval over {over} {formats.signed(final.low)} to {formats.signed(final.high)}"
    like = "documents like these" if over == "documents" else "these documents, with seeds like these"
    meaning = {
        "ahead": f"the interval excludes zero, so the distilled student is better on {like}",
        "behind": f"the interval excludes zero, so the distilled student is worse on {like}",
        "level": "the interval contains zero, so no difference can be told",
    }[outcome_of(final)]
    return f"{opening} {words} ({span}): {meaning}."


def _seeds_words(pairs: Sequence[Pair]) -> str:
    return f", as a mean over {len(pairs)} seeds" if len(pairs) > 1 else ""


def _tally_sentence(arms: Arms, found: Sequence[Comparison]) -> str:
    taught = [arm for arm in arms if arm.has_teacher]
    if len(taught) < 2:
        return ""
    basis: Basis = next((each.basis for each in found if each.role == "control" and each.difference is not None), "tokens")
    outcomes = [each.outcome for each in found if each.role == "control" and each.basis == basis and each.arm.has_teacher]
    named: dict[Outcome, str] = {
        "ahead": "ahead",
        "behind": "behind",
        "level": "not told apart",
        "unknown": "without a verdict",
    }
    parts = [f"{outcomes.count(outcome)} {words}" for outcome, words in named.items() if outcome in outcomes]
    words = "tokens" if basis == "tokens" else _equal_words(_COST_OF[basis], arms)
    return f"Of {len(outcomes)} arms with a teacher, against the control at equal {words}: {', '.join(parts)}." if parts else ""


def _cost_sentence(pairs: Sequence[Pair]) -> str:
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def both(key: str) -> tuple[float, float]:
        return _mean(mine, key), _mean(theirs, key)

    (time, time_there), (flops, flops_there), (taught, taught_there) = map(both, ("seconds", "student_flops", "teacher_flops"))
    return (
        f"It trained for {formats.seconds(time)} against {formats.seconds(time_there)} "
        f"({formats.ratio(time, time_there)}) and spent {formats.power(flops)} student FLOPs "
        f"against {formats.power(flops_there)} ({formats.ratio(flops, flops_there)}); "
        f"with the teacher’s {formats.power(taught)} FLOPs added it spent "
        f"{formats.ratio(flops + taught, flops_there + taught_there)} the control’s."
    )


def _mean(members: Sequence[Member], key: str) -> float:
    return float(sum(member.summary[key] for member in members) / len(members))


def _scoring_sentence(best: Member, stores: Sequence[Mapping[str, Any]]) -> str:
    if best.run is None or not best.run.recipe.uses_store:
        return ""
    store = next((store for store in stores if reads(best, store)), None)
    speed = store.get("scoring_tokens_per_second") if store is not None else None
    if store is None or not speed:
        return "These seconds leave out the scoring of the signal store."
    took = formats.seconds(store["tokens"] / speed)
    return f"These seconds leave out the scoring of the signal store, which took about {took}."


_EQUAL: dict[Cost, str] = {
    "tokens": "tokens",
    "seconds": "training seconds",
    "student_flops": "student FLOPs",
    "all_flops": "FLOPs with the teacher counted",
}
_COST_OF: dict[Basis, Cost] = {"tokens": "tokens", "seconds": "seconds", "flops": "all_flops"}


def _equal_words(cost: Cost, arms: Arms) -> str:
    """What is held equal, with the share of the teacher's FLOPs where it is not all."""
    return _EQUAL[cost] if cost != "all_flops" or arms.teacher_share == 1 else basis_words("flops", arms)


def cost_text(cost: Cost, value: float) -> str:
    """A cost with its unit."""
    match cost:
        case "tokens":
            return f"{formats.count(value)} tokens"
        case "seconds":
            return formats.seconds(value)
        case _:
            return f"{formats.power(value)} FLOPs"


def _equal_sentences(best: Arm, arms: Arms, pairs: Sequence[Pair], final: Estimate) -> list[str]:
    """A reading of the curves for seconds and FLOPs, where the same control stands for them: others have runs of their own."""
    said = []
    for basis in ("seconds", "flops"):
        own = {member.cell.controls.get(basis) for member, _ in pairs} - {None}
        if own <= {other.name for _, other in pairs}:
            said.append(_equal_sentence(best, pairs, _COST_OF[basis], final, arms))
    return said


def _equal_sentence(best: Arm, pairs: Sequence[Pair], cost: Cost, final: Estimate, arms: Arms) -> str:
    point = equal_reading(pairs, cost, arms=arms)
    equal = _equal_words(cost, arms)
    assert point is not None, "the pairs are finished and share their documents"
    if point.read_early == "neither":
        return f"Both spent the same {equal}, so at equal {equal} the comparison is the one above."
    if point.difference is None:
        return _no_overlap(pairs[0], cost, point, arms)
    conclusion = {
        "ahead": "the control does not catch up",
        "behind": "the control is ahead",
        "level": "no difference can be told",
        "unknown": "there is no interval to judge that by",
    }[outcome_at(point, final.half_width)]
    early, late = (f"“{best.name}”", "the control’s end") if point.read_early == "arm" else ("the control", "its end")
    return (
        f"At equal {equal} ({cost_text(cost, point.at)}, {late}), “{best.name}” stands at {formats.fixed(point.arm)} "
        f"and the control at {formats.fixed(point.control)} ({formats.interval(point.difference, sign=True)}): {conclusion}. "
        f"There {early} is read in the middle of its run, between two measurements and before its learning rate has decayed, "
        "which counts against it."
    )


def _no_overlap(pair: Pair, cost: Cost, point: EqualReading, arms: Arms) -> str:
    arm, control = pair
    late, early = (arm, control) if point.read_early == "arm" else (control, arm)
    first = float(late.curve(cost, teacher_share=arms.teacher_share).costs[0])
    return (
        f"At equal {_equal_words(cost, arms)} nothing can be said: the curves do not overlap, since “{late.name}” is first "
        f"measured at {cost_text(cost, first)} and “{early.name}” ends at {cost_text(cost, point.at)}."
    )
