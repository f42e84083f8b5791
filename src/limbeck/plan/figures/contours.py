"""Maps of distil or not: the student's loss under a teacher less its loss without one, over two things that vary.

Below zero the teacher helps. The zero contour is where it stops paying, even as a gift: these maps compare the same student on
the same tokens. The teacher's own cost is the business of `scenarios`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from limbeck.plan.allocate import Bounds, distillation_of
from limbeck.plan.family import short
from limbeck.plan.figures.marks import (
    SEARCHED,
    STUDENT_PARAMS,
    STUDENT_TOKENS,
    TEACHER_TOKENS,
    Axis,
    Chart,
    labels,
    numbers,
)
from limbeck.plan.laws import Array, Laws, Range, loss_of

TOKENS_PER_PARAM = 20
_POINTS = 81
_TEACHERS = 301
"""Losses tried for the best teacher: 0.005 nats apart, at the flat bottom of a U, so the student's loss is exact to 1e-4."""
_STUDENT_PARAMS = (1e8, 2e10)
_STUDENT_TOKENS = (1e9, 1e13)
_TEACHER_TOKENS = (1e9, 1e13)
_TEACHER_OF_STUDENTS = 3e9
_STUDENTS = (300e6, 1e9, 3e9)
_FIXED_TEACHERS = (546e6, 1.82e9, 7.75e9)
_COLOURS = "RdBu_r"
_LEVELS = np.round(np.linspace(-0.3, 0.3, 25), 3)
_TICKS = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
_SHARPEST = 0.02
_BOX: dict[str, Any] = {"fill": False, "edgecolor": "black", "linestyle": (0, (1, 1.5)), "linewidth": 1.6}


@dataclass(frozen=True)
class Map:
    """Values over a grid, `values_YX` in nats/token; `box` is the fitted range along x and y."""

    title: str
    x: Axis
    y: Axis
    columns: Array
    rows: Array
    values_YX: Array
    box: tuple[Range, Range] | None

    def draw(self, axes: Axes) -> None:
        """Colours centred at zero, the zero contour thick, the fitted range as a box."""
        shown = np.clip(self.values_YX, _LEVELS[0] - _SHARPEST, _LEVELS[-1] + _SHARPEST)
        axes.contourf(self.columns, self.rows, shown, levels=_LEVELS, cmap=_COLOURS, extend="both")
        if self.values_YX.min() < 0 < self.values_YX.max():
            axes.contour(self.columns, self.rows, self.values_YX, levels=[0.0], colors="black", linewidths=2.4)
        if self.box is not None:
            (left, right), (bottom, top) = self.box
            axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, **_BOX))
        axes.set_title(self.title)
        axes.grid(visible=False)
        self.x.apply(axes, "x")
        self.y.apply(axes, "y")

    def handles(self) -> list[Any]:
        """The contour, and the box where there is one."""
        contour = Line2D([], [], color="black", linewidth=2.4, label="crossover: distilled and supervised alike")
        return [contour, *([Patch(**_BOX, label="where the law was fitted")] if self.box else [])]

    def data(self) -> dict[str, Any]:
        """Grid and values, a list for each row of y."""
        return {**labels(self), "x": numbers(self.columns), "y": numbers(self.rows), "values": numbers(self.values_YX)}


def gain(laws: Laws, *, params: ArrayLike, tokens: ArrayLike, teacher_loss: ArrayLike) -> Array:
    """Distilled less supervised loss of a student on the same tokens, in nats/token; everything broadcasts."""
    return distillation_of(laws).loss(params, tokens, teacher_loss) - loss_of(laws.supervised, params, tokens)


def best_gain(laws: Laws, *, params: Array, tokens: Array) -> Array:
    """`gain` under the best of all teachers within `Bounds`, for arrays of one shape."""
    bounds = Bounds()
    weakest, strongest = loss_of(laws.supervised, bounds.teacher_params, bounds.teacher_tokens)
    losses = np.geomspace(strongest, weakest, _TEACHERS)
    return np.min(gain(laws, params=params[..., None], tokens=tokens[..., None], teacher_loss=losses), axis=-1)


def over_students(laws: Laws) -> Chart:
    """Over the student's tokens and size: under three fixed teachers, and under the best there is."""
    tokens, params = np.geomspace(*_STUDENT_TOKENS, _POINTS), np.geomspace(*_STUDENT_PARAMS, _POINTS)
    grid = {
        "tokens": np.broadcast_to(tokens, (_POINTS, _POINTS)),
        "params": np.broadcast_to(params[:, None], (_POINTS, _POINTS)),
    }
    fields = []
    for size in _FIXED_TEACHERS:
        loss = loss_of(laws.supervised, size, TOKENS_PER_PARAM * size)
        fields.append((f"teacher {short(size)}: {loss:.3f} nats", gain(laws, **grid, teacher_loss=loss)))
    fields.append(("the best teacher for each student", best_gain(laws, **grid)))
    box = (laws.fitted.tokens, laws.fitted.params) if laws.fitted.tokens and laws.fitted.params else None
    x, y = Axis(STUDENT_TOKENS, "count", _STUDENT_TOKENS), Axis(STUDENT_PARAMS, "count", _STUDENT_PARAMS)
    maps = [Map(title, x, y, tokens, params, values, box) for title, values in fields]
    title = "Distil or not: by student, with a teacher that costs nothing"
    return Chart("distil-or-not-students", title, (tuple(maps[:2]), tuple(maps[2:])), (5.6, 4.2), SEARCHED, finish=_colour_bar)


def over_teachers(laws: Laws) -> Chart:
    """Over the tokens of a teacher of fixed size and the student's, one panel a student."""
    tokens, teacher_tokens = np.geomspace(*_STUDENT_TOKENS, _POINTS), np.geomspace(*_TEACHER_TOKENS, _POINTS)
    losses = loss_of(laws.supervised, _TEACHER_OF_STUDENTS, teacher_tokens)
    x, y = Axis(TEACHER_TOKENS, "count", _TEACHER_TOKENS), Axis(STUDENT_TOKENS, "count", _STUDENT_TOKENS)
    box = (laws.fitted.tokens, laws.fitted.tokens) if laws.fitted.tokens else None
    row = tuple(
        Map(
            f"student {short(student)}",
            x,
            y,
            teacher_tokens,
            tokens,
            gain(laws, params=student, tokens=tokens[:, None], teacher_loss=losses),
            box,
        )
        for student in _STUDENTS
    )
    title = f"Distil or not: by how long a teacher of {short(_TEACHER_OF_STUDENTS)} parameters was trained"
    return Chart("distil-or-not-teacher-tokens", title, (row,), (4.8, 4.4), "", finish=_colour_bar)


def _colour_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    bar = figure.colorbar(axes[0].collections[0], ax=list(axes), ticks=_TICKS, pad=0.01)
    bar.set_label("distilled − supervised loss (nats/token)\nblue: the teacher helps; red: it harms")
