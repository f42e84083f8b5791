"""From a study to its cells, one recipe each, and to the order in which they can be trained.

All cells have the same student, texts, budget and seed unless an arm, an axis or a seed sets them apart. A cell whose teacher
is the student of another cell's run can only be trained after it, and so can one that begins with that student.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import SpecError
from limbeck.spec.load import load_recipe
from limbeck.spec.objective import needs_teacher
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import STUDENT_ARM, TEACHER_ARM, Axis, Basis, Study
from limbeck.spec.teacher import HuggingFaceTeacher


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    arm: str
    """The study's name for it; of an automatic control its own."""
    variant: str
    """Arm and values on its axes: cells that differ by their seed alone share it."""
    seed: int | None
    """None where the study sets none."""
    settings: Mapping[str, Any]
    """Axis and this cell's value: a number where it is one, otherwise its label."""
    recipe: Recipe
    controls: Mapping[Basis, str] = field(default_factory=dict)
    """The cells that it is held against, by what they have the same of."""

    @property
    def taught(self) -> bool:
        """Whether it learns from a teacher."""
        return needs_teacher(self.recipe.objective)


Cells = dict[str, Cell]


def recipes_of(cells: Cells) -> dict[str, Recipe]:
    """The cells' recipes by name."""
    return {name: cell.recipe for name, cell in cells.items()}


def expand(study: Study, *, output: str, overrides: Mapping[str, Any]) -> Cells:
    """Every cell by its name. `overrides` go to all, before an arm's own. `SpecError` for what cannot be, or makes no sense:
    an axis that changes nothing, two cells that are one run, an arm that teaches and is not there.
    """
    axes = {name: _axes_of(study, name, output=output, overrides=overrides) for name in study.arms}
    for axis in study.axes:
        if all(axis not in own for own in axes.values()):
            raise SpecError(f"axes.{axis} changes nothing in any arm: remove it, or set a key that the arms read")
    places = [place for name in study.arms for place in _places(study, name, axes[name])]
    names = [place.name for place in places]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SpecError(f"two cells are named {repeated}: name arms or values of axes otherwise")
    known = {name: place.name for place in places for name in (place.name, place.full_name)}
    cells = {place.name: _cell(study, place, known=known, output=output, overrides=overrides) for place in places}
    waves(recipes_of(cells))
    _refuse_twins(cells)
    return cells


@dataclass(frozen=True)
class _Place:
    """Where in the matrix a cell is."""

    arm: str
    values: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Axis: label and overrides."""
    seed: int | None
    one_of_several: bool
    """Seeds, so that the cell's name must say which."""

    @property
    def variant(self) -> str:
        return "-".join([self.arm, *(_shown(axis, label) for axis, (label, _) in self.values.items())])

    @property
    def name(self) -> str:
        return self.full_name if self.one_of_several else self.variant

    @property
    def full_name(self) -> str:
        """With the seed, whether or not there are others."""
        return f"{self.variant}-seed{self.seed}" if self.seed is not None else self.variant


def _places(study: Study, arm: str, axes: Mapping[str, Axis]) -> Iterator[_Place]:
    own = study.arm(arm).seeds
    seeds: Sequence[int | None] = (own if own is not None else study.seeds) or [None]
    for values in itertools.product(*(axis.items() for axis in axes.values())):
        for seed in seeds:
            yield _Place(arm, dict(zip(axes, values, strict=True)), seed, len(seeds) > 1)


def _axes_of(study: Study, name: str, *, output: str, overrides: Mapping[str, Any]) -> dict[str, Axis]:
    """An arm's own axes, and those of the study's that change it; `SpecError` where some of an axis's values do the same.

    Each is looked at beside the first values of the others.
    """
    arm = study.arm(name)
    found = {}
    every = {**study.axes, **arm.axes}
    for axis, values in every.items():
        firsts = [next(iter(others.values())) for other, others in every.items() if other != axis]
        beside = {key: value for changes in firsts for key, value in changes.items()}
        read = {
            label: essence(
                _recipe(study, name, {**beside, **changes}, what=f"{name}, axis {axis}", output=output, overrides=overrides)
            )
            for label, changes in values.items()
        }
        labels = list(read)
        same = [(a, b) for a, b in itertools.combinations(labels, 2) if read[a] == read[b]]
        if not same:
            found[axis] = values
        elif axis in arm.axes:
            raise SpecError(
                f"arms.{name}.axes.{axis}: {same[0][0]} and {same[0][1]} are the same run: the axis changes nothing"
            )
        elif len(same) < len(labels) * (len(labels) - 1) / 2:
            raise SpecError(f"axes.{axis}: {same[0][0]} and {same[0][1]} are the same run of {name}: remove one of them")
    return found


