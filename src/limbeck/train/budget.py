"""How much of the budget is spent: a pure function of the run's costs."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from limbeck.runs import Costs
from limbeck.spec.budget import Budget, Flops, Seconds, Steps, Tokens


def spent(budget: Budget, costs: Costs) -> float:
    """What the run has spent, in the budget's currency."""
    match budget:
        case Tokens():
            return costs.tokens
        case Steps():
            return costs.step
        case Seconds():
            return costs.seconds
        case Flops(teacher_share=share):
            return costs.student_flops + share * costs.teacher_flops


def fraction(budget: Budget, costs: Costs) -> float:
    """The share of the budget that is spent; at 1 or more the run is over."""
    return spent(budget, costs) / budget.amount


def fraction_of(budget: Budget, record: Mapping[str, Any]) -> float:
    """The share of the budget that a record of a run says is spent, at most 1."""
    return min(1.0, fraction(budget, Costs(**{field.name: record[field.name] for field in fields(Costs)})))


def fraction_during_next_step(budget: Budget, costs: Costs, *, step: Costs) -> float:
    """The share that will be spent in the middle of the next step, whose costs are `step` (its seconds: the mean so far).

    Schedules are read there, so the first step of a warmup has a learning rate above zero and the last one is not wasted. (Of a
    budget in seconds nothing is known before the first step, whose rate is then zero.)
    """
    expected = replace(step, seconds=costs.seconds / costs.step if costs.step else 0.0)
    return (spent(budget, costs) + spent(budget, expected) / 2) / budget.amount


def mean_step(costs: Costs) -> Costs:
    """What a step has cost so far, on average; there has been one."""
    return Costs(
        step=1,
        tokens=costs.tokens // costs.step,
        student_flops=costs.student_flops / costs.step,
        teacher_flops=costs.teacher_flops / costs.step,
    )


def passes_a_multiple(budget: Budget, before: Costs, after: Costs, *, every: float) -> bool:
    """Whether a multiple of `every` of the budget was reached between the two; 3 x 0.1 is reached at 0.3, unlike in floats."""
    reached = [math.floor(fraction(budget, costs) / every + 1e-9) for costs in (before, after)]
    return reached[0] < reached[1]
