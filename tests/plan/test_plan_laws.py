"""Both laws against eqs. 1 and 8 of arXiv 2502.08606 written out, in 60 digits and in plain floats, and against its appendix E.

The plain functions here (`plain_*`) know nothing of the planner; the other tests of the plan use them too. Sizes N are
parameters outside the embeddings, D tokens, losses nats per token.
"""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from limbeck.plan.formula import parse_formula
from limbeck.plan.laws import DISTILLATION, PUBLISHED, SUPERVISED, DistillationLaw, FittedRange, FormulaLaw, SupervisedLaw

TABLE_6 = {"E": 1.220, "A": 3355.0, "B": 18186.0, "alpha": 0.408, "beta": 0.431, "gamma": 0.452}
TABLE_6_PRIMED = {"A": 2243.0, "B": 24181.0, "alpha": 0.321, "beta": 0.637, "gamma": 0.764}
C0, C1, F1, D1 = 2.549, 522.6, 0.090, 1.315
TABLE_13_SIZES = (143e6, 198e6, 266e6, 340e6, 546e6, 975e6, 1.82e9, 2.72e9, 4.82e9, 7.75e9, 12.6e9)


def plain_supervised(params: float, tokens: float) -> float:
    """Eq. 1 as it is printed."""
    t = TABLE_6
    return t["E"] + (t["A"] / params ** t["alpha"] + t["B"] / tokens ** t["beta"]) ** t["gamma"]


def plain_distilled(params: float, tokens: float, teacher_loss: float) -> float:
    """Eq. 8 as it is printed; its bracket overflows for teachers far above the student."""
    t = TABLE_6_PRIMED
    bracket = (1 + (teacher_loss / (plain_supervised(params, tokens) * D1)) ** (1 / F1)) ** (-C1 * F1)
    return (
        teacher_loss
        + teacher_loss**-C0 * bracket * (t["A"] / params ** t["alpha"] + t["B"] / tokens ** t["beta"]) ** t["gamma"]
    )


def plain_flops(params: float) -> float:
    """Forward FLOPs per token of the family (eqs. 60-69), by its layers and width rather than by the closed form."""
    width = (128 * params / 12) ** (1 / 3)
    return 2 * params + 2 * 4096 * (width / 128) * width + 2 * 32768 * width


def plain_optimum(
    params: float, flops: float, *, inference: bool, pretraining: bool, most_params: float = 1e11, most_tokens: float = 1e16
) -> tuple[float, float, float]:
    """(student loss, teacher params, teacher tokens) of eq. 28: for each teacher's size its best tokens, then the best size."""

    def loss(log_params: float, log_tokens: float) -> float:
        teacher, teacher_tokens = math.exp(log_params), math.exp(log_tokens)
        left = flops - 3 * pretraining * plain_flops(teacher) * teacher_tokens
        tokens = left / (3 * plain_flops(params) + inference * plain_flops(teacher))
        return plain_distilled(params, tokens, plain_supervised(teacher, teacher_tokens)) if tokens >= 1 else 1e9

    def least(function, low: float, high: float, points: int) -> tuple[float, float]:
        """Value and place: Brent's method between the neighbours of the lowest of equally spaced points."""
        grid = np.linspace(low, high, points)
        values = [function(x) for x in grid]
        lowest = int(np.argmin(values))
        ends = grid[max(lowest - 1, 0)], grid[min(lowest + 1, points - 1)]
        found = minimize_scalar(function, bounds=ends, method="bounded", options={"xatol": 1e-9})
        return min((float(found.fun), float(found.x)), (values[lowest], float(grid[lowest])))

    smallest = math.log(1e6)

    def best_tokens(log_params: float) -> tuple[float, float]:
        return least(lambda log_tokens: loss(log_params, log_tokens), smallest, math.log(most_tokens), 101)

    reached, log_params = least(lambda log_params: best_tokens(log_params)[0], smallest, math.log(most_params), 61)
    return reached, math.exp(log_params), math.exp(best_tokens(log_params)[1])


