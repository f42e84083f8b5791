"""`limbeck show RECIPE`: a recipe resolved and priced."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
import yaml

from limbeck.cli.arguments import Json, Overrides, RecipeName
from limbeck.cli.output import emit, human
from limbeck.errors import SpecError
from limbeck.plan.price import Price, price
from limbeck.plan.teachers import find
from limbeck.spec.load import load_recipe, parse_overrides
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import HuggingFaceTeacher

FLOPS_PER_SECOND = 4e14
"""About 40 % of an H100's dense bfloat16 peak."""


def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    flops_per_second: Annotated[float, typer.Option(min=1, help="Sustained by the device, for the hours.")] = FLOPS_PER_SECOND,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs, bytes and hours of a recipe, without running or downloading anything."""
    show_recipe(load_recipe(recipe, parse_overrides(overrides or [])), flops_per_second=flops_per_second, as_json=as_json)


def show_recipe(recipe: Recipe, *, flops_per_second: float = FLOPS_PER_SECOND, as_json: bool) -> None:
    """Print what a recipe is and costs."""
    config = _teacher_config(recipe)
    vocab_size = recipe.student.vocab_size or (config or {}).get("vocab_size")
    if vocab_size is None:
        raise SpecError(
            f"{recipe.name}: student.vocab_size is not set and the teacher's configuration is not on this machine: set it"
        )
    cost = price(recipe, vocab_size=vocab_size, teacher=config, flops_per_second=flops_per_second)
    values = {**asdict(cost), "flops_per_second": flops_per_second, "recipe": recipe.model_dump(mode="json")}
    emit(values, as_json=as_json, lines=_lines(recipe, cost, flops_per_second))


def _teacher_config(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.teacher is None:
        return None
    name = recipe.teacher.model if isinstance(recipe.teacher, HuggingFaceTeacher) else recipe.teacher.slug
    known = find(name)
    if known is not None or not isinstance(recipe.teacher, HuggingFaceTeacher) or recipe.teacher.gguf_file is not None:
        return known
    from limbeck.teachers.files import locate, read_config

    return read_config(locate(recipe.teacher))


def _lines(recipe: Recipe, cost: Price, flops_per_second: float) -> list[str]:
    def shown(amount: float | None, unit: str) -> str:
        return human(amount, unit) if amount is not None else "unknown"

    params = cost.params
    return [
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip(),
        "---",
        f"parameters: {params.total:,} ({params.non_embedding:,} non-embedding, {params.embedding:,} embedding; "
        f"{params.active:,} active)",
        f"student: {human(cost.student_flops_per_token)}FLOPs per token forward, {shown(cost.student_flops, 'FLOPs')} to train",
        f"teacher: {shown(cost.teacher_flops_per_token, 'FLOPs')} per token, at most {shown(cost.teacher_flops, 'FLOPs')}",
        f"memory: {human(cost.training_bytes, 'B')} for parameters, gradients and moments",
        f"store: {shown(cost.store_bytes_per_token, 'B')} per token",
        f"hours: {shown(cost.hours, '')} at {flops_per_second:.3g} FLOP/s",
    ]
