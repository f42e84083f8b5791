"""The figure of losses by position: nats per token of every model, and beside it how they differ from the first."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.drawing import COLOURS, MARKERS, Draw
from limbeck.evals.by_position import Bucket, ByPosition
from limbeck.report.statistics import Estimate


def curves(result: ByPosition) -> tuple[Draw, tuple[float, float]]:
    """A curve for each model over positions, with 95 % intervals over documents; the first one is black."""
    names = list(result.models)
    panels = 2 if len(names) > 1 else 1

    def draw(figure: Figure) -> None:
        left, *right = figure.subplots(1, panels, squeeze=False)[0]
        for place, (name, found) in enumerate(result.models.items()):
            _curve(left, found, [bucket.nats for bucket in found], place, label=name)
            if place and right:
                _curve(right[0], found, [bucket.difference or bucket.nats for bucket in found], place, label=name)
        left.set(title="Loss by position", ylabel="nats per token")
        if right:
            right[0].axhline(0, color="black", linewidth=1)
            right[0].set(title=f"Minus {names[0]}", ylabel="nats per token")
        for axes in (left, *right):
            _positions(axes, result, names[0])
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(names))

    return draw, (5.2 * panels, 4.0)


def _curve(axes: Axes, found: tuple[Bucket, ...], estimates: list[Estimate], place: int, *, label: str) -> None:
    """One model; bars are moved apart a little, so that none hides another."""
    colour = "black" if place == 0 else COLOURS[(place - 1) % len(COLOURS)]
    marker = "o" if place == 0 else MARKERS[(place - 1) % len(MARKERS)]
    at = [index + 0.08 * place for index in range(len(found))]
    values = [each.value for each in estimates]
    ends = [[abs((each.value if end is None else end) - each.value) for each, end in pairs] for pairs in _ends(estimates)]
    axes.errorbar(at, values, yerr=ends, color=colour, marker=marker, markersize=5, linewidth=1.4, capsize=2, label=label)


def _ends(estimates: list[Estimate]) -> tuple[list[tuple[Estimate, float | None]], list[tuple[Estimate, float | None]]]:
    return [(each, each.low) for each in estimates], [(each, each.high) for each in estimates]


def _positions(axes: Axes, result: ByPosition, first: str) -> None:
    """Buckets by name, and where the first model's longest context ends."""
    found = max(result.models.values(), key=len)
    axes.set_xticks(range(len(found)), [f"{bucket.first}-{bucket.stop - 1}" for bucket in found], rotation=30, ha="right")
    axes.set_xlabel("position in the document")
    longest, starts = result.longest[first], [bucket.first for bucket in found]
    if longest is not None and starts[-1] >= longest > 0:
        place = next(index for index, start in enumerate(starts) if start >= longest)
        within = math.log2(starts[place] / longest) if place else 0.0
        axes.axvline(place - 0.5 - within, color="#888888", linestyle=":", linewidth=1.2)
        axes.annotate(
            f"{first} was made\nfor {longest}",
            (place - 0.5 - within, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="#666666",
        )
