"""The weight of a term in a mixture: constant, or a function of how far the run is.

Read at each step, in its middle, by `limbeck.objectives.schedule`; a function of the budget's fraction and the learning rate
alone, so a resumed run repeats it.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from limbeck.spec.base import Spec


class Constant(Spec):
    """The same weight throughout; in YAML just the number."""

    kind: Literal["constant"] = "constant"
    value: float = Field(gt=0)


class Points(Spec):
    """Straight lines between [fraction of the budget, weight]; before the first and after the last, their weights."""

    kind: Literal["points"] = "points"
    at: tuple[tuple[float, float], ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _rising_and_positive(self) -> Self:
        fractions, weights = zip(*self.at, strict=True)
        if any(not 0 <= fraction <= 1 for fraction in fractions) or any(a >= b for a, b in pairwise(fractions)):
            raise ValueError("points must have rising fractions of the budget between 0 and 1")
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError("points must have weights of at least 0, and one above")
        return self


class WithLearningRate(Spec):
    """The weight follows the learning rate: `at_peak` at its peak, `at_zero` at zero, straight between (WSD-alpha, arXiv
    2410.16215). The other term of a mixture has the two exchanged.
    """

    kind: Literal["with_lr"] = "with_lr"
    at_peak: float = Field(0.9, ge=0)
    at_zero: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.at_peak == 0 and self.at_zero == 0:
            raise ValueError("at_peak and at_zero are both 0: leave the term out")
        return self


class Balanced(Spec):
    """For `hidden` alone: constant(|all terms that are not balanced| / this one) * share, so that it is as large as they are
    (Minitron). A z-loss counts among them.

    The ratio is taken in each micro-batch of each process.
    """

    kind: Literal["balanced"] = "balanced"
    share: float = Field(1.0, gt=0)


Weight = Annotated[Constant | Points | WithLearningRate | Balanced, Field(discriminator="kind")]
