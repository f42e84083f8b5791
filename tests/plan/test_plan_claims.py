"""Claims of arXiv 2502.08606 about planning, each by its name: which the published coefficients reproduce, and which not.

`docs/scaling-laws.md` lists them all; those that are single numbers of the laws, optima and crossovers stand in the sibling
tests. A claim that isn't reproduced is asserted as what the law says instead.
"""

import numpy as np
import pytest
from test_plan_compare import costs, crossing

from limbeck.plan.allocate import BEST_CASE, BOTH, INFERENCE, PRETRAINING, SCENARIOS, Size, alone, best_teacher, distilled
from limbeck.plan.laws import DISTILLATION, PUBLISHED, SUPERVISED

STUDENTS = (3e8, 1e9, 3e9, 1e10)


def teachers_that_help(params: float, tokens: float) -> tuple[float, float]:
    """Least and greatest teacher loss at which a student beats itself trained alone."""
    grid = np.linspace(1.25, 3.5, 22_501)
    helping = grid[DISTILLATION.loss(params, tokens, grid) < SUPERVISED.loss(params, tokens)]
    return float(helping.min()), float(helping.max())


def test_e4_at_20_tokens_per_parameter_a_large_student_needs_a_strong_teacher():
    """1.82B: alone 2.2509; teachers above about 2.2 nats are of no use to it. 198M gains from teachers up to about 2.75."""
    assert SUPERVISED.loss(1.82e9, 20 * 1.82e9) == pytest.approx(2.2509, abs=5e-5)
    assert teachers_that_help(1.82e9, 20 * 1.82e9)[1] == pytest.approx(2.2, abs=0.02)
    assert teachers_that_help(198e6, 20 * 198e6)[1] == pytest.approx(2.75, abs=0.005)


def test_e4_a_model_of_1e21_flops_is_such_a_teacher():
    losses = [alone(Size.of_family(params), flops=1e21).loss_nats for params in np.geomspace(5e8, 2e10, 200)]
    assert min(losses) == pytest.approx(2.177, abs=1e-3)


def test_larger_students_want_better_teachers():
    best = [best_teacher(Size.of_family(params), tokens=20 * params).loss_nats for params in (198e6, 546e6, 1.82e9, 7.75e9)]
    assert best == sorted(best, reverse=True)
    assert best[0] - best[-1] > 0.2


def test_a_stronger_teacher_can_make_a_worse_student():
    """The capacity gap: 198M on 1,280 tokens per parameter, with its best teacher and with one 0.4 nats stronger."""
    losses = DISTILLATION.loss(198e6, 198e6 * 1280, [2.227, 1.827])
    assert losses[1] > losses[0] + 0.01


def test_supervised_catches_the_best_case_later_for_larger_students_from_1b_on():
    """300M is out of order: there the two laws' limits on unlimited data are within 0.3 % of each other."""
    compute = [crossing(params, BEST_CASE).flops for params in STUDENTS]
    assert compute[1:] == sorted(compute[1:])
    assert compute[0] > compute[1]


@pytest.mark.parametrize("params", [143e6, 198e6])
def test_supervised_never_catches_the_best_case_of_the_smallest_students(params):
    """Their limit on unlimited data is lower with a teacher, by 0.26 and 0.08 %: less than the law's error."""
    assert crossing(params, BEST_CASE) == "never"
    assert distilled(Size.of_family(params), flops=1e29, scenario=BEST_CASE).loss_nats < SUPERVISED.loss(params, np.inf)


@pytest.mark.parametrize("params", STUDENTS)
def test_d3_a_teacher_for_one_student_alone_does_not_pay(params):
    """Pretraining and inference paid for, 1e21 to 1e26: training alone is ahead. See the corners in `test_plan_compare`."""
    student = Size.of_family(params)
    for flops in (1e21, 1e22, 1e23, 1e24, 1e25, 1e26):
        assert distilled(student, flops=flops, scenario=BOTH).loss_nats > alone(student, flops=flops).loss_nats


