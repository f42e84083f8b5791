"""The best use of a compute budget: train the student alone, or distil it, under four ways of paying for the teacher.

Accounting of arXiv 2502.08606, eqs. 9 and 27-34: 3 F(N_S) D_S for the student, F(N_T) D_S for the teacher's reading of the
student's tokens, 3 F(N_T) D_T for its pretraining, each of the last two only where the scenario pays for it. F is forward FLOPs
per token; a teacher of any size is one of the fixed-aspect-ratio family.

The budget fixes D_S once the teacher is chosen, which leaves its size and its tokens; both are searched within `Bounds`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from limbeck.errors import LimbeckError, SpecError
from limbeck.plan.accounting import TRAINING_OVER_FORWARD
from limbeck.plan.family import CONTEXT, flops_per_token, short
from limbeck.plan.laws import PUBLISHED, Array, DistillationLaw, Laws, Range, Supervised, loss_of
from limbeck.plan.minimise import minimise

_TOO_FEW = 0.5
"""Tokens of a student for whom the budget leaves none: less than one, and a logarithm."""
_NEAR_SIZE, _NEAR_LOSS = 1.0, 0.02
"""How far around the best of the grid a better teacher is looked for: a factor e of its size, 2 % of its loss."""


@dataclass(frozen=True)
class Size:
    """A model as the laws see it: parameters outside the embeddings, and forward FLOPs per token."""

    name: str
    params: float
    flops_per_token: float
    context: float = CONTEXT
    """Tokens that attention reaches over, where a real teacher reads beside it."""
    vocab_size: int | None = None
    """None: a size of the family, whatever its tokenizer."""

    @classmethod
    def of_family(cls, params: float) -> "Size":
        """The family's closed form, at its context and vocabulary."""
        return cls(short(params), float(params), float(flops_per_token(params)))

    @property
    def training_flops_per_token(self) -> float:
        """Forward and backward."""
        return TRAINING_OVER_FORWARD * self.flops_per_token


@dataclass(frozen=True)
class Scenario:
    """What of the teacher's compute the budget pays for."""

    name: str
    inference: bool
    pretraining: bool


BEST_CASE = Scenario("best_case", inference=False, pretraining=False)
INFERENCE = Scenario("teacher_inference", inference=True, pretraining=False)
PRETRAINING = Scenario("teacher_pretraining", inference=False, pretraining=True)
BOTH = Scenario("teacher_pretraining_and_inference", inference=True, pretraining=True)
SCENARIOS = (BEST_CASE, INFERENCE, PRETRAINING, BOTH)
"""Eqs. 30-33."""


@dataclass(frozen=True)
class Bounds:
    """Where teachers are looked for. The paper's own: tokens far beyond what exists."""

    teacher_params: Range = (1e6, 1e11)
    teacher_tokens: Range = (1e6, 1e16)


@dataclass(frozen=True)
class Spending:
    """FLOPs by what they are spent on."""

    student: float
    teacher_inference: float
    teacher_pretraining: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.student + self.teacher_inference + self.teacher_pretraining


@dataclass(frozen=True)
class Alone:
    """A student trained without a teacher."""

    loss_nats: float
    student_tokens: float


@dataclass(frozen=True)
class Distilled:
    """A distilled student with the teacher that makes it best."""

    loss_nats: float
    student_tokens: float
    teacher_params: float
    teacher_tokens: float
    teacher_loss_nats: float
    flops: Spending

    @property
    def tokens(self) -> float:
        """Student's and, where its pretraining is paid for, teacher's (eq. 34)."""
        return self.student_tokens + (self.teacher_tokens if self.flops.teacher_pretraining else 0.0)


@dataclass(frozen=True)
class Teacher:
    """A teacher by the cheapest way to its loss."""

    loss_nats: float
    params: float
    tokens: float


def alone(student: Size, *, flops: float, laws: Laws = PUBLISHED) -> Alone:
    """All of the budget for the student's own training: D_S = C / (3 F(N_S))."""
    tokens = _at_least_one(flops / student.training_flops_per_token, flops=flops, student=student)
    return Alone(loss_alone(student.params, tokens, laws=laws), tokens)


