"""From a study's folder to its report: what was run, what it was compared with, what was predicted and what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import SpecError
from limbeck.eval_results import EvalResult, read_results
from limbeck.paths import write_atomically
from limbeck.report import cells as shown
from limbeck.report.study_page import write_study_report
from limbeck.signals.places import info_at, is_published
from limbeck.spec.study import Study
from limbeck.study.controls import compared_with
from limbeck.study.expand import Cells
from limbeck.study.price import predict
from limbeck.study.status import CellStatus, status_of
from limbeck.study.tasks import FIDELITY

STUDY_FILE = "study.yaml"
"""The study as it was run, with what the command line changed: in its folder, so that it can be run again."""


def keep_study(study: Study, *, output: Path, overrides: Mapping[str, Any]) -> None:
    """Write the study into its folder."""
    values = study.model_dump(mode="json", exclude_unset=True)
    if overrides:
        values["settings"] = {**values.get("settings", {}), **overrides}
    write_atomically(output / STUDY_FILE, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_report_of(study: Study, cells: Cells, *, output: Path) -> Path:
    """Write the study's report into its folder; the path of the page."""
    return write_study_report(view_of(study, cells, output=output), folder=output)


def view_of(study: Study, cells: Cells, *, output: Path) -> shown.StudyView:
    """All that the report shows."""
    prices = _prices(study, cells)
    stores = sorted({path for cell in cells.values() for path in cell.recipe.stores})
    there = [path for path in stores if is_published(path)]  # a finished study's stores may have been removed
    return shown.StudyView(
        name=study.name,
        question=study.question,
        cells=[_shown(study, each, prices.get(name), cells) for name, each in status_of(study, cells, output=output).items()],
        stores=[info_at(path) for path in there],
        fidelity=_fidelity(output),
        teachers=_teachers(output),
        source=(output / STUDY_FILE).read_text(encoding="utf-8") if (output / STUDY_FILE).is_file() else "",
        command=f"limbeck study run {output / STUDY_FILE} -o {output}",
        teacher_share=study.teacher_share,
        tolerance=study.tolerance,
    )


def _prices(study: Study, cells: Cells) -> Mapping[str, shown.Prediction]:
    """What the planner said; empty where it lacks a size, as of a tokenizer that is not here."""
    try:
        return predict(study, cells).by_cell
    except SpecError:
        return {}


def _shown(study: Study, each: CellStatus, predicted: shown.Prediction | None, cells: Cells) -> shown.Cell:
    cell = each.cell
    return shown.Cell(
        name=cell.name,
        arm=cell.variant,
        seed=cell.seed,
        settings=dict(cell.settings),
        run=each.run,
        status=each.status,
        note=each.note,
        controls=dict(cell.controls),
        compared_with=compared_with(study, cell, cells),
        evals=read_results(Path(cell.recipe.run_path)),
        predicted=predicted,
        base=cell.arm,
    )


def _fidelity(output: Path) -> Mapping[str, Mapping[str, Any]]:
    """By store, as it was measured when the store was written."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / FIDELITY).glob("*.json")))
    return {values["path"]: values for values in found}


def _teachers(output: Path) -> Mapping[str, Mapping[str, EvalResult]]:
    folder = output / "teachers"
    return {path.name: read_results(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}
