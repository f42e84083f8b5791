"""`limbeck show RECIPE`: a recipe resolved and priced. `limbeck show PRUNED`: what went of a model, and what stayed.

`limbeck show TOKENIZER --beside OTHER`: how two tokenizers read the same texts.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from limbeck.cli.arguments import (
    DEFAULT_DEVICE,
    DEFAULT_UTILISATION,
    DeviceCount,
    DeviceName,
    Json,
    Overrides,
    Utilisation,
)
from limbeck.cli.output import emit, human
from limbeck.cli.output import table as aligned
from limbeck.cli.show_pair import show_pair
from limbeck.cli.show_pruned import pruned_file, show_pruned
from limbeck.errors import SpecError
from limbeck.plan.devices import find_device, sustained_flops_per_second
from limbeck.plan.pretrained import student_config, student_vocab_size, student_width
from limbeck.plan.price import Price, not_in_price, price, shares_of
from limbeck.report.pruning import PRUNING
from limbeck.spec.load import load_recipe, parse_overrides
from limbeck.spec.objective import needs_teacher
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import Student
from limbeck.students.exported import foreign_part, native
from limbeck.teachers.files import known_config

if TYPE_CHECKING:  # torch is imported when a recipe is shown, not when the command line starts
    from limbeck.optim.groups import Row


def show(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A shipped recipe's name (`limbeck list`), a YAML file, a pruned model's folder, or the run of one; with "
            "--beside, a tokenizer: a folder, a hub id, a run, or smollm2.",
            metavar="RECIPE|PRUNED|TOKENIZER",
        ),
    ],
    overrides: Overrides = None,
    device: DeviceName = DEFAULT_DEVICE,
    devices: DeviceCount = 1,
    utilisation: Utilisation = DEFAULT_UTILISATION,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Of a pruned model: also draw it, as PATH.svg and PATH.png.")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Another tokenizer, of a teacher: which tokens are equal, how much of a text both cut alike, digits.",
            metavar="TOKENIZER",
        ),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option(help="With --beside: text files to compare the two on, too; repeat for more.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs, bytes and hours of a recipe, without running or downloading anything.

    Of a pruned model: which layers went, and what stayed of each of the others. Of two tokenizers: how much of a text both cut
    alike, and which objective that calls for.
    """
    if beside is not None:
        _require_a_pair_alone(overrides, output)
        show_pair(recipe, beside, texts=texts, as_json=as_json)
        return
    if texts:
        raise SpecError("--texts are for two tokenizers: name the other one with --beside")
    pruned = pruned_file(recipe)
    if pruned is not None:
        if overrides:
            raise SpecError(f"{overrides[0]} is for a recipe: {recipe} is a pruned model, which is what it is")
        show_pruned(pruned, figure=output, as_json=as_json)
        return
    if output is not None:
        raise SpecError(f"-o draws pruned models, and {recipe} is none: it has no {PRUNING}")
    speed = sustained_flops_per_second(find_device(device), utilisation=utilisation, count=devices)
    show_recipe(load_recipe(recipe, parse_overrides(overrides or [])), flops_per_second=speed, as_json=as_json)


def _require_a_pair_alone(overrides: list[str] | None, output: Path | None) -> None:
    if overrides:
        raise SpecError(f"{overrides[0]} is for a recipe, and --beside for two tokenizers: leave one of them out")
    if output is not None:
        raise SpecError("-o draws pruned models, and --beside compares two tokenizers: leave one of them out")


def show_recipe(recipe: Recipe, *, flops_per_second: float | None = None, as_json: bool) -> None:
    """Print what a recipe is and costs; hours at `flops_per_second`, by default those of the default device."""
    speed = flops_per_second or sustained_flops_per_second(find_device(DEFAULT_DEVICE), utilisation=DEFAULT_UTILISATION)
    config = known_config(recipe.teacher)
    vocab_size = student_vocab_size(recipe.student) or (config or {}).get("vocab_size")
    if vocab_size is None:
        raise SpecError(
            f"{recipe.name}: {recipe.student.vocab_size_key} is not set and the teacher's configuration is not on this "
            "machine: set it"
        )
    cost = price(
        recipe,
        vocab_size=vocab_size,
        teacher=config,
        flops_per_second=speed,
        adapter_parameters=_adapter_parameters(recipe.student),
    )
    architecture = exported_as(recipe.student)
    rows, training_bytes = optimizer_of(recipe, vocab_size=vocab_size)
    values = {
        **asdict(cost),
        "training_bytes": training_bytes,
        "optimizer_table": [asdict(row) for row in rows],
        "params": {**asdict(cost.params), "active_non_embedding": cost.params.active_non_embedding},
        "exported_as": architecture,
        "flops_per_second": speed,
        "recipe": recipe.model_dump(mode="json"),
    }
    stages = [
        (stage.name, stage.share, part, price(part, vocab_size=vocab_size, teacher=config, flops_per_second=speed))
        for (stage, _), part in zip(recipe.stages, shares_of(recipe), strict=True)
    ]
    if recipe.curriculum:
        values["stages"] = [{"name": name, "share": share, **asdict(each)} for name, share, _, each in stages]
    head = vocab_size * _width(recipe.student)
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip()
    export = f"export: {architecture}{_reason(recipe)}"
    costs = _costs(cost, speed, training_bytes=training_bytes, without=not_in_price(recipe))
    listed = ["", *_stages(stages)] if recipe.curriculum else []
    lines = [resolved, "---", *_parameters(cost, head=head), *costs, export, *listed, "", *_optimizer(rows)]
    emit(values, as_json=as_json, lines=lines)


