"""The figures of curves: bits per byte against every cost, divergence from the teacher, training loss; means over seeds.

What others are held against is black; the others take their looks from `limbeck.drawing`. A band reaches from the lowest to the
highest seed. Where a study has more arms than can be told apart, the best are drawn, and what they are held against.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, ScalarFormatter

from limbeck import drawing
from limbeck.drawing import COLOURS, MARKERS
from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Band, Cost, finite
from limbeck.report.blocks import Drawn
from limbeck.report.comparisons import nearest_pairs
from limbeck.report.stages import mark_stages
from limbeck.report.statistics import moving_mean

MOST_CURVES = 12
_MOST_REFERENCES = 4
_ROOM_INSIDE = 5
_SHORT = 28
"""Characters of a label of which two fit side by side."""
_REACH = 0.35
"""The teacher's line is drawn where it lengthens the axis by at most this fraction of the curves' range."""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn everywhere."""

    colour: str
    marker: str
    line: str
    width: float

    def keywords(self) -> dict[str, Any]:
        """For `plot`."""
        return {"color": self.colour, "linestyle": self.line}


def references(arms: Arms) -> list[str]:
    """The names of the arms that others are held against, those of the most arms first."""
    found = [name for arm in arms for name in dict.fromkeys(other.cell.arm for _, other in nearest_pairs(arm, arms))]
    return sorted(set(found), key=lambda name: (-found.count(name), found.index(name)))


def looks(arms: Arms) -> dict[str, Look]:
    """One look for every arm; beyond six arms lines are dotted, colours come again. Unfinished ones are dashed."""
    result: dict[str, Look] = {}
    black = references(arms)
    for number, arm in enumerate(arm for arm in arms if arm.name not in black):
        line = ("-" if number % 12 < len(COLOURS) else ":") if arm.finished else "--"
        result[arm.name] = Look(
            COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)], line, 1.6
        )
    for number, name in enumerate(black):
        line = ("-", ":", "-.")[number % 3] if arms.named(name).finished else "--"
        result[name] = Look(("#000000", "#555555")[number > 0], "o", line, 2.4)
    return result


def chosen(arms: Arms) -> list[Arm]:
    """The arms that are drawn as curves: all, or those that others are held against and the best."""
    begun = [arm for arm in arms if any(member.run is not None for member in arm.members)]
    if len(begun) <= MOST_CURVES:
        return begun
    black = references(arms)
    best = sorted((arm for arm in begun if arm.name not in black), key=_rank)
    black = black[:_MOST_REFERENCES]
    kept = {arm.name for arm in best[: MOST_CURVES - len(black)]} | set(black)
    return [arm for arm in begun if arm.name in kept]


def _rank(arm: Arm) -> float:
    return arm.bits.mean if arm.bits is not None else float("inf")


def draw_curves(arms: Arms, *, teacher: Mapping[str, Any] | None) -> list[Drawn]:
    """Every figure of curves for which there is something to draw."""
    teacher_bits = finite((teacher or {}).get("bits_per_byte"))
    found = [_draw_bits(arms, cost, teacher_bits=teacher_bits) for cost in _COSTS]
    found += [draw_divergence(arms), draw_training(arms)]
    return [figure for figure in found if figure is not None]


_COSTS: dict[Cost, tuple[str, str, str]] = {
    "tokens": ("bits-by-tokens", "training tokens", "Held-out bits per byte against training tokens."),
    "seconds": (
        "bits-by-seconds",
        "training seconds",
        "Against training seconds: compilation, evaluation, checkpoints and the scoring of stores left out.",
    ),
    "student_flops": ("bits-by-student-flops", "student FLOPs", "Against FLOPs, the teacher’s share off."),
    "all_flops": ("bits-by-all-flops", "student + teacher FLOPs", "Against FLOPs, the teacher’s share on."),
}


def _draw_bits(arms: Arms, cost: Cost, *, teacher_bits: float | None) -> Drawn | None:
    name, words, caption = _COSTS[cost]
    curves = {arm.name: _without_start(arm.curve(cost)) for arm in chosen(arms)}
    if not any(map(len, curves.values())):
        return None

    def draw(axes: Axes) -> None:
        _draw_lines(axes, curves, arms)
        if teacher_bits is not None:
            _teacher_line(axes, teacher_bits)
        mark_stages(axes, chosen(arms), cost)
        axes.set_ylabel("held-out bits per byte")
        _cost_axis(axes, cost, words)

    return drawn(name, caption + _band_note(curves.values()), on_axes(draw))


