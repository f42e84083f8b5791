"""What a recipe costs before it is run: parameters, FLOPs, bytes, hours. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limbeck.plan.accounting import (
    Parameters,
    student_flops_per_token,
    student_parameters,
    teacher_flops_per_token,
    training_flops_per_token,
)
from limbeck.plan.storage import store_bytes_per_token
from limbeck.spec.budget import Flops, Seconds, Steps, Tokens
from limbeck.spec.objective import needs_teacher
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe


@dataclass(frozen=True)
class Price:
    """What a recipe will cost. None: cannot be told without the teacher's configuration, or for a budget in seconds.

    Of an on-policy recipe it is what reading sequences of full length costs; `not_in_price` says what is not in it.
    """

    params: Parameters
    trained: int
    """How many of them learn; beside an adapter, those of the adapter."""
    student_flops_per_token: float
    """Forward."""
    training_flops_per_token: float
    """Forward and backward: three times forward, or less beside an adapter."""
    teacher_flops_per_token: float | None
    """Forward; 0 where the recipe has no teacher."""
    tokens: float | None
    student_flops: float | None
    teacher_flops: float | None
    """If every token of the budget is scored once: an upper bound for a store, whose rows are scored once and read often."""
    store_bytes_per_token: float | None
    hours: float | None


def price(
    recipe: Recipe,
    *,
    vocab_size: int,
    teacher: Mapping[str, Any] | None,
    flops_per_second: float,
    adapter_parameters: int = 0,
) -> Price:
    """Price a recipe on a device that sustains `flops_per_second`. `teacher` is its config.json or catalogue entry.

    `adapter_parameters` are those of the student's adapter, where it has one; 0 leaves them out. A curriculum costs what its
    stages cost together, and a token of it what one costs on average.
    """
    how: dict[str, Any] = {"vocab_size": vocab_size, "teacher": teacher, "flops_per_second": flops_per_second}
    if recipe.curriculum:
        parts = [price(stage, **how, adapter_parameters=adapter_parameters) for stage in shares_of(recipe)]
        return _together(parts)
    student, length = recipe.student, recipe.data.sequence_length
    adapts = isinstance(student, HuggingFaceStudent) and student.adapter is not None
    forward = student_flops_per_token(student, vocab_size=vocab_size, context=length)
    training = training_flops_per_token(student, vocab_size=vocab_size, context=length, adapter_parameters=adapter_parameters)
    params = student_parameters(student, vocab_size=vocab_size)
    teaches = needs_teacher(recipe.objective)
    context = recipe.teacher.context.window if recipe.teacher is not None else length
    scoring = (
        (teacher_flops_per_token(teacher, context=min(context, length)) if teacher is not None else None)
        if recipe.teacher
        else 0.0
    )
    tokens = _tokens(recipe, training=training, scoring=scoring if teaches else 0.0)
    student_flops = training * tokens if tokens is not None else None
    teacher_flops = scoring * tokens if tokens is not None and scoring is not None and teaches else (None if teaches else 0.0)
    total = student_flops + teacher_flops if student_flops is not None and teacher_flops is not None else None
    return Price(
        params=params,
        trained=adapter_parameters if adapts else params.total,
        student_flops_per_token=forward,
        training_flops_per_token=training,
        teacher_flops_per_token=scoring,
        tokens=tokens,
        student_flops=student_flops,
        teacher_flops=teacher_flops,
        store_bytes_per_token=_stored(recipe, vocab_size=vocab_size),
        hours=total / flops_per_second / 3600 if total is not None else _hours_of_seconds(recipe),
    )


def not_in_price(recipe: Recipe) -> tuple[str, ...]:
    """For people: what a recipe will cost beyond its price, since it depends on what the texts hold and students write."""
    parts = [part for _, part in recipe.stages]
    counts = isinstance(recipe.budget, Tokens)  # those that have a loss, while all that are read cost
    found = {
        "what it takes to write the rollouts": any(part.on_policy is not None for part in parts),
        "the tokens that have no loss (data.loss_on)": counts and any(part.data.loss_on is not None for part in parts),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def shares_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of every stage with its share of the budget; without a curriculum the recipe itself."""
    return [
        stage_recipe.model_copy(
            update={"budget": recipe.budget.model_copy(update={"amount": stage.share * recipe.budget.amount})}
        )
        for stage, stage_recipe in recipe.stages
    ]


def _together(parts: Sequence[Price]) -> Price:
    """Of all stages. Per token: weighted by tokens, or evenly where those are not known."""
    weights = [1.0 if part.tokens is None else part.tokens for part in parts]

    def mean(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        if None in values:
            return None
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    def total(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if None in values else sum(values)

    stored = [part.store_bytes_per_token for part in parts if part.store_bytes_per_token is not None]
    names = ("student_flops_per_token", "training_flops_per_token", "teacher_flops_per_token")
    sums = ("tokens", "student_flops", "teacher_flops", "hours")
    averages, sizes = {name: mean(name) for name in names}, {name: total(name) for name in sums}
    return replace(parts[0], **averages, **sizes, store_bytes_per_token=max(stored, default=None))  # type: ignore[arg-type]


def _tokens(recipe: Recipe, *, training: float, scoring: float | None) -> float | None:
    match recipe.budget:
        case Tokens(amount=amount):
            return amount
        case Steps(amount=amount):
            return amount * recipe.batch.sequences * recipe.data.sequence_length
        case Flops(amount=amount, teacher_share=share):
            return amount / (training + share * scoring) if scoring is not None else None
        case Seconds():
            return None


def _hours_of_seconds(recipe: Recipe) -> float | None:
    return recipe.budget.amount / 3600 if isinstance(recipe.budget, Seconds) else None


def _stored(recipe: Recipe, *, vocab_size: int) -> float | None:
    return store_bytes_per_token(recipe.signal, vocab_size=vocab_size) if recipe.uses_store and recipe.signal else None
