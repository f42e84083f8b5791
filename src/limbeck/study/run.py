"""Running a study: teachers before those whom they teach, stores before the cells that read them, then the controls that depend
on what the others spent, then the report.

Finished parts are not made again. A cell that fails or diverges is a result; those that it was to teach are left out, and the
others go on.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, SpecError
from limbeck.eval_results import read_results
from limbeck.paths import write_atomically
from limbeck.plan.memory import training_memory_bytes
from limbeck.plan.pretrained import student_vocab_size
from limbeck.progress import say
from limbeck.runs import Costs, is_finished, open_run, require_recipe
from limbeck.signals.places import is_published
from limbeck.spec.base import nearest
from limbeck.spec.evals import Eval
from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.launch import Launch, Local
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study
from limbeck.study.controls import Decided, Spent, compared_with, decisions, with_controls, with_named_controls
from limbeck.study.expand import Cells, expand, needed_cells, recipes_of, teacher_cells, waves
from limbeck.study.launch import run_tasks, slots_of
from limbeck.study.needs import check_evals
from limbeck.study.outcomes import forget_outcome, keep_outcome, read_outcomes
from limbeck.study.report import keep_study, write_report_of
from limbeck.study.tasks import FIDELITY, Outcome, Task


@dataclass(frozen=True)
class StudyResult:
    """Where everything is. `runs` of cells that were left out do not exist."""

    runs: dict[str, Path]
    stores: tuple[str, ...]
    """Folders or URLs."""
    report: Path
    failed: dict[str, Outcome]
    """Cells that ended with an error; those that diverged among them."""
    left_out: tuple[str, ...] = ()
    """Cells whose teacher has no finished student."""

    @property
    def broken(self) -> dict[str, Outcome]:
        """Those that failed otherwise than by diverging, which is a result."""
        return {name: outcome for name, outcome in self.failed.items() if outcome.status == "failed"}

    def as_json(self) -> dict[str, Any]:
        """What scripts read."""
        return {
            "cells": [{"cell": name, "run": str(path), **costs_and_results(path)} for name, path in self.runs.items()],
            "stores": list(self.stores),
            "failed": {name: asdict(outcome) for name, outcome in self.failed.items()},
            "report": str(self.report),
        }


def open_cells(study: Study, *, output: str, overrides: Mapping[str, Any]) -> Cells:
    """All cells that are known so far, with their controls; what is on disk is checked. `SpecError`, `LimbeckError`: what is
    wrong with the study, or with a run that is there, before anything is run."""
    cells = with_named_controls(study, expand(study, output=output, overrides=overrides))
    check_controls(study, cells)
    check_teachers(cells)
    check_stores(cells)
    decided = read_decisions(Path(output))
    cells = with_controls(study, cells, spent={}, decided=decided)
    cells = with_controls(study, cells, spent=spent_of(cells), decided=decided)
    for cell in cells.values():
        if Path(cell.recipe.run_path, "recipe.yaml").is_file():
            require_recipe(cell.recipe.run_path, cell.recipe)
    return cells


def run_study(
    study: Study, *, output: str, overrides: Mapping[str, Any], only: Sequence[str] = (), again: bool = False
) -> StudyResult:
    """Run what is unfinished of a study, and write its report.

    `only` names cells, or variants with all their seeds, to run alone; `again` puts their finished runs aside first. torch is
    imported only if there is something to run.
    """
    cells = open_cells(study, output=output, overrides=overrides)
    chosen = chosen_cells(cells, only)
    check_evals(study.evals)
    slots = _slots(study.launch, cells)
    teachers: dict[str, Outcome] = {}
    with only_one(Path(output)):
        keep_study(study, output=Path(output), overrides=overrides)
        if again:
            _put_aside(cells, chosen, output=Path(output))
            cells = open_cells(study, output=output, overrides=overrides)
        keep_decisions(cells, Path(output))
        left_out = _run(study, cells, chosen=chosen, output=Path(output), retry=bool(only), slots=slots)
        if not only:
            before = set(cells)
            cells = with_controls(study, cells, spent=spent_of(cells), decided=read_decisions(Path(output)))
            keep_decisions(cells, Path(output))
            _run(study, cells, chosen=set(cells) - before, output=Path(output), retry=False, slots=slots)
            teachers = _measure_teachers(study, cells, output=Path(output), slots=slots)
    runs = {name: Path(cell.recipe.run_path) for name, cell in cells.items()}
    stores = sorted({cell.recipe.store_path for cell in cells.values() if cell.recipe.uses_store})
    page = write_report_of(study, cells, output=Path(output))
    failed = {name: outcome for name, outcome in read_outcomes(Path(output)).items() if name in cells}
    return StudyResult(runs, tuple(stores), page, failed | teachers, left_out)


DECISIONS = "controls.json"


def read_decisions(output: Path) -> Decided:
    """Which controls a study has decided on; empty before its first run."""
    path = output / DECISIONS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise LimbeckError(f"{path} is damaged ({error}): remove it, controls are then decided on anew") from error


def keep_decisions(cells: Cells, output: Path) -> None:
    """Remember them."""
    write_atomically(output / DECISIONS, json.dumps({**read_decisions(output), **decisions(cells)}, indent=1))


def chosen_cells(cells: Cells, only: Sequence[str]) -> set[str]:
    """The names of the cells that are meant; all where none is named."""
    found: set[str] = set()
    for name in only:
        meant = {cell.name for cell in cells.values() if name in (cell.name, cell.variant)}
        if not meant:
            raise SpecError(f"{name} is not a cell of this study{nearest(name, list(cells))}")
        found |= meant
    return found or set(cells)


def check_teachers(cells: Cells) -> None:
    """`SpecError` for a cell that shows its teacher, another cell, more of a text than that was trained to read at once."""
    recipes = recipes_of(cells)
    for name, teacher in teacher_cells(recipes).items():
        read, window = recipes[teacher].data.sequence_length, recipes[name].teacher.context.window  # type: ignore[union-attr]
        if window > read:
            raise SpecError(
                f"{name}: teacher.context.window={window}, but its teacher {teacher} is trained on sequences of {read}: set "
                f"teacher.context to {{window: {read}, overlap: {read // 4}}}"
            )


def check_controls(study: Study, cells: Cells) -> None:
    """`SpecError` for a control that learns from a teacher, and for budgets that differ where they are compared as equal."""
    for cell in cells.values():
        for name in set(cell.controls.values()):
            if cells[name].taught:
                raise SpecError(f"control={name} learns from a teacher itself: name an arm with objective.kind=ce")
            if cell.taught:
                _check_budgets(cell.name, cell.recipe, name, cells[name].recipe)
    for arm in study.compare:
        if not any(arm in (cell.arm, cell.variant) for cell in cells.values()):
            raise SpecError(f"compare.{arm}: {arm} is not one of the arms")
    for cell in cells.values():
        compared_with(study, cell, cells)


def check_stores(cells: Cells) -> None:
    """`SpecError` where cells would write one store from other teachers, texts or signals; what is there is checked later."""
    written: dict[str, tuple[str, Any]] = {}
    for name, cell in cells.items():
        recipe = cell.recipe
        if not recipe.uses_store or is_published(recipe.store_path):
            continue
        data = recipe.data
        asked = (recipe.teacher, recipe.signal, data.train, data.tokenizer, data.chat_template, recipe.chunks_for)
        first, other = written.setdefault(recipe.store_path, (name, asked))
        if other != asked:
            raise SpecError(
                f"{first} and {name} read other rows (of another teacher, text, window or signal) from one store, "
                f"{recipe.store_path}: set store to another place for one of them, in its arm or axis"
            )


def _check_budgets(name: str, recipe: Recipe, control: str, other: Recipe) -> None:
    if recipe.budget != other.budget:
        mine, theirs = (f"{each.budget.kind}={each.budget.amount:g}" for each in (recipe, other))
        raise SpecError(
            f"{name} has a budget of {mine} and its control {control} of {theirs}: give it a control with its own budget under "
            "`controls`, or leave `control` out, and every cell gets controls of its own"
        )


def spent_of(cells: Cells) -> Spent:
    """What finished cells have spent."""
    found = {}
    for name, cell in cells.items():
        if is_finished(cell.recipe.run_path):
            summary = open_run(cell.recipe.run_path).summary
            assert summary is not None
            found[name] = summary
    return found


@contextmanager
def only_one(output: Path) -> Iterator[None]:
    """`LimbeckError` where another process is running this study already."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LimbeckError(f"{output} is being run by another process: wait for it, or choose another folder") from None
        os.set_inheritable(file.fileno(), True)  # what the study started holds the lock too, should the study be killed
        yield


