"""The figures of the report as PNG bytes: curves of every arm, and the final differences to the control with their intervals.

The control is black and thick; the others take their looks from `limbeck.drawing`. The four figures of bits per byte share
one vertical axis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, ScalarFormatter

from limbeck import drawing
from limbeck.drawing import COLOURS, MARKERS
from limbeck.report.arms import Arm, Axis, Curve, difference, finite
from limbeck.report.statistics import moving_mean

_ROOM_INSIDE = 5
_SHORT = 28
"""Characters of a label of which two fit side by side."""
_REACH = 0.35
"""The teacher's line is drawn where it lengthens the axis by at most this fraction of the curves' range."""


@dataclass(frozen=True)
class Drawn:
    """A figure: its file name without suffix, what it shows in a sentence, and the PNG."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Look:
    """How an arm is drawn everywhere."""

    colour: str
    marker: str
    line: str
    width: float


def looks(arms: Sequence[Arm], control: Arm) -> dict[str, Look]:
    """One look for every arm; beyond six arms lines are dotted and colours come again. Unfinished ones are dashed."""
    result: dict[str, Look] = {}
    others = [arm for arm in arms if arm is not control]
    for number, arm in enumerate(others):
        line = ("-" if number < len(COLOURS) else ":") if arm.finished else "--"
        result[arm.name] = Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], line, 1.6)
    result[control.name] = Look("#000000", "o", "-" if control.finished else "--", 2.4)
    return result


def draw_all(arms: Sequence[Arm], *, control: Arm, teacher: Mapping[str, Any] | None) -> list[Drawn]:
    """Every figure for which there is something to draw, the differences first."""
    teacher_bits = finite((teacher or {}).get("bits_per_byte"))
    drawn = [draw_differences(arms, control=control)]
    for axis, (name, label, caption) in _AXES.items():
        drawn.append(_draw_bits(arms, control, axis, name=name, label=label, caption=caption, teacher_bits=teacher_bits))
    drawn.append(draw_divergence(arms, control=control))
    drawn.append(draw_training(arms, control=control))
    return [figure for figure in drawn if figure is not None]


_AXES: dict[Axis, tuple[str, str, str]] = {
    "tokens": ("bits-by-tokens", "training tokens", "Held-out bits per byte against training tokens."),
    "seconds": (
        "bits-by-seconds",
        "training seconds",
        "Against training seconds: compilation, evaluation, checkpoints and the scoring of stores left out.",
    ),
    "student_flops": ("bits-by-student-flops", "student FLOPs", "Against FLOPs, the teacher’s share off."),
    "all_flops": ("bits-by-all-flops", "student + teacher FLOPs", "Against FLOPs, the teacher’s share on."),
}


def _draw_bits(
    arms: Sequence[Arm], control: Arm, axis: Axis, *, name: str, label: str, caption: str, teacher_bits: float | None
) -> Drawn | None:
    curves = {arm.name: _without_start(arm.curve(axis)) for arm in arms}
    if not any(map(len, curves.values())):
        return None

    def draw(axes: Axes) -> None:
        _draw_curves(axes, curves, arms, control)
        if teacher_bits is not None:
            _teacher_line(axes, teacher_bits)
        axes.set_ylabel("held-out bits per byte")
        _cost_axis(axes, axis, label)

    return Drawn(name, caption, render(draw))


def _without_start(curve: Curve) -> Curve:
    # An untrained student's bits would squash everything that follows.
    trained = curve.costs > 0
    return Curve(curve.costs[trained], curve.values[trained])


def _draw_curves(axes: Axes, curves: Mapping[str, Curve], arms: Sequence[Arm], control: Arm) -> None:
    """The curves, and a legend in the order in which they end, each with its last value."""
    styles = looks(arms, control)
    ends: list[tuple[float, Any, str]] = []
    for arm in arms:
        curve, look = curves[arm.name], styles[arm.name]
        if not len(curve):
            continue
        (line,) = axes.plot(
            curve.costs, curve.values, look.line, color=look.colour, marker=look.marker, linewidth=look.width, markersize=5
        )
        ends.append((float(curve.values[-1]), line, label_of(arm, control)))
    ends.sort(key=lambda end: -end[0])
    _legend(axes, [line for _, line, _ in ends], [f"{value:.3f}  {label}" for value, _, label in ends])


def _legend(axes: Axes, lines: Sequence[Any], labels: Sequence[str]) -> None:
    """Inside, at the upper right where falling curves leave room; many arms go below the axes."""
    if len(lines) <= _ROOM_INSIDE:
        axes.legend(lines, labels, loc="upper right")
        return
    columns = 2 if max(map(len, labels)) <= _SHORT else 1
    figure = axes.figure
    assert isinstance(figure, Figure), "one pair of axes fills the whole figure"
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * len(lines) / columns)
    figure.legend(lines, labels, loc="outside lower left", ncols=columns)


