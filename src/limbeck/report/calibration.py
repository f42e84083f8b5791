"""Reliability diagrams from the details of `calibration` evaluations: how often a model is right at every confidence.

    details["reliability"] = {comparison: {"error": e, "count": [n, …], "confidence": [c, …], "outcome": [o, …]}, …}

Of every bin: how many positions it holds, their mean confidence, and how often the top-1 was right, or the mean confidence of
the model that it is held against; None where it is empty (Guo et al., arXiv 1706.04599, figure 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.report.arms import Arms, finite
from limbeck.report.blocks import Drawn
from limbeck.report.eval_tables import Teachers, slug
from limbeck.report.figures import drawn, label, looks

_MOST_PANELS = 12


_PANELS = {
    "data": ("the next token", "model’s confidence", "share that is the next token"),
    "teacher_top1": ("the teacher’s top-1", "model’s confidence", "share that is the teacher’s top-1"),
    "teacher_by_student": ("the teacher’s confidence", "model’s confidence", "teacher’s confidence"),
    "student_by_teacher": ("by the teacher’s confidence", "teacher’s confidence", "model’s confidence"),
    "teacher_data": ("the teacher’s own", "teacher’s confidence", "share that is the next token"),
}
"""Title, what the bins are of, and what is held against it; a comparison that is not here goes by its name."""


@dataclass(frozen=True)
class Bin:
    """Positions of about the same confidence."""

    confidence: float
    outcome: float
    count: float


def reliability(details: Mapping[str, Any]) -> dict[str, tuple[Bin, ...]]:
    """The bins of every comparison that hold positions; empty where the details have none."""
    given = details.get("reliability")
    found = {str(name): _bins(each) for name, each in given.items()} if isinstance(given, Mapping) else {}
    return {name: bins for name, bins in found.items() if bins}


def _bins(diagram: Mapping[str, Any]) -> tuple[Bin, ...]:
    columns = [[finite(value) for value in diagram.get(key, ())] for key in ("confidence", "outcome", "count")]
    rows = zip(*columns, strict=True)
    return tuple(Bin(where, right, many) for where, right, many in rows if where is not None and right is not None and many)


def draw_reliability(name: str, arms: Arms, teachers: Teachers) -> Drawn | None:
    """A panel for every comparison of a calibration, a line for one run of every arm and for every teacher."""
    owners: dict[str, dict[str, tuple[Bin, ...]]] = {}
    for arm in arms:
        member = next((each for each in [*arm.finished, *arm.members] if name in each.cell.evals), None)
        if member is not None:
            owners[arm.name] = reliability(member.cell.evals[name].details)
    owners |= {f"teacher {teacher}": reliability(found[name].details) for teacher, found in teachers.items() if name in found}
    panels = list(dict.fromkeys(panel for found in owners.values() for panel in found))[:_MOST_PANELS]
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        columns = min(2, len(panels))
        axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flatten()
        for panel, place in zip(panels, axes, strict=False):
            _panel(place, panel, owners, arms)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        handles = {text: line for place in axes for line, text in zip(*place.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=2)

    rows = -(-len(panels) // 2)
    size = (9.0 if len(panels) > 1 else 4.8, 4.0 * rows + 0.25 * (len(owners) + 1) / 2)
    caption = f"{name}: outcomes against confidence; below the diagonal a model is too confident. One run of every arm."
    return drawn(f"reliability-{slug(name)}", caption, draw, size=size, wide=len(panels) > 1)


def _panel(axes: Axes, panel: str, owners: Mapping[str, Mapping[str, Sequence[Bin]]], arms: Arms) -> None:
    styles = looks(arms)
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1.2)
    for owner, found in owners.items():
        bins = found.get(panel, ())
        if not bins:
            continue
        style = styles[owner].keywords() if owner in styles else {"color": "#666666", "linestyle": "--"}
        largest = max(each.count for each in bins)
        xs, ys = [each.confidence for each in bins], [each.outcome for each in bins]
        axes.plot(xs, ys, label=label(owner), linewidth=1.4, **style)
        axes.scatter(xs, ys, s=[6 + 40 * each.count / largest for each in bins], color=style["color"])
    title, across, up = _PANELS.get(panel, (label(panel), "confidence", "outcome"))
    axes.set(xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, fontsize=10)
