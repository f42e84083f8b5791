"""What the runs of `lab/signal-quality.yaml` show, over seeds: bits per byte, KL to the teacher, calibration, gradient angles.

    python lab/signal_quality.py out/signal-quality [--figure lab/signal-quality]

Students are read in windows of the length they were trained at, in float32, and the teacher beside them in the same windows.
An arm minus its control is taken seed by seed; intervals are Student's t over seeds (95 %). The gradient's angle to that of
full distillation (live, dense) is taken over all the student's parameters on four batches of a step each, float32, for the
student before its first step and for the one that full distillation left. Prints a table, and writes a figure if asked to.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from seeds import Values, arms_of, interval, shown
from torch import Tensor

from limbeck.compute import pick_device
from limbeck.data.prepare import prepare_texts
from limbeck.data.tokenizers import load_tokenizer
from limbeck.drawing import COLOURS, Draw, write_figure
from limbeck.evals.quantisation import Comparison, compare
from limbeck.runs import open_run
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.students import hf
from limbeck.train.loop import batch_loss
from limbeck.train.setup import open_setup

CONTROL, FULL = "ce", "dense"
STEPS = 4


def measured(arms: Mapping[str, list[Path]]) -> dict[str, Comparison]:
    """Every run's student beside the teacher, by its run's name; the teacher itself under 'reference'."""
    recipe = open_run(arms[CONTROL][0]).recipe
    assert recipe.teacher is not None
    window = Context(window=recipe.data.sequence_length, overlap=0)
    teacher = recipe.teacher.model_copy(update={"context": window})
    students = {
        run.name: HuggingFaceTeacher(model=str(run / "student"), dtype="float32", context=window)
        for runs in arms.values()
        for run in runs
    }
    store = prepare_texts(recipe.data.heldout, load_tokenizer(str(arms[CONTROL][0] / "student")), title="held-out")
    table = compare(teacher, students, store=store, ends=frozenset(), device=pick_device("auto"))
    return {row.name: row for row in table.rows}


def gradient(recipe: Recipe, *, weights: Mapping[str, Tensor] | None) -> Tensor:
    """Of all parameters, the mean of a few steps' batches, one long vector."""
    setup = open_setup(recipe.model_copy(update={"precision": "float32"}))
    if weights is not None:
        setup.student.load_state_dict(weights)
    for step in range(STEPS):
        for batch in setup.loader.step(step):
            batch_loss(setup, batch)[0].loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in setup.student.parameters() if parameter.grad is not None])


def angles(arms: Mapping[str, list[Path]]) -> dict[str, tuple[float, float]]:
    """Degrees between each arm's gradient and full distillation's: at the start, and at full distillation's end."""
    last = hf.load(arms[FULL][0] / "student")[0].state_dict()
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for weights in (None, last):
        full = gradient(open_run(arms[FULL][0]).recipe, weights=weights)
        for arm, runs in arms.items():
            other = full if arm == FULL else gradient(open_run(runs[0]).recipe, weights=weights)
            cosine = float(torch.dot(full.double(), other.double()) / (full.double().norm() * other.double().norm()))
            found[arm].append(math.degrees(math.acos(min(1.0, cosine))))
    return {arm: (start, end) for arm, (start, end) in found.items()}


def figure_of(arms: Sequence[str], differences: Values, calibration: Values) -> Draw:
    """Two panels, one line an arm: bits per byte minus the control's, and the calibration error; dots are seeds."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, values, title in zip(
            panels,
            (differences, calibration),
            ("Bits per byte minus the control's", "Calibration error, % of positions"),
            strict=True,
        ):
            for place, arm in enumerate(arms):
                mean, half = interval(values[arm])
                axes.plot([mean - half, mean + half], [place, place], color=COLOURS[0], linewidth=2)
                axes.plot(values[arm], [place] * len(values[arm]), "o", color=COLOURS[0], markersize=4, alpha=0.6)
                axes.plot(mean, place, "s", color=COLOURS[0])
            axes.set(xlabel=title, yticks=range(len(arms)))
            axes.set_yticklabels(arms)
        panels[0].axvline(0, color="black", linewidth=1)
        panels[0].invert_yaxis()
        panels[0].set_title("Quality")
        panels[1].set_title("Calibration")

    return draw


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder that the study was run with")
    parser.add_argument("--figure", type=Path, help="write this name + .svg and .png")
    arguments = parser.parse_args()
    arms = arms_of(arguments.output)
    of_run, turned = measured(arms), angles(arms)
    rows = {arm: [of_run[run.name] for run in runs] for arm, runs in arms.items()}
    bits = {arm: [row.bits_per_byte for row in found] for arm, found in rows.items()}
    differences = {
        arm: [value - control for value, control in zip(found, bits[CONTROL], strict=True)] for arm, found in bits.items()
    }
    calibration = {arm: [100 * row.calibration_error for row in found] for arm, found in rows.items()}
    to_teacher = {arm: [100 * row.calibration_error_to_reference for row in found] for arm, found in rows.items()}
    kl = {arm: [row.kl_nats.value for row in found] for arm, found in rows.items()}
    teacher = of_run["reference"]
    print(f"teacher: {teacher.bits_per_byte:.4f} bits per byte, ECE {100 * teacher.calibration_error:.2f} %\n")
    print("| arm | bits per byte | minus control | KL to teacher, nats | ECE, % | ECE to teacher, % | angle at start, end |")
    print("|---|---|---|---|---|---|---|")
    for arm in sorted(arms, key=lambda name: interval(bits[name])[0]):
        start, end = turned[arm]
        print(
            f"| {arm} | {interval(bits[arm])[0]:.4f} | {shown(differences[arm])} | {shown(kl[arm], digits=3)} | "
            f"{shown(calibration[arm], digits=2)} | {shown(to_teacher[arm], digits=2)} | {start:.1f}°, {end:.1f}° |"
        )
    if arguments.figure is not None:
        order = sorted((arm for arm in arms if arm != CONTROL), key=lambda name: interval(differences[name])[0])
        write_figure(figure_of([*order, CONTROL], differences, calibration), arguments.figure, size=(9.5, 3.8))


if __name__ == "__main__":
    main()
