"""Controls: the same student without a teacher, with the same tokens, the same seconds, or the same FLOPs as who had one.

What an arm will have spent is partly known only when it has run: then its controls in seconds and FLOPs are made after it.
Cells share a control where it is the same run, or had within the study's tolerance the same of what counts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limbeck.spec.budget import Flops, Seconds, Steps, Tokens
from limbeck.spec.objective import CrossEntropy
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Basis, Study
from limbeck.study.expand import Cell, Cells, essence, reads_without_teacher

Spent = Mapping[str, Mapping[str, Any]]
"""By cell: `tokens`, `seconds`, `student_flops`, `teacher_flops`, measured or predicted."""


def with_named_controls(study: Study, cells: Cells) -> Cells:
    """The cells with the controls that the study names, by arm: the cell of that arm with the same values and seed."""
    if study.control is None:
        return cells
    named = {}
    for cell in cells.values():
        control = study.control_of(cell.arm)
        others = [other for other in cells.values() if other.arm == control and other.name != cell.name]
        fitting = [other for other in others if _belongs(cell, other)]
        found = dict.fromkeys(("tokens", "seconds", "flops"), fitting[0].name) if fitting else {}
        named[cell.name] = replace(cell, controls=found)  # type: ignore[arg-type]
    return named


def _belongs(cell: Cell, control: Cell) -> bool:
    """Whether they share a seed and every axis that both have."""
    shared = cell.settings.keys() & control.settings.keys()
    return control.seed in (cell.seed, None) and all(cell.settings[axis] == control.settings[axis] for axis in shared)


def with_controls(study: Study, cells: Cells, *, spent: Spent) -> Cells:
    """The cells, and the automatic controls of those that learn from a teacher as far as `spent` tells what they cost.

    A pure function: the same cells and costs give the same controls, so a study that was stopped finds its own again.
    """
    found: Cells = dict(cells)
    one_student = len({repr({**essence(twin(cell.recipe)), "seed": None}) for cell in cells.values() if cell.taught}) == 1
    for basis in study.bases:
        for cell in cells.values():
            if not cell.taught or basis in cell.controls:
                continue
            recipe = _control(study, cell, basis, spent)
            if recipe is None:
                continue
            match = _match(study, recipe, basis, found, spent)
            if match is None:
                match = _named(cell, basis, recipe, one_student=one_student)
                found[match.name] = match
            own = found[cell.name]
            found[cell.name] = replace(own, controls={**own.controls, basis: match.name})
    return found


def twin(recipe: Recipe) -> Recipe:
    """The same student, texts and steps without a teacher."""
    alone = {"objective": CrossEntropy(z_loss_weight=recipe.objective.z_loss_weight), "signal": None, "store": None}
    return recipe.model_copy(update=alone | ({"teacher": None} if reads_without_teacher(recipe) else {}))


def _control(study: Study, cell: Cell, basis: Basis, spent: Spent) -> Recipe | None:
    """The control's recipe, its name aside; None while its budget is not known."""
    budget = cell.recipe.budget
    alone = twin(cell.recipe)
    match basis, budget:
        case ("tokens", Tokens() | Steps()) | ("seconds", Seconds()):
            return alone
        case "flops", Flops(teacher_share=share) if share == study.teacher_share:
            return alone.model_copy(update={"budget": Flops(amount=budget.amount)})
    if cell.name not in spent:
        return None
    amount = cost(spent[cell.name], basis, teacher_share=study.teacher_share)
    kinds = {"tokens": Tokens, "seconds": Seconds, "flops": Flops}
    return alone.model_copy(update={"budget": kinds[basis](amount=amount)})


def cost(spent: Mapping[str, Any], basis: Basis, *, teacher_share: float) -> float:
    """What a run has spent of a basis."""
    if basis == "flops":
        return float(spent["student_flops"]) + teacher_share * float(spent["teacher_flops"])
    return float(spent[basis])


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
    if cell.name in spent:
        return cost(spent[cell.name], basis, teacher_share=study.teacher_share)
    budget = cell.recipe.budget
    return budget.amount if budget.kind == basis else None


def _without_budget(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in essence(recipe).items() if key != "budget"}


def _named(cell: Cell, basis: Basis, recipe: Recipe, *, one_student: bool) -> Cell:
    """`control-tokens` where all arms have one student and one budget; otherwise with the name of the first that needed it."""
    known = recipe.budget == cell.recipe.budget
    variant = f"control-{basis}" if one_student and known else f"control-{basis}-{cell.variant}"
    name = variant if cell.seed is None else f"{variant}-seed{cell.seed}"
    return Cell(name, variant, variant, cell.seed, {}, recipe.model_copy(update={"name": name}))
