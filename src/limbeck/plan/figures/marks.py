"""What all figures of the laws share: curves in panels in charts, their colours, axes and legend.

A chart is numbers first: panels know how to draw themselves on matplotlib's axes and how to say what they drew, so that others
can redraw it. Supervised training is black, the scenarios keep one colour each, and an ordered quantity (a budget, a size) runs
through a colour map. A curve is thick where the runs lie that the law was fitted to, thin where it is a guess.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from limbeck.drawing import COLOURS, SEQUENTIAL
from limbeck.plan.allocate import SCENARIOS, Bounds
from limbeck.plan.family import short
from limbeck.plan.laws import Array, FittedRange, Range

SUPERVISED = "black"
SCENARIO_COLOURS = {scenario.name: colour for scenario, colour in zip(SCENARIOS, COLOURS, strict=False)}
LOSS = "student loss (nats/token)"
TEACHER_LOSS = "teacher loss (nats/token)"
STUDENT_PARAMS = "student size (non-embedding parameters)"
TEACHER_PARAMS = "teacher size (non-embedding parameters)"
STUDENT_TOKENS = "student tokens"
TEACHER_TOKENS = "teacher tokens"
COMPUTE = "compute (FLOPs)"
_THICK, _THIN, _LEVEL = 2.4, 0.9, 0.9
SIZES_MAP = "plasma"
"""For students of several sizes, where another colour map already says something else."""
SEARCHED = f"Best teachers are looked for up to {short(Bounds().teacher_params[1])} parameters and $10^{{16}}$ tokens."
_GUIDE = "#888888"
_DIGITS = 6
_SLACK = 1.02
_MARGIN_INCHES = 1.4
_MOST_LETTERS = 1e15
"""From here on a number of tokens is a power of ten, for no letter is common."""

Kind = Literal["count", "flops", "ratio", "linear", "share"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """What an axis says: its label with the unit, how it is spaced, and where it ends (None: where the data do)."""

    label: str
    kind: Kind
    limits: Range | None = None

    def apply(self, axes: Axes, side: Literal["x", "y"]) -> None:
        """Label, scale, limits and ticks."""
        axes.set(**{f"{side}label": self.label})
        if self.kind not in ("linear", "share"):
            axes.set(**{f"{side}scale": "log"})
        if self.limits is not None:
            axes.set(**{f"{side}lim": self.limits})
        ticks = getattr(axes, f"{side}axis")
        if self.kind == "share":
            ticks.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
        elif self.kind != "linear":
            _logarithmic_ticks(ticks, self.kind, axes.get_xlim() if side == "x" else axes.get_ylim())


def _logarithmic_ticks(ticks: Any, kind: Kind, limits: Range) -> None:
    decades = abs(np.log10(limits[1] / limits[0]))
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.5 else (1.0,)
    ticks.set_major_locator(LogLocator(subs=subs, numticks=7))
    ticks.set_minor_locator(NullLocator())
    ticks.set_minor_formatter(NullFormatter())
    if kind == "ratio":
        ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif kind == "count":
        ticks.set_major_formatter(FuncFormatter(lambda value, _: _letters(value)))


def _letters(value: float) -> str:
    return short(value) if value < _MOST_LETTERS else power(value)


@dataclass(frozen=True)
class Curve:
    """A line. `fitted` says for each point whether the law was fitted there; None for a level or a guide, which is always thin.

    A NaN in `y` breaks it. `bottom` marks its least point, unless that is an end. A curve without a name stands in no legend.
    """

    name: str
    x: Array
    y: Array
    colour: str
    style: str = "-"
    fitted: Bools | None = None
    bottom: bool = False

    def draw(self, axes: Axes) -> None:
        """Thin all along, thick where fitted."""
        axes.plot(self.x, self.y, color=self.colour, linestyle=self.style, linewidth=_LEVEL if self.fitted is None else _THIN)
        if self.fitted is not None:
            inside = np.where(self.fitted, self.y, np.nan)
            axes.plot(self.x, inside, color=self.colour, linestyle=self.style, linewidth=_THICK)
        least = int(np.nanargmin(self.y))
        if self.bottom and 0 < least < len(self.y) - 1:
            axes.plot(self.x[least], self.y[least], "o", color=self.colour, markersize=6, markeredgecolor="white", zorder=5)

    def handle(self) -> Line2D:
        """How it looks in the legend."""
        width = _THIN if self.fitted is None else 2.0
        return Line2D([], [], color=self.colour, linestyle=self.style, linewidth=width, label=self.name)

    def data(self) -> dict[str, Any]:
        """Its numbers for JSON."""
        fitted = {} if self.fitted is None else {"fitted": self.fitted.tolist()}
        return {"name": self.name, "x": numbers(self.x), "y": numbers(self.y), **fitted}


class Drawable(Protocol):
    """One panel of a chart."""

    def draw(self, axes: Axes) -> None:
        """All of it but the legend."""
        ...

    def handles(self) -> list[Any]:
        """What stands in the legend."""
        ...

    def data(self) -> dict[str, Any]:
        """Its numbers for JSON."""
        ...


@dataclass(frozen=True)
class Panel:
    """Curves over two axes."""

    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]

    def draw(self, axes: Axes) -> None:
        """Curves first, so that axes without limits find theirs."""
        for curve in self.curves:
            curve.draw(axes)
        axes.set_title(self.title)
        self.x.apply(axes, "x")
        self.y.apply(axes, "y")

    def handles(self) -> list[Line2D]:
        """One for every curve with a name."""
        return [curve.handle() for curve in self.curves if curve.name]

    def data(self) -> dict[str, Any]:
        """Curves with a name for each axis."""
        return {**labels(self), "curves": [curve.data() for curve in self.curves]}


@dataclass(frozen=True)
class Chart:
    """A figure: rows of panels under a title, with one legend below that `note` heads."""

    name: str
    title: str
    rows: tuple[tuple[Drawable, ...], ...]
    panel_inches: Range
    note: str
    legend_columns: int = 5
    finish: Callable[[Figure, Sequence[Axes]], None] | None = None
    """Adds what belongs to no single panel, such as a colour bar."""

    @property
    def inches(self) -> Range:
        """Width and height, with room for the title and the legend."""
        return self.panel_inches[0] * len(self.rows[0]), self.panel_inches[1] * len(self.rows) + _MARGIN_INCHES

    def draw(self, figure: Figure) -> None:
        """Fill a matplotlib figure."""
        grid = figure.subplots(len(self.rows), len(self.rows[0]), squeeze=False)
        for axes_row, row in zip(grid, self.rows, strict=True):
            for axes, panel in zip(axes_row, row, strict=True):
                panel.draw(axes)
        _drop_repeated_labels(grid)
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        if self.finish is not None:
            self.finish(figure, list(grid.flat))
        handles = self._handles()
        columns = min(len(handles), self.legend_columns)
        legend = figure.legend(handles=handles, loc="outside lower left", ncols=columns, title=self.note, alignment="left")
        legend.get_title().set_fontsize(9.5)

    def _handles(self) -> list[Any]:
        named: dict[str, Any] = {}
        for row in self.rows:
            for panel in row:
                for handle in panel.handles():
                    named.setdefault(str(handle.get_label()), handle)
        return list(named.values())

    def data(self) -> dict[str, Any]:
        """All numbers for JSON."""
        return {"title": self.title, "panels": [panel.data() for row in self.rows for panel in row]}


def _drop_repeated_labels(grid: NDArray[Any]) -> None:
    """A label is said once: by the leftmost of a row, by the lowest of a column."""
    for row in grid:
        for left, right in reversed(list(zip(row, row[1:], strict=False))):
            right.set_ylabel("" if right.get_ylabel() == left.get_ylabel() else right.get_ylabel())
    for column in grid.T:
        for above, below in zip(column, column[1:], strict=False):
            above.set_xlabel("" if above.get_xlabel() == below.get_xlabel() else above.get_xlabel())


def labels(panel: Any) -> dict[str, str]:
    """Title and axes of a panel, for JSON."""
    return {"title": panel.title, "x_label": panel.x.label, "y_label": panel.y.label}


def numbers(values: ArrayLike) -> Any:
    """Lists of a few significant digits; null where a curve is broken."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        return [numbers(row) for row in array]
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in array]


