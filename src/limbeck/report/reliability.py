"""Reliability diagrams of models side by side, from what their calibrations left in `details`.

Above: in each bin of confidence the mean confidence against the mean outcome; on the diagonal a model is as confident as it
should be, below it too confident. The larger a dot, the more positions are in its bin; beneath, their share (Guo et al.,
arXiv 1706.04599, figure 1).
"""

from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.drawing import COLOURS, Draw

Outcome = Literal["data", "teacher_top1", "teacher_by_student", "student_by_teacher", "teacher_data"]
AXES: dict[Outcome, tuple[str, str]] = {
    "data": ("model's confidence", "share that is the next token"),
    "teacher_top1": ("model's confidence", "share that is the teacher's top-1"),
    "teacher_by_student": ("model's confidence", "teacher's confidence"),
    "student_by_teacher": ("teacher's confidence", "model's confidence"),
    "teacher_data": ("teacher's confidence", "share that is the next token"),
}
"""What a diagram's bins are of, and what is held against it."""
COLUMNS = 4
SIZE = 2.9
"""Inches of a panel."""


def reliability_diagrams(
    details: Mapping[str, Mapping[str, Any]], *, outcome: Outcome = "data"
) -> tuple[Draw, tuple[float, float]] | None:
    """A panel for each model (name and the `details` of its calibration) that has the comparison; None where none has."""
    diagrams = {name: each["reliability"][outcome] for name, each in details.items() if outcome in each["reliability"]}
    if not diagrams:
        return None
    columns = min(len(diagrams), COLUMNS)
    lines = -(-len(diagrams) // columns)

    def draw(figure: Figure) -> None:
        heights = [3, 1] * lines
        panels = figure.subplots(2 * lines, columns, sharex=True, squeeze=False, height_ratios=heights)
        for axes in panels.flat:
            axes.set_visible(False)
        tallest = max(max(diagram["count"]) / sum(diagram["count"]) for diagram in diagrams.values())
        for place, (name, diagram) in enumerate(diagrams.items()):
            line, column = divmod(place, columns)
            above, below = panels[2 * line, column], panels[2 * line + 1, column]
            _diagram(above, diagram, title=name)
            _histogram(below, diagram, tallest=tallest)
            if column == 0:
                above.set_ylabel(AXES[outcome][1])
                below.set_ylabel("share")
        figure.supxlabel(AXES[outcome][0], fontsize=11)

    return draw, (max(SIZE * columns + 0.6, 4.0), (SIZE + 1.3) * lines + 0.4)


def _diagram(axes: Axes, diagram: Mapping[str, Any], *, title: str) -> None:
    total = sum(diagram["count"])
    there = [
        (confidence, outcome, 6 + 90 * (count / total) ** 0.5)
        for confidence, outcome, count in zip(diagram["confidence"], diagram["outcome"], diagram["count"], strict=True)
        if count
    ]
    axes.set_visible(True)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1)
    for confidence, outcome, _ in there:
        axes.plot([confidence, confidence], [confidence, outcome], color=COLOURS[1], linewidth=2.5, alpha=0.5)
    confidences, outcomes, areas = zip(*there, strict=True)
    axes.plot(confidences, outcomes, color=COLOURS[0], linewidth=1)
    axes.scatter(confidences, outcomes, s=areas, color=COLOURS[0], clip_on=False, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"{title}\nerror {diagram['error']:.4f}", fontsize=10)


def _histogram(axes: Axes, diagram: Mapping[str, Any], *, tallest: float) -> None:
    counts = diagram["count"]
    bins, total = len(counts), sum(counts)
    axes.set_visible(True)
    axes.bar([(place + 0.5) / bins for place in range(bins)], [count / total for count in counts], 1 / bins, color="#bbbbbb")
    axes.set(xlim=(0, 1), ylim=(0, 1.05 * tallest))
