"""Numbers over seeds: their mean, their spread, and how far the mean may lie from that of more seeds.

The interval of a mean is Student's t with n - 1 degrees of freedom (Student 1908, Biometrika 6): mean ± t(0.975, n - 1) s / √n
with the sample's standard deviation s. It takes the seeds' values as independent and about normal, which a handful cannot
show. Differences are taken seed by seed before this, so what a seed does to both arms cancels.

Suffix: S seeds. Everything is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from limbeck.report.statistics import LEVEL, Estimate


@dataclass(frozen=True)
class Spread:
    """The mean of `n` values and their sample standard deviation, which one value has not."""

    mean: float
    sd: float | None
    n: int


def spread(values_S: Sequence[float]) -> Spread | None:
    """Mean and standard deviation (n - 1 in the denominator); None of no values."""
    if not values_S:
        return None
    sd = float(np.std(values_S, ddof=1)) if len(values_S) > 1 else None
    return Spread(float(np.mean(values_S)), sd, len(values_S))


def mean_estimate(values_S: Sequence[float]) -> Estimate:
    """The mean with its 95 % t-interval; a single value has none."""
    found = spread(values_S)
    assert found is not None, "a mean needs a value"
    if found.sd is None:
        return Estimate(found.mean)
    reach = float(stdtrit(found.n - 1, (1 + LEVEL) / 2)) * found.sd / found.n**0.5
    return Estimate(found.mean, found.mean - reach, found.mean + reach)