def ordered_colours(count: int, *, colour_map: str = SEQUENTIAL) -> list[str]:
    """So many colours from dark to bright, short of what is too pale on white."""
    colours = mpl.colormaps[colour_map]
    return [mpl.colors.to_hex(colours(share)) for share in np.linspace(0.0, 0.82, count)]


def guide(name: str, x: Sequence[float], y: Sequence[float], *, colour: str = _GUIDE, style: str = "--") -> Curve:
    """A thin line to compare with: a level or a diagonal."""
    return Curve(name, np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), colour, style)


def within(fitted: FittedRange, *, params: ArrayLike, tokens: ArrayLike, teacher_loss: ArrayLike | None = None) -> Bools:
    """Where runs lie that the law was fitted to, for values that broadcast. A range that isn't known excludes nothing.

    Sizes and tokens are rounded where laws are published (20 tokens for each of 198M parameters are "4B"), so for them 2 %
    beyond still count.
    """
    inside = np.ones(
        np.broadcast_shapes(np.shape(params), np.shape(tokens), np.shape(0.0 if teacher_loss is None else teacher_loss)),
        dtype=bool,
    )
    triples = [(fitted.params, params, _SLACK), (fitted.tokens, tokens, _SLACK), (fitted.teacher_loss, teacher_loss, 1.0)]
    for limits, values, slack in triples:
        if limits is not None and values is not None:
            inside &= (limits[0] / slack <= np.asarray(values)) & (np.asarray(values) <= limits[1] * slack)
    return inside


def power(value: float) -> str:
    """A budget, as 10 to its exponent."""
    return f"$10^{{{np.log10(value):.0f}}}$"


def fitted_note(fitted: FittedRange) -> str:
    """What the thick part of a curve means."""
    parts = []
    if fitted.params is not None:
        parts.append(f"students of {short(fitted.params[0])}–{short(fitted.params[1])} parameters")
    if fitted.tokens is not None:
        parts.append(f"{short(fitted.tokens[0])}–{short(fitted.tokens[1])} tokens")
    if fitted.teacher_loss is not None:
        parts.append(f"teachers of {fitted.teacher_loss[0]:g}–{fitted.teacher_loss[1]:g} nats/token")
    return f"Thick: where the law was fitted ({', '.join(parts)}). Thin: beyond." if parts else ""
