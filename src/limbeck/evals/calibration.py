"""Whether a model's confidence is how often it is right, or how confident another model is.

Expected calibration error: positions are sorted into bins of equal width by a model's confidence, its largest probability; in
each bin the mean confidence is held against the mean outcome, and the differences are averaged by the bins' sizes (Guo et al.,
arXiv 1706.04599, eq. 3; Distillation Scaling Laws, arXiv 2502.08606, eqs. 38 and 39, with 21 bins). N positions.
"""

import numpy as np
from numpy.typing import NDArray

BINS = 21


def calibration_error(confidence_N: NDArray[np.floating], outcome_N: NDArray[np.generic], *, bins: int = BINS) -> float:
    """Σ |bin| / N · |mean outcome - mean confidence|, over bins of `confidence_N` (in [0, 1]).

    Outcomes are whether the top-1 was the next token (calibration to the data), whether it was a teacher's top-1, or a
    teacher's own confidence at the same position (the distributional error, binned by the model of `confidence_N`).
    """
    # A confidence on an edge belongs to the bin below, as in Guo et al.: ((m - 1) / M, m / M].
    bin_N = np.clip(np.ceil(confidence_N.astype(np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)
    gap_N = outcome_N.astype(np.float64) - confidence_N
    return float(np.abs(np.bincount(bin_N, weights=gap_N, minlength=bins)).sum() / len(confidence_N))
