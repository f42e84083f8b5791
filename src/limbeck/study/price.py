"""What a study will cost, cell by cell, before it is run: the planner's word, which the report holds against what was measured.

Controls whose budget is what their arm will have spent are priced at what the arm is predicted to spend.
"""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from limbeck.plan.devices import find_device, sustained_flops_per_second
from limbeck.plan.pretrained import student_config, student_vocab_size
from limbeck.plan.prune_shapes import SIZE_KEYS
from limbeck.plan.pruned import own_student, pruned_config, target_sizes
from limbeck.plan.study_price import ArmPrice, StudyPrice, price_study
from limbeck.report.cells import Prediction
from limbeck.spec.budget import Budget, Seconds
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import Student
from limbeck.spec.study import Study
from limbeck.study.controls import with_controls
from limbeck.study.expand import Cells, recipes_of, start_cells, teacher_cells, waves
from limbeck.teachers.files import known_config


@dataclass(frozen=True)
class Predicted:
    """A study before it is run."""

    cells: Cells
    """Controls among them that will only be made when their arms have run, under the names that they will have."""
    price: StudyPrice

    @property
    def by_cell(self) -> dict[str, Prediction]:
        """What the planner says of each cell. A store's bytes are said of every cell that reads it."""
        return {
            arm.arm: Prediction(
                tokens=arm.tokens,
                student_flops=arm.student_flops,
                teacher_flops=arm.teacher_flops,
                seconds=self._seconds(arm),
                store_bytes=self._store_bytes(arm),
            )
            for arm in self.price.arms
        }

    def _store_bytes(self, arm: ArmPrice) -> float | None:
        """Of an arm's stores together; None where it reads none, or they are there already."""
        sizes = [store.bytes for store in self.price.stores if store.path in arm.stores]
        return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None

    @property
    def hours(self) -> float | None:
        """Of everything, one thing after another: training that is budgeted in seconds as it is, the rest by its FLOPs."""
        training = [each.seconds for each in self.by_cell.values()]
        scoring = [store.flops for store in self.price.stores]
        if None in training or None in scoring:
            return None
        seconds = sum(each for each in training if each is not None)
        return (seconds + sum(each for each in scoring if each is not None) / self.price.flops_per_second) / 3600

    def restricted(self, names: Sequence[str]) -> "Predicted":
        """Only these cells, in this order, and the stores that they read."""
        priced = {arm.arm: arm for arm in self.price.arms}
        arms = tuple(priced[name] for name in names)
        read = {path for arm in arms for path in arm.stores}
        stores = tuple(store for store in self.price.stores if store.path in read)
        return replace(self, price=replace(self.price, arms=arms, stores=stores))

    def _seconds(self, arm: ArmPrice) -> float | None:
        """Of training: a live teacher's reading is in it, a store's is not."""
        budget = self.cells[arm.arm].recipe.budget
        if isinstance(budget, Seconds):
            return budget.amount
        if arm.student_flops is None or arm.live_teacher_flops is None:
            return None
        return (arm.student_flops + arm.live_teacher_flops) / self.price.flops_per_second


def predict(study: Study, cells: Cells, *, without_stores: Container[str] = ()) -> Predicted:
    """Price all cells and the controls that they will need, on the study's hardware. `without_stores`: those that are there."""
    speed = flops_per_second(study)
    first = Predicted(cells, _priced(cells, speed=speed, without_stores=without_stores))
    spent = {name: _spending(prediction) for name, prediction in first.by_cell.items()}
    everything = with_controls(study, cells, spent=spent)
    return Predicted(everything, _priced(everything, speed=speed, without_stores=without_stores))


def flops_per_second(study: Study) -> float:
    """That the study's hardware keeps up."""
    hardware = study.hardware
    return sustained_flops_per_second(find_device(hardware.device), utilisation=hardware.utilisation, count=hardware.count)


def _spending(prediction: Prediction) -> dict[str, Any]:
    """As a run's summary would say it, as far as the planner can."""
    values = asdict(prediction)
    names = ("tokens", "seconds", "student_flops", "teacher_flops")
    return {name: values[name] for name in names if values[name] is not None}


def _priced(cells: Cells, *, speed: float, without_stores: Container[str]) -> StudyPrice:
    recipes = {name: _sized(recipe) for name, recipe in _started(recipes_of(cells)).items()}
    taught_by = teacher_cells(recipes)
    configs = {name: known_config(recipe.teacher) for name, recipe in recipes.items() if name not in taught_by}
    found = price_study(recipes, taught_by=taught_by, configs=configs, flops_per_second=speed, without_stores=without_stores)
    return replace(found, arms=tuple(_by_the_clock(arm, recipes[arm.arm].budget, speed=speed) for arm in found.arms))


def _started(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The recipes; whose student begins with another cell's has that one's sizes, which no folder tells yet."""
    starts = start_cells(recipes)
    found = dict(recipes)
    for name in (name for wave in waves(recipes) for name in wave if name in starts):
        student, start = found[name].student, found[starts[name]].student
        assert isinstance(student, HuggingFaceStudent)
        if student.prune is not None:
            start = _pruned_again(start, student.prune)
        if isinstance(start, HuggingFaceStudent):
            start = start.model_copy(update={"adapter": student.adapter})
        found[name] = found[name].model_copy(update={"student": start})
    return found


def _pruned_again(start: Student, pruning: Pruning) -> Student:
    """What is left of a cell's student, as one pruning of the model that it began as, or as a student of its family.

    That of a ladder is priced whole: its width follows from its depth, so that no ladder is what is left.
    """
    if isinstance(start, LadderStudent):
        return start
    if not isinstance(start, HuggingFaceStudent):
        config = {"model_type": "limbeck", "student": start.model_dump(mode="json")}
        left = own_student(pruned_config(config, pruning))
        assert left is not None
        return left
    after = target_sizes(student_config(start), pruning)
    sizes = {name: getattr(after, name) for name in SIZE_KEYS}
    return start.model_copy(update={"prune": Pruning(**sizes, keep_first=0, keep_last=0)})


def _sized(recipe: Recipe) -> Recipe:
    """With the vocabulary of a tokenizer that lies in a folder here, where nothing else says how large the student's is."""
    student, tokenizer = recipe.student, recipe.data.tokenizer
    if student_vocab_size(student) is not None or tokenizer is None:
        return recipe
    try:
        values = json.loads((Path(tokenizer) / "tokenizer.json").read_text(encoding="utf-8"))
        ids = [*values["model"]["vocab"].values(), *(token["id"] for token in values.get("added_tokens", []))]
        return recipe.model_copy(update={"student": student.with_vocab_size(max(ids) + 1)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of another kind, or not here
        return recipe


def _by_the_clock(arm: ArmPrice, budget: Budget, *, speed: float) -> ArmPrice:
    """Of a student that trains for so many seconds: what the hardware does in them; not where a teacher reads beside it."""
    if not isinstance(budget, Seconds) or (arm.teacher is not None and arm.live_teacher_flops != 0):
        return arm
    flops = budget.amount * speed
    return replace(arm, student_flops=flops, tokens=flops / arm.training_flops_per_token)
