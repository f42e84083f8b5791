"""What the runs may and may not tell: sentences with this study's own numbers, so that a reader need not guess them.

Twenty tokens per parameter as the mark of a compute-optimal run: Hoffmann et al. 2022 (arXiv 2203.15556).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import Arms, Member, finite
from limbeck.report.axes import AxisFinding
from limbeck.report.comparisons import Comparison, nearest_pairs
from limbeck.report.eval_tables import judged_differences
from limbeck.report.setup import arm_differences, main_arm
from limbeck.report.verdict import best_arm

FEW_DOCUMENTS = 30
FEW_SEEDS = 5
SMALL_STUDENT = 100_000_000
TOKENS_PER_PARAMETER = 20
_MOST_NAMED = 12


def limits(
    arms: Arms, *, found: Sequence[Comparison], teacher: Mapping[str, Any] | None, axes: Sequence[AxisFinding] = ()
) -> list[str]:
    """One paragraph per reason for care that this study gives."""
    shown = main_arm(arms).first
    reasons = [
        _seeds(arms, found),
        _many(arms, found, axes),
        _unequal(arms, found),
        _heldout(shown),
        _selection(arms),
        _student(arms),
        _length(shown),
        _departures(arms),
        _teacher(arms, shown, teacher),
        _time(arms),
        _flops(arms),
        _unfinished(arms),
    ]
    return [reason for reason in reasons if reason]


def _seeds(arms: Arms, found: Sequence[Comparison]) -> str:
    numbers = sorted({len(arm.finished) for arm in arms if arm.finished})
    if not numbers:
        return ""
    documents = (
        "Intervals over held-out documents say how far a number would move with other documents like these. They are not "
        "intervals over seeds; training again with another seed moves the numbers too, and by how much was not measured here."
    )
    if numbers == [1]:
        return f"Every arm was trained once{_which_seed(arms)}. {documents}"
    spread = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    text = (
        f"Arms were trained with {spread} seeds, and differences are paired by seed. Intervals over seeds are Student’s t: "
        "they take the seeds’ differences as independent and about normal."
    )
    if numbers[-1] < FEW_SEEDS:
        text += f" Of fewer than {FEW_SEEDS} seeds such an interval is wide, and the spread itself is known roughly."
    single = [each for each in found if each.over == "documents"]
    return (
        f"{text} Where one seed alone has finished the interval is over documents, and says so. {documents}" if single else text
    )


def _which_seed(arms: Arms) -> str:
    seeds = sorted({member.run.recipe.seed for member in arms.members if member.run is not None})
    if len(seeds) == 1:
        return f", with the same seed ({seeds[0]})"
    return f", and the arms differ in their seed ({', '.join(map(str, seeds))})" if seeds else ""


def _many(arms: Arms, found: Sequence[Comparison], axes: Sequence[AxisFinding]) -> str:
    kinds = {
        "of bits per byte": sum(each.outcome != "unknown" for each in found),
        "of other metrics": judged_differences(arms),
        "between values of an axis": sum(each.intervals for each in axes),
    }
    judged = sum(kinds.values())
    if judged < 5:
        return ""
    parts = [f"{number} {kind}" for kind, number in kinds.items() if number]
    split = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return (
        f"There are {judged} comparisons here{split}, each with a 95% interval of its own: of as many without any difference "
        f"about {judged * 0.05:.1f} would exclude zero by chance. The intervals do not correct for that."
    )


def _unequal(arms: Arms, found: Sequence[Comparison]) -> str:
    unequal = [each for each in found if each.why.startswith("unequal")]
    if not unequal:
        return ""
    named = dict.fromkeys(f"“{each.arm.name}” in {'FLOPs' if each.basis == 'flops' else each.basis}" for each in unequal)
    return (
        f"Costs that differ by more than {arms.tolerance:.0%} are not compared as equal: {_some(list(named))}. Readings of the "
        "curves at an equal cost stand in their place."
    )


def _heldout(shown: Member) -> str:
    documents, size = shown.summary.get("heldout_documents"), shown.summary.get("heldout_bytes")
    if not documents or not size:
        return ""
    text = f"Students were measured on {formats.plural(documents, 'held-out document')}, {formats.size(size)} of one source. "
    if documents < FEW_DOCUMENTS:
        text += f"With fewer than {FEW_DOCUMENTS} documents a bootstrap interval tends to be too narrow. "
    return text + "Bits per byte say how well text is predicted, not what a student can do with a question."


def _selection(arms: Arms) -> str:
    finished = sum(arm.bits is not None and arm.has_teacher for arm in arms)
    if finished < 2:
        return ""
    return (
        f"The best of {finished} arms was chosen on the same documents that it is judged by, which flatters it; "
        "the intervals do not correct for that."
    )


def _student(arms: Arms) -> str:
    known = [(arm.first.summary.get("parameters") or {}).get("total") for arm in arms]
    totals = {total for total in known if total}
    if not totals or max(totals) >= SMALL_STUDENT:
        return ""
    sizes = formats.count(min(totals)) if len(totals) == 1 else f"{formats.count(min(totals))} to {formats.count(max(totals))}"
    return f"The student has {sizes} parameters. What holds at this size need not hold for a larger one."


def _length(shown: Member) -> str:
    parameters = (shown.summary.get("parameters") or {}).get("non_embedding")
    tokens = shown.summary.get("tokens")
    if not parameters or not tokens or tokens >= TOKENS_PER_PARAMETER * parameters or shown.run is None:
        return ""
    text = (
        f"“{shown.name}” saw {formats.count(tokens)} tokens, {tokens / parameters:.3g} for each parameter outside the "
        f"embedding, where about {TOKENS_PER_PARAMETER} make the best use of compute (Hoffmann et al. 2022). This is the "
        "beginning of training: a lead or a lag here can shrink, vanish or turn round in a longer run."
    )
    available = shown.run.recipe.data.train.sample_tokens
    if available is not None and tokens > available:
        text += f" The training texts hold about {formats.count(available)} tokens, read {tokens / available:.1f} times."
    return text


_TEACHING = ("objective", "signal", "teacher")


def _departures(arms: Arms) -> str:
    taught = [arm for arm in arms if arm.has_teacher and nearest_pairs(arm, arms)]
    if not taught:
        return ""
    others = sorted(
        f"“{arm.name}” in {path}"
        for arm in taught
        for path in arm_differences(arm, arms)
        if path.split(".")[0] not in _TEACHING
    )
    if others:
        return f"Arms depart from the control in more than the teaching: {_some(others)}. A difference may come from that."
    return (
        "All arms with a teacher share their control’s student, texts, optimizer and budget. The optimizer’s settings were not "
        "tuned for each arm, so an arm whose best learning rate lies elsewhere is shown below its best."
    )


_TUNED = ("instruct", "chat", "think", "-it")


def _teacher(arms: Arms, shown: Member, teacher: Mapping[str, Any] | None) -> str:
    best, bits = best_arm(list(arms)), finite((teacher or {}).get("bits_per_byte"))
    name = str((teacher or {}).get("name", ""))
    text = ""
    if any(part in name.lower() for part in _TUNED):
        text += (
            f"The teacher, {name}, was tuned to follow instructions or to converse; "
            "its distributions differ from those of the model it was tuned from. "
        )
    if bits is not None and best is not None and shown.bits_per_byte is not None and not shown.has_teacher:
        gap = shown.bits_per_byte - bits
        text += f"The teacher needs {formats.fixed(bits)} bits per byte on these documents, " + (
            f"{formats.fixed(gap)} fewer than “{shown.name}”."
            if gap > 0
            else f"no fewer than “{shown.name}”: it predicts them no better itself."
        )
    return text.strip()


def _time(arms: Arms) -> str:
    runs = [member.run for member in arms.members if member.run is not None]
    devices = sorted({str(run.environment.get("device")) for run in runs})
    processors = sorted({str(run.environment.get("processor")) for run in runs})
    if not devices:
        return ""
    where = f"{', '.join(devices)} ({', '.join(processors)})"
    text = f"Seconds were measured on {where}, without compilation, evaluation, checkpointing and the scoring of stores."
    if len(devices) > 1 or len(processors) > 1:
        return text + " The runs did not share one machine, so their seconds do not compare."
    return text + " Another machine gives other ratios; FLOPs are counted, not measured, and do not depend on it."


def _flops(arms: Arms) -> str:
    if not any(member.summary.get("teacher_flops") for member in arms.members):
        return ""
    return (
        "The teacher’s FLOPs are charged in full to every arm that used its rows. A store that several students read is scored "
        "once, so between “teacher’s share off” and “on” lies what a reader’s own use would cost."
    )


def _unfinished(arms: Arms) -> str:
    states = [f"“{member.name}” ({_state(member)})" for member in arms.members if not member.finished]
    return f"Not part of any mean: {_some(states)}." if states else ""


def _state(member: Member) -> str:
    return f"{member.status}: {member.cell.note}" if member.cell.note else member.status


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return "; ".join(names) if more <= 0 else f"{'; '.join(names[:_MOST_NAMED])}; and {more} more"
