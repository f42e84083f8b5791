"""The weight of a term at a moment of the run: a pure function of how far the run is, so a resumed run repeats it."""

from dataclasses import dataclass
from itertools import pairwise

from limbeck.spec.weight import Balanced, Constant, Points, Weight, WithLearningRate


@dataclass(frozen=True)
class Moment:
    """Where in its budget a run is. The default is the start, with the learning rate at its peak."""

    fraction: float = 0.0
    """The share of the budget that is spent."""
    lr_factor: float = 1.0
    """The learning rate over its peak."""


def weight_at(weight: Weight, moment: Moment) -> float:
    """The weight at a moment; of `balanced`, its share."""
    match weight:
        case Constant(value=value):
            return value
        case Points(at=points):
            return _on_lines(points, moment.fraction)
        case WithLearningRate(at_peak=at_peak, at_zero=at_zero):
            return at_zero + (at_peak - at_zero) * moment.lr_factor
        case Balanced(share=share):
            return share


def _on_lines(points: tuple[tuple[float, float], ...], fraction: float) -> float:
    if fraction <= points[0][0]:
        return points[0][1]
    for (start, before), (stop, after) in pairwise(points):
        if fraction <= stop:
            return before + (after - before) * (fraction - start) / (stop - start)
    return points[-1][1]
