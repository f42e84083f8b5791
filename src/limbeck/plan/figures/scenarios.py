"""What compute buys in the four ways of paying for a teacher, beside supervised training (arXiv 2502.08606, figs. of sec. 5).

Loss, tokens, the teacher, and what the budget is spent on, for students of four sizes. One sweep over budgets serves all of it.
Curves start where the budget gives the student two tokens a parameter when it is spent on nothing else: below, the law is not
to be believed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from limbeck.drawing import COLOURS
from limbeck.plan.allocate import (
    BOTH,
    INFERENCE,
    PRETRAINING,
    SCENARIOS,
    Alone,
    Distilled,
    Scenario,
    Size,
    alone,
    distilled,
)
from limbeck.plan.figures.marks import (
    COMPUTE,
    LOSS,
    SCENARIO_COLOURS,
    SEARCHED,
    STUDENT_TOKENS,
    SUPERVISED,
    TEACHER_PARAMS,
    TEACHER_TOKENS,
    Axis,
    Bools,
    Chart,
    Curve,
    Panel,
    fitted_note,
    guide,
    labels,
    numbers,
    within,
)
from limbeck.plan.laws import Array, Laws

STUDENTS = (300e6, 1e9, 3e9, 1e10)
FLOPS = (1e20, 1e26)
"""Shown. More is swept, for `efficiency`."""
_SWEPT_FLOPS = (1e19, 1e27)
PER_DECADE = 16
_COMPUTE = Axis(COMPUTE, "flops", FLOPS)
_DIFFERENCE = (-0.12, 0.12)
_LEAST_TOKENS_PER_PARAM = 2
_START = f"Curves start at {_LEAST_TOKENS_PER_PARAM} tokens for each of the student's parameters."
_SHARES = {"student training": "#555555", "teacher inference": COLOURS[5], "teacher pretraining": COLOURS[4]}
_BAR: dict[str, Any] = {"color": "black", "linewidth": 5, "solid_capstyle": "butt", "clip_on": False, "zorder": 5}


@dataclass(frozen=True)
class Sweep:
    """One student at growing budgets: alone, and in each scenario by its name."""

    student: Size
    flops: Array
    alone: list[Alone]
    scenarios: dict[str, list[Distilled]]

    def shown(self) -> "Sweep":
        """Only the budgets that the figures show."""
        keep = np.flatnonzero((FLOPS[0] * (1 - 1e-9) <= self.flops) & (self.flops <= FLOPS[1] * (1 + 1e-9)))
        scenarios = {name: [results[index] for index in keep] for name, results in self.scenarios.items()}
        return Sweep(self.student, self.flops[keep], [self.alone[index] for index in keep], scenarios)

    def of_alone(self, value: Callable[[Alone], float]) -> Array:
        """A value at every budget without a teacher."""
        return np.array([value(result) for result in self.alone])

    def of(self, scenario: Scenario, value: Callable[[Distilled], float]) -> Array:
        """A value at every budget in a scenario."""
        return np.array([value(result) for result in self.scenarios[scenario.name]])

    def fitted(self, laws: Laws, scenario: Scenario | None) -> Bools:
        """Which budgets give a student and teacher within the runs that the law was fitted to; None is without a teacher."""
        if scenario is None:
            return within(laws.fitted, params=self.student.params, tokens=self.of_alone(lambda one: one.student_tokens))
        tokens = self.of(scenario, lambda one: one.student_tokens)
        teacher_loss = self.of(scenario, lambda one: one.teacher_loss_nats)
        return within(laws.fitted, params=self.student.params, tokens=tokens, teacher_loss=teacher_loss)


def sweep(params: float, *, laws: Laws, per_decade: int = PER_DECADE) -> Sweep:
    """The best of every scenario at budgets from the least worth drawing to the most."""
    student = Size.of_family(params)
    least = max(_SWEPT_FLOPS[0], _LEAST_TOKENS_PER_PARAM * params * student.training_flops_per_token)
    flops = np.geomspace(least, _SWEPT_FLOPS[1], int(np.log10(_SWEPT_FLOPS[1] / least) * per_decade) + 1)
    scenarios = {
        scenario.name: [distilled(student, flops=float(budget), scenario=scenario, laws=laws) for budget in flops]
        for scenario in SCENARIOS
    }
    return Sweep(student, flops, [alone(student, flops=float(budget), laws=laws) for budget in flops], scenarios)


def _loss_alone(result: Alone) -> float:
    return result.loss_nats


def _tokens_alone(result: Alone) -> float:
    return result.student_tokens


def label(scenario: Scenario) -> str:
    """As people read it."""
    return scenario.name.replace("teacher_pretraining_and", "teacher pretraining and").replace("_", " ")


def loss(laws: Laws, sweeps: list[Sweep]) -> Chart:
    """Loss against compute, and below it the difference to supervised training, which is small beside the loss."""
    above = tuple(
        _panel(laws, one, Axis(LOSS, "linear"), lambda result: result.loss_nats, by_itself=_loss_alone) for one in sweeps
    )
    below = tuple(_difference(laws, one) for one in sweeps)
    return _chart("scenarios-loss", "What compute buys: student loss", (above, below), laws, _START)


def _difference(laws: Laws, one: Sweep) -> Panel:
    supervised = one.of_alone(_loss_alone)
    curves = [guide("", FLOPS, (0.0, 0.0), colour=SUPERVISED)]
    for scenario in SCENARIOS:
        difference = one.of(scenario, lambda result: result.loss_nats) - supervised
        curves.append(_curve(laws, one, scenario, difference))
    return Panel("", _COMPUTE, Axis("loss − supervised (nats/token)", "linear", _DIFFERENCE), tuple(curves))


def tokens(laws: Laws, sweeps: list[Sweep]) -> Chart:
    """The student's tokens and the teacher's."""
    of_student, of_teacher = Axis(STUDENT_TOKENS, "count", (1e9, 1e17)), Axis(TEACHER_TOKENS, "count", (1e9, 1e17))
    above = tuple(
        _panel(laws, one, of_student, lambda result: result.student_tokens, by_itself=_tokens_alone) for one in sweeps
    )
    below = tuple(_panel(laws, one, of_teacher, lambda result: result.teacher_tokens, title="") for one in sweeps)
    note = f"In the best case all compute is the student's, as in supervised training. {SEARCHED}"
    return _chart("scenarios-tokens", "What compute buys: tokens", (above, below), laws, note)


def teacher_size(laws: Laws, sweeps: list[Sweep]) -> Chart:
    """The best teacher's size, and how long it is trained for it."""
    size, ratio = Axis(TEACHER_PARAMS, "count", (1e8, 1.2e11)), Axis("teacher tokens per parameter", "count", (3, 1e8))
    above = tuple(_panel(laws, one, size, lambda result: result.teacher_params) for one in sweeps)
    below = tuple(
        _panel(laws, one, ratio, lambda result: result.teacher_tokens / result.teacher_params, title="") for one in sweeps
    )
    return _chart("scenarios-teacher-size", "What compute buys: the teacher", (above, below), laws, SEARCHED)


