"""The figure of latency by shape: milliseconds against depth at equal parameters, for prompts that are read and tokens written.

A line for each length of prompt and each batch: the median with its marker, the 90th percentile dotted above it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from limbeck.drawing import COLOURS, MARKERS, Draw


def depths_figure(shapes: Mapping[int, Mapping[str, Any]]) -> tuple[Draw, tuple[float, float]]:
    """Of the details of latency evaluations by the number of layers."""
    layers = sorted(shapes)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _panel(left, layers, [shapes[each]["prefill"] for each in layers], label="prompt of {tokens} tokens")
        left.set(title="Prefill", ylabel="ms until the first token")
        _panel(right, layers, [shapes[each]["decode"] for each in layers], label="{batch_size} at once")
        right.set(title="Decode", ylabel="ms for a token of each text")

    return draw, (10.4, 4.4)


def _panel(axes: Axes, layers: Sequence[int], timings: Sequence[Sequence[Mapping[str, Any]]], *, label: str) -> None:
    """`timings` has for every depth the same inputs in the same order."""
    for place, of_depths in enumerate(zip(*timings, strict=True)):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        medians, slow = ([each[key] for each in of_depths] for key in ("median_ms", "p90_ms"))
        axes.plot(layers, medians, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label.format(**of_depths[0]))
        axes.plot(layers, slow, color=colour, linestyle=":", linewidth=1.2)
    axes.plot([], [], color="black", linestyle=":", linewidth=1.2, label="90th percentile")
    axes.set(xscale="log", ylim=(0, None), xlabel="layers, at equal parameters")
    axes.set_xticks(layers, [str(each) for each in layers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
