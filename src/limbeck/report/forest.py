"""The figure of differences: every arm minus what it is held against, a dot a seed, the mean and its interval, by basis."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.report.arms import Arms
from limbeck.report.blocks import Drawn
from limbeck.report.comparisons import BASES, Comparison, basis_words
from limbeck.report.figures import drawn, label, looks
from limbeck.spec.study import Basis

_ROW, _ROW_OF_TWO_LINES, _TITLE = 0.34, 0.48, 0.41
"""Inches."""


def draw_differences(arms: Arms, found: Sequence[Comparison]) -> Drawn | None:
    """One panel for every basis with a number, on one scale; None where there is none."""
    told = [each for each in found if each.difference is not None]
    panels = [(basis, [each for each in told if each.basis == basis]) for basis in BASES]
    panels = [(basis, inside) for basis, inside in panels if inside]
    if not panels:
        return None
    heights = [_TITLE + len(inside) * (_ROW_OF_TWO_LINES if _several(inside) else _ROW) for _, inside in panels]

    def draw(figure: Figure) -> None:
        places = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for axes, (basis, inside) in zip(places, panels, strict=True):
            _panel(axes, basis, inside, arms)
        figure.supxlabel("difference of held-out bits per byte   (left of zero: better)", fontsize="medium")

    words = {"seeds": "over seeds (Student’s t)", "documents": "over held-out documents (one seed)"}
    over = " and ".join(text for key, text in words.items() if any(each.over == key for each in told)) or "nowhere"
    caption = f"Every arm minus what it is held against (zero). Small dots are seeds; the bars are 95% intervals {over}."
    return drawn("differences", caption, draw, size=(8.0, 0.8 + sum(heights)), wide=True)


def _several(found: Sequence[Comparison]) -> bool:
    """Whether what arms are held against is not the same for all: then their names say it, on a second line."""
    return len({each.against for each in found}) > 1


def _panel(axes: Axes, basis: Basis, found: Sequence[Comparison], arms: Arms) -> None:
    styles = looks(arms)
    axes.axvline(0, color="#000000", linewidth=1.6)
    for row, each in enumerate(reversed(found)):
        colour, value = styles[each.arm.name].colour, each.difference
        assert value is not None, "only comparisons with a number are drawn"
        if value.low is not None and value.high is not None:
            axes.plot([value.low, value.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
        if len(each.by_seed) > 1:
            seeds = [difference for _, difference in each.by_seed]
            axes.plot(seeds, [row + 0.24] * len(seeds), ".", color=colour, markersize=5, alpha=0.75)
        axes.plot([value.value], [row], marker=styles[each.arm.name].marker, color=colour, markersize=7.5)
    names = [label(each.arm.name) + (f"\n− {label(each.against)}" if _several(found) else "") for each in reversed(found)]
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(-0.6, len(found) - 0.3)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    against = "" if _several(found) else f",\nminus “{label(found[0].against)}”"
    axes.set_title(f"At equal {basis_words(basis, arms)}{against}")
