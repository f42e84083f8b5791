"""What the mapping laboratory measured, and what may be said of it: differences paired by seed, never bare minima.

Suffixes: S seeds, T teachers. Losses are in nats per example.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from limbeck.labs.settings import MappingSettings

TOLD_AT = 2.0
"""Standard errors beyond which a difference counts. Six equal teachers then differ by chance in about 8 of 100 experiments."""


@dataclass(frozen=True)
class Measured:
    """Networks of one kind on the held-out examples, seed by seed: cross-entropy to the labels, and share of labels hit."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """The teachers of one width, and the students they taught."""

    teacher_width: int
    teacher: Measured
    student: Measured


@dataclass(frozen=True)
class Difference:
    """Of two kinds of students, paired by seed, in nats: the mean and its standard error."""

    mean: float
    standard_error: float

    @property
    def told(self) -> bool:
        """Whether the first is worse by more than chance explains."""
        return self.mean > TOLD_AT * self.standard_error


@dataclass(frozen=True)
class Verdict:
    """Whether student loss is U-shaped in the teacher: both ends worse than the best teacher's students.

    The weakest and the strongest teacher are those with the highest and the lowest loss. The best teacher is chosen, for each
    seed, by the students of the *other* seeds: the smallest of several noisy means looks best by luck alone.
    """

    weakest_width: int
    best_width: int
    strongest_width: int
    weakest_above_best: Difference
    strongest_above_best: Difference
    strongest_above_control: Difference
    best_above_control: Difference

    @property
    def u_shape(self) -> bool:
        """Told, not proven: these seeds at these settings."""
        return self.weakest_above_best.told and self.strongest_above_best.told


@dataclass(frozen=True)
class MappingResult:
    """All that was measured. `points` ascend in teacher width."""

    settings: MappingSettings
    control: Measured
    points: tuple[Point, ...]

    def verdict(self) -> Verdict:
        """What the numbers allow to be said."""
        ranked = sorted(self.points, key=lambda point: -mean(point.teacher.losses))
        weakest, strongest = ranked[0], ranked[-1]
        held_TS = [point.student.losses for point in ranked]
        best_S = [min(held_TS, key=lambda losses_S: sum(losses_S) - losses_S[s])[s] for s in range(self.settings.seeds)]
        return Verdict(
            weakest_width=weakest.teacher_width,
            best_width=min(ranked, key=lambda point: mean(point.student.losses)).teacher_width,
            strongest_width=strongest.teacher_width,
            weakest_above_best=paired(weakest.student.losses, best_S),
            strongest_above_best=paired(strongest.student.losses, best_S),
            strongest_above_control=paired(strongest.student.losses, self.control.losses),
            best_above_control=paired(best_S, self.control.losses),
        )

    def as_json(self) -> dict[str, Any]:
        """Every number, and the verdict."""
        verdict = self.verdict()
        points = [asdict(point) for point in self.points]
        return {
            "settings": asdict(self.settings),
            "control": asdict(self.control),
            "points": points,
            "verdict": {**asdict(verdict), "u_shape": verdict.u_shape},
        }


def paired(one_S: Sequence[float], other_S: Sequence[float]) -> Difference:
    """The first minus the second, seed by seed."""
    differences_S = [one - other for one, other in zip(one_S, other_S, strict=True)]
    return Difference(mean(differences_S), stdev(differences_S) / math.sqrt(len(differences_S)))
