"""What the runs of `lab/mup.yaml` show: held-out bits per byte by width and learning rate, with µP (simple) and without.

python lab/mup.py out/mup [--figure lab/mup]
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from limbeck.drawing import COLOURS, MARKERS, Draw, write_figure
from limbeck.runs import open_run

BASE_WIDTH = 64
Curves = dict[int, dict[float, float]]
"""Width -> learning rate -> bits per byte."""


def curves_of(output: Path) -> dict[str, Curves]:
    """Of both rules; at the base width they are the same."""
    found: dict[str, Curves] = {"mup": {}, "plain": {}}
    for path in sorted((output / "runs").iterdir()):
        run = open_run(path)
        if run.summary is None:
            continue
        rule, width, rate = path.name.split("-", 2)
        for name in ("mup", "plain") if int(width) == BASE_WIDTH else (rule,):
            found[name].setdefault(int(width), {})[float(rate)] = run.summary["bits_per_byte"]
    return {name: dict(sorted(curves.items())) for name, curves in found.items()}


def figure_of(curves: dict[str, Curves]) -> Draw:
    """A panel for each rule, a line for each width."""

    def draw(figure: Figure) -> None:
        titles = {"mup": "µP (simple)", "plain": "One learning rate for all matrices"}
        for axes, (rule, widths) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
            for (width, points), colour, marker in zip(widths.items(), COLOURS, MARKERS, strict=False):
                rates = sorted(points)
                axes.plot(rates, [points[rate] for rate in rates], color=colour, marker=marker, label=f"width {width}")
            axes.set_xscale("log", base=2)
            axes.set(xlabel="Learning rate", title=titles[rule])
            axes.set_xticks(sorted(next(iter(widths.values()))))
            axes.set_xticklabels([f"{rate:g}" for rate in sorted(next(iter(widths.values())))])
            axes.legend()
        figure.axes[0].set_ylabel("Held-out bits per byte")

    return draw


def main() -> None:
    """Print a table for each rule, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder that the study was run with")
    parser.add_argument("--figure", type=Path, help="write this name + .svg and .png")
    arguments = parser.parse_args()
    curves = curves_of(arguments.output)
    for rule, widths in curves.items():
        rates = sorted({rate for points in widths.values() for rate in points})
        print(f"\n{rule}\n\n| width | {' | '.join(f'{rate:g}' for rate in rates)} | best |\n|{'---|' * (len(rates) + 2)}")
        for width, points in widths.items():
            best = min(points, key=lambda rate: points[rate])
            print(f"| {width} | {' | '.join(f'{points[rate]:.4f}' for rate in rates if rate in points)} | {best:g} |")
    if arguments.figure is not None:
        write_figure(figure_of(curves), arguments.figure, size=(9.5, 3.8))


if __name__ == "__main__":
    main()
