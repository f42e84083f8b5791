"""How far a fitted law is off, and where: relative errors by size, tokens and teacher, and predicted against observed losses.

Import it only where something is drawn: it loads matplotlib.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from limbeck.drawing import COLOURS, write_figure
from limbeck.plan.fit.points import Points
from limbeck.plan.fit.result import predicted, relative_errors
from limbeck.plan.laws import Array, DistillationLaw, Supervised

_PANEL_INCHES = (3.9, 3.4)
_FITTED = {"marker": "o", "s": 20, "facecolors": "none", "edgecolors": COLOURS[0], "linewidths": 0.9}
_HELD_OUT = {"marker": "^", "s": 26, "facecolors": COLOURS[1], "edgecolors": "none"}
_X_LABELS = {"N": "N, non-embedding parameters", "D": "D, training tokens", "teacher_loss": "teacher's loss (nats per token)"}


def draw_fit(law: Supervised | DistillationLaw, points: Points, *, held_out: Points | None, path: Path) -> tuple[Path, Path]:
    """Write `path` + `.svg` and `.png`; returns the two paths. Points set aside are marked."""
    groups = [("fitted", points, _FITTED)] + ([("held out", held_out, _HELD_OUT)] if held_out is not None else [])
    names = [name for name in _X_LABELS if name in points.named()]
    rows, columns = (2, 2) if len(names) == 3 else (1, 3)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            for label, group, look in groups:
                axes.scatter(group.named()[name], 100 * relative_errors(law, group), label=_legend(label, group), **look)
            _error_axes(axes, name)
        last = panels[len(names)]
        for _, group, look in groups:
            last.scatter(group.loss, predicted(law, group), **look)
        _diagonal(last, np.concatenate([np.concatenate([group.loss, predicted(law, group)]) for _, group, _ in groups]))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))

    return write_figure(draw, path, size=(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]))


def _legend(label: str, points: Points) -> str:
    return f"{label} ({len(points)})"


def _error_axes(axes: Axes, name: str) -> None:
    axes.axhline(0, color="black", linewidth=1)
    if name != "teacher_loss":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(_X_LABELS[name])
    axes.set_ylabel("predicted − observed loss (%)")


def _diagonal(axes: Axes, losses: Array) -> None:
    ends = [float(losses.min()), float(losses.max())]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.set_xlabel("observed loss (nats per token)")
    axes.set_ylabel("predicted loss (nats per token)")
