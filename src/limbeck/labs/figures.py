"""The figures of the laboratories: student loss against the teacher's size, and against the teacher's own loss.

Black is what others are compared with: the teachers in the kernel laboratory, students without a teacher in the mapping one.
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from limbeck.drawing import COLOURS, MARKERS, write_figure
from limbeck.labs.kernel import KernelResult
from limbeck.labs.verdict import MappingResult

SIZE = (11.0, 4.4)
"""Inches."""
DECADES_FROM = 5
"""Teacher losses that differ by this factor are drawn on a logarithmic axis."""


def write_kernel_figure(result: KernelResult, path: Path) -> tuple[Path, Path]:
    """Write `path`.svg and `path`.png."""

    def draw(figure: Figure) -> None:
        by_size, by_error = figure.subplots(1, 2, sharey=True)
        sizes = range(1, result.settings.functions + 1)
        by_size.plot(sizes, result.teacher_errors, color="black", linewidth=2.2, label="teacher itself")
        by_error.plot(result.teacher_errors, result.teacher_errors, "k:", linewidth=1.5, label="student as good as its teacher")
        for number, student in enumerate(result.students):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 8, "markevery": [student.best_teacher - 1]}
            look |= {"linewidth": 2, "zorder": 4 - number / len(result.students)}  # where curves coincide, the smallest is seen
            by_size.plot(sizes, student.errors, **look, label=f"student of {student.size} functions")
            by_error.plot(result.teacher_errors, student.errors, **look)
        by_size.set(
            xlabel="size of the teacher (functions)", ylabel="error (fraction of the target's norm)", title="By teacher size"
        )
        by_size.set_xscale("log", base=2)
        by_size.xaxis.set_major_formatter("{x:g}")
        by_error.set(
            xlabel="error of the teacher (fraction of the target's norm)", title="By teacher error (better to the right)"
        )
        by_error.invert_xaxis()
        by_size.legend(title="marker: best teacher", title_fontsize=9.5, loc="upper right")
        by_error.legend(loc="upper right")

    return write_figure(draw, path, size=SIZE)


def write_mapping_figure(result: MappingResult, path: Path) -> tuple[Path, Path]:
    """Write `path`.svg and `path`.png."""

    def draw(figure: Figure) -> None:
        by_width, by_loss = figure.subplots(1, 2, sharey=True)
        by_width.set(xlabel="width of the teacher (units per hidden layer)", title="By teacher size")
        by_loss.set(xlabel="loss of the teacher (nats per example)", title="By teacher loss (better to the right)")
        by_width.set_ylabel("held-out loss of the student (nats per example)")
        widths = [float(point.teacher_width) for point in result.points]
        _draw_students(by_width, result, at=widths)
        teacher_losses = [mean(point.teacher.losses) for point in result.points]
        _draw_students(by_loss, result, at=teacher_losses)
        by_width.set_xscale("log", base=2)
        by_width.set_xticks(widths, [f"{width:g}" for width in widths])
        by_width.xaxis.set_minor_locator(NullLocator())
        by_loss.invert_xaxis()
        if max(teacher_losses) > DECADES_FROM * min(teacher_losses):
            by_loss.set_xscale("log")
            by_loss.xaxis.set_major_formatter("{x:g}")
            by_loss.xaxis.set_minor_formatter(NullFormatter())
        by_width.legend(loc="best")

    return write_figure(draw, path, size=SIZE)


def _draw_students(axes: Axes, result: MappingResult, *, at: list[float]) -> None:
    """Every seed as a point, mean ± standard deviation, and the control as a line with its band."""
    control, spread = mean(result.control.losses), stdev(result.control.losses)
    axes.axhspan(control - spread, control + spread, color="black", alpha=0.08, linewidth=0)
    axes.axhline(control, color="black", linewidth=2, label="student without a teacher")
    seeds = [(x, loss) for x, point in zip(at, result.points, strict=True) for loss in point.student.losses]
    axes.plot(*zip(*seeds, strict=True), "o", color=COLOURS[0], markersize=4, alpha=0.35, label="distilled student, one seed")
    means = [mean(point.student.losses) for point in result.points]
    spreads = [stdev(point.student.losses) for point in result.points]
    label = f"mean ± std of {result.settings.seeds} seeds"
    axes.errorbar(at, means, yerr=spreads, color=COLOURS[1], marker="s", linewidth=1.8, capsize=3, label=label)
