"""Where a run stands in its curriculum, and where the stage at hand ends: pure functions of the costs until there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.runs import Costs
from limbeck.spec.curriculum import Stage, borders
from limbeck.spec.recipe import Recipe, reads_on
from limbeck.train.budget import fraction, spent

_AS_GOOD_AS = 1 - 1e-9
"""Of a milestone: sums of floats may fall short of it."""


@dataclass(frozen=True)
class Place:
    """What a checkpoint keeps of the curriculum."""

    stage: int = 0
    began: Costs = field(default_factory=Costs)
    """Where the run stood when it began to read these texts in this shape: at the stage's start, or before it where the stage
    goes on in the texts of the one before it."""

    @staticmethod
    def read(values: Mapping[str, Any] | None) -> "Place":
        """From a checkpoint; the start where it was written without."""
        return Place() if values is None else Place(values["stage"], Costs(**values["began"]))


@dataclass(frozen=True)
class Course:
    """A whole recipe, and the place where its run stands."""

    recipe: Recipe
    place: Place = field(default_factory=Place)

    @property
    def stage(self) -> Stage | None:
        """The stage at hand; None without a curriculum."""
        return self.recipe.curriculum[self.place.stage] if self.recipe.curriculum else None

    @property
    def stage_recipe(self) -> Recipe:
        """What is run now."""
        return self.recipe.stages[self.place.stage][1]

    @property
    def is_last(self) -> bool:
        """Whether no stage follows."""
        return self.place.stage + 1 >= len(self.recipe.curriculum)

    @property
    def ends(self) -> float:
        """The share of the budget at which the stage ends."""
        return self._ends(self.place.stage)

    def _ends(self, stage: int) -> float:
        return borders(self.recipe.curriculum)[stage] if self.recipe.curriculum else 1.0

    def after(self, costs: Costs) -> "Course":
        """Where the run stands when the stage has ended with those costs: stages that a step has passed over have none.

        The last stage has its turn even then: the student is left as that one says.
        """
        last = len(self.recipe.curriculum) - 1
        number = self.place.stage + 1
        while number < last and fraction(self.recipe.budget, costs) >= self._ends(number):
            number += 1
        stages = self.recipe.stages
        same = all(reads_on(stages[at][1], stages[at + 1][1]) for at in range(self.place.stage, number))
        return replace(self, place=Place(number, self.place.began if same else costs))

    def passed_over(self, until: "Course") -> tuple[Stage, ...]:
        """The stages between this one and a later one, which have had no step."""
        return self.recipe.curriculum[self.place.stage + 1 : until.place.stage]

    def milestones(self, before: Costs, after: Costs) -> tuple[float, ...]:
        """Those that were reached between the two."""
        had, has = spent(self.recipe.budget, before), spent(self.recipe.budget, after)
        return tuple(each for each in self.recipe.milestones if had < each * _AS_GOOD_AS <= has)
