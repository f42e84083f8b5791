"""The planner's optima against published anchors, against SciPy's minimisers on eqs. 1, 8 and 9 written out, and by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize, minimize_scalar
from test_plan_laws import plain_distilled, plain_flops, plain_optimum, plain_supervised

from limbeck.errors import LimbeckError, SpecError
from limbeck.plan.allocate import (
    BEST_CASE,
    BOTH,
    INFERENCE,
    PRETRAINING,
    SCENARIOS,
    Bounds,
    Distilled,
    Size,
    alone,
    best_teacher,
    cheapest_teacher,
    distilled,
)
from limbeck.plan.laws import SUPERVISED, FittedRange, Laws

PAID = {BEST_CASE: (0, 0), INFERENCE: (1, 0), PRETRAINING: (0, 1), BOTH: (1, 1)}
"""(d_Lgt, d_Pre) of eqs. 30-33."""

# Student, FLOPs, losses alone and in the four scenarios, then N_T, D_T and D_S of the last: an independent script's.
ANCHORS = [
    (3e8, 1e21, (2.3648, 2.3486, 2.3592, 2.3710, 2.3929), (9.7e8, 5.5e10, 1.24e11)),
    (1e9, 1e21, (2.2215, 2.1925, 2.2085, 2.2810, 2.2979), (1.6e9, 4.7e10, 4.2e10)),
    (1e9, 1e22, (2.1348, 2.1310, 2.1395, 2.1479, 2.1655), (3.1e9, 1.8e11, 4.3e11)),
    (1e9, 1e24, (2.0867, 2.0942, 2.0958, 2.0942, 2.0965), (3.0e9, 3.8e12, 6.5e13)),
    (3e9, 1e22, (2.0275, 2.0106, 2.0236, 2.0768, 2.0909), (5.1e9, 1.5e11, 1.5e11)),
    (1e10, 1e23, (1.8664, 1.8506, 1.8629, 1.9098, 1.9210), (1.7e10, 4.9e11, 4.7e11)),
    (1e10, 1e25, (1.7942, 1.7973, 1.8004, 1.7983, 1.8042), (4.5e10, 8.2e12, 4.8e13)),
]

_generator = np.random.default_rng(2502)
PROBLEMS = [
    (float(f"{10 ** _generator.uniform(8, 10.1):.3g}"), float(f"{10 ** _generator.uniform(19.5, 26):.3g}")) for _ in range(20)
]
"""Students of 100M to 12.6B, and budgets."""


def plan(params: float, flops: float, scenario=BOTH, **options) -> Distilled:
    return distilled(Size.of_family(params), flops=flops, scenario=scenario, **options)


def shares(found: Distilled) -> list[float]:
    """Of student, logits and teacher, to two digits."""
    parts = found.flops
    return [round(part / parts.total, 2) for part in (parts.student, parts.teacher_inference, parts.teacher_pretraining)]


@pytest.mark.parametrize(("params", "flops", "losses", "allocation"), ANCHORS)
def test_anchors(params, flops, losses, allocation):
    found = [alone(Size.of_family(params), flops=flops).loss_nats, *(plan(params, flops, each).loss_nats for each in SCENARIOS)]
    assert found == pytest.approx(losses, abs=7e-5)
    both = plan(params, flops, BOTH)
    assert (both.teacher_params, both.teacher_tokens, both.student_tokens) == pytest.approx(allocation, rel=0.05)


@pytest.mark.parametrize("scenario", [INFERENCE, PRETRAINING, BOTH], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize(("params", "flops"), PROBLEMS)
def test_optima_are_those_of_nested_brent_searches(params, flops, scenario):
    inference, pretraining = PAID[scenario]
    loss, teacher_params, teacher_tokens = plain_optimum(
        params, flops, inference=bool(inference), pretraining=bool(pretraining)
    )
    found = plan(params, flops, scenario)
    assert found.loss_nats == pytest.approx(loss, abs=1e-7)
    if found.flops.student / flops < 0.999:  # otherwise the teacher costs next to nothing, and any of its loss will do
        assert (found.teacher_params, found.teacher_tokens) == pytest.approx((teacher_params, teacher_tokens), rel=0.03)


@pytest.mark.parametrize(("params", "flops"), PROBLEMS)
def test_best_cases_are_those_of_a_search_over_the_teachers_loss(params, flops):
    tokens = flops / (3 * plain_flops(params))
    strongest, weakest = plain_supervised(1e11, 1e16), plain_supervised(1e6, 1e6)
    grid = np.linspace(strongest, weakest, 2001)
    lowest = int(np.argmin([plain_distilled(params, tokens, loss) for loss in grid]))
    ends = grid[max(lowest - 1, 0)], grid[min(lowest + 1, 2000)]
    loss = minimize_scalar(lambda loss: plain_distilled(params, tokens, loss), bounds=ends, method="bounded").fun
    found = plan(params, flops, BEST_CASE)
    assert found.student_tokens == pytest.approx(tokens, rel=1e-12)
    assert found.loss_nats == pytest.approx(min(loss, plain_distilled(params, tokens, strongest)), abs=1e-8)


@pytest.mark.parametrize(("params", "flops"), PROBLEMS[:4])
def test_the_papers_own_method_finds_nothing_better(params, flops):
    """SLSQP over three logarithms (D_S, N_T, D_T) under the budget of eq. 9, from eight starts."""
    found = plan(params, flops, BOTH)

    def loss(x):
        student_tokens, teacher, tokens = np.exp(x)
        return plain_distilled(params, student_tokens, plain_supervised(teacher, tokens))

    def left(x):
        student_tokens, teacher, tokens = np.exp(x)
        spent = (3 * plain_flops(params) + plain_flops(teacher)) * student_tokens + 3 * plain_flops(teacher) * tokens
        return math.log(flops / spent)

    reached = []
    for teacher in np.log([3e8, 2e9, 1e10, 5e10]):
        for share in (0.2, 0.6):
            tokens = math.log(flops * share / (3 * plain_flops(math.exp(teacher))))
            start = [
                math.log(flops * (1 - share) / (3 * plain_flops(params) + plain_flops(math.exp(teacher)))),
                teacher,
                tokens,
            ]
            bounds = [np.log([1e6, 1e18]), np.log([1e6, 1e11]), np.log([1e6, 1e16])]
            constraints = [{"type": "ineq", "fun": left}]
            result = minimize(loss, start, method="SLSQP", bounds=bounds, constraints=constraints, options={"ftol": 1e-13})
            if left(result.x) > -1e-7:
                reached.append(result.fun)
    assert found.loss_nats <= min(reached) + 1e-7
    assert found.loss_nats == pytest.approx(min(reached), abs=1e-5)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize(("params", "flops"), PROBLEMS[:6])
def test_the_budget_is_spent_as_eq_9_says(params, flops, scenario):
    found = plan(params, flops, scenario)
    logits, pretraining = PAID[scenario]
    teacher = plain_flops(found.teacher_params)
    assert found.flops.student == pytest.approx(3 * plain_flops(params) * found.student_tokens, rel=1e-9)
    assert found.flops.teacher_inference == pytest.approx(logits * teacher * found.student_tokens, rel=1e-9)
    assert found.flops.teacher_pretraining == pytest.approx(pretraining * 3 * teacher * found.teacher_tokens, rel=1e-9)
    assert found.flops.total == pytest.approx(flops, rel=1e-9)
    assert found.tokens == found.student_tokens + pretraining * found.teacher_tokens  # eq. 34
    assert found.teacher_loss_nats == pytest.approx(plain_supervised(found.teacher_params, found.teacher_tokens), rel=1e-6)
    expected = plain_distilled(params, found.student_tokens, found.teacher_loss_nats)
    assert found.loss_nats == pytest.approx(expected, rel=1e-9)


def test_alone_by_hand():
    """Eq. 27 without a teacher: 1e21 FLOPs at 3 x 2.45e9 a token are 1.36e11 tokens."""
    found = alone(Size.of_family(1e9), flops=1e21)
    assert found.student_tokens == pytest.approx(1e21 / (3 * (2e9 + 310.12 * 1e6 + 144_263 * 1e3)), rel=1e-5)
    assert found.loss_nats == pytest.approx(plain_supervised(1e9, found.student_tokens), rel=1e-12)


def test_a_students_flops_are_its_own():
    """A recipe's student costs what its shape costs: at twice the FLOPs per token it sees half the tokens."""
    ordinary = Size.of_family(1e9)
    costly = Size("costly", 1e9, 2 * ordinary.flops_per_token)
    assert alone(costly, flops=2e21) == alone(ordinary, flops=1e21)
    assert distilled(costly, flops=2e21, scenario=BEST_CASE).loss_nats == plan(1e9, 1e21, BEST_CASE).loss_nats