def _put_aside(cells: Cells, chosen: set[str], *, output: Path) -> None:
    """Move the runs of cells that are to be made again out of the way, to where no fit or report takes them for others."""
    for name in chosen:
        path = Path(cells[name].recipe.run_path)
        if path.is_dir():
            number = 1
            while (aside := output / "put-aside" / f"{path.name}-{number}").exists():
                number += 1
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            say(f"{name}: what was there is now {aside}")


def _run(study: Study, cells: Cells, *, chosen: set[str], output: Path, retry: bool, slots: int) -> tuple[str, ...]:
    """Train what is unfinished among the chosen, teachers first; the cells that were left out. `retry`: also what diverged."""
    left_out: list[str] = []
    recipes = recipes_of(cells)
    needs = needed_cells(recipes)
    diverged = {name for name, outcome in read_outcomes(output).items() if outcome.status == "diverged"}
    lost = set() if retry else diverged
    for wave in waves(recipes):
        wanted = [name for name in wave if name in chosen and name not in lost and not _is_done(study, recipes[name])]
        lacking = {
            name: [other for other in needs.get(name, ()) if not is_finished(recipes[other].run_path)] for name in wanted
        }
        ready = [name for name in wanted if not lacking[name]]
        for name in (name for name in wanted if name not in ready):
            left_out.append(name)
            say(f"{name}: left out, because {' and '.join(lacking[name])}, which it needs, has no finished student")
        unwritten = _write_stores(study, [recipes[name] for name in ready], output=output, slots=slots)
        tasks = [
            Task(verb="train", name=name, recipes=(recipes[name],), evals=study.evals)
            for name in ready
            if recipes[name].store_path not in unwritten or not recipes[name].uses_store
        ]
        _do(study, tasks, output=output, slots=slots)
    return tuple(left_out)


