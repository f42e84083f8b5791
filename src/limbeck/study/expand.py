"""From a study to its recipes: one for each arm, all with the same student, texts, budget and seed unless an arm differs."""

from collections.abc import Mapping
from typing import Any

from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study


def expand(study: Study, *, output: str, overrides: Mapping[str, Any]) -> dict[str, Recipe]:
    """The recipe of every arm. `overrides` go to all arms, before an arm's own."""
    return {
        arm: load_recipe(study.recipe, {**overrides, "name": arm, "output": output, **changes})
        for arm, changes in study.arms.items()
    }