def loss_alone(params: float, tokens: float, *, laws: Laws) -> float:
    """Nats per token of a model trained without a teacher; `SpecError` where the law gives no number there."""
    loss = float(loss_of(laws.supervised, params, tokens))
    if not np.isfinite(loss):
        raise SpecError(f"{laws.name} gives no finite loss for {params:.3g} parameters on {tokens:.3g} tokens: fit another law")
    return loss


def distilled(
    student: Size, *, flops: float, scenario: Scenario, laws: Laws = PUBLISHED, bounds: Bounds | None = None
) -> Distilled:
    """The least student loss that `flops` buy in a scenario (eqs. 10 and 28); `SpecError` for less than a token's worth."""
    bounds = bounds or Bounds()
    law = distillation_of(laws)
    _at_least_one(flops / student.training_flops_per_token, flops=flops, student=student)
    if scenario == BEST_CASE:
        return _best_case(student, flops=flops, laws=laws, bounds=bounds)
    log_student = np.log(student.params)

    def log_tokens(log_params: ArrayLike, log_teacher_tokens: ArrayLike) -> Array:
        per_token = flops_per_token(np.exp(log_params))
        left = flops - scenario.pretraining * TRAINING_OVER_FORWARD * per_token * np.exp(log_teacher_tokens)
        tokens = left / (student.training_flops_per_token + scenario.inference * per_token)
        return np.log(np.maximum(tokens, _TOO_FEW))

    def log_loss(log_params: ArrayLike, log_teacher_tokens: ArrayLike) -> Array:
        tokens = log_tokens(log_params, log_teacher_tokens)
        reached = law.log_loss(log_student, tokens, laws.supervised.log_loss(log_params, log_teacher_tokens))
        return np.where(tokens >= 0, reached, np.inf)

    best = minimise(log_loss, [_logs(bounds.teacher_params), _logs(bounds.teacher_tokens)], points=(41, 61))
    if best is None:
        raise SpecError(f"{flops:.3g} FLOPs leave no token to {student.name} after the smallest teacher: raise --flops")
    best = _along_the_valley(log_loss, best, laws=laws, bounds=bounds)
    teacher_params, teacher_tokens = np.exp(best)
    tokens = float(np.exp(log_tokens(*best)))
    per_token = float(flops_per_token(teacher_params))
    return Distilled(
        loss_nats=float(np.exp(log_loss(*best))),
        student_tokens=tokens,
        teacher_params=float(teacher_params),
        teacher_tokens=float(teacher_tokens),
        teacher_loss_nats=float(loss_of(laws.supervised, teacher_params, teacher_tokens)),
        flops=Spending(
            student=student.training_flops_per_token * tokens,
            teacher_inference=scenario.inference * per_token * tokens,
            teacher_pretraining=float(scenario.pretraining * TRAINING_OVER_FORWARD * per_token * teacher_tokens),
        ),
    )


def _along_the_valley(
    log_loss: Callable[[Array, Array], Array], best: tuple[float, ...], *, laws: Laws, bounds: Bounds
) -> tuple[float, float]:
    """A better (log N_T, log D_T) near `best`.

    Teachers of nearly equal loss are a narrow diagonal valley in size and tokens, along which a small square grid creeps. In
    size and loss it runs along an axis.
    """
    least_tokens, most_tokens = _logs(bounds.teacher_tokens)

    def log_tokens(log_params: Array, log_teacher_loss: Array) -> Array:
        return np.clip(laws.supervised.log_tokens(log_params, log_teacher_loss), least_tokens, most_tokens)

    smallest, largest = _logs(bounds.teacher_params)
    middle = float(laws.supervised.log_loss(*best))
    box = [
        (max(best[0] - _NEAR_SIZE, smallest), min(best[0] + _NEAR_SIZE, largest)),
        (middle - _NEAR_LOSS, middle + _NEAR_LOSS),
    ]
    found = minimise(lambda params, loss: log_loss(params, log_tokens(params, loss)), box, points=(15, 15))
    if found is None:
        return best[0], best[1]
    better = (found[0], float(log_tokens(np.asarray(found[0]), np.asarray(found[1]))))
    return min((better, (best[0], best[1])), key=lambda place: float(log_loss(np.asarray(place[0]), np.asarray(place[1]))))


