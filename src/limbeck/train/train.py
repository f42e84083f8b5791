"""Training a recipe from start to end: set up, run the loop, finish."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.errors import SpecError
from limbeck.progress import say
from limbeck.runs import RunWriter, is_finished, read_preflight, require_recipe
from limbeck.spec.recipe import Recipe
from limbeck.train.loop import run
from limbeck.train.measure import finish
from limbeck.train.parallel import leave
from limbeck.train.pool import AskedRows, teaches
from limbeck.train.preflight import preflight
from limbeck.train.serving import serve
from limbeck.train.setup import Setup, open_setup
from limbeck.train.sinks import check_sinks, open_sinks


def train(recipe: Recipe) -> Path:
    """Train a recipe to the end of its budget, continuing where an earlier call was stopped. Returns the run folder."""
    path = Path(recipe.run_path)
    if (path / "recipe.yaml").is_file():
        require_recipe(path, recipe)
    if is_finished(path):
        return path
    if teaches(recipe):
        serve(recipe)
        return path
    check_sinks(recipe.sinks)
    setup = open_setup(recipe)
    with _teachers_told(setup):
        _train(setup, path)
    processes = setup.processes
    del setup  # shards hold on to the group of processes, whose threads would outlive it
    gc.collect()
    leave(processes)
    return path


def _train(setup: Setup, path: Path) -> None:
    """From what is open to the summary."""
    recipe = setup.recipe
    require_same_start(path, setup)
    checked = preflight(setup)  # before the run has a folder: what is mended here may change the recipe
    writer = RunWriter(path, recipe=setup.recipe, device=str(setup.device)) if setup.processes.is_first else None
    if writer is not None:
        say(f"{recipe.name}: {checked.line()}")
        began: dict[str, Any] = {} if setup.start is None else {"start": asdict(setup.start)}
        if setup.pruned is not None:
            began["pruned"] = setup.pruned.key
        writer.preflight(**asdict(checked), **began)
    with _told(writer, setup.recipe):
        costs = run(setup, path=path, writer=writer)
        finish(setup, costs, path=path, writer=writer)


@contextmanager
def _teachers_told(setup: Setup) -> Iterator[None]:
    """Inside, teachers in other processes are at hand; afterwards they end too, well or not."""
    asked = setup.loader.source
    if not isinstance(asked, AskedRows):
        yield
        return
    with asked.told_where_it_fails():
        yield
    asked.leave(well=True)


@contextmanager
def _told(writer: RunWriter | None, recipe: Recipe) -> Iterator[None]:
    """Inside, the recipe's sinks hear of every record."""
    if writer is None or not recipe.sinks:
        yield
        return
    with open_sinks(recipe, writer.path, recorded=writer.recorded()) as writer.listener:
        yield


def require_same_start(path: Path, setup: Setup) -> None:
    """`SpecError` where the run at `path` began with other weights than its recipe gives now."""
    found = read_preflight(path)
    began, pruned = found.get("start"), found.get("pruned")
    if pruned is not None and setup.pruned is not None and pruned != setup.pruned.key:
        raise SpecError(
            f"student.prune gives another model than {path} began as: put the old weights and calibration texts back (the "
            "device and its precision count too), or train under another name"
        )
    if began is not None and setup.start is not None and began["digest"] != setup.start.digest:
        raise SpecError(
            f"initial_weights={setup.start.weights} has changed since {path} began with it: put the old weights back, or train "
            "under another name"
        )
