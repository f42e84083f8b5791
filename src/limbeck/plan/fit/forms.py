"""Scaling laws as fitting sees them: vectorised over many candidate coefficients at once, with derivatives.

`theta` holds the natural logarithm of every coefficient, which keeps them positive and the search free of units. Its twin, one
law at a time, is `limbeck.plan.laws`; a test holds them equal.

Suffixes: K candidates, P coefficients, M points, F features of a point.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limbeck.plan.fit.points import Points
from limbeck.plan.laws import Array, DistillationLaw, Supervised, SupervisedLaw

Law = Supervised | DistillationLaw

CHINCHILLA_DELTA = 1e-3
"""Of the Huber loss on log residuals, as in arXiv 2203.15556."""
DISTILLATION_DELTA = 1e-4
"""As in arXiv 2502.08606."""

SCREEN_SEED = 20_240_415
"""Screening is part of the method and not of chance: the same points give the same fit."""


class Form(Protocol):
    """A law with its coefficients still open."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Their names, in the order of theta."""
        ...

    @property
    def delta(self) -> float:
        """The Huber loss's threshold unless a user says otherwise, of log residuals."""
        ...

    @property
    def bounds_2P(self) -> Array:
        """Least and greatest theta: far beyond sense, so that nothing overflows."""
        ...

    @property
    def logged_P(self) -> NDArray[np.bool_]:
        """Which of theta are logarithms of their coefficients."""
        ...

    def features(self, points: Points) -> Array:
        """features_FM: what prediction needs of the points."""
        ...

    def starts(self, points: Points, *, count: int) -> Array:
        """theta_KP: candidates to screen, always the same for the same points."""
        ...

    def predict(self, theta_KP: Array, features_FM: Array) -> Array:
        """log_loss_KM."""
        ...

    def predict_with_slopes(self, theta_KP: Array, features_FM: Array) -> tuple[Array, Array]:
        """log_loss_KM and its derivatives slopes_KPM by theta."""
        ...

    def law(self, values: dict[str, float]) -> Law:
        """The law with these coefficients."""
        ...


def values_of(form: Form, theta_P: Array) -> dict[str, float]:
    """Coefficients by name."""
    return {name: float(value) for name, value in zip(form.coefficients, natural(form, theta_P), strict=True)}


def natural(form: Form, theta: Array) -> Array:
    """Coefficients from theta, along the last axis."""
    return np.where(form.logged_P, np.exp(np.where(form.logged_P, theta, 0.0)), theta)


_TERM, _EXPONENT, _GAMMA = (-60.0, 250.0), (np.log(0.01), np.log(2.0)), (np.log(0.05), np.log(10.0))
_BOUNDS = {
    "A": _TERM,
    "B": _TERM,
    "E": (-20.0, 20.0),
    "alpha": _EXPONENT,
    "beta": _EXPONENT,
    "gamma": _GAMMA,
    "c0": (np.log(1e-3), np.log(50.0)),
    "c1": (np.log(1e-3), np.log(1e7)),
    "f1": (np.log(1e-3), np.log(10.0)),
    "d1": (np.log(1e-2), np.log(1e2)),
}


