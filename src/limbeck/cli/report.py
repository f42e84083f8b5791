"""`limbeck report RUN… -o FOLDER`: one page from any runs."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.errors import LimbeckError
from limbeck.runs import Run, open_run
from limbeck.spec.objective import needs_teacher


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html and its figures.")] = Path("report"),
    control: Annotated[
        str | None, typer.Option(help="The run to compare with; default: the one without a teacher, of the same seed.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Limbeck report",
    as_json: Json = False,
) -> None:
    """Compare runs with their control, seed by seed: figures, tables, what may be concluded. One run stands alone."""
    from limbeck.report.from_runs import view_of_runs
    from limbeck.report.study_page import write_study_report
    from limbeck.signals.places import info_at, is_published

    opened = {path.name: open_run(path) for path in runs}
    if len(opened) < len(runs):
        raise LimbeckError("two runs have the same folder name; rename one, the report tells runs apart by it")
    if control is None:
        control = _only_control(opened)
    elif control not in opened:
        raise LimbeckError(f"--control {control} is none of the runs ({', '.join(opened)})")
    paths = {path for run in opened.values() for path in run.recipe.stores}
    stores = [info_at(path) for path in sorted(paths) if is_published(path)]
    again = ["limbeck", "report", *map(str, runs), "-o", str(output), "--title", title]
    command = shlex.join([*again, *(["--control", control] if control is not None else [])])
    view = view_of_runs(opened, control=control, stores=stores, title=title, command=command)
    page = write_study_report(view, folder=output)
    emit({"report": str(page)}, as_json=as_json, lines=[f"report: {page}"])


def _only_control(runs: dict[str, Run]) -> str | None:
    """The run without a teacher, or the first seed of it; None for a run alone. `LimbeckError`: there is none, or several."""
    from limbeck.report.from_runs import arm_names

    arms = arm_names(runs)
    without = {arms[name]: name for name, run in reversed(runs.items()) if not needs_teacher(run.recipe.objective)}
    if len(set(arms.values())) == 1:
        return None
    if not without:
        raise LimbeckError("none of these runs trains without a teacher: add the one to compare with (objective.kind=ce)")
    if len(without) > 1:
        raise LimbeckError(f"{len(without)} of these runs train without a teacher; name the control with --control")
    return next(iter(without.values()))
