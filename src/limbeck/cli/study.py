"""`limbeck study run|status|list`: a matrix of runs with its controls, priced before it starts, resumed where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import Json, Overrides
from limbeck.cli.output import emit, human, table
from limbeck.errors import LimbeckError, SpecError
from limbeck.plan.price import not_in_price
from limbeck.plan.study_price import ArmPrice
from limbeck.progress import say
from limbeck.runs import is_finished
from limbeck.spec.load import load_study, parse_overrides, shipped, split_overrides
from limbeck.spec.study import Study

if TYPE_CHECKING:
    from limbeck.study.price import Predicted
    from limbeck.study.run import StudyResult
    from limbeck.study.status import CellStatus
    from limbeck.study.tasks import Outcome

app = typer.Typer(no_args_is_help=True)
StudyName = Annotated[str, typer.Argument(help="A shipped study (`limbeck study list`) or a YAML file.", metavar="STUDY")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="Folder for stores, runs and the report; default: out/NAME.")
]


@app.command("run")
def run(
    study: StudyName,
    overrides: Overrides = None,
    output: Output = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A cell, or an arm with its values and all seeds, to run alone; repeat for more.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make the cells of --only anew; what is there is put aside.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, in order and priced; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study, or continue one that was stopped: teachers first, finished parts never again.

    Overrides go to every recipe, or to the study itself: launch.jobs=2, seeds=[0], hardware.device=a100.
    """
    from limbeck.study.run import chosen_cells, open_cells, run_study

    loaded, settings, folder = _opened(study, overrides, output)
    if again and not only:
        raise LimbeckError("--again makes finished runs anew: name them with --only")
    cells = open_cells(loaded, output=folder, overrides=settings)
    chosen = chosen_cells(cells, only or [])
    if dry_run:
        predicted = _remaining(loaded, folder, settings, chosen=chosen if only else None)
        _show_plan(predicted, cells_finished=_finished(predicted), as_json=as_json)
        return
    say(_price_line(loaded, folder, settings, chosen=chosen if only else None))
    result = run_study(loaded, output=folder, overrides=settings, only=only or [], again=again)
    values = result.as_json()
    emit(values, as_json=as_json, lines=_result_lines(result, values["cells"]))
    if result.broken:
        raise LimbeckError(_failures(result.broken))


@app.command("status")
def status(study: StudyName, overrides: Overrides = None, output: Output = None, as_json: Json = False) -> None:
    """How far a study is: every cell, what it has reached, and what is still to be run."""
    from limbeck.study.run import open_cells
    from limbeck.study.status import is_running, status_of

    loaded, settings, folder = _opened(study, overrides, output)
    cells = open_cells(loaded, output=folder, overrides=settings)
    found = status_of(loaded, cells, output=Path(folder))
    values = {
        "study": loaded.name,
        "folder": folder,
        "running": is_running(Path(folder)),
        "cells": [_status_values(each) for each in found.values()],
        "to_run": [each.cell.name for each in found.values() if each.status != "finished"],
    }
    emit(values, as_json=as_json, lines=[*_status_table(found), _price_line(loaded, folder, settings, chosen=None)])


@app.command("list")
def list_studies(as_json: Json = False) -> None:
    """The studies that come with Limbeck, and what they ask."""
    studies = {name: load_study(name) for name in shipped("studies")}
    values = {name: {"question": study.question, "recipe": study.recipe} for name, study in studies.items()}
    lines = [f"{name}: {study.question or study.recipe}" for name, study in studies.items()]
    emit({"studies": values}, as_json=as_json, lines=lines)


def _opened(name: str, overrides: list[str] | None, output: str | None) -> tuple[Study, dict[str, Any], str]:
    of_study, of_recipe = split_overrides(parse_overrides(overrides or []))
    study = load_study(name, of_study)
    return study, of_recipe, output or f"out/{study.name}"


def _remaining(study: Study, folder: str, settings: dict[str, Any], *, chosen: set[str] | None) -> "Predicted":
    """What is still to be run, priced; stores that are there cost nothing."""
    from limbeck.signals.places import is_published
    from limbeck.study.expand import recipes_of, waves
    from limbeck.study.price import predict
    from limbeck.study.run import open_cells

    cells = open_cells(study, output=folder, overrides=settings)
    stores = {path for cell in cells.values() for path in cell.recipe.stores}
    there = {path for path in stores if is_published(path)}
    everything = predict(study, cells, without_stores=there)
    wanted = set(everything.cells) if chosen is None else chosen
    unfinished = {name for name in wanted if not is_finished(everything.cells[name].recipe.run_path)}
    return everything.restricted([name for wave in waves(recipes_of(everything.cells)) for name in wave if name in unfinished])


