"""All figures of the laws in one folder, as SVG and PNG, with the numbers behind them in `figures.json`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from limbeck.drawing import write_figure
from limbeck.paths import write_atomically
from limbeck.plan.allocate import distillation_of
from limbeck.plan.figures import contours, efficiency, scenarios, slices
from limbeck.plan.figures.marks import Chart
from limbeck.plan.laws import PUBLISHED, Laws
from limbeck.progress import progress

NUMBERS = "figures.json"
_OF_LAWS: tuple[Callable[[Laws], Chart], ...] = (
    slices.isoflop_students,
    slices.isoflop_teachers,
    slices.teacher_u_shape,
    slices.optimal_teacher,
    contours.over_students,
    contours.over_teachers,
)
_OF_SHOWN: tuple[Callable[[Laws, list[scenarios.Sweep]], Chart], ...] = (
    scenarios.loss,
    scenarios.tokens,
    scenarios.teacher_size,
    scenarios.allocation,
)


def draw_all(folder: Path, *, laws: Laws = PUBLISHED) -> list[Path]:
    """Write every figure and their numbers into `folder`; returns the paths. `SpecError` without a law of distillation."""
    distillation_of(laws)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    data = {}
    with progress("Figures", total=len(_OF_LAWS) + len(_OF_SHOWN) + 1) as advance:
        for chart in charts(laws):
            paths += write_figure(chart.draw, folder / chart.name, size=chart.inches)
            data[chart.name] = chart.data()
            advance(1, chart.name)
    fitted = {"params": laws.fitted.params, "tokens": laws.fitted.tokens, "teacher_loss": laws.fitted.teacher_loss}
    write_atomically(folder / NUMBERS, json.dumps({"law": laws.name, "fitted": fitted, "figures": data}, allow_nan=False))
    return [*paths, folder / NUMBERS]


def charts(laws: Laws, *, per_decade: int = scenarios.PER_DECADE) -> Iterator[Chart]:
    """The figures one by one; the scenarios are swept once, with so many budgets a decade."""
    for of_laws in _OF_LAWS:
        yield of_laws(laws)
    sweeps = [scenarios.sweep(params, laws=laws, per_decade=per_decade) for params in scenarios.STUDENTS]
    shown = [one.shown() for one in sweeps]
    for of_shown in _OF_SHOWN:
        yield of_shown(laws, shown)
    yield efficiency.efficiency(laws, sweeps)
