"""Scaling laws: the cross-entropy that a model of some size reaches on so many tokens, alone or taught by a teacher.

The two laws of arXiv 2502.08606 with their published coefficients (Table 6), evaluated in log space (eqs. 41-49), where nothing
overflows. Sizes N are parameters outside the embeddings, D are tokens, losses are cross-entropies in nats per token. Everything
broadcasts: scalars and float64 arrays of any shapes that fit together.

Two things that the distillation law can't say: a student better than its teacher (its second term is positive), and anything
about a teacher beyond its cross-entropy.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.plan.formula import Formula

Array = NDArray[np.float64]
Range = tuple[float, float]

_MOST_TOKENS = 1e20
_BISECTIONS = 60


class Supervised(Protocol):
    """A law of training without a teacher."""

    def log_loss(self, log_params: ArrayLike, log_tokens: ArrayLike) -> Array:
        """Natural logarithm of the cross-entropy."""
        ...

    def log_tokens(self, log_params: ArrayLike, log_loss: ArrayLike) -> Array:
        """Natural logarithm of the tokens that reach a loss; infinite where no number does."""
        ...


@dataclass(frozen=True)
class SupervisedLaw:
    """L(N, D) = E + (A / N**alpha + B / D**beta)**gamma (eq. 1). With gamma = 1 it is Chinchilla's (arXiv 2203.15556)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    gamma: float = 1.0

    def log_loss(self, log_params: ArrayLike, log_tokens: ArrayLike) -> Array:
        """Eqs. 41-44. A logarithm of infinity is an unlimited model or unlimited data."""
        reducible = np.logaddexp(
            np.log(self.A) - self.alpha * np.asarray(log_params, dtype=np.float64),
            np.log(self.B) - self.beta * np.asarray(log_tokens, dtype=np.float64),
        )
        return np.logaddexp(np.log(self.E), self.gamma * reducible)

    def log_tokens(self, log_params: ArrayLike, log_loss: ArrayLike) -> Array:
        """Eq. 1 solved for D."""
        with np.errstate(invalid="ignore", divide="ignore"):
            reducible = (np.exp(log_loss) - self.E) ** (1 / self.gamma)
            of_data = reducible - self.A * np.exp(-self.alpha * np.asarray(log_params, dtype=np.float64))
            return np.where(of_data > 0, (np.log(self.B) - np.log(of_data)) / self.beta, np.inf)

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """Cross-entropy in nats per token."""
        return loss_of(self, params, tokens)

    @property
    def compute_exponents(self) -> tuple[float, float]:
        """(a*, b*) of N* ~ C**a* and D* ~ C**b*, where FLOPs are proportional to N D (eq. 2)."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True)
class FormulaLaw:
    """A law that somebody wrote down: a formula of N, D and named coefficients, such as 'E + A / N**alpha + B / D**beta'."""

    formula: Formula
    coefficients: dict[str, float]

    def log_loss(self, log_params: ArrayLike, log_tokens: ArrayLike) -> Array:
        """Logarithm of the formula's value; NaN where that is negative."""
        values = {**self.coefficients, "N": np.exp(np.asarray(log_params)), "D": np.exp(np.asarray(log_tokens))}
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.log(np.asarray(self.formula.evaluate(values), dtype=np.float64))

    def log_tokens(self, log_params: ArrayLike, log_loss: ArrayLike) -> Array:
        """By bisection between one and 1e20 tokens; the formula must fall with D."""
        log_params, log_loss = np.broadcast_arrays(np.asarray(log_params, dtype=np.float64), log_loss)
        low, high = np.zeros(log_params.shape), np.full(log_params.shape, np.log(_MOST_TOKENS))
        reached = self.log_loss(log_params, high) <= log_loss
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            enough = self.log_loss(log_params, middle) <= log_loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reached, high, np.inf)


def loss_of(law: Supervised, params: ArrayLike, tokens: ArrayLike) -> Array:
    """Cross-entropy in nats per token under a law of training without a teacher."""
    with np.errstate(divide="ignore"):
        return np.exp(law.log_loss(np.log(np.asarray(params, dtype=np.float64)), np.log(np.asarray(tokens, dtype=np.float64))))


@dataclass(frozen=True)
class DistillationLaw:
    """L_S(N_S, D_S, L_T) of pure distillation (eq. 8).

    L_S = L_T + L_T**-c0 (1 + (L_T / (Lt d1))**(1/f1))**(-c1 f1) (A / N_S**alpha + B / D_S**beta)**gamma, where Lt is what
    `supervised` gives for the same student on the same tokens. Its own A, B, alpha, beta, gamma are the paper's primed ones.
    """

    supervised: Supervised
    A: float
    B: float
    alpha: float
    beta: float
    gamma: float
    c0: float
    c1: float
    f1: float
    d1: float

    def log_loss(self, log_params: ArrayLike, log_tokens: ArrayLike, log_teacher_loss: ArrayLike) -> Array:
        """Eqs. 46-49, with the bracket as a softplus."""
        log_teacher_loss = np.asarray(log_teacher_loss, dtype=np.float64)
        capacity = np.logaddexp(
            np.log(self.A) - self.alpha * np.asarray(log_params, dtype=np.float64),
            np.log(self.B) - self.beta * np.asarray(log_tokens, dtype=np.float64),
        )
        ratio = (log_teacher_loss - self.supervised.log_loss(log_params, log_tokens) - np.log(self.d1)) / self.f1
        above = -self.c0 * log_teacher_loss - self.c1 * self.f1 * np.logaddexp(0.0, ratio) + self.gamma * capacity
        return np.logaddexp(log_teacher_loss, above)

    def loss(self, params: ArrayLike, tokens: ArrayLike, teacher_loss: ArrayLike) -> Array:
        """The student's cross-entropy in nats per token."""
        with np.errstate(divide="ignore"):
            logs = [np.log(np.asarray(value, dtype=np.float64)) for value in (params, tokens, teacher_loss)]
        return np.exp(self.log_loss(*logs))


@dataclass(frozen=True)
class FittedRange:
    """Where the runs lie that a law was fitted to: (least, greatest), None where that isn't known. Beyond, it is a guess."""

    params: Range | None = None
    tokens: Range | None = None
    teacher_loss: Range | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From a law's file."""
        return cls(**{name: (float(low), float(high)) for name, (low, high) in values.items()})


@dataclass(frozen=True)
class Laws:
    """What a plan is made with. `distillation` is None where only training without a teacher has been fitted."""

    name: str
    supervised: Supervised
    distillation: DistillationLaw | None
    fitted: FittedRange


SUPERVISED = SupervisedLaw(E=1.220, A=3355, B=18186, alpha=0.408, beta=0.431, gamma=0.452)
"""arXiv 2502.08606, Table 6, fitted to 73 runs."""

DISTILLATION = DistillationLaw(
    SUPERVISED, A=2243, B=24181, alpha=0.321, beta=0.637, gamma=0.764, c0=2.549, c1=522.6, f1=0.090, d1=1.315
)
"""arXiv 2502.08606, Table 6, fitted to 697 runs."""

PUBLISHED = Laws(
    name="arXiv 2502.08606",
    supervised=SUPERVISED,
    distillation=DISTILLATION,
    fitted=FittedRange(params=(143e6, 7.75e9), tokens=(4e9, 512e9), teacher_loss=(1.9, 2.9)),
)
"""Both laws, with the range of the paper's students, tokens and teachers (English C4, vocabulary 32,768, context 4,096)."""