def _best_case(student: Size, *, flops: float, laws: Laws, bounds: Bounds) -> Distilled:
    """Nothing but the teacher's loss matters; its size and tokens are the cheapest that reach it."""
    tokens = flops / student.training_flops_per_token
    teacher = best_teacher(student, tokens=tokens, laws=laws, bounds=bounds)
    reached = distillation_of(laws).loss(student.params, tokens, teacher.loss_nats)
    return Distilled(float(reached), tokens, teacher.params, teacher.tokens, teacher.loss_nats, Spending(flops, 0.0, 0.0))


def best_teacher(student: Size, *, tokens: float, laws: Laws = PUBLISHED, bounds: Bounds | None = None) -> Teacher:
    """The teacher whose loss makes a student of so many tokens best, by its cheapest pretraining. The U-shape's bottom."""
    bounds = bounds or Bounds()
    law, log_student, log_tokens = distillation_of(laws), np.log(student.params), np.log(tokens)
    corners = np.log(np.array([bounds.teacher_params, bounds.teacher_tokens]))
    weakest, strongest = laws.supervised.log_loss(*corners[:, 0]), laws.supervised.log_loss(*corners[:, 1])
    found = minimise(
        lambda log_loss: law.log_loss(log_student, log_tokens, log_loss), [(float(strongest), float(weakest))], points=(601,)
    )
    assert found is not None, "the law is finite for every teacher"
    return cheapest_teacher(float(np.exp(found[0])), laws=laws, bounds=bounds)


def cheapest_teacher(loss_nats: float, *, laws: Laws = PUBLISHED, bounds: Bounds | None = None) -> Teacher:
    """The size and tokens that reach a loss for the fewest FLOPs (eq. 2); `LimbeckError` where the law reaches it nowhere."""
    bounds = bounds or Bounds()
    law: Supervised = laws.supervised
    most_tokens = np.log(bounds.teacher_tokens[1]) + 1e-9

    def log_flops(log_params: ArrayLike) -> Array:
        log_tokens = np.maximum(law.log_tokens(log_params, np.log(loss_nats)), np.log(bounds.teacher_tokens[0]))
        cost = np.log(flops_per_token(np.exp(log_params))) + log_tokens
        return np.where(log_tokens <= most_tokens, cost, np.inf)

    best = minimise(log_flops, [_logs(bounds.teacher_params)], points=(401,))
    if best is None:  # the strongest teacher of all is a corner that a grid of sizes can miss by a rounding
        strongest = float(loss_of(law, bounds.teacher_params[1], bounds.teacher_tokens[1]))
        if not np.isclose(strongest, loss_nats, rtol=1e-6):
            raise LimbeckError(f"no teacher reaches {loss_nats:.4f} nats: the law's best is {strongest:.4f}")
        return Teacher(loss_nats, bounds.teacher_params[1], bounds.teacher_tokens[1])
    tokens = np.exp(np.maximum(law.log_tokens(best[0], np.log(loss_nats)), np.log(bounds.teacher_tokens[0])))
    return Teacher(loss_nats, float(np.exp(best[0])), float(tokens))


def distillation_of(laws: Laws) -> DistillationLaw:
    """The law of distillation; `SpecError` where only training alone has been fitted."""
    if laws.distillation is None:
        raise SpecError(f"{laws.name} has no law of distillation: fit one with `limbeck fit --law distillation`")
    return laws.distillation


def _logs(limits: Range) -> Range:
    return float(np.log(limits[0])), float(np.log(limits[1]))


def _at_least_one(tokens: float, *, flops: float, student: Size) -> float:
    if not tokens >= 1:
        raise SpecError(
            f"{flops:.3g} FLOPs buy {tokens:.2g} tokens for {student.name}, which costs {student.training_flops_per_token:.3g} "
            "FLOPs a token to train: raise --flops"
        )
    return tokens
