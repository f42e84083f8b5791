"""The figure of a pruned model: its layers from first to last, what went greyed, and what stayed of each.

On the left each layer's influence. Beside it a panel for every axis: a cell for each head or expert where there are few, so
that it shows which ones stayed, and a bar of the share that stayed where there are many, as of neurons. Below a strip of the
hidden channels, which all layers share.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from limbeck.drawing import COLOURS, Draw
from limbeck.report.pruning import TITLES, PrunedLayer, PruningView

CELLS = 64
"""Up to so many of an axis are drawn one by one."""
STAYS, GOES, FULL = COLOURS[0], "#bbbbbb", COLOURS[1]
_GONE_CELL = "#f0f0f0"


def pruning_figure(view: PruningView) -> tuple[Draw, tuple[float, float]]:
    """What `limbeck.drawing` draws, and its size in inches."""
    panels = len(view.axes) + 1
    height = 1.9 + 0.19 * len(view.layers)

    def draw(figure: Figure) -> None:
        upper = 0.19 * len(view.layers) + 0.6
        parts = figure.subfigures(2, 1, height_ratios=(upper, height - upper), squeeze=False)
        axes = parts[0, 0].subplots(1, panels, sharey=True, squeeze=False)[0]
        _influence(axes[0], view)
        for panel, axis in zip(axes[1:], view.axes, strict=True):
            _axis(panel, view.layers, axis)
        _hidden(parts[1, 0].subplots(), view)
        figure.suptitle(
            f"{view.parent}: {view.before['parameters'] / 1e6:,.4g}M parameters, {view.after['parameters'] / 1e6:,.4g}M stay",
            fontsize=11.5,
            fontweight="bold",
        )

    return draw, (2.2 + 2.1 * panels, height)


def _influence(axes: Axes, view: PruningView) -> None:
    places = [layer.place for layer in view.layers]
    lengths = [layer.influence or 0.0 for layer in view.layers]
    axes.barh(places, lengths, color=[STAYS if layer.stays else GOES for layer in view.layers], height=0.8)
    axes.set(title="Influence of layers", xlabel="1 - mean cosine", ylim=(len(places) - 0.4, -0.6))
    labels = [f"{layer.place} {layer.kind}" if view.interleaved else str(layer.place) for layer in view.layers]
    axes.set_yticks(places, labels, fontsize=7.5)
    for tick, layer in zip(axes.get_yticklabels(), view.layers, strict=True):
        tick.set_color(GOES if not layer.stays else FULL if view.interleaved and layer.kind == "full" else "black")
    axes.grid(visible=False, axis="y")


def _axis(axes: Axes, layers: Sequence[PrunedLayer], axis: str) -> None:
    count = max(len(layer.kept.get(axis, ())) for layer in layers)
    title = TITLES.get(axis, axis)
    axes.set_title(title[0].upper() + title[1:])
    if count <= CELLS:
        _cells(axes, layers, axis, count=count)
        axes.set_xlabel(f"of {count}")
        return
    shares = [layer.share(axis) for layer in layers]
    axes.barh([layer.place for layer in layers], [share or 0.0 for share in shares], color=STAYS, height=0.8)
    axes.set(xlim=(0, 1), xlabel=f"share that stays of {count:,}")
    axes.grid(visible=False, axis="y")


def _cells(axes: Axes, layers: Sequence[PrunedLayer], axis: str, *, count: int) -> None:
    """0 where a layer goes or lacks the axis, 1 what went of one that stays, 2 what stayed."""
    cell_LN = np.zeros((len(layers), count))
    for row, layer in enumerate(layers):
        if axis in layer.kept:
            cell_LN[row] = 1 + np.asarray(layer.kept[axis])
    colours = ListedColormap(["white", _GONE_CELL, STAYS])
    axes.pcolormesh(
        np.arange(count + 1) - 0.5,
        np.arange(len(layers) + 1) - 0.5,
        cell_LN,
        cmap=colours,
        vmin=0,
        vmax=2,
        edgecolors="white",
        linewidth=0.8,
    )
    axes.set_xlim(-0.5, count - 0.5)
    axes.grid(visible=False)


def _hidden(axes: Axes, view: PruningView) -> None:
    stays_1D = np.asarray(view.hidden, dtype=float)[None]
    edges = np.arange(stays_1D.shape[1] + 1)
    axes.pcolormesh(edges, [0, 1], stays_1D, cmap=ListedColormap([_GONE_CELL, STAYS]), vmin=0, vmax=1)
    axes.set(title=f"Hidden channels: {int(stays_1D.sum()):,} of {stays_1D.size:,} stay", xlabel="channel", yticks=[])
    axes.grid(visible=False)