def _band_note(curves: Iterable[Band]) -> str:
    return " Means; bands reach from the lowest to the highest seed." if any(curve.seeds > 1 for curve in curves) else ""


def _without_start(curve: Band) -> Band:
    # An untrained student's bits would squash everything that follows.
    trained = curve.costs > 0
    return Band(curve.costs[trained], curve.values[trained], curve.low[trained], curve.high[trained], curve.seeds)


def _draw_lines(axes: Axes, curves: Mapping[str, Band], arms: Arms) -> None:
    """The curves, and a legend in the order in which they end, each with its last value."""
    styles = looks(arms)
    ends: list[tuple[float, Any, str]] = []
    for name, curve in curves.items():
        look = styles[name]
        if not len(curve):
            continue
        if curve.seeds > 1:
            axes.fill_between(curve.costs, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)
        (line,) = axes.plot(
            curve.costs, curve.values, look.line, color=look.colour, marker=look.marker, linewidth=look.width, markersize=5
        )
        ends.append((float(curve.values[-1]), line, label_of(arms.named(name), arms)))
    ends.sort(key=lambda end: -end[0])
    _legend(axes, [line for _, line, _ in ends], [f"{value:.3f}  {text}" for value, _, text in ends])


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


def label(text: str) -> str:
    """A name for a figure: short, on one line, and its dollar signs are not mathematics."""
    return formats.short(formats.visible(text).replace("\n", " ")).replace("$", r"\$")


def label_of(arm: Arm, arms: Arms) -> str:
    """An arm's name for a figure, with its part and its state."""
    role = ", control" if arms.is_control(arm) else ""
    state = "" if arm.finished else f", {arm.status}"
    return f"{label(arm.name)}{role}{state}"


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


def _cost_axis(axes: Axes, cost: Cost, words: str) -> None:
    axes.set_xlabel(words)
    axes.set_xlim(left=0)
    if cost == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif cost != "seconds":
        powers = ScalarFormatter(useMathText=True)
        powers.set_powerlimits((0, 0))
        axes.xaxis.set_major_formatter(powers)


def draw_divergence(arms: Arms) -> Drawn | None:
    """KL(teacher || student) on held-out documents against tokens; None where no run measured it on the way."""
    curves = {arm.name: _without_start(arm.curve("tokens", "kl_to_teacher_nats")) for arm in chosen(arms)}
    if not any(len(curve) > 1 for curve in curves.values()):  # a single measurement at the end is in the table
        return None

    def draw(axes: Axes) -> None:
        _draw_lines(axes, curves, arms)
        axes.set_ylabel("held-out KL(teacher ‖ student), nats/token")
        _cost_axis(axes, "tokens", "training tokens")

    caption = "How far the student’s predictions are from the teacher’s, against training tokens."
    return drawn("kl-by-tokens", caption + _band_note(curves.values()), on_axes(draw))


def draw_training(arms: Arms) -> Drawn | None:
    """Each arm's own training loss, smoothed; None where nothing was logged."""
    curves = {arm.name: arm.curve("tokens", "loss_nats", event="train") for arm in chosen(arms)}
    if not any(map(len, curves.values())):
        return None

    def draw(axes: Axes) -> None:
        styles = looks(arms)
        logged = {name: curve for name, curve in curves.items() if len(curve)}
        for name, curve in logged.items():
            look, window = styles[name], max(1, len(curve) // 25)
            smooth = moving_mean(curve.values, window=window)
            axes.plot(curve.costs, smooth, look.line, color=look.colour, linewidth=look.width * 0.8)
        _legend(axes, axes.get_lines(), [label_of(arms.named(name), arms) for name in logged])
        mark_stages(axes, chosen(arms), "tokens")
        axes.set_ylabel("training loss, nats/token")
        _cost_axis(axes, "tokens", "training tokens")

    caption = "Training loss, a moving mean. Each arm’s own objective: the heights of different objectives do not compare."
    return drawn("training-loss", caption, on_axes(draw))


def on_axes(draw: Callable[[Axes], None]) -> drawing.Draw:
    """A figure of one pair of axes."""
    return lambda figure: draw(figure.add_subplot())


def drawn(name: str, caption: str, draw: drawing.Draw, *, size: tuple[float, float] = (6.0, 4.2), wide: bool = False) -> Drawn:
    """A figure in both formats. Names may hold letters that the font lacks: they are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        png, svg = drawing.render_both(draw, size=size)
    return Drawn(name, caption, png, svg, wide)
