"""From a study to its recipes, one for each arm, and to the order in which they can be trained.

All arms have the same student, texts, budget and seed unless an arm differs. An arm whose teacher is the student of another
arm's run can only be trained after it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import SpecError
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study
from limbeck.spec.teacher import HuggingFaceTeacher


def expand(study: Study, *, output: str, overrides: Mapping[str, Any]) -> dict[str, Recipe]:
    """The recipe of every arm. `overrides` go to all arms, before an arm's own."""
    return {arm: load_recipe(study.recipe, {**overrides, **study.overrides_of(arm, output=output)}) for arm in study.arms}


def teacher_arms(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Arm and the arm that teaches it, for those whose teacher is the student of another's run."""
    students = {Path(recipe.run_path, "student").resolve(): arm for arm, recipe in recipes.items()}
    models = {arm: recipe.teacher.model for arm, recipe in recipes.items() if isinstance(recipe.teacher, HuggingFaceTeacher)}
    found = {arm: students.get(Path(model).resolve()) for arm, model in models.items()}
    return {arm: teacher for arm, teacher in found.items() if teacher is not None}


def waves(recipes: Mapping[str, Recipe]) -> list[list[str]]:
    """The arms in the order of training: each wave's teachers are in waves before it. `SpecError` for arms in a circle."""
    taught_by = teacher_arms(recipes)
    waiting = list(recipes)
    result: list[list[str]] = []
    while waiting:
        wave = [arm for arm in waiting if taught_by.get(arm) not in waiting]
        if not wave:
            circle = ", ".join(f"{arm} by {taught_by[arm]}" for arm in waiting)
            raise SpecError(f"these arms teach one another in a circle ({circle}): one of them must learn from the text")
        result.append(wave)
        waiting = [arm for arm in waiting if arm not in wave]
    return result
