"""The optimum: published numbers, other solvers, every measured data set, and points that determine little."""

import numpy as np
import pytest
from fit_points import chinchilla_points, distilled_points, isoflops_points
from scipy.optimize import minimize
from scipy.special import huber as scipy_huber

from limbeck.errors import DataError, SpecError
from limbeck.plan.fit.custom import custom_form
from limbeck.plan.fit.fitting import fit_law
from limbeck.plan.fit.forms import CHINCHILLA, SUPERVISED, DistillationForm
from limbeck.plan.fit.points import Points
from limbeck.plan.fit.result import FitResult
from limbeck.plan.fit.solve import Problem, huber, objective, polish, quasi_newton
from limbeck.plan.laws import SUPERVISED as PUBLISHED

BESIROGLU = {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658}
"""arXiv 2404.10102."""


def scipy_objective(points: Points, value: dict[str, float], delta: float = 1e-3) -> float:
    predicted = value["E"] + value["A"] / points.params ** value["alpha"] + value["B"] / points.tokens ** value["beta"]
    return float(scipy_huber(delta, np.log(predicted) - np.log(points.loss)).sum())


def optimum(points: Points) -> FitResult:
    return fit_law(CHINCHILLA, points, resamples=0)


def test_the_loss_is_hubers() -> None:
    residuals = np.linspace(-5e-3, 5e-3, 41)
    np.testing.assert_allclose(huber(residuals, 1e-3), scipy_huber(1e-3, residuals), rtol=1e-14)


def test_the_published_refit_has_its_published_objective() -> None:
    points = chinchilla_points()
    assert scipy_objective(points, BESIROGLU) == pytest.approx(1.022843e-3, rel=1e-6)
    theta = np.log([[BESIROGLU[name] for name in CHINCHILLA.coefficients]])
    ours = objective(Problem.of(CHINCHILLA, points, delta=1e-3), theta)[0]
    assert ours == pytest.approx(scipy_objective(points, BESIROGLU), rel=1e-12)


def test_chinchilla_refitted() -> None:
    points = chinchilla_points()
    assert len(points) == 240
    result = optimum(points)
    assert result.objective <= 1.01828e-3
    assert scipy_objective(points, result.coefficients) == pytest.approx(result.objective, rel=1e-12)
    assert result.coefficients["E"] == pytest.approx(1.817, abs=0.001)
    assert result.coefficients["alpha"] == pytest.approx(0.347, abs=0.001)
    assert result.coefficients["beta"] == pytest.approx(0.367, abs=0.002)
    assert result.coefficients["A"] == pytest.approx(477.83, rel=1e-3)
    assert result.coefficients["B"] == pytest.approx(2143.4, rel=1e-3)
    assert result.derived["a_star"].value + result.derived["b_star"].value == pytest.approx(1)
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("points", "count", "expected", "mean_error"),
    [
        (chinchilla_points(dropped=0), 245, (495.7, 12846, 1.8913, 0.3493, 0.4530), None),
        (isoflops_points("ml_scalefit__massivetext__chinchilla"), 89, (491.6, 4823, 1.8506, 0.3478, 0.4071), 0.0048),
        (isoflops_points("llama_3__raw_loss"), 116, (62.8, 192.8, 0.6114, 0.3137, 0.3254), 0.0028),
    ],
    ids=["epoch", "scalefit", "llama"],
)
def test_other_data_as_an_independent_script_fitted_them(
    points: Points, count: int, expected: tuple[float, ...], mean_error: float | None
) -> None:
    """The script: L-BFGS-B from forty random starts."""
    result = optimum(points)
    assert result.fitted.points == len(points) == count
    assert tuple(result.coefficients.values()) == pytest.approx(expected, rel=1e-3)
    if mean_error is not None:
        assert result.fitted.mean_relative_error == pytest.approx(mean_error, abs=5e-5)


