"""What the runs of `lab/students.yaml` show, over seeds: bits per byte beside the base student's, and speed.

    python lab/students.py out/students out/students-seconds [--figure lab/students]

Each folder is one study: equal tokens, or equal seconds. An arm minus `base` is taken seed by seed; intervals are Student's t
over seeds (95 %). Prints a table for each folder, and writes a figure with a panel for each if asked to.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from seeds import Values, arms_of, interval, shown

from limbeck.drawing import COLOURS, Draw, write_figure
from limbeck.runs import open_run

CONTROL = "base"


def summaries(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Arm -> the summaries of its runs, in the order of their seeds."""
    return {arm: [open_run(run).summary for run in runs] for arm, runs in arms_of(output).items()}


def differences_of(arms: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Bits per byte minus the base student's of the same seed."""
    base = [run["bits_per_byte"] for run in arms[CONTROL]]
    return {
        arm: [run["bits_per_byte"] - its for run, its in zip(runs, base, strict=True)]
        for arm, runs in arms.items()
        if arm != CONTROL
    }


def table(arms: dict[str, list[dict[str, Any]]], differences: Values) -> None:
    """Print it, the best arm first."""
    print("| arm | parameters | tokens | seconds | bits per byte | minus base |\n|---|---|---|---|---|---|")
    for arm in sorted(arms, key=lambda name: interval([run["bits_per_byte"] for run in arms[name]])[0]):
        runs = arms[arm]
        tokens, seconds = (interval([run[key] for run in runs])[0] for key in ("tokens", "seconds"))
        difference = shown(differences[arm]) if arm != CONTROL else ""
        bits = interval([run["bits_per_byte"] for run in runs])[0]
        print(f"| {arm} | {runs[0]['parameters']['total']:,} | {tokens:,.0f} | {seconds:.0f} | {bits:.4f} | {difference} |")


def figure_of(panels: dict[str, dict[str, list[float]]], order: Sequence[str]) -> Draw:
    """A panel for each study, one line an arm: bits per byte minus the base student's; dots are seeds."""

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, differences) in zip(all_axes, panels.items(), strict=True):
            for place, arm in enumerate(order):
                if arm not in differences:
                    continue
                mean, half = interval(differences[arm])
                axes.plot([mean - half, mean + half], [place, place], color=COLOURS[0], linewidth=2)
                axes.plot(differences[arm], [place] * len(differences[arm]), "o", color=COLOURS[0], markersize=4, alpha=0.6)
                axes.plot(mean, place, "s", color=COLOURS[0])
            axes.axvline(0, color="black", linewidth=1)
            axes.set(xlabel="Bits per byte minus the base student's", title=title, yticks=range(len(order)))
            axes.set_yticklabels(order)
        all_axes[0].invert_yaxis()

    return draw


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, nargs="+", help="the folders that the studies were run with")
    parser.add_argument("--figure", type=Path, help="write this name + .svg and .png")
    arguments = parser.parse_args()
    panels = {}
    for output in arguments.outputs:
        arms = summaries(output)
        title = "Equal seconds" if output.name.endswith("seconds") else "Equal tokens"
        panels[title] = differences_of(arms)
        print(f"\n{title}\n")
        table(arms, panels[title])
    if arguments.figure is not None:
        first = next(iter(panels.values()))
        order = sorted(first, key=lambda name: interval(first[name])[0])
        write_figure(figure_of(panels, order), arguments.figure, size=(4.2 * len(panels) + 1.6, 3.6))


if __name__ == "__main__":
    main()
