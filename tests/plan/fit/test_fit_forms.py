"""Forms against the laws written out, and their derivatives against differences."""

import numpy as np
import pytest
from fit_points import chinchilla_points, distilled_points

from limbeck.errors import SpecError
from limbeck.plan.fit.custom import custom_form
from limbeck.plan.fit.forms import CHINCHILLA, SUPERVISED, DistillationForm, Form
from limbeck.plan.fit.points import Points
from limbeck.plan.laws import SUPERVISED as PUBLISHED

DISTILLATION = DistillationForm(PUBLISHED)
CUSTOM = custom_form("E + A / N**alpha + B / D**beta - shift", {"shift": 0.0})


def written_out(form: Form, value: dict[str, np.ndarray], points: Points) -> np.ndarray:
    """The laws as printed, without logarithms."""
    if form is CUSTOM:
        return written_out(CHINCHILLA, value, points) - value["shift"]
    capacity = value["A"] / points.params ** value["alpha"] + value["B"] / points.tokens ** value["beta"]
    if form is CHINCHILLA:
        return value["E"] + capacity
    if form is SUPERVISED:
        return value["E"] + capacity ** value["gamma"]
    teacher = points.teacher_loss
    alone = 1.220 + (3355 / points.params**0.408 + 18186 / points.tokens**0.431) ** 0.452
    bracket = (1 + (teacher / (alone * value["d1"])) ** (1 / value["f1"])) ** (-value["c1"] * value["f1"])
    return teacher + teacher ** -value["c0"] * bracket * capacity ** value["gamma"]


TYPICAL = {
    "A": 500.0, "B": 2000.0, "E": 1.8, "alpha": 0.35, "beta": 0.37, "gamma": 0.7,
    "c0": 2.5, "c1": 30.0, "f1": 0.2, "d1": 1.3, "shift": 0.1,
}  # fmt: skip
FORMS = pytest.mark.parametrize("form", [CHINCHILLA, SUPERVISED, DISTILLATION, CUSTOM], ids=lambda form: form.name[:12])


def candidates(form: Form, count: int = 7) -> np.ndarray:
    natural = np.array([TYPICAL[name] for name in form.coefficients])
    theta = np.where(form.logged_P, np.log(natural), natural)
    return theta + 0.1 * np.random.default_rng(0).standard_normal((count, len(theta)))


@FORMS
def test_predictions_are_the_law_written_out(form: Form) -> None:
    points, _ = distilled_points(50)
    theta_KP = candidates(form)
    found = np.exp(form.predict(theta_KP, form.features(points)))
    for row, theta_P in zip(found, theta_KP, strict=True):
        values = np.where(form.logged_P, np.exp(theta_P), theta_P)
        expected = written_out(form, dict(zip(form.coefficients, values, strict=True)), points)
        np.testing.assert_allclose(row, expected, rtol=1e-12)
        named = dict(zip(form.coefficients, map(float, values), strict=True))
        teacher = (np.log(points.teacher_loss),) if form is DISTILLATION else ()
        law = np.exp(form.law(named).log_loss(np.log(points.params), np.log(points.tokens), *teacher))
        np.testing.assert_allclose(row, law, rtol=1e-12)


@FORMS
def test_slopes_are_those_of_the_predictions(form: Form) -> None:
    points, _ = distilled_points(50)
    features_FM, theta_KP = form.features(points), candidates(form)
    log_loss_KM, slopes_KPM = form.predict_with_slopes(theta_KP, features_FM)
    np.testing.assert_array_equal(log_loss_KM, form.predict(theta_KP, features_FM))
    # A four-point rule of step h errs by h**4: far below the tolerance, and coarser than the custom form's own two-point rule.
    h = 1e-3
    for place in range(theta_KP.shape[1]):
        step = np.zeros(theta_KP.shape[1])
        step[place] = h
        one, two = (
            form.predict(theta_KP + width * step, features_FM) - form.predict(theta_KP - width * step, features_FM)
            for width in (1, 2)
        )
        np.testing.assert_allclose(slopes_KPM[:, place], (8 * one - two) / (12 * h), atol=2e-7)


def test_a_formulas_first_start_is_the_users() -> None:
    form = custom_form("E + A / N**alpha + shift", {"E": 1.5, "alpha": 0.25, "shift": -0.5})
    first = form.starts(distilled_points(50)[0], count=64)[0]
    named = dict(zip(form.coefficients, np.where(form.logged_P, np.exp(first), first), strict=True))
    assert (named["E"], named["alpha"], named["shift"]) == pytest.approx((1.5, 0.25, -0.5))


def test_extremes_stay_finite() -> None:
    points, _ = distilled_points(50)
    for form in (CHINCHILLA, SUPERVISED, DISTILLATION):
        corners = form.bounds_2P[
            np.random.default_rng(0).integers(0, 2, (200, len(form.coefficients))), np.arange(len(form.coefficients))
        ]
        log_loss_KM, slopes_KPM = form.predict_with_slopes(corners, form.features(points))
        assert np.isfinite(log_loss_KM).all()
        assert np.isfinite(slopes_KPM).all()


@FORMS
def test_starts_are_the_same_every_time_and_within_bounds(form: Form) -> None:
    points, _ = distilled_points(50)
    starts = form.starts(points, count=64)
    np.testing.assert_array_equal(starts, form.starts(points, count=64))
    low, high = form.bounds_2P
    assert ((starts >= low) & (starts <= high)).all()


def test_starts_know_no_units() -> None:
    """Sizes in billions give the same starting losses as sizes in ones."""
    ones = chinchilla_points()
    billions = Points(ones.params / 1e9, ones.tokens / 1e9, ones.loss)
    losses = [
        CHINCHILLA.predict(CHINCHILLA.starts(points, count=64), CHINCHILLA.features(points)) for points in (ones, billions)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "starts", "message"),
    [
        ("2 + 3 / N", {}, "nothing to fit"),
        ("E + A", {}, "neither N nor D"),
        ("E + A / N", {"B": 1.0}, "no coefficient of that name.*valid: A, E"),
        ("E + A / N + loss", {}, "loss can't be a coefficient"),
        ("E / N + 'one'", {}, "calculates with text"),
        ("E + A / N ** (", {}, "not a formula"),
        ("open(N) + A", {}, "not a function"),
    ],
)
def test_what_is_no_law_is_refused(text: str, starts: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        custom_form(text, starts)