@dataclass(frozen=True)
class SupervisedForm:
    """Eq. 1 of arXiv 2502.08606; with `gamma` not free it is 1, and the law is Chinchilla's."""

    gamma_is_free: bool

    @property
    def name(self) -> str:
        """As users write it."""
        return "supervised" if self.gamma_is_free else "chinchilla"

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Their names, in the order of theta."""
        return ("A", "B", "E", "alpha", "beta", "gamma") if self.gamma_is_free else ("A", "B", "E", "alpha", "beta")

    @property
    def delta(self) -> float:
        """Of log residuals."""
        return DISTILLATION_DELTA if self.gamma_is_free else CHINCHILLA_DELTA

    @cached_property
    def bounds_2P(self) -> Array:
        """Least and greatest theta."""
        return np.array([_BOUNDS[name] for name in self.coefficients]).T

    @cached_property
    def logged_P(self) -> NDArray[np.bool_]:
        """All."""
        return np.ones(len(self.coefficients), dtype=np.bool_)

    def features(self, points: Points) -> Array:
        """log N and log D."""
        return np.log(np.stack([points.params, points.tokens]))

    def starts(self, points: Points, *, count: int) -> Array:
        """Exponents at random, and shares of the loss at the points' middle at random, which fixes A, B and E in any unit."""
        draw = np.random.default_rng(SCREEN_SEED)
        middle_F = np.median(self.features(points), axis=1)
        alpha, beta = _log_uniform(draw, 0.1, 1.2, count), _log_uniform(draw, 0.1, 1.2, count)
        gamma = _log_uniform(draw, 0.25, 2.0, count) if self.gamma_is_free else np.ones(count)
        loss, floor = np.median(points.loss), points.loss.min()
        E = floor * draw.uniform(0.02, 0.995, count)
        reducible = (np.maximum(loss, 1.001 * floor) - E) ** (1 / gamma)
        share = draw.uniform(0.02, 0.98, count)
        log_A = np.log(share * reducible) + alpha * middle_F[0]
        log_B = np.log((1 - share) * reducible) + beta * middle_F[1]
        thetas = [log_A, log_B, np.log(E), np.log(alpha), np.log(beta), np.log(gamma)]
        return np.clip(np.stack(thetas[: len(self.coefficients)], axis=1), *self.bounds_2P)

    def predict(self, theta_KP: Array, features_FM: Array) -> Array:
        """log_loss_KM (eqs. 41-44)."""
        _, _, reducible_KM, gamma_K1 = self._reducible(theta_KP, features_FM)
        return _log_add(theta_KP[:, 2, None], gamma_K1 * reducible_KM)[0]

    def predict_with_slopes(self, theta_KP: Array, features_FM: Array) -> tuple[Array, Array]:
        """log_loss_KM and slopes_KPM."""
        terms, share_KM, reducible_KM, gamma_K1 = self._reducible(theta_KP, features_FM)
        log_loss_KM, floor_KM = _log_add(theta_KP[:, 2, None], gamma_K1 * reducible_KM)
        slopes_KPM = np.empty((len(theta_KP), len(self.coefficients), features_FM.shape[1]))
        above_KM = (1 - floor_KM) * gamma_K1
        np.multiply(above_KM, share_KM, out=slopes_KPM[:, 0])
        np.subtract(above_KM, slopes_KPM[:, 0], out=slopes_KPM[:, 1])
        slopes_KPM[:, 2] = floor_KM
        np.multiply(slopes_KPM[:, 0], terms[0], out=slopes_KPM[:, 3])
        np.multiply(slopes_KPM[:, 1], terms[1], out=slopes_KPM[:, 4])
        if self.gamma_is_free:
            np.multiply(above_KM, reducible_KM, out=slopes_KPM[:, 5])
        return log_loss_KM, slopes_KPM

    def law(self, values: dict[str, float]) -> SupervisedLaw:
        """The law with these coefficients."""
        return SupervisedLaw(**values)

    def _reducible(self, theta_KP: Array, features_FM: Array) -> tuple[tuple[Array, Array], Array, Array, Array | float]:
        """(-alpha log N, -beta log D), the first term's share of the sum, the log of the sum, gamma."""
        gamma_K1 = np.exp(theta_KP[:, 5, None]) if self.gamma_is_free else 1.0
        terms, share_KM, log_sum_KM = _two_terms(theta_KP[:, [0, 1, 3, 4]], features_FM)
        return terms, share_KM, log_sum_KM, gamma_K1


