"""Training a recipe from start to end: set up, run the loop, finish."""

import gc
from dataclasses import asdict
from pathlib import Path

from limbeck.progress import say
from limbeck.runs import RunWriter, is_finished, require_recipe
from limbeck.spec.recipe import Recipe
from limbeck.train.loop import run
from limbeck.train.measure import finish
from limbeck.train.parallel import leave
from limbeck.train.preflight import preflight
from limbeck.train.setup import open_setup


def train(recipe: Recipe) -> Path:
    """Train a recipe to the end of its budget, continuing where an earlier call was stopped. Returns the run folder."""
    path = Path(recipe.run_path)
    if (path / "recipe.yaml").is_file():
        require_recipe(path, recipe)
    if is_finished(path):
        return path
    setup = open_setup(recipe)
    checked = preflight(setup)  # before the run has a folder: what is mended here may change the recipe
    writer = RunWriter(path, recipe=setup.recipe, device=str(setup.device)) if setup.processes.is_first else None
    if writer is not None:
        say(f"{recipe.name}: {checked.line()}")
        writer.preflight(**asdict(checked))
    costs = run(setup, path=path, writer=writer)
    finish(setup, costs, path=path, writer=writer)
    processes = setup.processes
    del setup  # shards hold on to the group of processes, whose threads would outlive it
    gc.collect()
    leave(processes)
    return path
