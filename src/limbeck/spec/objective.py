"""What the student minimises. Divergences are per token; weights, masks, temperature squared and the mean are applied in one
place, `limbeck.objectives.objective`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from limbeck.spec.base import Spec


class _Objective(Spec):
    z_loss_weight: float = Field(0.0, ge=0)
    """Weight of (log of the softmax's denominator) squared, which keeps logits from drifting."""


class CrossEntropy(_Objective):
    """Next-token cross-entropy on the text itself: no teacher."""

    kind: Literal["ce"] = "ce"


class ForwardKL(_Objective):
    """KL(teacher || student) on the recipe's signal.

    `tail` matters for `topk` only. 'bucket' compares the two masses outside the k ids as one more outcome: a lower bound of
    the full KL whose optimum is right on the k ids. 'renormalised' divides the head by its mass: biased, over-confident, kept
    under its honest name for comparison.
    """

    kind: Literal["forward_kl"] = "forward_kl"
    tail: Literal["bucket", "renormalised"] = "bucket"
    temperature_squared: bool = True
    """Multiply by temperature squared, so that gradients keep their size across temperatures (Hinton et al. 2015)."""


class HardLabels(_Objective):
    """Cross-entropy against the teacher's most probable token. Not a proper score: students become over-confident."""

    kind: Literal["hard"] = "hard"


Term = Annotated[CrossEntropy | ForwardKL | HardLabels, Field(discriminator="kind")]


class WeightedTerm(Spec):
    """One term of a mixture, with its weight."""

    weight: float = Field(gt=0)
    term: Term


class Mixture(_Objective):
    """The weighted sum of several terms, for example 0.5 CE + 0.5 forward KL."""

    kind: Literal["mixture"] = "mixture"
    terms: tuple[WeightedTerm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_z_loss(self) -> Self:
        if any(weighted.term.z_loss_weight for weighted in self.terms):
            raise ValueError("z_loss_weight belongs to the mixture, not to one of its terms")
        return self


Objective = Annotated[CrossEntropy | ForwardKL | HardLabels | Mixture, Field(discriminator="kind")]


def terms(objective: CrossEntropy | ForwardKL | HardLabels | Mixture) -> tuple[WeightedTerm, ...]:
    """Every objective as a weighted sum: a single term weighs 1."""
    if isinstance(objective, Mixture):
        return objective.terms
    return (WeightedTerm(weight=1.0, term=objective),)


def needs_teacher(objective: CrossEntropy | ForwardKL | HardLabels | Mixture) -> bool:
    """Whether any term reads a teacher's signal."""
    return any(not isinstance(weighted.term, CrossEntropy) for weighted in terms(objective))