def label_of(arm: Arm, control: Arm) -> str:
    """An arm's name for a figure: its dollar signs are not mathematics."""
    role = ", control" if arm is control else ""
    state = "" if arm.finished else f", {arm.status}"
    return f"{arm.name}{role}{state}".replace("$", r"\$")


def _teacher_line(axes: Axes, bits: float) -> None:
    low, high = axes.get_ylim()
    reach = _REACH * (high - low)
    if low - reach <= bits <= high + reach:
        axes.axhline(bits, color="#666666", linestyle=(0, (6, 3)), linewidth=1.2)
        axes.annotate("teacher", (0.01, bits), xycoords=axes.get_yaxis_transform(), color="#555555", va="bottom", fontsize=9.5)
    else:
        where = "below" if bits < low else "above"
        axes.set_ylim(low - 0.08 * (high - low), high)  # room for the words
        text = f"teacher: {bits:.3f}, {where} this axis"
        axes.text(0.01, 0.02, text, transform=axes.transAxes, color="#555555", fontsize=9.5)


def _cost_axis(axes: Axes, axis: Axis, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    if axis == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif axis != "seconds":
        powers = ScalarFormatter(useMathText=True)
        powers.set_powerlimits((0, 0))
        axes.xaxis.set_major_formatter(powers)


def draw_differences(arms: Sequence[Arm], *, control: Arm) -> Drawn | None:
    """Every finished arm's final difference to the control with its interval; None where there is none to draw."""
    estimates = [(arm, value) for arm in arms if arm is not control and (value := difference(arm, control)) is not None]
    if not estimates:
        return None
    styles = looks(arms, control)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#000000", linewidth=2.0)
        for row, (arm, value) in enumerate(reversed(estimates)):
            look = styles[arm.name]
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [row, row], color=look.colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot([value.value], [row], marker=look.marker, color=look.colour, markersize=8)
        axes.set_yticks(range(len(estimates)), [label_of(arm, control) for arm, _ in reversed(estimates)])
        axes.set_ylim(-0.6, len(estimates) - 0.4)
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("held-out bits per byte minus the control’s   (left of zero: better than the control)")

    caption = "Where every arm ended relative to the control (black, zero), with 95% intervals over held-out documents."
    return Drawn("differences", caption, render(draw, size=(9.0, 1.1 + 0.42 * len(estimates))))


def draw_divergence(arms: Sequence[Arm], *, control: Arm) -> Drawn | None:
    """KL(teacher || student) on held-out documents against tokens; None where no run measured it on the way."""
    curves = {arm.name: _without_start(arm.curve("tokens", "kl_to_teacher_nats")) for arm in arms}
    if not any(len(curve) > 1 for curve in curves.values()):  # a single measurement at the end is in the table
        return None

    def draw(axes: Axes) -> None:
        _draw_curves(axes, curves, arms, control)
        axes.set_ylabel("held-out KL(teacher ‖ student), nats/token")
        _cost_axis(axes, "tokens", "training tokens")

    return Drawn(
        "kl-by-tokens", "How far the student’s predictions are from the teacher’s, against training tokens.", render(draw)
    )


def draw_training(arms: Sequence[Arm], *, control: Arm) -> Drawn | None:
    """Each arm's own training loss, smoothed; None where nothing was logged."""
    curves = {arm.name: arm.curve("tokens", "loss_nats", event="train") for arm in arms}
    curves = {
        name: Curve(curve.costs, moving_mean(curve.values, window=max(1, len(curve) // 25))) for name, curve in curves.items()
    }
    if not any(map(len, curves.values())):
        return None

    def draw(axes: Axes) -> None:
        styles = looks(arms, control)
        for arm in arms:
            curve, look = curves[arm.name], styles[arm.name]
            if len(curve):
                axes.plot(curve.costs, curve.values, look.line, color=look.colour, linewidth=look.width * 0.8)
        drawn = [arm for arm in arms if len(curves[arm.name])]
        _legend(axes, axes.get_lines(), [label_of(arm, control) for arm in drawn])
        axes.set_ylabel("training loss, nats/token")
        _cost_axis(axes, "tokens", "training tokens")

    caption = "Training loss, a moving mean. Each arm’s own objective: the heights of different objectives do not compare."
    return Drawn("training-loss", caption, render(draw))


def render(draw: Callable[[Axes], None], *, size: tuple[float, float] = (6.0, 4.2)) -> bytes:
    """One pair of axes, drawn by `draw`, as PNG."""
    return drawing.render(lambda figure: draw(figure.add_subplot()), size=size)
