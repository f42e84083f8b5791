"""Runs drawn from the published distillation law: what it predicts is found again. Its coefficients can't be."""

import numpy as np
import pytest
from fit_points import distilled_points

from limbeck.plan.fit.fitting import fit_law
from limbeck.plan.fit.forms import SUPERVISED, DistillationForm
from limbeck.plan.fit.points import Points
from limbeck.plan.fit.result import FitResult
from limbeck.plan.fit.solve import Problem, objective
from limbeck.plan.laws import DISTILLATION, DistillationLaw
from limbeck.plan.laws import SUPERVISED as PUBLISHED

FORM = DistillationForm(PUBLISHED)
Fitted = tuple[Points, np.ndarray, FitResult]


@pytest.fixture(scope="module", params=[0, 1])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    points, truth = distilled_points(seed=request.param)
    return points, truth, fit_law(FORM, points, resamples=0)


def test_the_fit_is_below_the_truth(fitted: Fitted) -> None:
    points, _, result = fitted
    theta = np.log([[getattr(DISTILLATION, name) for name in FORM.coefficients]])
    assert result.objective <= objective(Problem.of(FORM, points, delta=1e-4), theta)[0]


def test_predictions_are_the_truths(fitted: Fitted) -> None:
    points, truth, result = fitted
    assert isinstance(result.law, DistillationLaw)
    off = np.abs(result.law.loss(points.params, points.tokens, points.teacher_loss) / truth - 1)
    assert off.mean() <= 0.0005
    assert off.max() <= 0.005


@pytest.mark.parametrize("params", [3e8, 1e9, 3e9])
@pytest.mark.parametrize("tokens_per_parameter", [20, 80])
def test_the_best_teacher_is_the_truths(fitted: Fitted, params: float, tokens_per_parameter: float) -> None:
    """The loss at the U-shape's bottom, and that the teacher found there is as good as the best by the true law."""
    _, _, result = fitted
    assert isinstance(result.law, DistillationLaw)
    teachers = np.linspace(1.9, 2.9, 2001)
    tokens = params * tokens_per_parameter
    by_truth = DISTILLATION.loss(params, tokens, teachers)
    by_fit = result.law.loss(params, tokens, teachers)
    assert by_fit.min() == pytest.approx(by_truth.min(), rel=0.002)
    assert by_truth[by_fit.argmin()] <= by_truth.min() * 1.001
    assert teachers[by_fit.argmin()] == pytest.approx(teachers[by_truth.argmin()], rel=0.03)


def test_weak_runs_foretell_strong_ones() -> None:
    """As in arXiv 2502.08606: the law of training alone fitted to losses of 2.2 and more, that of distillation above 2.3."""
    draw = np.random.default_rng(5)
    params, tokens = np.exp(draw.uniform(np.log([143e6, 4e9]), np.log([12e9, 512e9]), (73, 2))).T
    loss = PUBLISHED.loss(params, tokens) * np.exp(0.003 * draw.standard_normal(73))
    alone, weak = Points(params, tokens, loss), loss >= 2.2
    assert 30 < weak.sum() < 65
    first = fit_law(SUPERVISED, alone.where(weak), held_out=alone.where(~weak), resamples=0)
    assert first.held_out is not None
    assert first.held_out.mean_relative_error < 0.01
    points, _ = distilled_points()
    kept = points.loss > 2.3
    second = fit_law(DistillationForm(first.law), points.where(kept), held_out=points.where(~kept), resamples=0)
    assert second.held_out is not None
    assert second.held_out.points == (~kept).sum() > 100
    assert second.held_out.mean_relative_error < 0.01


def test_what_the_points_leave_open_is_said() -> None:
    """The coefficients that are open by a factor of a hundred are named; a prediction is known to a percent all the same."""
    points, _ = distilled_points(200)
    result = fit_law(FORM, points, resamples=200)
    (warning,) = result.warnings
    named = warning.removeprefix("the points hardly determine ").partition(":")[0].split(", ")
    wide = {name for name, (low, high) in result.intervals.items() if high > 100 * low}
    assert "B" in wide
    assert wide == set(named)
    assert not {"A", "c0", "d1"} & wide
    run = (1e9, 4e10, 2.3)
    losses = [
        float(DistillationLaw(PUBLISHED, **dict(zip(FORM.coefficients, row, strict=True))).loss(*run))
        for row in result.resampled_RP
    ]
    low, high = np.quantile(losses, [0.025, 0.975])
    assert low < DISTILLATION.loss(*run) < high < 1.01 * low
