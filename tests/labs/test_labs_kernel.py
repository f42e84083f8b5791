"""Kernel regression: the closed forms against constrained least squares, and the properties that make the capacity gap."""

import numpy as np
import pytest

from limbeck.errors import LimbeckError
from limbeck.labs.kernel import KernelSettings, power_law, student_error, sweep, teacher_error

POINTS, FUNCTIONS = 40, 12


def nearest(target: np.ndarray, basis: np.ndarray, *, norm: float) -> np.ndarray:
    """The function nearest to `target` in the span of `basis` with at most that norm: least squares with a multiplier.

    min ||Bw - f||² + λ ||Bw||², λ ≥ 0 found by bisection so that the bound holds with equality where it binds.
    """

    def solve(multiplier: float) -> np.ndarray:
        rows = np.vstack([basis, np.sqrt(multiplier) * basis])
        return basis @ np.linalg.lstsq(rows, np.concatenate([target, np.zeros_like(target)]), rcond=None)[0]

    if np.linalg.norm(solve(0.0)) <= norm:
        return solve(0.0)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(solve(middle)) > norm else (low, middle)
    return solve(high)


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(orthonormal functions sampled at points, coefficients in no particular order, their target)."""
    rng = np.random.default_rng(0)
    functions = np.linalg.qr(rng.normal(size=(POINTS, FUNCTIONS)))[0]
    coefficients = rng.normal(size=FUNCTIONS)
    return functions, coefficients, functions @ coefficients


@pytest.mark.parametrize("teacher_norm", [0.5, 1.5, 2.5, 100.0])
def test_teachers_are_those_of_constrained_least_squares(problem, teacher_norm):
    functions, coefficients, target = problem
    mixing = np.random.default_rng(1).normal(size=(FUNCTIONS, FUNCTIONS))
    sizes = np.arange(1, FUNCTIONS + 1)
    # a basis of the same span that is not orthonormal
    direct = [nearest(target, functions[:, :p] @ mixing[:p, :p], norm=teacher_norm) for p in sizes]
    expected = [np.linalg.norm(teacher - target) for teacher in direct]
    np.testing.assert_allclose(teacher_error(coefficients, sizes, norm=teacher_norm), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 5, FUNCTIONS])
@pytest.mark.parametrize(("teacher_norm", "student_norm"), [(1.5, 100.0), (1.5, 0.7), (100.0, 1.2), (100.0, 100.0)])
def test_students_are_those_of_constrained_least_squares(problem, size, teacher_norm, student_norm):
    functions, coefficients, target = problem
    sizes = np.arange(1, FUNCTIONS + 1)
    expected = []
    for p in sizes:
        teacher = nearest(target, functions[:, :p], norm=teacher_norm)
        expected.append(np.linalg.norm(nearest(teacher, functions[:, :size], norm=student_norm) - target))
    errors = student_error(coefficients, sizes, size=size, teacher_norm=teacher_norm, student_norm=student_norm)
    np.testing.assert_allclose(errors, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decay", [0.3, 0.75, 1.5])
@pytest.mark.parametrize("teacher_norm", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_student_falls_until_the_teacher_outgrows_it_and_then_rises(decay, teacher_norm, size):
    coefficients, sizes = power_law(64, decay=decay), np.arange(1, 65)
    assert np.sum(coefficients**2) == pytest.approx(1, rel=1e-12)
    assert coefficients[1] / coefficients[31] == pytest.approx(16**decay, rel=1e-12)
    steps = np.diff(student_error(coefficients, sizes, size=size, teacher_norm=teacher_norm, student_norm=1.0))
    smaller, larger = steps[: size - 1], steps[size - 1 :]  # steps[p - 1] leads from p to p + 1
    assert np.all(smaller <= 1e-15)
    assert np.all(larger >= -1e-15)
    binds = np.sqrt(np.cumsum(coefficients**2))[size:] > teacher_norm  # at the size stepped to
    assert binds.any()
    assert np.all(larger[binds] > 0)
    assert np.all(np.abs(larger[~binds]) <= 1e-15)
    assert np.all(np.diff(teacher_error(coefficients, sizes, norm=teacher_norm)) < 0)


def test_the_default_sweep_shows_a_gap_for_every_student():
    result = sweep(KernelSettings())
    for student in result.students:
        assert student.best_teacher < result.settings.functions
        assert student.best_error == min(student.errors) == student.errors[student.best_teacher - 1]
        assert student.gap == pytest.approx(student.errors[-1] / min(student.errors) - 1, rel=1e-12)
        assert 0.02 < student.gap < 0.0766  # a grid over (head, T) has its maximum at 7.65%


@pytest.mark.parametrize("change", [{"teacher_norm": 1.0}, {"student_norm": 0.05}])
def test_without_a_binding_teacher_there_is_no_gap(change):
    for student in sweep(KernelSettings(**change)).students:
        assert student.gap == pytest.approx(0, abs=1e-12)
    # the first of the teachers that are equally good: a bound on the student alone makes the first one enough
    assert [student.best_teacher for student in sweep(KernelSettings(teacher_norm=1.0)).students] == [4, 16, 64]


@pytest.mark.parametrize(
    "wrong",
    [
        {"functions": 1},
        {"student_sizes": ()},
        {"student_sizes": (0,)},
        {"student_sizes": (4, 4)},
        {"student_sizes": (300,)},
        {"teacher_norm": 0.0},
        {"teacher_norm": float("nan")},
        {"student_norm": -1.0},
        {"decay": float("inf")},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(LimbeckError, match=next(iter(wrong)).replace("student_sizes", "student sizes")):
        KernelSettings(**wrong)
