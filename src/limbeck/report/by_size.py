"""How students of several sizes fare, one panel a measure: bits per byte, stop tokens where texts end, loops, answers.

A line for every base of arms (an arm without its values on axes), so that a study that prunes one axis after the other shows
which of them breaks what.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck import drawing
from limbeck.drawing import COLOURS, MARKERS
from limbeck.eval_results import EvalResult
from limbeck.report.arms import Arm, Arms, finite
from limbeck.report.blocks import Drawn
from limbeck.report.figures import label

_LEAST_SIZES = 3
_DIFFERENT = 1.02
"""Sizes closer than this are one."""
_WIDE = 10.0
"""Values that span more than this are drawn on a logarithmic axis."""
_MOST_LINES = 12
_HEALTH: Mapping[str, str] = {
    "end_rank_median_chats": "rank of the stop token at chats’ ends",
    "end_rank_median": "rank of the stop token at texts’ ends",
    "end_log_prob_nats_chats": "log-prob of stopping at chats’ ends, nats",
    "false_stop_mass_chats": "probability of stopping elsewhere in chats",
    "share_stopped": "samples that stop by themselves",
    "share_empty": "samples that stop before they begin",
    "loop_share": "samples that end in a loop",
    "seq_rep_4": "seq-rep-4",
    "accuracy_flexible": "problems solved",
    "answer_nats": "surprise at right answers, nats",
}
"""Metrics that are drawn where they were measured, in this order."""


@dataclass(frozen=True)
class _Measure:
    title: str
    of_arm: Callable[[Arm], float | None]
    of_teacher: float | None


def draw_by_size(arms: Arms, teachers: Mapping[str, Mapping[str, EvalResult]]) -> Drawn | None:
    """The figure; None where fewer than three sizes have finished or nothing but bits per byte was measured."""
    shown = [arm for arm in arms if arm.bits is not None and _parameters(arm) is not None]
    measures = [measure for measure in _measures(shown, teachers) if sum(measure.of_arm(arm) is not None for arm in shown) > 2]
    if _sizes(shown) < _LEAST_SIZES or len(measures) < 2:
        return None
    lines: dict[str, list[Arm]] = {}
    for arm in sorted(shown, key=lambda arm: _parameters(arm) or 0.0):
        lines.setdefault(arm.members[0].cell.base or arm.name, []).append(arm)
    kept = dict(list(lines.items())[:_MOST_LINES])
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, measure in zip(grid, measures, strict=False):
            _panel(axes, measure, kept)
        for axes in grid[len(measures) :]:
            axes.set_axis_off()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8.5)

    png, svg = drawing.render_both(draw, size=(3.6 * columns + 0.4, 2.7 * rows + 0.8))
    left_out = f" {len(lines) - len(kept)} more lines are in the tables." if len(lines) > len(kept) else ""
    caption = f"What is measured against the student’s parameters, means over seeds.{left_out}"
    return Drawn("by-size", caption, png, svg, wide=True)


def _measures(arms: Sequence[Arm], teachers: Mapping[str, Mapping[str, EvalResult]]) -> list[_Measure]:
    found = [_Measure("held-out bits per byte", lambda arm: arm.bits.mean if arm.bits is not None else None, None)]
    names = dict.fromkeys(name for arm in arms for member in arm.members for name in member.cell.evals)
    for key, title in _HEALTH.items():
        for name in names:
            values = [_teacher_value(evals, name, key) for evals in teachers.values()]
            known = [value for value in values if value is not None]
            of_teacher = known[0] if len(known) == 1 else None
            suffix = f" ({name})" if len(names) > 1 and sum(_has(arms, other, key) for other in names) > 1 else ""
            if _has(arms, name, key):
                found.append(_Measure(title + suffix, _reader(name, key), of_teacher))
    return found


def _reader(name: str, key: str) -> Callable[[Arm], float | None]:
    def of_arm(arm: Arm) -> float | None:
        results = [member.cell.evals[name] for member in arm.finished if name in member.cell.evals]
        values = [found.metrics[key].value for found in results if key in found.metrics]
        return sum(values) / len(values) if values else None

    return of_arm


def _has(arms: Sequence[Arm], name: str, key: str) -> bool:
    return any(_reader(name, key)(arm) is not None for arm in arms)


def _teacher_value(evals: Mapping[str, EvalResult], name: str, key: str) -> float | None:
    return evals[name].metrics[key].value if name in evals and key in evals[name].metrics else None


def _parameters(arm: Arm) -> float | None:
    return finite((arm.first.summary.get("parameters") or {}).get("total"))


def _sizes(arms: Sequence[Arm]) -> int:
    """How many different ones."""
    sizes = sorted(size for arm in arms if (size := _parameters(arm)))
    return sum(place == 0 or size > _DIFFERENT * sizes[place - 1] for place, size in enumerate(sizes))


def _panel(axes: Axes, measure: _Measure, lines: Mapping[str, Sequence[Arm]]) -> None:
    drawn: list[float] = []
    for number, (name, inside) in enumerate(lines.items()):
        points = [(_parameters(arm), value) for arm in inside if (value := measure.of_arm(arm)) is not None]
        # Beyond the colours, each comes again with another marker.
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        style = "-" if number < len(COLOURS) else ":"
        x, y = [(at or 0.0) / 1e6 for at, _ in points], [value for _, value in points]
        axes.plot(x, y, style, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label(name))
        drawn += y
    if measure.of_teacher is not None:
        axes.axhline(measure.of_teacher, color="#000000", linewidth=1.2, linestyle="--")
        drawn.append(measure.of_teacher)
    if drawn and min(drawn) > 0 and max(drawn) / min(drawn) > _WIDE:
        axes.set_yscale("log")
    axes.set_title(measure.title, fontsize=9.5, fontweight="normal")
    axes.set_xlabel("parameters, millions", fontsize=9)
    axes.tick_params(labelsize=8.5)
