"""Controls: the same student without a teacher, with the same tokens, the same seconds, or the same FLOPs as who had one.

What an arm will have spent is partly known only when it has run: then its controls in seconds and FLOPs are made after it.
Cells share a control where it is the same run, or had within the study's tolerance the same of what counts.
"""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from limbeck.errors import SpecError
from limbeck.spec.budget import Flops, Seconds, Steps, Tokens
from limbeck.spec.curriculum import Stage
from limbeck.spec.objective import CrossEntropy
from limbeck.spec.placement import SameDevice
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import BASES, Basis, Study
from limbeck.study.expand import Cell, Cells, essence, reads_without_teacher

PREFIX = "control-"
"""Of the names of automatic controls."""
Decided = Mapping[str, Mapping[Basis, Mapping[str, Any]]]
"""By cell and basis: `name` and `budget` of its control."""
Spent = Mapping[str, Mapping[str, Any]]
"""By cell: `tokens`, `seconds`, `student_flops`, `teacher_flops`, measured or predicted."""


def with_named_controls(study: Study, cells: Cells) -> Cells:
    """The cells with the controls that the study names, by arm: the cell of that arm with the same values and seed.

    `SpecError` for a cell with a teacher that has none, or of which several could be it.
    """
    if study.control is None:
        return cells
    named = {}
    for cell in cells.values():
        control = study.control_of(cell.arm)
        others = [other for other in cells.values() if other.arm == control and other.name != cell.name]
        fitting = [other for other in others if _belongs(cell, other)]
        if cell.taught and len(fitting) != 1 and control != cell.arm:
            found = f"{len(fitting)} of its cells have" if fitting else "no cell of it has"
            raise SpecError(f"{cell.name}: its control is the arm {control}, but {found} the same seed and shared axes")
        named[cell.name] = replace(cell, controls=dict.fromkeys(BASES, fitting[0].name) if len(fitting) == 1 else {})
    return named


def _belongs(cell: Cell, control: Cell) -> bool:
    """Whether they share a seed and every axis that both have."""
    shared = cell.settings.keys() & control.settings.keys()
    return control.seed in (cell.seed, None) and all(cell.settings[axis] == control.settings[axis] for axis in shared)


def with_controls(study: Study, cells: Cells, *, spent: Spent, decided: Decided | None = None) -> Cells:
    """The cells, and the automatic controls of those that learn from a teacher as far as `spent` tells what they cost.

    What has been `decided` before stands, as long as it has within the tolerance the same: so a study that was stopped finds
    its own controls again, in whatever order cells finished.
    """
    found: Cells = dict(cells)
    one_student = len({repr({**essence(twin(cell.recipe)), "seed": None}) for cell in cells.values() if cell.taught}) == 1
    for basis in study.bases:
        asked = {
            cell.name: recipe
            for cell in cells.values()
            if cell.taught and basis not in cell.controls and (recipe := _control(study, cell, basis, spent)) is not None
        }
        for name, recipe in asked.items():
            known = _decided(study, cells[name], basis, recipe, decided or {})
            if known is not None:
                _hold_against(found, name, basis, known)
        for name, recipe in asked.items():
            if basis in found[name].controls:
                continue
            match = _match(study, recipe, basis, found, spent)
            if match is None:
                taken = {*found, *_names(decided or {})}
                match = _named(cells[name], basis, recipe, one_student=one_student, taken=taken)
            _hold_against(found, name, basis, match)
    return found


def _hold_against(cells: Cells, name: str, basis: Basis, control: Cell) -> None:
    """Make `control` one of the cells, and that of the cell `name`."""
    cells.setdefault(control.name, control)
    cells[name] = replace(cells[name], controls={**cells[name].controls, basis: control.name})


def decisions(cells: Cells) -> Decided:
    """By cell and basis, the automatic control and its budget: to be kept beside the runs."""
    made = {name: cell for name, cell in cells.items() if cell.arm.startswith(PREFIX)}
    return {
        cell.name: {basis: {"name": name, "budget": made[name].recipe.budget.model_dump()} for basis, name in own.items()}
        for cell in cells.values()
        if (own := {basis: name for basis, name in cell.controls.items() if name in made})
    }


def _names(decided: Decided) -> set[str]:
    return {control["name"] for own in decided.values() for control in own.values()}


def _decided(study: Study, cell: Cell, basis: Basis, recipe: Recipe, decided: Decided) -> Cell | None:
    """The control that was decided on before, where it still has the same within the tolerance."""
    known = decided.get(cell.name, {}).get(basis)
    if known is None:
        return None
    budget = type(recipe.budget).model_validate(known["budget"]) if known["budget"]["kind"] == recipe.budget.kind else None
    if budget is None or abs(budget.amount - recipe.budget.amount) > study.tolerance * recipe.budget.amount:
        return None
    return _cell(known["name"], cell, recipe.model_copy(update={"budget": budget}))