@pytest.mark.parametrize(
    ("params", "ratio", "teacher_loss", "loss", "supervised"),
    [
        (198e6, 20, 1.876, 2.5340, 2.7894),
        (198e6, 1280, 2.227, 2.4340, 2.4580),
        (1.82e9, 320, 1.908, 2.0669, 2.0786),
        (7.75e9, 80, 1.726, 1.9003, 1.9240),
        (198e6, 80, 1.954, None, None),
        (198e6, 320, 2.199, None, None),
    ],
)
def test_bottom_of_the_u_shape(params, ratio, teacher_loss, loss, supervised):
    tokens = params * ratio
    teacher = best_teacher(Size.of_family(params), tokens=tokens)
    assert teacher.loss_nats == pytest.approx(teacher_loss, abs=6e-4)
    for excess in (0.98, 1.02):
        assert plain_distilled(params, tokens, teacher.loss_nats) < plain_distilled(params, tokens, excess * teacher.loss_nats)
    if loss is not None:
        assert plain_distilled(params, tokens, teacher.loss_nats) == pytest.approx(loss, abs=6e-5)
        assert SUPERVISED.loss(params, tokens) == pytest.approx(supervised, abs=6e-5)


def tokens_to(loss: float, params: float) -> float:
    """By root finding on eq. 1; infinite where no number of tokens gets there."""
    if plain_supervised(params, 1e25) >= loss:
        return math.inf
    return math.exp(brentq(lambda log_tokens: plain_supervised(params, math.exp(log_tokens)) - loss, 0, math.log(1e25)))


