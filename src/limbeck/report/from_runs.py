"""A study's view of any runs: those whose recipes differ in their seed alone become one arm, paired with a control by seed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from limbeck.errors import LimbeckError
from limbeck.eval_results import read_results
from limbeck.report import formats
from limbeck.report.cells import Cell, StudyView
from limbeck.report.comparisons import BASES
from limbeck.report.setup import INCIDENTAL
from limbeck.runs import Run
from limbeck.spec.objective import needs_teacher
from limbeck.spec.study import Basis

_SEED_IN_NAME = re.compile(r"[-_.]?(?:s|seed)[-_.]?\d+$")


def view_of_runs(
    runs: Mapping[str, Run | None],
    *,
    control: str | None,
    stores: Sequence[Mapping[str, Any]] = (),
    title: str = "Limbeck report",
    command: str = "",
) -> StudyView:
    """What a report shows of runs, by their names; None for a run that has not begun.

    `control` names a run without a teacher; the runs of the same recipe but for the seed are the controls of other seeds, and
    a run whose seed has none is held against the one that is named. None: nothing is compared. `LimbeckError` where there is
    no such run, or it learns from a teacher itself.
    """
    arms = arm_names(runs)
    by_seed = _controls(runs, arms, control)
    held_against = {
        name: _control_of(run, by_seed, control) if control is not None and arms[name] != arms[control] else None
        for name, run in runs.items()
    }
    cells = [_cell(name, run, arm=arms[name], control=held_against[name]) for name, run in runs.items()]
    return StudyView(title, None, cells, stores, command=command)


def _cell(name: str, run: Run | None, *, arm: str, control: str | None) -> Cell:
    controls: dict[Basis, str] = dict.fromkeys(BASES, control) if control is not None else {}
    if run is None:
        return Cell(name, arm, None, {}, None, "waiting", controls=controls)
    state: Literal["finished", "stopped"] = "finished" if run.summary is not None else "stopped"
    return Cell(name, arm, run.recipe.seed, {}, run, state, controls=controls, evals=read_results(run.path))


def arm_names(runs: Mapping[str, Run | None]) -> dict[str, str]:
    """The arm of every run: runs of one recipe and different seeds share one, named like the first without its seed."""
    groups: list[tuple[str, dict[int | None, str]]] = []
    for name, run in runs.items():
        key, seed = (_without_seed(run), run.recipe.seed) if run is not None else (f"run {name}", None)
        group = next((names for other, names in groups if other == key and seed not in names), None)
        if group is None:
            group = {}
            groups.append((key, group))
        group[seed] = name
    members = [list(names.values()) for _, names in groups]
    short = [_SEED_IN_NAME.sub("", inside[0]) if len(inside) > 1 else inside[0] for inside in members]
    clear = [text if text and short.count(text) == 1 else inside[0] for text, inside in zip(short, members, strict=True)]
    return {name: arm for arm, inside in zip(clear, members, strict=True) for name in inside}


def _without_seed(run: Run) -> str:
    recipe = formats.flatten(run.recipe.model_dump(mode="json"))
    kept = [(path, value) for path, value in recipe if path != "seed" and path.split(".")[0] not in INCIDENTAL]
    return repr(sorted(kept, key=lambda pair: pair[0]))


def _controls(runs: Mapping[str, Run | None], arms: Mapping[str, str], control: str | None) -> dict[int | None, str]:
    """The run of the control's arm of every seed; of two of one seed, the one that is named."""
    if control is None:
        return {}
    if control not in runs:
        raise LimbeckError(
            f"control={control} is not one of the runs ({', '.join(runs) or 'none'}): name the one without a teacher"
        )
    named = runs[control]
    if named is not None and needs_teacher(named.recipe.objective):
        raise LimbeckError(f"control={control} learns from a teacher itself: name a run with objective.kind=ce as the control")
    inside = [name for name in runs if arms[name] == arms[control]]
    by_seed: dict[int | None, str] = {run.recipe.seed: name for name in inside if (run := runs[name]) is not None}
    return {**by_seed, (named.recipe.seed if named is not None else None): control}


def _control_of(run: Run | None, by_seed: Mapping[int | None, str], control: str | None) -> str | None:
    return by_seed.get(run.recipe.seed, control) if run is not None else control