def _panel(
    laws: Laws,
    one: Sweep,
    y: Axis,
    value: Callable[[Distilled], float],
    *,
    by_itself: Callable[[Alone], float] | None = None,
    title: str | None = None,
) -> Panel:
    """A value against compute in every scenario, and without a teacher where it has one there."""
    curves = [_curve(laws, one, scenario, one.of(scenario, value)) for scenario in SCENARIOS]
    if by_itself is not None:
        curves.append(Curve("supervised", one.flops, one.of_alone(by_itself), SUPERVISED, "--", one.fitted(laws, None)))
    return Panel(_title(one) if title is None else title, _COMPUTE, y, tuple(curves))


def _curve(laws: Laws, one: Sweep, scenario: Scenario, values: Array) -> Curve:
    return Curve(label(scenario), one.flops, values, SCENARIO_COLOURS[scenario.name], "-", one.fitted(laws, scenario))


def _chart(name: str, title: str, rows: tuple[tuple[Panel, ...], ...], laws: Laws, note: str) -> Chart:
    return Chart(name, title, rows, (3.7, 3.3), f"{fitted_note(laws.fitted)}\n{note}".strip())


@dataclass(frozen=True)
class Shares:
    """What a budget is spent on: shares of compute that add up to one, stacked over it. `fitted` as for a curve."""

    title: str
    x: Axis
    y: Axis
    flops: Array
    shares: dict[str, Array]
    fitted: Bools

    def draw(self, axes: Axes) -> None:
        """From the student upwards, with a bar at the foot where fitted."""
        axes.stackplot(self.flops, list(self.shares.values()), colors=[_SHARES[name] for name in self.shares], linewidth=0)
        axes.plot(self.flops, np.where(self.fitted, 0.0, np.nan), **_BAR)
        axes.set_title(self.title)
        axes.grid(visible=False)
        self.x.apply(axes, "x")
        self.y.apply(axes, "y")

    def handles(self) -> list[Any]:
        """A patch for each share, and the bar."""
        bar = [Line2D([], [], **_BAR, label="where the law was fitted")] if self.fitted.any() else []
        return [*(Patch(color=_SHARES[name], label=name) for name in self.shares), *bar]

    def data(self) -> dict[str, Any]:
        """Each share as a curve."""
        fitted = self.fitted.tolist()
        curves = [{"name": name, "x": numbers(self.flops), "y": numbers(share)} for name, share in self.shares.items()]
        return {**labels(self), "fitted": fitted, "curves": curves}


def allocation(laws: Laws, sweeps: list[Sweep]) -> Chart:
    """Shares of compute in the scenarios where the teacher costs something; a row each."""
    paid = (INFERENCE, PRETRAINING, BOTH)
    rows = tuple(tuple(_shares(laws, one, scenario, first=scenario is paid[0]) for one in sweeps) for scenario in paid)
    return Chart("scenarios-allocation", "What compute is spent on", rows, (3.7, 2.8), _START)


def _shares(laws: Laws, one: Sweep, scenario: Scenario, *, first: bool) -> Shares:
    spent = {
        "student training": one.of(scenario, lambda result: result.flops.student / result.flops.total),
        "teacher inference": one.of(scenario, lambda result: result.flops.teacher_inference / result.flops.total),
        "teacher pretraining": one.of(scenario, lambda result: result.flops.teacher_pretraining / result.flops.total),
    }
    name = label(scenario).replace(" and ", "\nand ")
    y = Axis(f"{name}\n(share of compute)", "share", (0, 1))
    return Shares(_title(one) if first else "", _COMPUTE, y, one.flops, spent, one.fitted(laws, scenario))


def _title(one: Sweep) -> str:
    return f"student {one.student.name}"
