"""The budget's fractions in each currency."""

import math

import pytest

from limbeck.runs import Costs
from limbeck.spec.budget import Flops, Seconds, Steps, Tokens
from limbeck.train.budget import fraction, fraction_during_next_step, mean_step


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Tokens(amount=1000), 0.25),
        (Steps(amount=10), 0.2),
        (Seconds(amount=4), 0.75),
        (Flops(amount=100), 0.3),
        (Flops(amount=100, teacher_share=0.5), 0.32),
    ],
)
def test_each_budget_counts_its_own_currency(budget: Tokens | Steps | Seconds | Flops, expected: float) -> None:
    costs = Costs(step=2, tokens=250, seconds=3.0, student_flops=30.0, teacher_flops=4.0, bytes_read=0)
    assert fraction(budget, costs) == pytest.approx(expected)


def test_a_schedule_is_read_in_the_middle_of_the_next_step() -> None:
    step = Costs(1, 100, 0.0, 0.0, 0.0, 0)
    assert fraction_during_next_step(Tokens(amount=1000), Costs(), step=step) == pytest.approx(0.05)
    spent = Costs(step=4, tokens=400, seconds=8.0)
    assert fraction_during_next_step(Tokens(amount=1000), spent, step=step) == pytest.approx(0.45)
    assert fraction_during_next_step(Seconds(amount=10), spent, step=step) == pytest.approx(0.9)  # 8 s and half of a 2 s step
    assert math.isclose(fraction_during_next_step(Seconds(amount=10), Costs(), step=step), 0.0)


def test_where_steps_differ_the_next_is_expected_to_be_as_they_were_on_average() -> None:
    spent = Costs(step=4, tokens=402, seconds=8.0, student_flops=20.0, teacher_flops=8.0)
    assert mean_step(spent) == Costs(step=1, tokens=100, student_flops=5.0, teacher_flops=2.0)
    flops = Flops(amount=100, teacher_share=0.5)
    assert fraction_during_next_step(flops, spent, step=mean_step(spent)) == pytest.approx((20 + 4 + (5 + 1) / 2) / 100)
