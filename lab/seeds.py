"""Runs of a study whose arms are named `<arm>-s<seed>`: which they are, and a number over seeds with its interval."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

Values = Mapping[str, Sequence[float]]
"""By arm, one value a seed."""


def arms_of(output: Path) -> dict[str, list[Path]]:
    """Arm -> its runs, in the order of their seeds."""
    found: dict[str, list[Path]] = {}
    for path in sorted((output / "runs").iterdir()):
        if (path / "summary.json").is_file():
            found.setdefault(path.name.rpartition("-s")[0], []).append(path)
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of Student's t."""
    count = len(values)
    half = float(stats.t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return float(np.mean(values)), half


def shown(values: Sequence[float], *, digits: int = 4) -> str:
    """Mean and interval for people."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
