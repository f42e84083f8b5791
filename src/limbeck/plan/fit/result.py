"""What a fit found: the law, how sure it is, how far it is off."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.errors import DataError
from limbeck.plan.fit.points import Points
from limbeck.plan.law_files import law_values, range_values
from limbeck.plan.laws import Array, DistillationLaw, FittedRange, Supervised

Interval = tuple[float, float]


@dataclass(frozen=True)
class Errors:
    """|predicted / observed - 1| over some points."""

    points: int
    mean_relative_error: float
    max_relative_error: float


@dataclass(frozen=True)
class Derived:
    """A number that follows from coefficients, with its interval (None without resamples)."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class FitResult:
    """A fitted law. Intervals are central 95 % percentiles of the bootstrap; `objective` is a sum over points (see `solve`).

    `resampled_RP` holds the coefficients of every resample, in the order of `coefficients`: any quantity's interval follows.
    """

    law: Supervised | DistillationLaw
    coefficients: dict[str, float]
    intervals: dict[str, Interval]
    derived: dict[str, Derived]
    objective: float
    delta: float
    fitted: Errors
    held_out: Errors | None
    range: FittedRange
    warnings: tuple[str, ...]
    resampled_RP: Array = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The law's file (`limbeck.plan.law_files`) and how the fit went. Losses in nats per token, errors as fractions."""
        held_out = self.held_out
        return {
            **law_values(self.law),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "objective": self.objective,
            "delta": self.delta,
            "points": self.fitted.points,
            "mean_relative_error": self.fitted.mean_relative_error,
            "max_relative_error": self.fitted.max_relative_error,
            "held_out": None if held_out is None else dict(vars(held_out)),
            "derived": {
                name: {"value": each.value, "interval": None if each.interval is None else list(each.interval)}
                for name, each in self.derived.items()
            },
            "range": range_values(self.range),
            "resamples": len(self.resampled_RP),
            "warnings": list(self.warnings),
        }


def predicted(law: Supervised | DistillationLaw, points: Points) -> Array:
    """The law's losses at the points, nats per token."""
    log_params, log_tokens = np.log(points.params), np.log(points.tokens)
    if isinstance(law, DistillationLaw):
        assert points.teacher_loss is not None, "a distillation law is fitted to points with teachers"
        return np.exp(law.log_loss(log_params, log_tokens, np.log(points.teacher_loss)))
    return np.exp(law.log_loss(log_params, log_tokens))


def relative_errors(law: Supervised | DistillationLaw, points: Points) -> Array:
    """predicted / observed - 1 at each point."""
    return predicted(law, points) / points.loss - 1


def errors_of(law: Supervised | DistillationLaw, points: Points) -> Errors:
    """How far the law is off at the points; `DataError` naming the first where its loss isn't a finite number."""
    off = np.abs(relative_errors(law, points))
    wrong = np.flatnonzero(~np.isfinite(off))
    if len(wrong):
        first = wrong[0]
        place = f" ({points.places[first]})" if points.places else ""
        raise DataError(
            f"the law has no finite loss at N={points.params[first]:g}, D={points.tokens[first]:g}{place}: "
            "change the formula, or leave that point out with --where"
        )
    return Errors(len(points), float(off.mean()), float(off.max()))