@pytest.mark.parametrize("loss", [1.75, 1.9, 2.2, 2.6, 3.5])
def test_the_cheapest_teacher_is_the_cheapest(loss):
    teacher = cheapest_teacher(loss)
    assert plain_supervised(teacher.params, teacher.tokens) == pytest.approx(loss, rel=1e-9)
    cost = plain_flops(teacher.params) * teacher.tokens
    sizes = np.geomspace(1e6, 1e11, 400)
    costs = [plain_flops(size) * tokens_to(loss, size) for size in sizes]
    assert cost <= min(costs) * (1 + 1e-9)
    assert cost == pytest.approx(min(costs), rel=1e-3)


@pytest.mark.parametrize(("params", "ratio"), [(198e6, 20), (1e9, 100), (7.75e9, 80)])
def test_the_best_teacher_is_the_cheapest_of_its_loss(params, ratio):
    teacher = best_teacher(Size.of_family(params), tokens=params * ratio)
    assert teacher == cheapest_teacher(teacher.loss_nats)


@pytest.mark.parametrize(
    ("params", "flops", "expected"),
    [
        (3e8, 1e20, [0.30, 0.16, 0.55]),
        (3e8, 1e24, [0.54, 0.43, 0.03]),
        (1e10, 1e24, [0.28, 0.31, 0.41]),
        (1e10, 1e21, [0.42, 0.03, 0.55]),
        (1e10, 1e20, [0.18, 0.01, 0.81]),
    ],
)
def test_how_the_budget_splits(params, flops, expected):
    """Table 3 has words for these; the numbers are the law's."""
    assert shares(plan(params, flops)) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("params", [3e8, 1e9, 3e9, 1e10])
@pytest.mark.parametrize("flops", [1e20, 1e21, 1e22, 1e23, 1e24, 1e25])
def test_a_teacher_that_is_paid_for_is_trained_like_a_model_alone(params, flops):
    """15 to 16 tokens per parameter at every size and budget, until it meets the bound on its size."""
    found = plan(params, flops, PRETRAINING)
    ratio = found.teacher_tokens / found.teacher_params
    if (params, flops) == (1e10, 1e25):
        assert found.teacher_params == pytest.approx(1e11, rel=1e-6)
        assert ratio == pytest.approx(29.9, abs=0.5)
    else:
        assert 14.5 < ratio < 16


@pytest.mark.parametrize(("params", "flops"), [(3e8, 1e20), (3e8, 1e23), (3e8, 1e26), (1e9, 1e22), (1e9, 1e26), (1e10, 1e25)])
def test_tokens_of_a_teacher_whose_pretraining_is_free_are_at_the_bound(params, flops):
    """A smaller teacher trained longer answers more cheaply."""
    assert plan(params, flops, INFERENCE).teacher_tokens == pytest.approx(1e16, rel=1e-3)