def _price_line(study: Study, folder: str, settings: dict[str, Any], *, chosen: set[str] | None) -> str:
    """What is left in one line. What the planner cannot tell (a tokenizer that is not here) keeps no study from running."""
    try:
        return _total(_remaining(study, folder, settings, chosen=chosen))
    except SpecError as error:
        return f"not priced: {error}"


def _finished(predicted: "Predicted") -> list[str]:
    from limbeck.study.expand import recipes_of, waves

    recipes = recipes_of(predicted.cells)
    return [name for wave in waves(recipes) for name in wave if is_finished(recipes[name].run_path)]


def _show_plan(predicted: "Predicted", *, cells_finished: list[str], as_json: bool) -> None:
    values = {**predicted.price.as_json(), "finished": cells_finished}
    emit(values, as_json=as_json, lines=[*_plan_lines(predicted), f"finished: {len(cells_finished)} cells", _total(predicted)])


def _plan_lines(predicted: "Predicted") -> list[str]:
    price, seconds = predicted.price, {name: each.seconds for name, each in predicted.by_cell.items()}
    headers = ("cell", "learns from", "parameters", "tokens", "training FLOPs", "hours")
    return [
        *(table(headers, [_row(arm, seconds[arm.arm]) for arm in price.arms]) if price.arms else []),
        *(
            f"store {store.path}: {_shown(store.tokens)} tokens, {_shown(store.flops)} FLOPs, {_shown(store.bytes)} bytes"
            for store in price.stores
        ),
    ]


def _row(arm: ArmPrice, seconds: float | None) -> tuple[str, ...]:
    hours = seconds / 3600 if seconds is not None else None
    return arm.arm, arm.teacher or "text", human(arm.params), _shown(arm.tokens), _shown(arm.student_flops), _shown(hours)


def _total(predicted: "Predicted") -> str:
    price = predicted.price
    without = dict.fromkeys(each for arm in price.arms for each in not_in_price(predicted.cells[arm.arm].recipe))
    left_out = f"; without {' and '.join(without)}" if without else ""
    return (
        f"to run: {len(price.arms)} cells; {_shown(price.training_flops)} FLOPs of training + "
        f"{_shown(price.scoring_flops)} of scoring = {_shown(price.total_flops)}, {_shown(predicted.hours)} hours at "
        f"{price.flops_per_second:.3g} FLOP/s; stores of {_shown(price.store_bytes)} bytes{left_out}"
    )


def _shown(amount: float | None) -> str:
    return human(amount) if amount is not None else "unknown"


def _status_values(each: "CellStatus") -> dict[str, Any]:
    summary = (each.run.summary if each.run is not None else None) or {}
    return {
        "cell": each.cell.name,
        "status": each.status,
        "done": each.done,
        "bits_per_byte": summary.get("bits_per_byte"),
        "seconds": summary.get("seconds"),
        "controls": dict(each.cell.controls),
        "note": each.note,
    }


def _status_table(found: dict[str, "CellStatus"]) -> list[str]:
    rows = []
    for each in found.values():
        values = _status_values(each)
        bits, seconds = values["bits_per_byte"], values["seconds"]
        shown = ("" if bits is None else f"{bits:.4f}", "" if seconds is None else f"{seconds:.0f}")
        rows.append((each.cell.name, each.status, f"{each.done:.0%}", *shown, each.note))
    return table(("cell", "status", "done", "bits per byte", "seconds", "note"), rows)


def _result_lines(result: "StudyResult", cells: list[dict[str, Any]]) -> list[str]:
    width = max(len(cell["cell"]) for cell in cells)
    return [*(f"{cell['cell']:>{width}}: {_outcome(cell, result)}" for cell in cells), f"report: {result.report}"]


def _outcome(cell: dict[str, Any], result: "StudyResult") -> str:
    failed = result.failed.get(cell["cell"])
    if failed is not None:
        return failed.status
    if not Path(cell["run"]).is_dir():
        return "left out, whom it needs has no finished student" if cell["cell"] in result.left_out else "not run"
    if cell["bits_per_byte"] is None:
        return "unfinished"
    kl = f", KL to teacher {cell['kl_to_teacher_nats']:.3f} nats" if cell["kl_to_teacher_nats"] is not None else ""
    return f"{cell['bits_per_byte']:.4f} bits per byte{kl}, {cell['seconds']:.0f} s"


def _failures(failed: dict[str, "Outcome"]) -> str:
    names = list(failed)
    first = failed[names[0]]
    more = f" (and {len(names) - 1} more: {', '.join(names[1:])})" if len(names) > 1 else ""
    return f"{names[0]} {first.status}{more}: {first.error}"
