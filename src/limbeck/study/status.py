"""How far a study is: what is known of every cell from the files it has left. Torch-free, so that asking costs nothing."""

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.report.cells import Status
from limbeck.runs import Run, is_finished, open_run
from limbeck.spec.study import Study
from limbeck.study.expand import Cell, Cells, needed_cells, recipes_of
from limbeck.study.outcomes import read_outcomes
from limbeck.study.tasks import Outcome
from limbeck.train.budget import fraction_of


@dataclass(frozen=True)
class CellStatus:
    """One cell."""

    cell: Cell
    run: Run | None
    """None where nothing has been trained yet."""
    status: Status
    done: float
    """The share of its budget that is spent."""
    note: str = ""


def is_running(output: Path) -> bool:
    """Whether a process is running the study in this folder."""
    lock = output / "study.lock"
    if not lock.is_file():
        return False
    with lock.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def status_of(study: Study, cells: Cells, *, output: Path) -> dict[str, CellStatus]:
    """The state of every cell; `LimbeckError` for a run folder that is damaged."""
    outcomes, running = read_outcomes(output), is_running(output)
    needs = needed_cells(recipes_of(cells))
    found: dict[str, CellStatus] = {}
    for name, cell in cells.items():
        found[name] = _status(cell, outcomes.get(name), running=running)
    return {name: _left_out(each, needs.get(name, ()), found) for name, each in found.items()}


def _status(cell: Cell, outcome: Outcome | None, *, running: bool) -> CellStatus:
    path = Path(cell.recipe.run_path)
    run = open_run(path) if (path / "recipe.yaml").is_file() else None
    if is_finished(path):
        return CellStatus(cell, run, "finished", 1.0, "" if outcome is None else f"not measured: {outcome.error}")
    last = run.records[-1] if run is not None and run.records else None
    done = fraction_of(cell.recipe.budget, last) if last is not None else 0.0
    if outcome is not None:
        return CellStatus(cell, run, "diverged" if outcome.status == "diverged" else "failed", done, outcome.error)
    if run is None:
        return CellStatus(cell, None, "waiting", 0.0)
    return CellStatus(cell, run, "running" if running else "stopped", done)


def _left_out(status: CellStatus, needs: Sequence[str], found: Mapping[str, CellStatus]) -> CellStatus:
    lost = [name for name in needs if found[name].status in ("diverged", "failed", "left out")]
    if status.status != "waiting" or not lost:
        return status
    return CellStatus(status.cell, None, "left out", 0.0, f"{' and '.join(lost)}, which it needs, has no finished student")