def test_the_teachers_size_peaks_and_falls_with_the_budget():
    """With all of it paid for, large budgets spend on a small teacher trained far beyond the usual."""
    sizes = {flops: plan(1e9, flops).teacher_params for flops in (1e20, 1e21, 1e22, 1e23, 1e24, 1e25, 1e26)}
    assert max(sizes, key=sizes.get) == 1e23
    assert sizes[1e23] == pytest.approx(3.5e9, rel=0.02)
    assert sizes[1e26] == pytest.approx(2.5e9, rel=0.03)
    falling = [sizes[flops] for flops in (1e23, 1e24, 1e25, 1e26)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("flops", [1e20, 1e22, 1e25])
def test_what_is_paid_for_makes_it_worse(flops):
    """Best case, then one of two costs, then both: a subset of the choices at each step."""
    best, inference, pretraining, both = (plan(1e9, flops, scenario).loss_nats for scenario in SCENARIOS)
    assert best <= min(inference, pretraining) + 1e-9
    assert max(inference, pretraining) <= both + 1e-9


def test_teachers_stay_within_bounds():
    narrow = Bounds(teacher_params=(2e8, 5e8), teacher_tokens=(1e9, 1e11))
    for scenario in SCENARIOS:
        found = plan(1e9, 1e22, scenario, bounds=narrow)
        assert 2e8 * (1 - 1e-9) <= found.teacher_params <= 5e8 * (1 + 1e-9)
        assert 1e9 * (1 - 1e-9) <= found.teacher_tokens <= 1e11 * (1 + 1e-6)
        assert found.loss_nats > plan(1e9, 1e22, scenario).loss_nats


def test_the_strongest_teacher_is_a_corner():
    """1B on 20B tokens wants a teacher of 1.7 nats; within these bounds 1e8 parameters on 1e10 tokens are the best there is."""
    bounds = Bounds(teacher_params=(1e6, 1e8), teacher_tokens=(1e6, 1e10))
    teacher = best_teacher(Size.of_family(1e9), tokens=2e10, bounds=bounds)
    assert (teacher.params, teacher.tokens) == pytest.approx((1e8, 1e10), rel=1e-6)
    assert teacher.loss_nats == pytest.approx(plain_supervised(1e8, 1e10), rel=1e-9)


def test_names_of_the_scenarios_and_what_they_pay_for():
    assert [(each.name, each.inference, each.pretraining) for each in SCENARIOS] == [
        ("best_case", False, False),
        ("teacher_inference", True, False),
        ("teacher_pretraining", False, True),
        ("teacher_pretraining_and_inference", True, True),
    ]


@pytest.mark.parametrize("work", [alone, lambda student, flops: distilled(student, flops=flops, scenario=INFERENCE)])
def test_less_than_a_tokens_worth(work):
    """3 x 2.454e9 FLOPs train 1B on a token."""
    student = Size.of_family(1e9)
    with pytest.raises(SpecError, match=r"7.3e\+09 FLOPs buy 0.99 tokens for 1B, which costs 7.36e\+09 .*--flops"):
        work(student, flops=7.3e9)
    assert work(student, flops=7.5e9).student_tokens == pytest.approx(1.01, abs=0.01)


def test_not_even_the_smallest_teacher_is_affordable():
    """1M parameters on 1M tokens: 3e6 x (2e6 + 310.12e4 + 144263e2) = 5.86e13 FLOPs."""
    with pytest.raises(SpecError, match="leave no token to 1B after the smallest teacher"):
        plan(1e9, 5.85e13, PRETRAINING)
    assert plan(1e9, 5.90e13, PRETRAINING).teacher_params == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize("budget", [0.0, -1e21, math.nan])
def test_budgets_that_are_none(budget):
    with pytest.raises(SpecError, match="--flops"):
        alone(Size.of_family(1e9), flops=budget)


@pytest.mark.parametrize("loss", [1.2, 1.59])
def test_losses_that_no_teacher_reaches(loss):
    """1e11 parameters on 1e16 tokens are at 1.5908."""
    with pytest.raises(LimbeckError, match=r"the law's best is 1.5908"):
        cheapest_teacher(loss)


def test_planning_needs_a_law_of_distillation():
    laws = Laws(name="mine", supervised=SUPERVISED, distillation=None, fitted=FittedRange())
    student = Size.of_family(1e9)
    assert alone(student, flops=1e21, laws=laws) == alone(student, flops=1e21)
    for scenario in SCENARIOS:
        with pytest.raises(SpecError, match=r"mine has no law of distillation.*limbeck fit --law distillation"):
            distilled(student, flops=1e21, scenario=scenario, laws=laws)
    with pytest.raises(SpecError, match="no law of distillation"):
        best_teacher(student, tokens=2e10, laws=laws)