@dataclass(frozen=True)
class DistillationForm:
    """Eq. 8 of arXiv 2502.08606 with `supervised` frozen inside it."""

    supervised: Supervised
    name: str = field(default="distillation", init=False)
    coefficients: tuple[str, ...] = field(default=("A", "B", "alpha", "beta", "gamma", "c0", "c1", "f1", "d1"), init=False)
    delta: float = field(default=DISTILLATION_DELTA, init=False)

    @cached_property
    def bounds_2P(self) -> Array:
        """Least and greatest theta."""
        return np.array([_BOUNDS[name] for name in self.coefficients]).T

    @cached_property
    def logged_P(self) -> NDArray[np.bool_]:
        """All."""
        return np.ones(len(self.coefficients), dtype=np.bool_)

    def features(self, points: Points) -> Array:
        """log N, log D, log L_T, and log of what the student would reach alone."""
        assert points.teacher_loss is not None, "checked by `fit_law`"
        log_params, log_tokens, log_teacher = np.log(np.stack([points.params, points.tokens, points.teacher_loss]))
        return np.stack([log_params, log_tokens, log_teacher, self.supervised.log_loss(log_params, log_tokens)])

    def starts(self, points: Points, *, count: int) -> Array:
        """At random within reason; A and B from the excess over the teacher that the points show at their middle."""
        assert points.teacher_loss is not None, "checked by `fit_law`"
        draw = np.random.default_rng(SCREEN_SEED)
        log_params, log_tokens, log_teacher, _ = np.median(self.features(points), axis=1)
        alpha, beta = _log_uniform(draw, 0.1, 1.2, count), _log_uniform(draw, 0.1, 1.2, count)
        gamma = _log_uniform(draw, 0.25, 2.0, count)
        c0, f1, d1 = (
            _log_uniform(draw, 0.3, 6.0, count),
            _log_uniform(draw, 0.03, 1.0, count),
            _log_uniform(draw, 0.8, 2.0, count),
        )
        c1 = _log_uniform(draw, 0.3, 100.0, count) / f1
        excess = max(float(np.median(points.loss - points.teacher_loss)), 0.01 * float(np.median(points.loss)))
        log_sum = (np.log(excess * _log_uniform(draw, 1.0, 10.0, count)) + c0 * log_teacher) / gamma
        share = draw.uniform(0.02, 0.98, count)
        log_A, log_B = np.log(share) + log_sum + alpha * log_params, np.log(1 - share) + log_sum + beta * log_tokens
        logs = [log_A, log_B, *(np.log(each) for each in (alpha, beta, gamma, c0, c1, f1, d1))]
        return np.clip(np.stack(logs, axis=1), *self.bounds_2P)

    def predict(self, theta_KP: Array, features_FM: Array) -> Array:
        """log_loss_KM (eqs. 46-49)."""
        _, _, log_sum_KM = _two_terms(theta_KP[:, :4], features_FM)
        gamma, c0, c1, f1 = np.exp(theta_KP[:, 4:8]).T[..., None]
        soft_KM, _ = _softplus((features_FM[2] - features_FM[3] - theta_KP[:, 8, None]) / f1)
        return _log_add(features_FM[2], gamma * log_sum_KM - c0 * features_FM[2] - c1 * f1 * soft_KM)[0]

    def predict_with_slopes(self, theta_KP: Array, features_FM: Array) -> tuple[Array, Array]:
        """log_loss_KM and slopes_KPM."""
        log_teacher_M = features_FM[2]
        terms, share_KM, log_sum_KM = _two_terms(theta_KP[:, :4], features_FM)
        gamma, c0, c1, f1 = np.exp(theta_KP[:, 4:8]).T[..., None]
        ratio_KM = (log_teacher_M - features_FM[3] - theta_KP[:, 8, None]) / f1
        soft_KM, sigmoid_KM = _softplus(ratio_KM)
        bracket_KM = c1 * f1 * soft_KM
        log_loss_KM, of_teacher_KM = _log_add(log_teacher_M, gamma * log_sum_KM - c0 * log_teacher_M - bracket_KM)
        above_KM = 1 - of_teacher_KM
        slopes_KPM = np.empty((len(theta_KP), len(self.coefficients), features_FM.shape[1]))
        capacity_KM = above_KM * gamma
        slopes_KPM[:, 0] = capacity_KM * share_KM
        slopes_KPM[:, 1] = capacity_KM - slopes_KPM[:, 0]
        slopes_KPM[:, 2] = slopes_KPM[:, 0] * terms[0]
        slopes_KPM[:, 3] = slopes_KPM[:, 1] * terms[1]
        slopes_KPM[:, 4] = capacity_KM * log_sum_KM
        slopes_KPM[:, 5] = -above_KM * c0 * log_teacher_M
        slopes_KPM[:, 6] = -above_KM * bracket_KM
        slopes_KPM[:, 7] = above_KM * (c1 * f1 * sigmoid_KM * ratio_KM - bracket_KM)
        slopes_KPM[:, 8] = above_KM * c1 * sigmoid_KM
        return log_loss_KM, slopes_KPM

    def law(self, values: dict[str, float]) -> DistillationLaw:
        """The law with these coefficients."""
        return DistillationLaw(self.supervised, **values)


def _two_terms(theta_K4: Array, features_FM: Array) -> tuple[tuple[Array, Array], Array, Array]:
    """(-alpha log N, -beta log D), the share of A / N**alpha in the sum with B / D**beta, and the log of that sum.

    theta_K4 holds log A, log B, log alpha, log beta.
    """
    alpha_K1, beta_K1 = np.exp(theta_K4[:, 2:]).T[..., None]
    of_size_KM, of_data_KM = -alpha_K1 * features_FM[0], -beta_K1 * features_FM[1]
    log_sum_KM, share_KM = _log_add(theta_K4[:, 0, None] + of_size_KM, theta_K4[:, 1, None] + of_data_KM)
    return (of_size_KM, of_data_KM), share_KM, log_sum_KM


def _log_add(a: Array, b: Array) -> tuple[Array, Array]:
    """log(exp a + exp b) and the first's share. `np.logaddexp` takes five times as long."""
    gap = np.abs(difference := a - b)
    small = np.exp(np.negative(gap, out=gap), out=gap)
    whole = small + 1
    share = np.where(difference >= 0, 1.0, small)
    share /= whole
    return np.maximum(a, b) + np.log(whole, out=whole), share


def _softplus(x: Array) -> tuple[Array, Array]:
    """log(1 + exp x), exact for very negative x too, and its derivative."""
    small = np.exp(-np.abs(x))
    return np.maximum(x, 0) + np.log1p(small), np.where(x >= 0, 1.0, small) / (1 + small)


def _log_uniform(draw: np.random.Generator, low: float, high: float, count: int) -> Array:
    return np.exp(draw.uniform(np.log(low), np.log(high), count))


CHINCHILLA = SupervisedForm(gamma_is_free=False)
SUPERVISED = SupervisedForm(gamma_is_free=True)
