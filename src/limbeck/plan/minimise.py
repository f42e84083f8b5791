"""The least value of a smooth function of one or two variables in a box, whichever of several valleys it lies in.

A coarse grid finds every valley; a small grid around the bottom of the best few shrinks onto their minima. No start to choose,
no derivative, a few milliseconds. A narrow valley should run along an axis: along a diagonal the small grid creeps.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from limbeck.plan.laws import Array

_VALLEYS = 4
_ROUNDS = 16
_SIDE = 7
_SHRINK = 0.5
"""Of the box from round to round; its points stand a third of half a side apart, so a minimum can't be lost between two."""

Box = Sequence[tuple[float, float]]


def minimise(function: Callable[..., Array], box: Box, *, points: Sequence[int]) -> tuple[float, ...] | None:
    """Where `function` of as many equally shaped arrays as `box` has sides is least; None where it is infinite everywhere.

    `points` says how many the coarse grid has along each side. Accurate to 1e-5 of its spacing, in valleys that run along an
    axis.
    """
    axes = [np.linspace(low, high, count) for (low, high), count in zip(box, points, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    values = function(*grid)
    bottoms = _valleys(values)
    if not len(bottoms):
        return None
    centres = [axis[bottoms[:, side]] for side, axis in enumerate(axes)]
    reach = [axis[1] - axis[0] for axis in axes]
    steps = np.array(list(product(np.linspace(-1, 1, _SIDE), repeat=len(axes))))
    for _ in range(_ROUNDS):
        near = [
            np.clip(centre[:, None] + half * steps[:, side], low, high)
            for side, (centre, half, (low, high)) in enumerate(zip(centres, reach, box, strict=True))
        ]
        values = function(*near)
        best = np.argmin(values, axis=1)[:, None]
        centres = [np.take_along_axis(points_near, best, axis=1)[:, 0] for points_near in near]
        reach = [half * _SHRINK for half in reach]
    winner = np.argmin(function(*centres))
    return tuple(float(centre[winner]) for centre in centres)


def _valleys(values: Array) -> np.ndarray:
    """Indices of the lowest few grid points that no neighbour along a side undercuts, lowest first."""
    lowest = np.isfinite(values)
    for side in range(values.ndim):
        padded = np.pad(values, [(1, 1) if axis == side else (0, 0) for axis in range(values.ndim)], constant_values=np.inf)
        before, after = (np.take(padded, range(offset, offset + values.shape[side]), axis=side) for offset in (0, 2))
        lowest &= (values <= before) & (values <= after)
    places = np.argwhere(lowest)
    return places[np.argsort(values[lowest], kind="stable")][:_VALLEYS]