@pytest.mark.parametrize("params", STUDENTS)
def test_an_existing_teacher_pays_up_to_a_compute(params):
    student = Size.of_family(params)
    for scenario in (BEST_CASE, INFERENCE):
        assert distilled(student, flops=1e21, scenario=scenario).loss_nats < alone(student, flops=1e21).loss_nats
        assert distilled(student, flops=1e25, scenario=scenario).loss_nats > alone(student, flops=1e25).loss_nats


def test_with_enough_compute_all_scenarios_end_at_nearly_one_loss():
    """1B at 1e26: within 0.01 nats of each other, and of training alone."""
    student = Size.of_family(1e9)
    losses = [
        alone(student, flops=1e26).loss_nats,
        *(distilled(student, flops=1e26, scenario=each).loss_nats for each in SCENARIOS),
    ]
    assert max(losses) - min(losses) < 0.01


def test_a_best_case_teacher_is_no_smaller_than_its_student_at_small_budgets_and_near_it_at_large_ones():
    """Its loss goes from far below the student's to just below it."""
    gaps = []
    for flops in (1e20, 1e22, 1e24):
        found = distilled(Size.of_family(1e9), flops=flops, scenario=BEST_CASE)
        gaps.append(found.loss_nats - found.teacher_loss_nats)
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > 0.05


def test_table_3_small_students_spend_a_small_budget_on_the_teacher_and_a_large_one_on_themselves():
    small, large = (distilled(Size.of_family(3e8), flops=flops, scenario=BOTH).flops for flops in (1e20, 1e24))
    assert small.teacher_pretraining > max(small.student, small.teacher_inference)
    assert large.teacher_pretraining < 0.05 * large.total
    assert large.student == pytest.approx(large.teacher_inference, rel=0.35)


def test_table_3_large_students_spend_a_large_budget_in_near_thirds():
    parts = distilled(Size.of_family(1e10), flops=1e24, scenario=BOTH).flops
    assert all(0.25 < part / 1e24 < 0.42 for part in (parts.student, parts.teacher_inference, parts.teacher_pretraining))


def test_table_3_not_reproduced_large_students_spend_a_small_budget_on_the_teacher():
    """The table says mostly student training; the law says 42 % at 1e21, and 18 % at 1e20."""
    for flops, share in ((1e21, 0.42), (1e20, 0.18)):
        parts = distilled(Size.of_family(1e10), flops=flops, scenario=BOTH).flops
        assert parts.student / flops == pytest.approx(share, abs=0.01)
        assert parts.teacher_pretraining > parts.student


@pytest.mark.parametrize(("params", "loss"), [(5e8, 2.4), (1e10, 2.2)])
def test_d5_not_reproduced_paying_for_everything_never_costs_three_quarters_or_a_half(params, loss):
    """It follows from no scenario: paid for is dearer than alone, and best case and inference are cheaper by far."""
    found = costs(params, loss)
    for scenario in (PRETRAINING, BOTH):
        assert found.ratios(scenario.name)[0] > 1.7
    for scenario in (BEST_CASE, INFERENCE):
        assert found.ratios(scenario.name)[0] < 0.1


def test_caution_below_two_tokens_per_parameter():
    """500M on 4e8 tokens: 2.40 distilled against 3.20 alone. No run stands behind it, and the range of the runs says so."""
    assert SUPERVISED.loss(5e8, 4e8) == pytest.approx(3.196, abs=1e-3)
    grid = np.linspace(1.25, 2.5, 2001)
    assert DISTILLATION.loss(5e8, 4e8, grid).min() == pytest.approx(2.400, abs=1e-3)
    assert PUBLISHED.fitted.tokens[0] > 4e8
    assert PUBLISHED.fitted.teacher_loss[0] > float(grid[DISTILLATION.loss(5e8, 4e8, grid).argmin()])