def precise_distilled(params: float, tokens: float, teacher_loss: float) -> mpmath.mpf:
    """Eq. 8 in 60 digits, whose exponents don't overflow."""
    with mpmath.workdps(60):
        n, d, t = mpmath.mpf(params), mpmath.mpf(tokens), mpmath.mpf(teacher_loss)
        s, p = ({k: mpmath.mpf(v) for k, v in table.items()} for table in (TABLE_6, TABLE_6_PRIMED))
        alone = s["E"] + (s["A"] / n ** s["alpha"] + s["B"] / d ** s["beta"]) ** s["gamma"]
        c0, c1, f1, d1 = (mpmath.mpf(value) for value in (C0, C1, F1, D1))
        bracket = (1 + (t / (alone * d1)) ** (1 / f1)) ** (-c1 * f1)
        return t + t**-c0 * bracket * (p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]) ** p["gamma"]


logs = st.floats(min_value=math.log(1e3), max_value=math.log(1e15))


@settings(max_examples=150, deadline=None)
@given(log_params=logs, log_tokens=logs)
def test_the_supervised_law_is_eq_1_with_table_6(log_params, log_tokens):
    params, tokens = math.exp(log_params), math.exp(log_tokens)
    assert SUPERVISED.loss(params, tokens) == pytest.approx(plain_supervised(params, tokens), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(log_params=logs, log_tokens=logs, teacher_loss=st.floats(min_value=1.0, max_value=20.0))
def test_the_distillation_law_is_eq_8_with_table_6(log_params, log_tokens, teacher_loss):
    params, tokens = math.exp(log_params), math.exp(log_tokens)
    expected = float(precise_distilled(params, tokens, teacher_loss))
    assert DISTILLATION.loss(params, tokens, teacher_loss) == pytest.approx(expected, rel=1e-11)


def test_the_bracket_does_not_overflow():
    """(1 + x**11)**(-47) for a teacher of 1e40 nats is below the least float; x**11 alone is above the greatest."""
    with pytest.raises(OverflowError):
        plain_distilled(1e9, 1e10, 1e40)
    for teacher_loss in (1e-3, 0.5, 10.0, 50.0, 1e6, 1e40):
        expected = float(precise_distilled(1e9, 1e10, teacher_loss))
        assert DISTILLATION.loss(1e9, 1e10, teacher_loss) == pytest.approx(expected, rel=1e-12)
    # A teacher of a thousandth of a nat: L_T**-c0 is 4e7, and the law is far from where it means something, but finite.
    assert np.isfinite(DISTILLATION.log_loss(np.log([1e3, 1e13]), np.log([1.0, 1e20]), np.log(1e-3))).all()


def test_logs_of_the_laws_are_what_they_say():
    at = np.log([1e8, 1e9]), np.log([1e10, 1e12])
    np.testing.assert_allclose(
        SUPERVISED.log_loss(*at), [math.log(plain_supervised(1e8, 1e10)), math.log(plain_supervised(1e9, 1e12))]
    )
    expected = [math.log(plain_distilled(1e8, 1e10, 2.5)), math.log(plain_distilled(1e9, 1e12, 2.1))]
    np.testing.assert_allclose(DISTILLATION.log_loss(*at, np.log([2.5, 2.1])), expected)


def test_everything_broadcasts():
    losses = DISTILLATION.loss(np.array([1e8, 1e9])[:, None], np.array([1e10, 1e11, 1e12]), 2.2)
    assert losses.shape == (2, 3) and losses.dtype == np.float64
    assert losses[1, 2] == pytest.approx(plain_distilled(1e9, 1e12, 2.2), rel=1e-12)


def test_an_unlimited_student_reaches_its_teacher():
    """Property (i)."""
    assert DISTILLATION.loss(np.inf, np.inf, 1.7) == pytest.approx(1.7, rel=1e-15)
    gaps = [DISTILLATION.loss(10.0**power, 10.0 ** (power + 2), 1.7) - 1.7 for power in (8, 10, 12)]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 1e-4


def test_a_bad_enough_teacher_is_all_that_counts():
    """Property (ii)."""
    gaps = [DISTILLATION.loss(1e9, 1e11, loss) - loss for loss in (2.0, 2.3, 2.6)]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 1e-5


@pytest.mark.parametrize("tokens_per_param", [5, 20, 320])
@pytest.mark.parametrize("params", [143e6, 1.82e9, 7.75e9])
def test_students_prefer_teachers_neither_too_weak_nor_too_strong(params, tokens_per_param):
    """Property (iii): U-shape in the teacher's loss, down to a teacher of no loss at all."""
    grid = np.linspace(0.5, 4, 701)
    losses = DISTILLATION.loss(params, params * tokens_per_param, grid)
    bottom = int(losses.argmin())
    assert 0 < bottom < len(grid) - 1
    assert losses[0] > losses[bottom] + 0.05 and losses[-1] > losses[bottom] + 0.5


@settings(max_examples=100, deadline=None)
@given(log_params=logs, log_tokens=logs, teacher_loss=st.floats(min_value=1.0, max_value=20.0))
def test_no_student_of_the_law_is_better_than_its_teacher(log_params, log_tokens, teacher_loss):
    """Weak-to-strong gains (E.7) are outside the law."""
    assert DISTILLATION.loss(math.exp(log_params), math.exp(log_tokens), teacher_loss) >= teacher_loss * (1 - 1e-15)


@settings(max_examples=150, deadline=None)
@given(log_params=logs, log_tokens=st.floats(min_value=math.log(1e3), max_value=math.log(1e15)))
def test_tokens_invert_the_loss(log_params, log_tokens):
    log_loss = SUPERVISED.log_loss(log_params, log_tokens)
    # Where more data hardly lowers the loss, few digits of it are left to invert.
    assume(SUPERVISED.log_loss(log_params, log_tokens - 0.01) - log_loss > 1e-9)
    assert SUPERVISED.log_tokens(log_params, log_loss) == pytest.approx(log_tokens, abs=1e-4)


def test_losses_out_of_reach_take_infinitely_many_tokens():
    # 1.220 + (3355 / 1e9**0.408)**0.452 = 2.0778: what 1B parameters reach on unlimited data.
    floor = 1.220 + (3355 / 1e9**0.408) ** 0.452
    assert SUPERVISED.log_tokens(np.log(1e9), np.log([1.0, 1.22, floor - 1e-9])).tolist() == [np.inf] * 3
    assert np.isfinite(SUPERVISED.log_tokens(np.log(1e9), np.log(floor + 1e-3)))


CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""arXiv 2404.10102."""


def test_with_gamma_of_one_it_is_chinchillas_law():
    expected = 1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658
    assert SupervisedLaw(**CHINCHILLA).loss(70e9, 1.4e12) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("E + A / N**alpha + B / D**beta", SupervisedLaw(**CHINCHILLA)),
        ("E + (A / N**alpha + B / D**beta)**gamma", SUPERVISED),
    ],
)
def test_a_law_written_down_is_the_law(text, law):
    written = FormulaLaw(parse_formula(text), {name: getattr(law, name) for name in TABLE_6})
    params, tokens = np.log([1e8, 1e9, 1e10])[:, None], np.log([1e9, 1e11, 1e13])
    log_losses = law.log_loss(params, tokens)
    np.testing.assert_allclose(written.log_loss(params, tokens), log_losses, rtol=1e-13)
    np.testing.assert_allclose(written.log_tokens(params, log_losses), np.broadcast_to(tokens, (3, 3)), rtol=1e-8)
    assert np.isinf(written.log_tokens(params, np.log(law.E))).all()


def test_a_law_written_down_carries_a_distillation_law():
    """Lt of eq. 8 may come from any law of training alone."""
    written = FormulaLaw(parse_formula("E + (A / N**alpha + B / D**beta)**gamma"), TABLE_6)
    law = DistillationLaw(written, **TABLE_6_PRIMED, c0=C0, c1=C1, f1=F1, d1=D1)
    assert law.loss(1e9, 2e10, 2.2) == pytest.approx(plain_distilled(1e9, 2e10, 2.2), rel=1e-12)


def test_a_written_law_below_zero_is_no_loss():
    assert np.isnan(FormulaLaw(parse_formula("E - N / D"), {"E": 1.0}).log_loss(np.log(10.0), np.log(1.0)))


def test_compute_exponents_are_table_6s():
    """It prints 0.513 and 0.486 (truncated), 0.664 and 0.335 for the distillation law's own exponents."""
    a, b = SUPERVISED.compute_exponents
    assert (math.floor(1000 * a), math.floor(1000 * b)) == (513, 486)
    own = SupervisedLaw(E=1, **TABLE_6_PRIMED).compute_exponents
    assert (math.floor(1000 * own[0]), math.floor(1000 * own[1])) == (664, 335)


def test_compute_optimal_sizes_grow_with_those_exponents():
    """Eq. 2 minimised numerically with FLOPs = 6 N D."""

    def best_size(flops: float) -> float:
        found = minimize_scalar(
            lambda log_params: SUPERVISED.log_loss(log_params, math.log(flops / 6) - log_params),
            bounds=(math.log(1e7), math.log(1e13)),
            method="bounded",
            options={"xatol": 1e-10},
        )
        return math.exp(found.x)

    a, _ = SUPERVISED.compute_exponents
    assert math.log10(best_size(1e24) / best_size(1e20)) / 4 == pytest.approx(a, abs=1e-5)


def least_loss_on_unlimited_data(params: float) -> float:
    found = minimize_scalar(lambda loss: DISTILLATION.loss(params, np.inf, loss), bounds=(1.221, 3.5), method="bounded")
    return float(found.fun)


def test_on_unlimited_data_both_laws_end_within_half_a_percent():
    """E.6: from -0.26 % at 143M to +0.51 %, not an identity."""
    misses = {
        params: least_loss_on_unlimited_data(params) / float(SUPERVISED.loss(params, np.inf)) - 1 for params in TABLE_13_SIZES
    }
    assert round(100 * min(misses.values()), 2) == -0.26 == round(100 * misses[143e6], 2)
    assert round(100 * max(misses.values()), 2) == 0.51


@pytest.mark.parametrize(("one", "other"), [("f1", "d1"), ("f1", "c0"), ("d1", "c0")])
def test_no_exchange_of_coefficients_does(one, other):
    """E.6 shows which printed value is which: with any two exchanged it misses by a fifth and more."""
    law = replace(DISTILLATION, **{one: getattr(DISTILLATION, other), other: getattr(DISTILLATION, one)})
    grid = np.linspace(1.2201, 4, 5001)
    misses = [law.loss(params, np.inf, grid).min() / SUPERVISED.loss(params, np.inf) - 1 for params in TABLE_13_SIZES]
    assert min(abs(miss) for miss in misses) > 0.2


@pytest.mark.parametrize(("params", "distilled", "alone"), [(198e6, 2.3758, 2.3776), (1.82e9, 1.9990, 1.9890)])
def test_what_two_sizes_reach_on_unlimited_data(params, distilled, alone):
    """E.6."""
    assert least_loss_on_unlimited_data(params) == pytest.approx(distilled, abs=5e-5)
    assert SUPERVISED.loss(params, np.inf) == pytest.approx(alone, abs=5e-5)


def test_the_best_teacher_of_a_small_student_slides_fast_but_does_not_jump():
    """198M parameters: from 80 to 320 tokens each it goes from 1.954 to 2.199 nats. The curve has one valley all the way."""
    grid = np.linspace(1.3, 3.2, 3801)
    best = []
    for tokens_per_param in (80, 120, 160, 200, 240, 280, 320):
        losses = DISTILLATION.loss(198e6, 198e6 * tokens_per_param, grid)
        valleys = (losses[1:-1] < losses[:-2]) & (losses[1:-1] < losses[2:])
        assert valleys.sum() == 1
        best.append(float(grid[losses.argmin()]))
    assert (best[0], best[-1]) == (pytest.approx(1.954, abs=1e-3), pytest.approx(2.199, abs=1e-3))
    assert all(0 < step < 0.07 for step in np.diff(best))


def test_fitted_ranges_of_a_laws_file():
    fitted = FittedRange.of({"params": [1e8, "2e9"], "teacher_loss": [1.9, 2.9]})
    assert fitted == FittedRange(params=(1e8, 2e9), tokens=None, teacher_loss=(1.9, 2.9))
    # The paper's students have 143M to 7.75B parameters and up to 512B tokens.
    assert PUBLISHED.fitted == FittedRange(params=(143e6, 7.75e9), tokens=(4e9, 512e9), teacher_loss=(1.9, 2.9))
    assert (PUBLISHED.supervised, PUBLISHED.distillation) == (SUPERVISED, DISTILLATION)
