"""The parts that students are made of, as far as a recipe chooses them: positions, activations, norms of queries and keys.

Sources are named where each part is built, in `limbeck.students`.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec

Activation = Literal["swiglu", "relu2", "leaky_relu2"]
"""silu(gate) * up in three matrices; max(x, 0)**2 in two; (x or x / 2)**2 in two."""
QkNorm = Literal["none", "projection", "head", "gain"]
"""RMS of queries and keys before they are turned: over the whole projection with weights (OLMo), over each head with weights
(Qwen3), over each head without weights and with a learned gain on each query head (nanoGPT speedruns)."""


class Yarn(Spec):
    """Rotary positions stretched from `original_length` to `factor` times that (YaRN, arXiv 2309.00071)."""

    factor: float = Field(8.0, ge=1)
    original_length: PositiveInt = 8192
    beta_fast: float = Field(32.0, gt=0)
    """Planes that turn at least so often over the original length keep their rate."""
    beta_slow: float = Field(1.0, gt=0)
    """Planes that turn at most so often are slowed down by `factor`; between the two, something between."""
    truncate: bool = True
    """Round the ends of the ramp to whole planes, as transformers does by default."""

    @model_validator(mode="after")
    def _fast_is_faster(self) -> Self:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast={self.beta_fast:g} must be more than beta_slow={self.beta_slow:g}")
        return self

    @property
    def attention_factor(self) -> float:
        """Cosines and sines are multiplied by it, logits so by its square."""
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0


class Rope(Spec):
    """Rotary positions (arXiv 2104.09864): plane i of a head turns by theta**(-2i/h) a position."""

    kind: Literal["rope"] = "rope"
    theta: float = Field(500_000.0, gt=1)
    yarn: Yarn | None = None
    ntk_length: PositiveInt | None = None
    """Sequences of T > `ntk_length` tokens turn by theta * (T / ntk_length)**(h / (h - 2)) (parameter-golf).

    T is all that is read at once: a packed row's documents and a batch's padding count. So beyond this length a student is not
    causal, what it says of a position depends on how much follows, and to generate it reads everything anew for each token."""

    @model_validator(mode="after")
    def _stretched_once(self) -> Self:
        if self.ntk_length is not None and self.yarn is not None:
            raise ValueError(f"ntk_length={self.ntk_length} and yarn both stretch positions: keep one")
        return self


class GrapeM(Spec):
    """Multiplicative group positions (GRAPE-M, arXiv 2512.07805): rotations whose rates, or planes, are learned.

    'frequencies': RoPE's planes, a learned log-rate each, shared by the heads of a layer. 'rank2': one learned plane a head, of
    any direction. 'contextual': as 'frequencies', and how far a token moves on is learned from the token.
    The paper's learned basis of many planes, rates of each head's own, and ranks above 2 are not here.
    """

    kind: Literal["grape"] = "grape"
    form: Literal["frequencies", "rank2", "contextual"] = "frequencies"
    theta: float = Field(10_000.0, gt=1)
    """Rates begin as those of RoPE with this base."""
    yarn: Yarn | None = None


Positions = Annotated[Rope | GrapeM, Field(discriminator="kind")]


class SharedExpert(Spec):
    """An MLP beside the routed ones that every token passes, and its part of the output over the budget.

    'constant': 1. 'warmup': from 0 to 1, 'anneal': from 1 to 0, on a straight line over the first `until` of the budget.
    """

    size: PositiveInt
    schedule: Literal["constant", "warmup", "anneal"] = "constant"
    until: float = Field(0.5, gt=0, le=1)

    def share(self, fraction: float) -> float:
        """Its part at `fraction` (0 to 1) of the budget."""
        through = min(fraction / self.until, 1.0)
        return {"constant": 1.0, "warmup": through, "anneal": 1 - through}[self.schedule]
