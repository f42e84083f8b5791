"""Where training alone overtakes distillation, and what a loss costs either way.

More compute never hurts in any scenario, so the compute that reaches a loss is found by bisection on its logarithm. The
crossing of the two curves is looked for from above: the last budget at which distillation wins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from limbeck.errors import SpecError
from limbeck.plan.allocate import SCENARIOS, Alone, Bounds, Distilled, Scenario, Size, alone, distillation_of, distilled
from limbeck.plan.laws import PUBLISHED, Laws

MOST_FLOPS = 1e30
_PER_DECADE = 2
_BISECTIONS = 26
"""Fifteen decades halved so often are 2e-7 decades."""


@dataclass(frozen=True)
class Crossover:
    """The compute from which training alone is at least as good as distillation, and what both do there."""

    flops: float
    alone: Alone
    distilled: Distilled


@dataclass(frozen=True)
class Cost:
    """What a loss costs, and what is then reached."""

    flops: float
    reached: Alone | Distilled

    @property
    def tokens(self) -> float:
        """The student's, and the teacher's where its pretraining is paid for (eq. 34)."""
        return self.reached.tokens if isinstance(self.reached, Distilled) else self.reached.student_tokens


@dataclass(frozen=True)
class Efficiency:
    """What reaching a loss costs alone and in each scenario; None where no budget within 1e30 FLOPs reaches it."""

    loss_nats: float
    alone: Cost | None
    scenarios: dict[str, Cost | None]

    def ratios(self, scenario: str) -> tuple[float, float] | None:
        """(compute, tokens) as multiples of training alone; below one is a saving. None where either is out of reach."""
        cost = self.scenarios[scenario]
        return (cost.flops / self.alone.flops, cost.tokens / self.alone.tokens) if cost and self.alone else None


def crossover(
    student: Size, scenario: Scenario, *, laws: Laws = PUBLISHED, bounds: Bounds | None = None
) -> Crossover | Literal["always", "never"]:
    """Where training alone overtakes `scenario` for good: 'always' is ahead, or 'never' within 1e30 FLOPs."""
    distillation_of(laws)

    def wins(log_flops: float) -> bool:
        best = _best_or_none(student, float(np.exp(log_flops)), scenario, laws, bounds)
        return best is not None and best.loss_nats < alone(student, flops=float(np.exp(log_flops)), laws=laws).loss_nats

    low, high = np.log(_least_flops(student)), np.log(MOST_FLOPS)
    grid = np.linspace(low, high, int((high - low) / np.log(10) * _PER_DECADE) + 2)
    last = next((index for index in reversed(range(len(grid))) if wins(float(grid[index]))), None)
    if last is None:
        return "always"
    if last == len(grid) - 1:
        return "never"
    flops = np.exp(_bisect(lambda log_flops: not wins(log_flops), float(grid[last]), float(grid[last + 1])))
    best = distilled(student, flops=float(flops), scenario=scenario, laws=laws, bounds=bounds)
    return Crossover(float(flops), alone(student, flops=float(flops), laws=laws), best)


def efficiency(student: Size, *, loss_nats: float, laws: Laws = PUBLISHED, bounds: Bounds | None = None) -> Efficiency:
    """Compute and tokens that reach a loss, by training alone and by distillation in each scenario."""
    distillation_of(laws)

    def by(scenario: Scenario) -> Cost | None:
        return _cost(student, loss_nats, lambda flops: _best_or_none(student, flops, scenario, laws, bounds))

    by_itself = _cost(student, loss_nats, lambda flops: alone(student, flops=flops, laws=laws))
    return Efficiency(loss_nats, by_itself, {scenario.name: by(scenario) for scenario in SCENARIOS})


def _cost(student: Size, loss_nats: float, reach: Callable[[float], Alone | Distilled | None]) -> Cost | None:
    def reaches(log_flops: float) -> bool:
        result = reach(float(np.exp(log_flops)))
        return result is not None and result.loss_nats <= loss_nats

    high = float(np.log(MOST_FLOPS))
    if not reaches(high):
        return None
    flops = float(np.exp(_bisect(reaches, float(np.log(_least_flops(student))), high)))
    result = reach(flops)
    assert result is not None, "the bisection ends where the loss is reached"
    return Cost(flops, result)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least point from which `holds` is true, which it is at `high`; `low` if it is there too."""
    if holds(low):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _best_or_none(student: Size, flops: float, scenario: Scenario, laws: Laws, bounds: Bounds | None) -> Distilled | None:
    """None where the smallest teacher leaves no token to the student."""
    try:
        return distilled(student, flops=flops, scenario=scenario, laws=laws, bounds=bounds)
    except SpecError:
        return None


def _least_flops(student: Size) -> float:
    return student.training_flops_per_token * (1 + 1e-9)
