"""Metrics with their intervals: shares of samples, and means over them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from limbeck.eval_results import Metric
from limbeck.report.statistics import ratio_estimate

Better = Literal["lower", "higher"] | None


def share(hits: int, of: int, *, better: Better = None) -> Metric:
    """A share with Wilson's 95 % interval (Wilson 1927), which holds where few or all are hits, too."""
    interval = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="wilson")
    return Metric(hits / of, float(interval.low), float(interval.high), of, better)


def mean(values: Sequence[float], *, better: Better = None) -> Metric:
    """A mean with the percentile bootstrap's 95 % interval over its values."""
    found = np.asarray(values, dtype=np.float64)
    estimate = ratio_estimate(found, np.ones_like(found))
    return Metric(estimate.value, estimate.low, estimate.high, len(found), better)


def quantile(values: Sequence[float], at: float, *, better: Better = None) -> Metric:
    """A quantile, without an interval."""
    return Metric(float(np.quantile(np.asarray(values, dtype=np.float64), at)), n=len(values), better=better)


def lengths(tokens: Sequence[int], *, of: str) -> dict[str, Metric]:
    """Mean, median and 95th percentile of how many tokens were written: `<of>_mean` and so on."""
    return {f"{of}_mean": mean(tokens), f"{of}_median": quantile(tokens, 0.5), f"{of}_p95": quantile(tokens, 0.95)}