@pytest.mark.parametrize(
    ("experiment", "mean_error"),
    [
        ("epochai_chinchilla__massivetext__chinchilla", 0.00435),
        ("marin_202603__comma__llama_2", 0.00591),
        ("marin_202603__dclm__llama_2", 0.00501),
        ("marin_202603__nemotron__llama_2", 0.00524),
        ("misfitting__fineweb_c4__transformer", 0.00470),
    ],
)
def test_no_start_of_scipy_ends_below(experiment: str, mean_error: float) -> None:
    """Nelder-Mead and BFGS from perturbed optima, on an objective written here. The errors are records, not outside numbers."""
    points = isoflops_points(experiment)
    result = optimum(points)
    best = np.array([result.coefficients[name] for name in CHINCHILLA.coefficients])

    def written_here(theta: np.ndarray) -> float:
        return scipy_objective(points, dict(zip(CHINCHILLA.coefficients, np.exp(theta), strict=True)))

    draw = np.random.default_rng(0)
    for method in ("Nelder-Mead", "Nelder-Mead", "BFGS"):
        start = np.log(best) + 0.05 * draw.standard_normal(5)
        found = minimize(written_here, start, method=method, options={"maxiter": 3000})
        assert result.objective <= found.fun * (1 + 1e-9)
    assert result.fitted.mean_relative_error == pytest.approx(mean_error, rel=0.01)


def test_gamma_lets_the_fit_come_nearer() -> None:
    points = isoflops_points("marin_202603__comma__llama_2")
    freer = fit_law(SUPERVISED, points, delta=1e-3, resamples=0)
    assert freer.objective < optimum(points).objective
    assert freer.coefficients["gamma"] != pytest.approx(1, abs=0.1)


def test_a_formula_is_fitted_like_the_law_it_says() -> None:
    points = chinchilla_points()
    for starts in ({}, {"E": 1.0, "alpha": 0.5, "beta": 0.5}):
        result = fit_law(custom_form("E + A / N**alpha + B / D**beta", starts), points, resamples=0)
        assert result.objective == pytest.approx(optimum(points).objective, rel=1e-6)
        assert result.coefficients == pytest.approx(optimum(points).coefficients, rel=1e-3)
    assert result.derived == {}


def test_a_coefficient_that_starts_below_zero_may_stay_there() -> None:
    draw = np.random.default_rng(0)
    params, tokens = np.exp(draw.uniform(np.log(1e7), np.log(1e10), (2, 60)))
    points = Points(params, tokens, 4.0 - 0.05 * np.log(params) - 0.03 * np.log(tokens))
    result = fit_law(custom_form("E + a * log(N) + b * log(D)", {"a": -1.0, "b": 0.0}), points, resamples=0)
    assert result.coefficients == pytest.approx({"E": 4.0, "a": -0.05, "b": -0.03}, rel=1e-5)


def test_units_change_amplitudes_only() -> None:
    ones = chinchilla_points()
    billions = fit_law(CHINCHILLA, Points(ones.params / 1e9, ones.tokens / 1e9, ones.loss), resamples=0)
    result = optimum(ones)
    assert billions.objective == pytest.approx(result.objective, rel=1e-9)
    assert billions.coefficients["alpha"] == pytest.approx(result.coefficients["alpha"], rel=1e-4)
    assert billions.coefficients["A"] * 1e9**0.3473 == pytest.approx(result.coefficients["A"], rel=0.02)
    assert [warning for warning in billions.warnings if "multiply in --columns N=COL*1e9" in warning]


def test_without_noise_the_law_is_found() -> None:
    points, _ = distilled_points(60)
    exact = Points(points.params, points.tokens, PUBLISHED.loss(points.params, points.tokens))
    result = fit_law(SUPERVISED, exact, resamples=0)
    assert result.fitted.max_relative_error < 1e-8
    assert result.coefficients == pytest.approx({name: getattr(PUBLISHED, name) for name in SUPERVISED.coefficients}, rel=1e-4)


def test_quasi_newton_alone_needs_many_starts() -> None:
    """Why so many are screened: from a bad start L-BFGS-B ends above."""
    problem = Problem.of(CHINCHILLA, chinchilla_points(), delta=1e-3)
    ends = [quasi_newton(problem, np.array([0.0, 0.0, 1.0, np.log(a), np.log(a)]))[1] for a in (0.05, 1.5)]
    assert max(ends) > 1.02e-3


def test_polishing_settles_and_never_climbs() -> None:
    points = chinchilla_points()
    problem = Problem.of(CHINCHILLA, points, delta=1e-3)
    starts = CHINCHILLA.starts(points, count=200)
    ended = polish(problem, starts, np.ones((1, len(points))), tolerance=1e-12)
    assert ended.settled_K.all()
    assert (ended.objective_K <= objective(problem, starts)).all()
    np.testing.assert_allclose(ended.objective_K, objective(problem, ended.theta_KP), rtol=1e-12)


