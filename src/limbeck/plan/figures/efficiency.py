"""What a loss costs by distillation, as a multiple of what it costs without a teacher: compute, and tokens.

Read off one sweep over budgets by interpolating the logarithm of compute between its points, which is within 1 % of
`limbeck.plan.compare.efficiency` at a hundredth of its time.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.plan.allocate import SCENARIOS, Scenario
from limbeck.plan.figures.marks import (
    SCENARIO_COLOURS,
    SUPERVISED,
    Axis,
    Bools,
    Chart,
    Curve,
    Panel,
    fitted_note,
    guide,
    power,
    within,
)
from limbeck.plan.figures.scenarios import Sweep, label
from limbeck.plan.laws import Array, Laws, loss_of

_TARGETS = 121
_FLOPS = (1e20, 1e25)
"""Of supervised training: the losses that it reaches for them are the targets."""
_MULTIPLES = (0.03, 30.0)
_NOTE = f"Below one, distillation is cheaper. Axes end at what supervised training reaches with {power(_FLOPS[1])} FLOPs."


@dataclass(frozen=True)
class Multiples:
    """Compute and tokens over those of supervised training; NaN where the sweep doesn't reach the loss, or starts below it."""

    loss: Array
    compute: Array
    tokens: Array
    fitted: Bools


def multiples(one: Sweep, scenario: Scenario, *, laws: Laws, targets: int = _TARGETS) -> Multiples:
    """For target losses from what supervised training reaches with little compute to what it reaches with much."""
    flops = np.geomspace(max(_FLOPS[0], one.flops[0]), _FLOPS[1], targets)
    tokens = flops / one.student.training_flops_per_token
    loss = loss_of(laws.supervised, one.student.params, tokens)
    reached = one.of(scenario, lambda result: result.loss_nats)

    def cost(values: Array) -> Array:
        return np.exp(np.interp(-loss, -reached, np.log(values), left=np.nan, right=np.nan))

    inside = within(laws.fitted, params=one.student.params, tokens=tokens)
    nearest = np.clip(np.searchsorted(-reached, -loss), 0, len(reached) - 1)
    both = inside & one.fitted(laws, scenario)[nearest]
    return Multiples(loss, cost(one.flops) / flops, cost(one.of(scenario, lambda result: result.tokens)) / tokens, both)


def efficiency(laws: Laws, sweeps: list[Sweep]) -> Chart:
    """Compute above, tokens below, a panel for each student."""
    rows = tuple(tuple(_panel(laws, one, what) for one in sweeps) for what in ("compute", "tokens"))
    note = f"{fitted_note(laws.fitted)}\n{_NOTE}".strip()
    return Chart("efficiency", "What a loss costs, as a multiple of supervised training", rows, (3.7, 3.3), note)


def _panel(laws: Laws, one: Sweep, what: str) -> Panel:
    curves, ends = [], (0.0, 0.0)
    for scenario in SCENARIOS:
        found = multiples(one, scenario, laws=laws)
        ends = float(found.loss[0]), float(found.loss[-1])
        values = found.compute if what == "compute" else found.tokens
        curves.append(Curve(label(scenario), found.loss, values, SCENARIO_COLOURS[scenario.name], "-", found.fitted))
    curves.append(guide("supervised", ends, (1.0, 1.0), colour=SUPERVISED))
    x = Axis("target loss (nats/token) → better", "linear", ends)
    return Panel(
        f"student {one.student.name}" if what == "compute" else "",
        x,
        Axis(f"{what} (× supervised)", "ratio", _MULTIPLES),
        tuple(curves),
    )
