"""A law that a user writes down, as a form: any formula of N, D and named coefficients.

A coefficient stays positive and is searched on a logarithmic scale, unless its start is zero or negative. Without a start it is
looked for over many orders of magnitude. Derivatives are central differences. Suffixes as in `limbeck.plan.fit.forms`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import SpecError
from limbeck.plan.fit.forms import CHINCHILLA_DELTA, SCREEN_SEED, natural
from limbeck.plan.fit.points import Points
from limbeck.plan.formula import FUNCTIONS, Formula, parse_formula
from limbeck.plan.laws import Array, FormulaLaw
from limbeck.spec.base import nearest

VARIABLES = ("N", "D")
_STEP = 1e-6
_NEAR = 3.0
"""Starts are drawn within a factor of exp(3), about 20, of what the user gave."""
_EXPONENTS, _AMPLITUDES = (np.log(0.05), np.log(2.0)), (np.log(1e-2), np.log(1e9))
_LOGGED_BOUNDS, _SIGNED_BOUND = (-70.0, 250.0), 1e15


@dataclass(frozen=True)
class CustomForm:
    """A formula with its coefficients open. `given` holds the starts that a user named."""

    formula: Formula
    given: Mapping[str, float]

    @property
    def name(self) -> str:
        """The formula's text."""
        return self.formula.text

    @property
    def delta(self) -> float:
        """Chinchilla's."""
        return CHINCHILLA_DELTA

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """Every name but N and D, in alphabetical order."""
        return tuple(sorted(self.formula.names - set(VARIABLES)))

    @cached_property
    def logged_P(self) -> NDArray[np.bool_]:
        """Those that stay positive."""
        return np.array([self.given.get(name, 1.0) > 0 for name in self.coefficients])

    @cached_property
    def bounds_2P(self) -> Array:
        """Far beyond sense."""
        low, high = _LOGGED_BOUNDS
        return np.where(self.logged_P, [[low], [high]], [[-_SIGNED_BOUND], [_SIGNED_BOUND]])

    def features(self, points: Points) -> Array:
        """N and D."""
        return np.stack([points.params, points.tokens])

    def starts(self, points: Points, *, count: int) -> Array:
        """The user's own first, then at random around it, or anywhere where there is none."""
        draw = np.random.default_rng(SCREEN_SEED)
        columns = [self._starts_of(name, draw, count) for name in self.coefficients]
        return np.clip(np.stack(columns, axis=1), *self.bounds_2P)

    def _starts_of(self, name: str, draw: np.random.Generator, count: int) -> Array:
        start = self.given.get(name)
        if start is None:
            exponents, amplitudes = draw.uniform(*_EXPONENTS, count), draw.uniform(*_AMPLITUDES, count)
            return np.where(draw.random(count) < 0.5, exponents, amplitudes)
        around = draw.uniform(-_NEAR, _NEAR, count)
        around[0] = 0.0
        return np.log(start) + around if start > 0 else start + around * max(abs(start), 1.0)

    def predict(self, theta_KP: Array, features_FM: Array) -> Array:
        """log_loss_KM, NaN where the formula is negative."""
        columns_PK1 = natural(self, theta_KP).T[..., None]
        values = dict(zip(VARIABLES, features_FM, strict=True)) | dict(zip(self.coefficients, columns_PK1, strict=True))
        with np.errstate(all="ignore"):
            loss = np.asarray(self.formula.evaluate(values), dtype=np.float64)
            return np.log(np.broadcast_to(loss, (len(theta_KP), features_FM.shape[1])))

    def predict_with_slopes(self, theta_KP: Array, features_FM: Array) -> tuple[Array, Array]:
        """log_loss_KM and slopes_KPM by central differences."""
        slopes_KPM = np.empty((*theta_KP.shape, features_FM.shape[1]))
        for place in range(theta_KP.shape[1]):
            # A logarithm's step is relative already; a signed coefficient's grows with its size.
            step_K = np.full(len(theta_KP), _STEP)
            if not self.logged_P[place]:
                step_K *= np.maximum(np.abs(theta_KP[:, place]), 1e-3)
            above, below = theta_KP.copy(), theta_KP.copy()
            above[:, place] += step_K
            below[:, place] -= step_K
            difference_KM = self.predict(above, features_FM) - self.predict(below, features_FM)
            slopes_KPM[:, place] = difference_KM / (2 * step_K[:, None])
        return self.predict(theta_KP, features_FM), slopes_KPM

    def law(self, values: dict[str, float]) -> FormulaLaw:
        """The law with these coefficients."""
        return FormulaLaw(self.formula, values)


def custom_form(text: str, starts: Mapping[str, float]) -> CustomForm:
    """The form that a formula says; `SpecError` where it can't be a law."""
    form = CustomForm(parse_formula(text), dict(starts))
    if form.formula.is_condition:
        raise SpecError(f"{text!r} is true or false, and not a loss: write a formula such as 'E + A / N**alpha'")
    if not form.coefficients:
        raise SpecError(f"{text!r} has nothing to fit: write coefficients as names, such as 'E + A / N**alpha + B / D**beta'")
    if not form.formula.names & set(VARIABLES):
        raise SpecError(f"{text!r} depends on neither N nor D: a law needs one of them")
    for name in (*starts, *form.coefficients):
        if name not in form.coefficients:
            raise SpecError(
                f"--start {name}=…: {text!r} has no coefficient of that name{nearest(name, list(form.coefficients))}"
            )
        if name in FUNCTIONS or name in ("loss", "teacher_loss"):
            raise SpecError(f"{text!r}: {name} can't be a coefficient's name, it means something else in formulas; rename it")
    form.predict(np.zeros((1, len(form.coefficients))), np.ones((2, 1)))  # says where the formula calculates with text
    return form