def _do(study: Study, tasks: Sequence[Task], *, output: Path, slots: int) -> dict[str, Outcome]:
    if not tasks:
        return {}

    def report(task: Task, outcome: Outcome) -> None:
        if outcome.status == "finished":
            forget_outcome(output, task.name)
            return
        keep_outcome(output, task.name, outcome)
        say(f"{task.name}: {outcome.status}: {outcome.error}")

    for task in tasks:
        forget_outcome(output, task.name)
    return run_tasks(tasks, launch=study.launch, folder=output / "tasks", slots=min(slots, len(tasks)), report=report)


def _slots(launch: Launch, cells: Cells) -> int:
    """How many cells run at once; sizes, which need not be known, are asked for only where there may be more than one."""
    if isinstance(launch, Local) and launch.jobs == 1:
        return 1
    return slots_of(launch, memory_bytes=max(_memory(cell.recipe) for cell in cells.values()))


def _memory(recipe: Recipe) -> float:
    return training_memory_bytes(recipe, vocab_size=student_vocab_size(recipe.student) or 50_000)


def _is_done(study: Study, recipe: Recipe) -> bool:
    """Whether a run is finished and all that is asked of it has been measured."""
    if not is_finished(recipe.run_path):
        return False
    if not study.evals:
        return True
    return _has_results(Path(recipe.run_path), study.evals)


def _has_results(folder: Path, evals: Mapping[str, Eval]) -> bool:
    there = read_results(folder)
    return all(name in there and there[name].spec == spec.model_dump(mode="json") for name, spec in evals.items())


def _write_stores(study: Study, recipes: Sequence[Recipe], *, output: Path, slots: int) -> set[str]:
    """Write the stores that are missing, those of one teacher and one set of texts in one pass; those that could not be."""
    lacking = [recipe for recipe in recipes if recipe.uses_store and not is_published(recipe.store_path)]
    lost: set[str] = set()
    while lacking:
        first = lacking[0]
        together = [recipe for recipe in lacking if recipe.scoring_pass == first.scoring_pass]
        lacking = [recipe for recipe in lacking if recipe not in together]
        readers = list({recipe.store_path: recipe for recipe in together}.values())
        assert first.teacher is not None
        task = Task(
            verb="stores", name=f"stores-of-{first.teacher.slug}", recipes=tuple(readers), folder=str(output / FIDELITY)
        )
        outcome = _do(study, [task], output=output, slots=slots)[task.name]
        forget_outcome(output, task.name)  # it is the cells' now
        if outcome.status != "finished":
            lost |= {recipe.store_path for recipe in readers}
            for recipe in together:
                keep_outcome(output, recipe.name, Outcome("failed", outcome.error))
    return lost


def _measure_teachers(study: Study, cells: Cells, *, output: Path, slots: int) -> dict[str, Outcome]:
    """Every teacher that is not a cell itself, as its students are measured; those that could not be.

    What is for students alone (an artifact) is not asked of them.
    """
    if not study.evals:
        return {}
    recipes = recipes_of(cells)
    of_cells = teacher_cells(recipes)
    taught = [cell.recipe for cell in cells.values() if cell.taught and cell.name not in of_cells]
    outside = list({repr(recipe.teacher): recipe for recipe in taught}.values())
    slugs = [recipe.teacher.slug for recipe in outside if recipe.teacher is not None]
    evals = {name: spec for name, spec in study.evals.items() if not isinstance(spec, Artifact)}
    tasks = []
    for place, (slug, recipe) in enumerate(zip(slugs, outside, strict=True)):
        name = slug if slug not in slugs[:place] else f"{slug}-{slugs[:place].count(slug) + 1}"
        folder = str(output / "teachers" / name)
        tasks.append(Task(verb="teacher", name=f"teacher-{name}", recipes=(recipe,), evals=evals, folder=folder))
    missing = [task for task in tasks if task.folder is not None and not _has_results(Path(task.folder), task.evals)]
    found = _do(study, missing, output=output, slots=slots)
    for name in found:
        forget_outcome(output, name)
    return {name: outcome for name, outcome in found.items() if outcome.status != "finished"}


def costs_and_results(path: Path) -> dict[str, Any]:
    """Of a run; results are None where it diverged or was left out."""
    run = open_run(path) if (path / "recipe.yaml").is_file() else None  # None: the cell was left out
    records = run.records if run is not None else ()
    summary = run.summary if run is not None else None
    last = summary or {**asdict(Costs()), **(records[-1] if records else {})}
    names = ("tokens", "seconds", "student_flops", "teacher_flops")
    results = ("bits_per_byte", "kl_to_teacher_nats")
    return {**{name: last[name] for name in names}, **{name: (summary or {}).get(name) for name in results}}