def twin(recipe: Recipe) -> Recipe:
    """The same student, texts and stages without a teacher."""
    objective = CrossEntropy(z_loss_weight=recipe.objective.z_loss_weight)
    alone: dict[str, Any] = {
        "objective": objective,
        "signal": None,
        "store": None,
        "on_policy": None,
        "placement": SameDevice(),
    }
    alone["curriculum"] = tuple(_untaught(stage, without={*alone, "teacher"}) for stage in recipe.curriculum)
    return recipe.model_copy(update=alone | ({"teacher": None} if reads_without_teacher(recipe) else {}))


def _untaught(stage: Stage, *, without: Container[str]) -> Stage:
    """The stage without what it changes of these parts of a recipe."""
    kept = {path: value for path, value in stage.changes.items() if path.partition(".")[0] not in without}
    return stage.model_copy(update={"changes": kept})


def _control(study: Study, cell: Cell, basis: Basis, spent: Spent) -> Recipe | None:
    """The control's recipe, its name aside; None while its budget is not known."""
    budget = cell.recipe.budget
    alone = twin(cell.recipe)
    match basis, budget:
        case ("tokens", Tokens()) | ("seconds", Seconds()):
            return alone
        case ("tokens", Steps()) if cell.recipe.on_policy is None:  # otherwise a step has as many tokens as are written in it
            return alone
        case "flops", Flops(teacher_share=share) if share == study.teacher_share:
            return alone.model_copy(update={"budget": Flops(amount=budget.amount)})
    amount = cost(spent.get(cell.name, {}), basis, teacher_share=study.teacher_share)
    if amount is None:
        return None
    kinds = {"tokens": Tokens, "seconds": Seconds, "flops": Flops}
    return alone.model_copy(update={"budget": kinds[basis](amount=amount)})


def cost(spent: Mapping[str, Any], basis: Basis, *, teacher_share: float) -> float | None:
    """What a run has spent of a basis; None where that is not known."""
    if basis != "flops":
        return float(spent[basis]) if basis in spent else None
    if not {"student_flops", "teacher_flops"} <= spent.keys():
        return None
    return float(spent["student_flops"]) + teacher_share * float(spent["teacher_flops"])


def _match(study: Study, recipe: Recipe, basis: Basis, cells: Cells, spent: Spent) -> Cell | None:
    """A cell that is this control already: the same run, or the same student with the same cost within the tolerance."""
    same, wanted = essence(recipe), _without_budget(recipe)
    alike = [cell for cell in cells.values() if not cell.taught and _without_budget(cell.recipe) == wanted]
    for cell in alike:
        if essence(cell.recipe) == same:
            return cell
    if not isinstance(recipe.budget, Tokens | Seconds | Flops):
        return None
    for cell in alike:
        has = _amount(cell, basis, spent, study=study)
        if has is not None and abs(has - recipe.budget.amount) <= study.tolerance * recipe.budget.amount:
            return cell
    return None


def _amount(cell: Cell, basis: Basis, spent: Spent, *, study: Study) -> float | None:
    """What a control has, or will have, spent of a basis."""
    had = cost(spent.get(cell.name, {}), basis, teacher_share=study.teacher_share)
    budget = cell.recipe.budget
    return budget.amount if had is None and budget.kind == basis else had


def _without_budget(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in essence(recipe).items() if key != "budget"}


def _named(cell: Cell, basis: Basis, recipe: Recipe, *, one_student: bool, taken: Container[str]) -> Cell:
    """`control-tokens` where all arms have one student and one budget; otherwise with the name of the first that needed it."""
    short, long = f"{PREFIX}{basis}", f"{PREFIX}{basis}-{cell.variant}"
    known = recipe.budget == cell.recipe.budget and one_student
    variants = [*([short] if known else []), long, *(f"{long}-{number}" for number in range(2, 1000))]
    names = (variant if cell.seed is None else f"{variant}-seed{cell.seed}" for variant in variants)
    return _cell(next(name for name in names if name not in taken), cell, recipe)


def _cell(name: str, of: Cell, recipe: Recipe) -> Cell:
    variant = name if of.seed is None else name.removesuffix(f"-seed{of.seed}")
    return Cell(name, variant, variant, of.seed, {}, recipe.model_copy(update={"name": name}))


def compared_with(study: Study, cell: Cell, cells: Cells) -> str | None:
    """The variant that the study compares this one with: of an arm, the one with the same values on the same axes.

    `SpecError` where there is none.
    """
    other = study.compare.get(cell.variant) or study.compare.get(cell.arm)
    if other is None:
        return None
    variants = {each.variant for each in cells.values()}
    for name in (f"{other}{cell.variant.removeprefix(cell.arm)}", other):
        if name in variants:
            return name
    raise SpecError(f"compare: {cell.variant} is to be compared with {other}, which is no arm or has not its values on axes")
