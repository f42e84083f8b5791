"""`limbeck prune MODEL`: a smaller model out of one that exists, of given sizes or of the best shape near a target."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.eval_target import is_run, model_of
from limbeck.cli.output import emit
from limbeck.cli.prune_search import found_lines, found_values, require_same_search, write_search
from limbeck.cli.show_pruned import pruned_values, show_lines
from limbeck.errors import DataError, SpecError
from limbeck.paths import require_writable
from limbeck.plan.prune_shapes import SIZE_KEYS, GivenCaps, base_pruning
from limbeck.plan.prune_target import Workload, parse_target
from limbeck.report.pruning import PRUNING, read_pruning
from limbeck.runs import open_run
from limbeck.spec.data import Data
from limbeck.spec.load import load_recipe, parse_overrides
from limbeck.spec.overrides import apply_overrides
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning

if TYPE_CHECKING:  # torch is imported when something is pruned, not when the command line starts
    from limbeck.surgery.search import Asked


def prune(
    model: Annotated[str, typer.Argument(help="smollm2, a model folder, a hub id, or a run.", metavar="MODEL|RUN")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="What stays: hidden_size=…, intermediate_size=…, num_heads=…, num_kv_heads=…, num_experts=…, expert_size=…, "
            "num_layers=… or layers=[0,1,…]; and how it is chosen: depth.kind=loss, contiguous=true, drop_types=sliding, "
            "steps=2, calibration.samples=256, …",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write; default: pruned/NAME-SIZE.")
    ] = None,
    texts: Annotated[list[str] | None, typer.Option(help="Text files to measure importance on; repeat for more.")] = None,
    recipe: Annotated[str | None, typer.Option(help="The recipe on whose training texts to measure it instead.")] = None,
    chats: Annotated[str | None, typer.Option(help="A .jsonl of complete chats that are read besides.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="In place of sizes, or beside some: parameters, active_parameters, flops, memory or latency, as a share or in "
            "full: parameters=0.5, memory=2GB, latency=12ms.",
            metavar="QUANTITY=AMOUNT",
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.001, max=0.5, help="How near the target, as a share; default: 0.05.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Shapes near the target that are cut and measured; default: 5.")
    ] = None,
    heal_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps that each of them is trained before it is ranked; default: 0.")
    ] = None,
    width_cap: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.95,
            help="The most that a shape loses of any width; default: 0.4, and more (starred) for a kind of shape (narrower, "
            "shallower, both) that has none near the target otherwise.",
        ),
    ] = None,
    depth_cap: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.95, help="The most that it loses of its layers; default: 0.2, and more as with widths."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context for FLOPs, memory and latency; default: 2048.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Texts at once for memory and latency; default: 1.")] = None,
    as_json: Json = False,
) -> None:
    """Take channels, neurons, heads, experts or layers out of a model, the least important ones, and save what stays.

    Importance is measured once on calibration texts and kept: other sizes of the same model need no new pass. The folder is a
    Hugging Face model with the model's own tokenizer; its training goes on with `limbeck train`.
    """
    values, data = _values(overrides or [], texts=texts, chats=chats), _data(model, texts=texts, recipe=recipe)
    spec = HuggingFaceStudent(model=model_of(model))
    thorough = {"tolerance": tolerance, "top": top, "heal_steps": heal_steps}
    caps, load = {"width": width_cap, "depth": depth_cap}, {"context": context, "batch_size": batch_size}
    with _keys_as_given():
        pruning = base_pruning(values)  # says what is wrong with them, whether a size is among them or not
        if target is None:
            _require_no_search({**thorough, **{f"{name}_cap": cap for name, cap in caps.items()}, **load})
            _require_sizes(model, values)
            folder, table, lines = _to_sizes(model, spec, pruning, data, output=output)
        else:
            parsed = parse_target(target)
            from limbeck.surgery.search import Asked

            asked = Asked(parsed, **_given(thorough), caps=GivenCaps(**caps), workload=Workload(**_given(load)))
            folder, table, lines = _to_target(model, spec, values, asked, data, output=output)
    _tell(folder, spec, recipe=recipe, as_json=as_json, table=table, lines=lines)


Outcome = tuple[Path, dict[str, Any] | None, list[str]]
"""The folder, and of a search its table for machines and for people."""


def _to_sizes(model: str, spec: HuggingFaceStudent, pruning: Pruning, data: Data | None, *, output: Path | None) -> Outcome:
    from limbeck.surgery.folder import prune_folder
    from limbeck.surgery.identity import parent_of

    parent_of(spec)  # names the block that is not recognised; counting knows the type alone
    folder = output or _folder(model, spec, pruning)
    _require_writable(folder)
    return prune_folder(spec.model_copy(update={"prune": pruning}), data=data, to=folder), None, []


def _to_target(
    model: str, spec: HuggingFaceStudent, values: dict[str, Any], asked: "Asked", data: Data | None, *, output: Path | None
) -> Outcome:
    """The best shape near a target; the others that were measured are in the table."""
    from limbeck.surgery.search import best_pruning, search

    if output is not None:
        require_same_search(output, model=model, parent=spec.model, values=values, asked=asked)
        _require_writable(output)
    searched = search(spec, values, asked, data=data)
    pruning = best_pruning(searched, values)
    folder, *_ = _to_sizes(model, spec, pruning, data, output=output)
    table = found_values(searched, model=model, values=values, asked=asked)
    write_search(table, folder)
    return folder, table, found_lines(searched, asked)


def _values(overrides: list[str], *, texts: list[str] | None, chats: str | None) -> dict[str, Any]:
    """Of `Pruning`, as the command line says them."""
    values = apply_overrides({}, parse_overrides(overrides))
    calibration = dict(values.get("calibration") or {})
    if texts:
        calibration["texts"] = {"kind": "files", "paths": list(texts)}
    if chats is not None:
        calibration["chats"] = chats
    return {**values, "calibration": calibration} if calibration else values


def _data(model: str, *, texts: list[str] | None, recipe: str | None) -> Data | None:
    """Where texts come from that are not named: a recipe's, or the run's own."""
    if texts and recipe is not None:
        raise SpecError("--texts and --recipe both say what importance is measured on: give one of them")
    if recipe is not None:
        return load_recipe(recipe).data
    return open_run(model).recipe.data if is_run(model) and not texts else None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_no_search(options: dict[str, Any]) -> None:
    if idle := [f"--{name.replace('_', '-')}" for name in _given(options)]:
        raise SpecError(f"{', '.join(idle)} would do nothing: no shapes are searched; add --target, or remove them")


def _require_sizes(model: str, values: dict[str, Any]) -> None:
    if values.get("layers") is None and all(values.get(name) is None for name in SIZE_KEYS):
        raise SpecError(
            f"what is to go of {model}? Name sizes that stay (`limbeck prune {model} intermediate_size=1024 num_layers=24`) "
            f"or a target (`limbeck prune {model} --target parameters=0.5`); sizes: {', '.join(SIZE_KEYS)}, layers"
        )


def _folder(model: str, spec: HuggingFaceStudent, pruning: Pruning) -> Path:
    """`pruned/NAME-67M`, by the parameters that stay."""
    from limbeck.plan.accounting import student_parameters

    count = student_parameters(spec.model_copy(update={"prune": pruning}), vocab_size=0).total
    short = f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
    name = Path(model).resolve().name if Path(model).exists() else model.rsplit("/", 1)[-1]
    return Path("pruned") / f"{name}-{short}"


def _require_writable(folder: Path) -> None:
    """Before anything is measured."""
    require_writable(folder.resolve().with_name(f".{folder.name}.check"))


def _tell(
    folder: Path, spec: HuggingFaceStudent, *, recipe: str | None, as_json: bool, table: dict[str, Any] | None, lines: list[str]
) -> None:
    """What went and what stayed, where it is, and what to do next."""
    view = read_pruning(folder / PRUNING)
    teacher = "teacher.kind=smollm2" if spec.model == "smollm2" else f"teacher.kind=huggingface teacher.model={spec.model}"
    following = f"limbeck train {recipe or 'RECIPE'} student.kind=huggingface student.model={folder} {teacher}"
    if as_json:
        emit({"folder": str(folder), **pruned_values(view), "search": table, "next": following}, as_json=True, lines=[])
        return
    if lines:
        emit({}, as_json=False, lines=[*lines, ""])
    show_lines(view)
    closing = ["", f"written: {folder}", f"heal it: {following}", f"look at it: limbeck show {folder} -o NAME"]
    emit({}, as_json=False, lines=closing)


@contextmanager
def _keys_as_given() -> Iterator[None]:
    """Keys are named as they are on this command line, not as in a recipe."""
    try:
        yield
    except (SpecError, DataError) as error:
        text = str(error).replace("student.prune.calibration.texts.paths", "--texts")
        text = (
            text.replace("student.prune.calibration.texts holds", "--texts hold")
            .replace("student.prune.", "")
            .replace("student.prune", "prune")
            .replace("student.model=", "")
        )
        raise type(error)(text.replace("set calibration.texts", "add --texts, --recipe or --chats")) from error
