"""What a plan's numbers say in a sentence, and what to mistrust in them.

A law is an interpolation of the runs behind it. Whatever lies outside their range is named, and so are the two places where the
published law promises what no run has shown: hardly any tokens, and teachers that nobody can train.
"""

from collections.abc import Iterable, Iterator, Mapping

from limbeck.plan.allocate import BEST_CASE, BOTH, INFERENCE, PRETRAINING, Alone, Distilled, Size
from limbeck.plan.family import short
from limbeck.plan.laws import FittedRange, Range

FEW_TOKENS_PER_PARAMETER = 2.0
EXISTING_TOKENS = 3e14
"""All public text, by Epoch AI's estimate (arXiv 2211.04325): no teacher has read more."""

_PAYS = {
    BOTH.name: "even if you pretrain the teacher for this one student and pay for its reading",
    PRETRAINING.name: "even if you pretrain the teacher for this one student, its reading being paid for elsewhere",
    INFERENCE.name: "if the teacher exists and you pay for its reading",
    BEST_CASE.name: "only if the teacher exists and its signal is already stored",
}
"""From what costs most to what costs least."""


def verdict(alone: Alone, scenarios: Mapping[str, Distilled]) -> str:
    """One sentence: distil or train without a teacher, under which circumstances, by how much."""
    ahead = [name for name in _PAYS if scenarios[name].loss_nats < alone.loss_nats]
    by_itself = f"{alone.loss_nats:.4f} nats alone"
    if not ahead:
        best = min(scenarios.values(), key=lambda result: result.loss_nats)
        return (
            f"train without a teacher: {by_itself} on {short(alone.student_tokens)} tokens, {best.loss_nats:.4f} by the best "
            "distillation, even with a teacher for nothing"
        )
    dearest = ahead[0]
    sentence = f"distil: {scenarios[dearest].loss_nats:.4f} nats against {by_itself}, {_PAYS[dearest]}"
    behind = [name for name in (PRETRAINING.name, INFERENCE.name, BOTH.name) if name not in ahead]
    if dearest == BOTH.name or not behind:
        return sentence
    cost = min(behind, key=lambda name: scenarios[name].loss_nats)
    what = "reading the text with it" if cost == INFERENCE.name else "pretraining it for this student alone"
    return f"{sentence}; train without a teacher if {what} is on your budget ({scenarios[cost].loss_nats:.4f})"


def mistrust(student: Size, results: Mapping[str, Alone | Distilled], *, fitted: FittedRange) -> list[str]:
    """Every number of a plan that leaves the fitted range, or that nobody could act on, in one sentence each."""
    tokens = {name: result.student_tokens for name, result in results.items()}
    distilled = {name: result for name, result in results.items() if isinstance(result, Distilled)}
    return [
        *size_outside(student, fitted),
        *_outside("student tokens", tokens, fitted.tokens),
        *_few_tokens(student, tokens),
        *_outside("teacher loss", {name: result.teacher_loss_nats for name, result in distilled.items()}, fitted.teacher_loss),
        *_more_than_exists({name: result.teacher_tokens for name, result in distilled.items()}),
    ]


def size_outside(student: Size, fitted: FittedRange) -> Iterator[str]:
    """Of a student that is smaller or larger than any that the law has seen."""
    if fitted.params is not None and not _within(student.params, fitted.params):
        yield f"student of {short(student.params)} parameters: outside the fitted {_between(fitted.params)}, an extrapolation"


def _few_tokens(student: Size, tokens: Mapping[str, float]) -> Iterator[str]:
    """Where the published law promises much for a strong teacher and hardly any text."""
    few = [name for name, amount in tokens.items() if amount < FEW_TOKENS_PER_PARAMETER * student.params]
    if few:
        yield (
            f"fewer than {FEW_TOKENS_PER_PARAMETER:g} tokens per parameter ({_names(few)}): "
            "no run shows what the law promises there"
        )


def _outside(what: str, values: Mapping[str, float], fitted: Range | None) -> Iterator[str]:
    strays = [f"{name} {_amount(value)}" for name, value in values.items() if fitted and not _within(value, fitted)]
    if fitted and strays:
        yield f"{what} outside the fitted {_between(fitted)}, an extrapolation: {', '.join(strays)}"


def _more_than_exists(teacher_tokens: Mapping[str, float]) -> Iterator[str]:
    beyond = [name for name, tokens in teacher_tokens.items() if tokens > EXISTING_TOKENS]
    if beyond:
        yield (
            f"teachers trained on more than the {short(EXISTING_TOKENS)} tokens of text that exist ({_names(beyond)}): "
            "a bound of what teachers can do, not a teacher to be had; name yours with --teachers"
        )


def _within(value: float, fitted: Range) -> bool:
    return fitted[0] * (1 - 1e-3) <= value <= fitted[1] * (1 + 1e-3)


def _between(fitted: Range) -> str:
    return f"{_amount(fitted[0])} to {_amount(fitted[1])}"


def _amount(value: float) -> str:
    return f"{value:.3g} nats" if value < 100 else short(value)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
