"""What the runs may and may not tell: sentences with this study's own numbers, so that a reader need not guess them.

Twenty tokens per parameter as the mark of a compute-optimal run: Hoffmann et al. 2022 (arXiv 2203.15556).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import Arm, finite
from limbeck.report.tables import recipe_differences
from limbeck.report.verdict import best_arm

FEW_DOCUMENTS = 30
SMALL_STUDENT = 100_000_000
TOKENS_PER_PARAMETER = 20


def limits(arms: Sequence[Arm], *, control: Arm, teacher: Mapping[str, Any] | None) -> list[str]:
    """One paragraph per reason for care that this study gives."""
    reasons = [
        _seeds(arms),
        _heldout(control),
        _selection(arms),
        _student(control),
        _length(control),
        _departures(arms, control),
        _teacher(arms, control, teacher),
        _time(arms),
        _flops(arms),
        _unfinished(arms),
    ]
    return [reason for reason in reasons if reason]


def _seeds(arms: Sequence[Arm]) -> str:
    seeds = sorted({arm.run.recipe.seed for arm in arms if arm.run is not None})
    if len(seeds) == 1:
        which = f"with the same seed ({seeds[0]})"
    else:
        which = f"and the arms differ in their seed ({', '.join(map(str, seeds))})"
    return (
        f"Every arm was trained once, {which}. The intervals are over held-out documents: they say how far a number would "
        "move with other documents like these. They are not intervals over seeds; training again with another seed moves the "
        "numbers too, and by how much was not measured here."
    )


def _heldout(control: Arm) -> str:
    documents, size = control.summary.get("heldout_documents"), control.summary.get("heldout_bytes")
    if not documents or not size:
        return ""
    text = f"Students were measured on {formats.plural(documents, 'held-out document')}, {formats.size(size)} of one source. "
    if documents < FEW_DOCUMENTS:
        text += f"With fewer than {FEW_DOCUMENTS} documents a bootstrap interval tends to be too narrow. "
    return text + "Bits per byte say how well text is predicted, not what a student can do with a question."


def _selection(arms: Sequence[Arm]) -> str:
    finished = sum(arm.finished and arm.has_teacher for arm in arms)
    if finished < 2:
        return ""
    return (
        f"The best of {finished} arms was chosen on the same documents that it is judged by, which flatters it; "
        "the intervals do not correct for that."
    )


def _student(control: Arm) -> str:
    total = (control.summary.get("parameters") or {}).get("total")
    if not total or total >= SMALL_STUDENT:
        return ""
    return f"The student has {formats.count(total)} parameters. What holds at this size need not hold for a larger one."


def _length(control: Arm) -> str:
    parameters = (control.summary.get("parameters") or {}).get("non_embedding")
    tokens = control.summary.get("tokens")
    if not parameters or not tokens or tokens >= TOKENS_PER_PARAMETER * parameters or control.run is None:
        return ""
    text = (
        f"The control saw {formats.count(tokens)} tokens, {tokens / parameters:.3g} for each parameter outside the embedding, "
        f"where about {TOKENS_PER_PARAMETER} make the best use of compute (Hoffmann et al. 2022). This is the beginning of "
        "training: a lead or a lag here can shrink, vanish or turn round in a longer run."
    )
    available = control.run.recipe.data.train.sample_tokens
    if available is not None and tokens > available:
        text += f" The training texts hold about {formats.count(available)} tokens, read {tokens / available:.1f} times."
    return text


_TEACHING = ("objective", "signal", "teacher")


def _departures(arms: Sequence[Arm], control: Arm) -> str:
    if not any(arm.has_teacher for arm in arms):
        return ""
    others = {
        f"“{arm.name}” in {path}"
        for arm in arms
        if arm.has_teacher
        for path in recipe_differences(arm, control)
        if path.split(".")[0] not in _TEACHING
    }
    if others:
        where = "; ".join(sorted(others))
        return f"Arms depart from the control in more than the teaching: {where}. A difference may come from that."
    return (
        "All arms with a teacher share the control’s student, texts, optimizer and budget. The optimizer’s settings were not "
        "tuned for each arm, so an arm whose best learning rate lies elsewhere is shown below its best."
    )


_TUNED = ("instruct", "chat", "think", "-it")


def _teacher(arms: Sequence[Arm], control: Arm, teacher: Mapping[str, Any] | None) -> str:
    best, bits = best_arm(arms), finite((teacher or {}).get("bits_per_byte"))
    name = str((teacher or {}).get("name", ""))
    text = ""
    if any(part in name.lower() for part in _TUNED):
        text += (
            f"The teacher, {name}, was tuned to follow instructions or to converse; "
            "its distributions differ from those of the model it was tuned from. "
        )
    if bits is not None and best is not None and best.bits_per_byte is not None and control.bits_per_byte is not None:
        gap = control.bits_per_byte - bits
        text += f"The teacher needs {formats.fixed(bits)} bits per byte on these documents, " + (
            f"{formats.fixed(gap)} fewer than the control."
            if gap > 0
            else "no fewer than the control: it predicts them no better itself."
        )
    return text.strip()


def _time(arms: Sequence[Arm]) -> str:
    devices = sorted({str(arm.run.environment.get("device")) for arm in arms if arm.run is not None})
    processors = sorted({str(arm.run.environment.get("processor")) for arm in arms if arm.run is not None})
    if not devices:
        return ""
    where = f"{', '.join(devices)} ({', '.join(processors)})"
    text = f"Seconds were measured on {where}, without compilation, evaluation, checkpointing and the scoring of stores."
    if len(devices) > 1 or len(processors) > 1:
        return text + " The runs did not share one machine, so their seconds do not compare."
    return text + " Another machine gives other ratios; FLOPs are counted, not measured, and do not depend on it."


def _flops(arms: Sequence[Arm]) -> str:
    if not any(arm.summary.get("teacher_flops") for arm in arms):
        return ""
    return (
        "The teacher’s FLOPs are charged in full to every arm that used its rows. A store that several students read is scored "
        "once, so between “teacher’s share off” and “on” lies what a reader’s own use would cost."
    )


def _unfinished(arms: Sequence[Arm]) -> str:
    open_arms = [f"“{arm.name}” ({arm.status})" for arm in arms if not arm.finished]
    return f"Not part of the verdict: {', '.join(open_arms)}." if open_arms else ""
