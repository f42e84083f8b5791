"""`limbeck report RUN… -o FOLDER`: one page from any runs."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.errors import LimbeckError
from limbeck.runs import open_run
from limbeck.spec.objective import needs_teacher


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html and its figures.")] = Path("report"),
    control: Annotated[str | None, typer.Option(help="The run to compare with; default: the one without a teacher.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Limbeck report",
    as_json: Json = False,
) -> None:
    """Compare runs with their control: figures, table, what may be concluded."""
    from limbeck.signals.places import is_published
    from limbeck.study.report import report_of

    opened = {path.name: open_run(path) for path in runs}
    if len(opened) < len(runs):
        raise LimbeckError("two runs have the same folder name; rename one, the report tells runs apart by it")
    if control is None:
        without = [name for name, run in opened.items() if not needs_teacher(run.recipe.objective)]
        if not without:
            raise LimbeckError("none of these runs trains without a teacher: add the one to compare with (objective.kind=ce)")
        if len(without) > 1:
            raise LimbeckError(f"{len(without)} of these runs train without a teacher; name the control with --control")
        control = without[0]
    elif control not in opened:
        raise LimbeckError(f"--control {control} is none of the runs ({', '.join(opened)})")
    paths = {run.recipe.store_path for run in opened.values() if run.recipe.uses_store}
    stores = sorted(path for path in paths if is_published(path))
    page = report_of({path.name: path for path in runs}, control=control, stores=stores, title=title, folder=output)
    emit({"report": str(page)}, as_json=as_json, lines=[f"report: {page}"])
