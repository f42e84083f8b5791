"""`limbeck show PRUNED`: what went of a model and what stayed, layer by layer, in the terminal or as a figure."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.cli.eval_target import is_run
from limbeck.cli.output import emit
from limbeck.progress import is_first_process
from limbeck.report.pruning import AXES, PruningView, pruning_file, pruning_lines, read_pruning
from limbeck.runs import open_run
from limbeck.spec.pretrained_student import HuggingFaceStudent


def pruned_file(target: str) -> Path | None:
    """The `pruning.json` of a folder, or of a run whose student began as a pruned model; None where there is none."""
    found = pruning_file(target)
    if found is not None or not is_run(target):
        return found
    student = open_run(target).recipe.student
    return pruning_file(student.model) if isinstance(student, HuggingFaceStudent) else None


def show_pruned(path: Path, *, figure: Path | None, as_json: bool) -> None:
    """The picture of a `pruning.json`."""
    view = read_pruning(path)
    written: tuple[Path, ...] = ()
    if figure is not None:
        from limbeck.drawing import write_figure
        from limbeck.report.pruning_figure import pruning_figure

        draw, size = pruning_figure(view)
        stem = figure.with_suffix("") if figure.suffix in (".svg", ".png") else figure
        written = write_figure(draw, stem, size=size)
    if as_json:
        emit({**pruned_values(view), "figures": [str(each) for each in written]}, as_json=True, lines=[])
        return
    show_lines(view)
    emit({}, as_json=False, lines=["", f"written: {', '.join(map(str, written))}"] if written else [])


def show_lines(view: PruningView) -> None:
    """A line for each layer, in colours where there is a terminal."""
    if is_first_process():
        console = Console(soft_wrap=True, highlight=False)
        for line in pruning_lines(view):
            console.print(line)


def pruned_values(view: PruningView) -> dict[str, Any]:
    """The same for machines: shares, not places, which are in pruning.json."""
    layers = [
        {
            "layer": layer.place,
            "type": layer.kind,
            "stays": layer.stays,
            "influence": layer.influence,
            "cost": layer.cost,
            "shares": {axis: layer.share(axis) for axis in AXES if axis in layer.kept},
        }
        for layer in view.layers
    ]
    known = {"parent": view.parent, "before": dict(view.before), "after": dict(view.after), "layers": layers}
    return json.loads(json.dumps(known))
