"""Final bits per byte against the values of an axis: a line for every setting of the other axes, controls in black."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from limbeck.drawing import COLOURS, MARKERS
from limbeck.report import formats
from limbeck.report.arms import Arm, Arms
from limbeck.report.axes import AxisFinding, AxisOf, Value, is_number, key_of, ordered, other_settings
from limbeck.report.blocks import Drawn, Scalar, Table
from limbeck.report.comparisons import nearest_pairs
from limbeck.report.eval_tables import slug
from limbeck.report.figures import drawn, label
from limbeck.report.figures import on_axes as one_pair_of_axes
from limbeck.report.seeds import mean_estimate

_WIDE = 10.0
"""Values that span more than this are drawn on a logarithmic axis."""
_MOST_LINES = 12


def draw_axis(placed: AxisOf, arms: Arms) -> Drawn | None:
    """The figure of one axis; None where nothing on it has finished."""
    axis = placed.axis
    on_axis = [arm for arm in placed.arms if arm.bits is not None]
    if not on_axis:
        return None
    lines: dict[str, list[Arm]] = {}
    for arm in on_axis:
        lines.setdefault(", ".join(map(formats.pairs, other_settings(arm, axis).values())), []).append(arm)
    others = ", ".join(other_settings(on_axis[0], axis))
    values = ordered([arm.settings[axis] for arm in on_axis])
    shown = dict(list(lines.items())[:_MOST_LINES])

    def draw(axes: Axes) -> None:
        place = _places(axes, values)
        for number, (name, inside) in enumerate(shown.items()):
            inside = sorted(inside, key=lambda arm: place[key_of(arm.settings[axis])])
            _line(axes, inside, [place[key_of(arm.settings[axis])] for arm in inside], number, text=name)
        _controls(axes, on_axis, arms, [place[key_of(arm.settings[axis])] for arm in on_axis])
        axes.set(xlabel=label(placed.title), ylabel="held-out bits per byte")
        _legend(axes, title=others)

    left_out = f" {len(lines) - len(shown)} more settings are in the table of arms." if len(lines) > len(shown) else ""
    seeds = " Small dots are seeds, bars 95% intervals over them." if any(len(arm.finished) > 1 for arm in on_axis) else ""
    held = " Controls in black." if any(nearest_pairs(arm, arms) for arm in on_axis) else ""
    caption = f"Final bits per byte against {placed.title}.{held}{seeds}{left_out}"
    return drawn(f"axis-{slug(placed.title)}", caption, one_pair_of_axes(draw))


def _legend(axes: Axes, *, title: str) -> None:
    """Beside the axes where there are many lines; none where there is one."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=8.5, title=label(title), alignment="left")


def _places(axes: Axes, values: Sequence[Any]) -> Mapping[str, float]:
    """Where each value lies: numbers where they are, others side by side."""
    if not all(map(is_number, values)):
        names = [formats.short(formats.pairs(value), 18) for value in values]
        axes.set_xticks(range(len(values)), [label(name) for name in names], rotation=25 if max(map(len, names)) > 7 else 0)
        return {key_of(value): float(place) for place, value in enumerate(values)}
    if min(values) > 0 and max(values) / min(values) > _WIDE:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    return {key_of(value): float(value) for value in values}


def _line(axes: Axes, arms: Sequence[Arm], places: Sequence[float], number: int, *, text: str) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    means = [arm.bits.mean for arm in arms if arm.bits is not None]
    style = "-" if number < len(COLOURS) else ":"
    axes.plot(places, means, style, color=colour, marker=marker, markersize=6, linewidth=1.6, label=label(text) or None)
    for arm, place in zip(arms, places, strict=True):
        seeds = [member.bits_per_byte for member in arm.finished if member.bits_per_byte is not None]
        if len(seeds) > 1:
            interval = mean_estimate(seeds)
            axes.errorbar(place, interval.value, yerr=interval.half_width, color=colour, linewidth=1.0, alpha=0.6)
            axes.plot([place] * len(seeds), seeds, ".", color=colour, markersize=4, alpha=0.7)


def _controls(axes: Axes, on_axis: Sequence[Arm], arms: Arms, places: Sequence[float]) -> None:
    """A horizontal line for every control that all share; a dash at its place for one of some."""
    held: dict[str, list[float]] = {}
    for arm, place in zip(on_axis, places, strict=True):
        for name in {other.cell.arm for _, other in nearest_pairs(arm, arms)}:
            held.setdefault(name, []).append(place)
    drawn_label = False
    for name, where in held.items():
        control = arms.named(name)
        if control.bits is None or control in on_axis:
            continue
        if len(held) == 1:
            axes.axhline(control.bits.mean, color="#000000", linewidth=1.6, linestyle="--", label=f"control: {label(name)}")
        else:
            text = None if drawn_label else "control of that value"
            axes.plot(
                sorted(set(where)), [control.bits.mean] * len(set(where)), "_k", markersize=16, markeredgewidth=2, label=text
            )
            drawn_label = True


def axis_table(finding: AxisFinding) -> Table:
    """Every value of an axis, and its difference to the best."""
    headers = (finding.title, "bits per byte", "minus the best [95%]")
    rows = tuple(
        (
            formats.pairs(value.value),
            formats.spread(value.bits),
            formats.interval(value.minus_best, sign=True) if not best else "best",
        )
        for place, value in enumerate(finding.values)
        for best in (place == finding.best,)
    )
    marks = {finding.best: "control"}
    records = tuple(_record(finding, value) for value in finding.values)
    return Table(headers, rows, marks=marks, name=f"axis-{slug(finding.title)}", records=records)


def setting_table(placed: AxisOf, apart: Sequence[tuple[AxisOf, AxisFinding]]) -> Table:
    """The best value of an axis at every setting of the others, what the next costs, and the shape there."""
    headers = ("at", f"best {placed.axis}", "bits per byte", "next", "minus the best [95%]", "shape")
    rows = tuple(
        (
            part.base,
            formats.pairs(best.value),
            formats.spread(best.bits),
            formats.pairs(second.value),
            formats.interval(second.minus_best, sign=True),
            finding.shape,
        )
        for part, finding in apart
        for best, second in ((finding.values[finding.best], finding.values[finding.second]),)
    )
    title = f"{placed.title} at every setting of the other axes"
    return Table(headers, rows, frozenset({0, 5}), name=f"axis-{slug(placed.title)}-apart", title=title, shown="folded")


def _record(finding: AxisFinding, value: Value) -> dict[str, Scalar]:
    gap = value.minus_best
    return {
        "axis": finding.title,
        "value": value.value if is_number(value.value) else formats.pairs(value.value),
        "bits_per_byte": value.bits.mean,
        "bits_per_byte_sd": value.bits.sd,
        "seeds": finding.seeds,
        "settings": finding.settings,
        "minus_best": gap.value if gap is not None else None,
        "minus_best_low": gap.low if gap is not None else None,
        "minus_best_high": gap.high if gap is not None else None,
        "over": finding.over,
    }
