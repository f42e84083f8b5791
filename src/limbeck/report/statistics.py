"""Intervals over held-out documents, and reading a curve between its measurements.

Bits per byte of a set of documents is a ratio of sums, Σ bits / Σ bytes, so long documents weigh more. Its interval is the
percentile bootstrap over documents (Efron & Tibshirani 1993, ch. 13): documents are drawn with replacement and the ratio is
taken again. For two students measured on the same documents the difference is resampled as a pair, which removes what makes a
document hard for both. The interval is about other documents like these; it knows nothing of other seeds.

Suffixes: N documents, R resamples, P points of a curve, 2 the pair (bytes, bits). Everything is float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `low` and `high` are None where there is no way to know one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval."""
        return (self.high - self.low) / 2 if self.low is not None and self.high is not None else None


def ratio_estimate(numerators_N: NDArray[np.float64], denominators_N: NDArray[np.float64], *, seed: int = SEED) -> Estimate:
    """Σ numerators / Σ denominators with its 95% percentile interval over the N units; one unit has no interval.

    The same `seed` and N draw the same units, whatever the values.
    """
    units = len(numerators_N)
    value = float(numerators_N.sum() / denominators_N.sum())
    if units < 2:
        return Estimate(value)
    ratios_R = _resampled_ratios(numerators_N, denominators_N, rng=np.random.default_rng(seed))
    low, high = np.quantile(ratios_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def paired_difference(arm_N2: NDArray[np.float64], control_N2: NDArray[np.float64], *, seed: int = SEED) -> Estimate:
    """Bits per byte of the arm minus the control's, from their (bytes, bits) on the same N documents."""
    assert np.array_equal(arm_N2[:, 0], control_N2[:, 0]), "a paired difference needs the same documents"
    return ratio_estimate(arm_N2[:, 1] - control_N2[:, 1], control_N2[:, 0], seed=seed)


def _resampled_ratios(
    numerators_N: NDArray[np.float64], denominators_N: NDArray[np.float64], *, rng: np.random.Generator
) -> NDArray[np.float64]:
    units = len(numerators_N)
    rows = max(1, _DRAWS_AT_ONCE // units)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, rows):
        drawn_RN = rng.integers(units, size=(min(rows, RESAMPLES - start), units))
        ratios.append(numerators_N[drawn_RN].sum(axis=1) / denominators_N[drawn_RN].sum(axis=1))
    return np.concatenate(ratios)


def interpolate(costs_P: NDArray[np.float64], values_P: NDArray[np.float64], *, at: float) -> float | None:
    """The value at a cost on the straight line between its neighbours; None outside the measured costs. `costs_P` ascends."""
    if len(costs_P) == 0 or not costs_P[0] <= at <= costs_P[-1]:
        return None
    return float(np.interp(at, costs_P, values_P))


def moving_mean(values_P: NDArray[np.float64], *, window: int) -> NDArray[np.float64]:
    """The mean of each value and up to `window - 1` before it; as long as its input."""
    sums_P = np.cumsum(values_P)
    sums_P[window:] = sums_P[window:] - sums_P[:-window]
    return sums_P / np.minimum(np.arange(1, len(values_P) + 1), window)