def test_as_many_points_as_coefficients_are_met_exactly() -> None:
    law = CHINCHILLA.law({"A": 400.0, "B": 2000.0, "E": 1.7, "alpha": 0.34, "beta": 0.37})
    params, tokens = np.array([1e8, 1e9, 1e10, 3e8, 3e9]), np.array([1e10, 2e9, 3e11, 4e10, 5e9])
    result = fit_law(CHINCHILLA, Points(params, tokens, law.loss(params, tokens)), resamples=20)
    assert result.fitted.max_relative_error < 1e-6
    with pytest.raises(DataError, match="4 points can't determine the 5 coefficients of chinchilla"):
        fit_law(CHINCHILLA, Points(params[:4], tokens[:4], tokens[:4]), resamples=0)


def test_what_does_not_vary_is_said() -> None:
    points = chinchilla_points()
    result = optimum(Points(np.full(240, 1e9), points.tokens, points.loss))
    assert any(warning.startswith("N is the same in every point") for warning in result.warnings)


def test_one_point_many_times_is_no_disaster() -> None:
    result = fit_law(CHINCHILLA, Points(np.full(20, 1e9), np.full(20, 2e10), np.full(20, 2.5)), resamples=50)
    assert result.fitted.max_relative_error < 1e-6
    assert len(result.warnings) >= 2


@pytest.mark.parametrize(("delta", "resamples"), [(0.0, 10), (float("nan"), 10), (-1e-3, 10), (1e-3, -1)])
def test_options_out_of_range_are_refused(delta: float, resamples: int) -> None:
    with pytest.raises(SpecError, match=r"--delta|--resamples"):
        fit_law(CHINCHILLA, chinchilla_points(), delta=delta, resamples=resamples)


def test_a_distillation_law_needs_teachers() -> None:
    with pytest.raises(DataError, match="teacher_loss=COL"):
        fit_law(DistillationForm(PUBLISHED), chinchilla_points(), resamples=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": [2.0, 0.0]}, "point 2: loss is 0, but must be"),
        ({"params": [-1.0, 1e9]}, "point 1: N is -1"),
        ({"tokens": [1e9, np.nan]}, "point 2: D is nan"),
        ({"loss": [np.inf, 2.0]}, "point 1: loss is inf"),
        ({"loss": [2.0, 2.0, 2.0]}, "loss has shape"),
        ({"teacher_loss": [2.0, -2.0]}, "teacher_loss is -2"),
    ],
)
def test_points_are_checked(values: dict[str, list[float]], message: str) -> None:
    good = {"params": [1e8, 1e9], "tokens": [1e9, 1e10], "loss": [3.0, 2.5], "teacher_loss": None}
    Points(**good)
    with pytest.raises(DataError, match=message):
        Points(**{**good, **values})


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ((1e-9, 1.0, 1.0), "N=COL\\*1e9"),
        ((1.0, 1e-9, 1.0), "D=COL\\*1e9"),
        ((2e-6, 1e-6, 1.0), "6 N D"),
        ((1.0, 1e-6, 1.0), "D looks like millions, use --columns D=COL\\*1e6"),
        ((100.0, 1e-4, 1.0), "D looks like millions"),
        ((0.1, 3e-5, 1.0), "D looks like millions"),
        ((1.0, 6e9, 1.0), "more than the text that exists"),
        ((1e6, 1.0, 1.0), "more than any model has"),
        ((1.0, 1.0, 10.0), "perplexity"),
        ((1.0, 1.0, 5.0), "uniform guess"),
        ((1.0, 1.0, 0.3), "bits per byte"),
    ],
)
def test_odd_units_are_doubted(scale: tuple[float, float, float], message: str) -> None:
    from limbeck.plan.fit.points import doubts

    points = chinchilla_points()
    assert doubts(points) == []
    found = doubts(Points(points.params * scale[0], points.tokens * scale[1], points.loss * scale[2]))
    assert len(found) == 1
    import re

    assert re.search(message, found[0])


@pytest.mark.parametrize(("params", "tokens"), [(1e5, 1e5), (1e5, 1e8), (1e7, 1e5), (1e7, 1e8), (1e12, 2e13), (7e10, 2e9)])
def test_small_runs_and_large_ones_are_not_doubted(params: float, tokens: float) -> None:
    from limbeck.plan.fit.points import doubts

    assert doubts(Points(np.full(3, params), np.full(3, tokens), np.full(3, 2.5))) == []
