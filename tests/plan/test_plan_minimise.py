"""The least value of functions with several valleys against a dense grid and SciPy's minimisers from many starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from limbeck.plan.minimise import minimise

SIDE = st.floats(min_value=-4.5, max_value=4.5)
VALLEY_1D = st.tuples(SIDE, st.floats(min_value=0.3, max_value=1.5), st.floats(min_value=0.2, max_value=3.0))
VALLEY_2D = st.tuples(SIDE, SIDE, st.floats(min_value=0.6, max_value=2.0), st.floats(min_value=0.2, max_value=3.0))
BOX = (-5.0, 5.0)


def by_scipy(function, box, starts_per_side: int) -> float:
    """The least value that L-BFGS-B finds from a grid of starts."""
    grid = np.meshgrid(*(np.linspace(low, high, starts_per_side) for low, high in box))
    starts = np.stack([axis.ravel() for axis in grid], axis=1)
    values = [float(minimize(lambda x: float(function(*x)), start, bounds=box, method="L-BFGS-B").fun) for start in starts]
    return min(values)


@settings(max_examples=150, deadline=None)
@given(valleys=st.lists(VALLEY_1D, min_size=1, max_size=4), slope=st.floats(min_value=-0.1, max_value=0.1))
def test_the_lowest_of_several_valleys(valleys, slope):
    def function(x):
        return slope * x - sum(depth * np.exp(-(((x - centre) / width) ** 2)) for centre, width, depth in valleys)

    dense = np.linspace(*BOX, 200_001)
    lowest = float(function(dense).min())
    found = minimise(function, [BOX], points=(81,))
    assert found is not None
    assert BOX[0] <= found[0] <= BOX[1]
    assert float(function(np.array(found[0]))) <= lowest + 1e-9


@settings(max_examples=40, deadline=None)
@given(valleys=st.lists(VALLEY_2D, min_size=1, max_size=4))
def test_the_lowest_of_several_valleys_of_two_variables(valleys):
    def function(x, y):
        return 0.01 * x - sum(
            depth * np.exp(-((x - across) ** 2 + (y - along) ** 2) / width**2) for across, along, width, depth in valleys
        )

    found = minimise(function, [BOX, BOX], points=(41, 41))
    assert found is not None
    x, y = np.meshgrid(np.linspace(*BOX, 401), np.linspace(*BOX, 401))
    assert function(*found) <= function(x, y).min() + 1e-9
    polished = minimize(lambda point: function(*point), found, bounds=[BOX, BOX], method="L-BFGS-B")
    assert function(*found) <= polished.fun + 1e-7


def test_it_beats_or_ties_many_starts_of_lbfgs():
    def function(x, y):
        """Himmelblau's four equal valleys, tilted, so that only one is best."""
        return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2 + 0.3 * x - 0.2 * y

    found = minimise(function, [BOX, BOX], points=(41, 41))
    assert found is not None
    assert function(*found) <= by_scipy(function, [BOX, BOX], 6) + 1e-9
    # The valleys: (3, 2), (-2.81, 3.13), (-3.78, -3.28) and (3.58, -1.85), where the tilt is 0.5, -1.47, -0.48 and 1.44.
    assert found == pytest.approx((-2.81, 3.13), abs=0.02)


@pytest.mark.parametrize("angle", [0.3, np.pi / 4, 1.2])
@pytest.mark.parametrize("ratio", [10.0, 1e2, 1e3])
def test_a_valley_across_the_axes_is_followed_to_its_bottom(angle, ratio):
    """A teacher's size and tokens trade against each other at one loss: a long valley, flat along and steep across."""
    cosine, sine = np.cos(angle), np.sin(angle)

    def function(x, y):
        along, across = cosine * (x - 0.37) + sine * (y + 0.61), -sine * (x - 0.37) + cosine * (y + 0.61)
        return along**2 / ratio + across**2

    found = minimise(function, [BOX, BOX], points=(41, 61))
    assert found == pytest.approx((0.37, -0.61), abs=0.02)


def test_a_curved_valley_is_followed_to_its_bottom():
    """Rosenbrock's, whose bottom is at (1, 1)."""
    found = minimise(lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, [BOX, BOX], points=(41, 61))
    assert found == pytest.approx((1, 1), abs=0.01)


def test_a_valley_along_a_bound_is_followed_to_the_corner():
    """Steep across, ever so slightly falling along, to a bound of the box: the best teacher of free tokens."""
    found = minimise(lambda x, y: (x + 0.3 * np.exp(-y)) ** 2 + 1e-6 * (5 - y), [(-5.0, 5.0), (0.0, 5.0)], points=(41, 61))
    assert found is not None and found[1] == pytest.approx(5.0, abs=0.02)


@pytest.mark.parametrize(
    ("slopes", "corner"), [((1, 1), (-5, -5)), ((-1, 1), (5, -5)), ((1, -1), (-5, 5)), ((-1, -1), (5, 5)), ((0.5, -2), (-5, 5))]
)
def test_minima_on_the_boundary(slopes, corner):
    found = minimise(lambda x, y: slopes[0] * x + slopes[1] * y, [BOX, BOX], points=(11, 13))
    assert found == pytest.approx(corner, abs=1e-9)
    assert minimise(lambda x: slopes[0] * x, [BOX], points=(11,)) == pytest.approx(corner[:1], abs=1e-9)


def test_a_minimum_on_one_side_only():
    found = minimise(lambda x, y: (x - 1.234) ** 2 + y, [BOX, (2.0, 3.0)], points=(21, 5))
    assert found == pytest.approx((1.234, 2.0), abs=1e-5)


def test_a_minimum_between_grid_points_is_found_closely():
    assert minimise(lambda x: (x - 0.123456789) ** 2, [BOX], points=(11,)) == pytest.approx((0.123456789,), abs=1e-5)


def test_infinite_regions_are_walls():
    """Least where it is finite at all, on either side of the wall."""
    found = minimise(lambda x: np.where(x > 0.5, (x + 3) ** 2, np.inf), [BOX], points=(41,))
    assert found is not None and 0.5 < found[0] < 0.5 + 1e-4
    found = minimise(lambda x, y: np.where(x + y < -1, x**2 + y**2, np.inf), [BOX, BOX], points=(41, 41))
    assert found is not None
    assert found[0] + found[1] < -1 and found[0] ** 2 + found[1] ** 2 == pytest.approx(0.5, abs=1e-3)


def test_one_finite_point_is_enough():
    assert minimise(lambda x: np.where(np.abs(x - 2.5) < 1e-9, 1.0, np.inf), [BOX], points=(41,)) == pytest.approx((2.5,))


def test_infinite_everywhere_is_nowhere():
    assert minimise(lambda x: np.full(x.shape, np.inf), [BOX], points=(9,)) is None
    assert minimise(lambda x, y: np.full(x.shape, np.nan), [BOX, BOX], points=(5, 7)) is None


def test_a_constant_is_least_somewhere_inside():
    found = minimise(lambda x, y: np.zeros(x.shape), [BOX, (1.0, 2.0)], points=(9, 9))
    assert found is not None and -5 <= found[0] <= 5 and 1 <= found[1] <= 2


def test_points_of_every_side_of_the_box():
    with pytest.raises(ValueError):
        minimise(lambda x, y: x + y, [BOX, BOX], points=(9,))