def _stages(stages: list[tuple[str, float, Recipe, Price]]) -> list[str]:
    """What each stage reads, from whom, and what it costs."""
    rows = []
    for name, share, recipe, cost in stages:
        teaches = needs_teacher(recipe.objective) and recipe.signal is not None
        how = "a store" if recipe.uses_store else "live"
        rows.append(
            [
                name,
                f"{100 * share:.3g} %",
                "?" if cost.tokens is None else human(cost.tokens, ""),
                f"{recipe.data.sequence_length:,}",
                f"{recipe.batch.sequences:,}",
                recipe.objective.kind,
                f"{recipe.signal_slug}, {how}" if teaches else "none",
                "yes" if recipe.on_policy is not None else "no",
                "?" if cost.student_flops is None else human(cost.student_flops, "FLOPs"),
                "?" if cost.hours is None else human(cost.hours, ""),
            ]
        )
    headers = ["stage", "budget", "tokens", "length", "sequences", "objective", "signal", "on-policy", "student", "hours"]
    return aligned(headers, rows)


def exported_as(student: Student) -> str:
    """The class that the saved student is opened as."""
    if isinstance(student, HuggingFaceStudent):
        architectures = student_config(student).get("architectures") or []
        return str(architectures[0]) if architectures else "the model's own class"
    found = native(student.layout)
    return "LimbeckForCausalLM" if found is None else found.architecture


def optimizer_of(recipe: Recipe, *, vocab_size: int) -> tuple[list["Row"], int]:
    """Which of the student's parameters go where, and the bytes of all that is trained; from a student without weights."""
    from limbeck.optim.groups import parameter_groups, table, training_bytes
    from limbeck.students.build import build_empty

    groups = parameter_groups(recipe.optimizer, build_empty(recipe.student, vocab_size=vocab_size))
    return table(groups), training_bytes(groups)


def _optimizer(rows: list["Row"]) -> list[str]:
    cells = [
        [
            f"{row.role} by {row.algorithm}",
            f"{row.tensors:,}",
            f"{row.parameters:,}",
            f"{row.peak_lr:.3g}",
            f"{row.decay_per_step:.3g}",
        ]
        for row in rows
    ]
    return aligned(["optimizer", "tensors", "parameters", "peak lr", "decay a step"], cells)


def _reason(recipe: Recipe) -> str:
    if isinstance(recipe.student, HuggingFaceStudent):
        return "" if recipe.student.adapter is None else " (the adapter merged, and beside it in adapter/)"
    part = foreign_part(recipe.student.layout)
    return "" if part is None else f" (transformers has no class with {part})"


def _width(student: Student) -> int:
    return student_width(student) if isinstance(student, HuggingFaceStudent) else student.layout.hidden_size


def _adapter_parameters(student: Student) -> int:
    """By building the model without weights, where there is an adapter."""
    if not isinstance(student, HuggingFaceStudent) or student.adapter is None:
        return 0
    from limbeck.students.pretrained import adapter_parameters

    return adapter_parameters(student)


def _parameters(cost: Price, *, head: int) -> list[str]:
    """All of them; in a mixture of experts those of a token, beside an adapter those that learn."""
    params = cost.params
    lines = [f"parameters: {params.total:,} ({params.non_embedding:,} non-embedding, {params.embedding:,} embedding)"]
    if params.active < params.total:
        touched = params.active_non_embedding
        lines.append(f"of a token: {touched:,} non-embedding, {touched + head:,} with the head")
    if cost.trained != params.total:
        lines.append(f"trained: {cost.trained:,} of an adapter")
    return lines


def _costs(cost: Price, flops_per_second: float, *, training_bytes: int, without: Sequence[str]) -> list[str]:
    left_out = f", without {' and '.join(without)}" if without else ""

    def shown(amount: float | None, unit: str) -> str:
        return human(amount, unit) if amount is not None else "unknown"

    return [
        f"student: {human(cost.student_flops_per_token)}FLOPs per token forward, {shown(cost.student_flops, 'FLOPs')} to train",
        f"teacher: {shown(cost.teacher_flops_per_token, 'FLOPs')} per token, at most {shown(cost.teacher_flops, 'FLOPs')}",
        f"memory: {human(training_bytes, 'B')} for parameters, gradients and the optimizer's state",
        f"store: {shown(cost.store_bytes_per_token, 'B')} per token",
        f"hours: {shown(cost.hours, '')} at {flops_per_second:.3g} FLOP/s{left_out}",
    ]