def _cell(study: Study, place: _Place, *, known: Mapping[str, str], output: str, overrides: Mapping[str, Any]) -> Cell:
    arm = study.arm(place.arm)
    changes = {key: value for _, each in place.values.values() for key, value in each.items()}
    settled: dict[str, Any] = {"name": place.name} | ({"seed": place.seed} if place.seed is not None else {})
    for key, named in ((TEACHER_ARM, arm.teacher), (STUDENT_ARM, arm.student)):
        other = changes.get(key, named)
        if other is not None:
            settled[key] = _other_cell(key, other, place, known=known)
    recipe = _recipe(study, place.arm, {**changes, **settled}, what=place.name, output=output, overrides=overrides)
    settings = {axis: _value(axis, label, changes) for axis, (label, changes) in place.values.items()}
    return Cell(place.name, place.arm, place.variant, place.seed, settings, recipe)


def _value(axis: str, label: str, changes: Mapping[str, Any]) -> Any:
    return changes[axis] if list(changes) == [axis] else _number(label, otherwise=label)


def _shown(axis: str, label: str) -> str:
    """In the name of a cell: a label that is a bare number has its axis before it."""
    return label if _number(label, otherwise=None) is None else f"{axis.rpartition('.')[2]}{label}"


def _number(label: str, *, otherwise: Any) -> Any:
    try:
        return float(label)
    except ValueError:
        return otherwise


def _other_cell(key: str, other: str, place: _Place, *, known: Mapping[str, str]) -> str:
    """The cell that an arm's `teacher.arm` or `student.arm` means: the one of that name, or of that name and the same seed."""
    for name in (other, f"{other}-seed{place.seed}"):
        if name in known:
            return known[name]
    several = [name for name in set(known.values()) if name.startswith(f"{other}-")]
    hint = f"; name one of its cells ({', '.join(sorted(several))})" if several else ""
    raise SpecError(f"arms.{place.arm}: {key}={other} is not one of the arms{hint}")


def _recipe(
    study: Study, arm: str, changes: Mapping[str, Any], *, what: str, output: str, overrides: Mapping[str, Any]
) -> Recipe:
    try:
        return load_recipe(study.recipe, study.settings, overrides, *study.layers_of(arm, changes, output=output))
    except SpecError as error:
        raise SpecError(f"study {study.name}, {what}: {error}") from None


INCIDENTAL = {"name", "output", "checkpoint", "parallel", "placement", "activation_checkpointing", "sinks"}


def essence(recipe: Recipe) -> dict[str, Any]:
    """What decides how a student is trained. Of a teacher that is only measured against, its vocabulary may; else nothing."""
    values = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in INCIDENTAL}
    if not needs_teacher(recipe.objective):
        values["signal"] = values["store"] = None
        if reads_without_teacher(recipe):
            values["teacher"] = None
    return values


def reads_without_teacher(recipe: Recipe) -> bool:
    """Whether tokenizer and vocabulary are the recipe's own, so that a student without a teacher is the same whoever taught."""
    return recipe.data.tokenizer is not None and recipe.student.vocab_size is not None


def _refuse_twins(cells: Cells) -> None:
    seen: dict[str, str] = {}
    for cell in cells.values():
        key = repr(essence(cell.recipe))
        if key in seen:
            raise SpecError(f"{seen[key]} and {cell.name} are the same run: remove one of them")
        seen[key] = cell.name


def teacher_cells(cells: Mapping[str, Recipe]) -> dict[str, str]:
    """Cell and the cell that teaches it, for those whose teacher is the student of another's run."""
    students = {Path(recipe.run_path, "student").resolve(): name for name, recipe in cells.items()}
    models = {name: recipe.teacher.model for name, recipe in cells.items() if isinstance(recipe.teacher, HuggingFaceTeacher)}
    found = {name: students.get(Path(model).resolve()) for name, model in models.items()}
    return {name: teacher for name, teacher in found.items() if teacher is not None}


def start_cells(cells: Mapping[str, Recipe]) -> dict[str, str]:
    """Cell and the cell whose student it begins with."""
    students = {Path(recipe.run_path, "student").resolve(): name for name, recipe in cells.items()}
    models = {name: recipe.student.model for name, recipe in cells.items() if isinstance(recipe.student, HuggingFaceStudent)}
    found = {name: students.get(Path(model).resolve()) for name, model in models.items()}
    return {name: start for name, start in found.items() if start is not None}


def needed_cells(cells: Mapping[str, Recipe]) -> dict[str, tuple[str, ...]]:
    """Cell and the cells whose students it needs; cells that need none are left out."""
    either = (teacher_cells(cells), start_cells(cells))
    found = {name: tuple(dict.fromkeys(each[name] for each in either if name in each)) for name in cells}
    return {name: needed for name, needed in found.items() if needed}


def waves(cells: Mapping[str, Recipe]) -> list[list[str]]:
    """The cells in the order of training: whom a wave needs is in waves before it. `SpecError` for a circle."""
    needs = needed_cells(cells)
    waiting = list(cells)
    result: list[list[str]] = []
    while waiting:
        wave = [name for name in waiting if not any(needed in waiting for needed in needs.get(name, ()))]
        if not wave:
            circle = ", ".join(f"{name} needs {' and '.join(needs[name])}" for name in waiting)
            raise SpecError(f"these arms need one another in a circle ({circle}): one of them must stand alone")
        result.append(wave)
        waiting = [name for name in waiting if name not in wave]
    return result
