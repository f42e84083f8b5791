"""Where a run continues, and what it leaves to continue from: one file, or shards where the student is sharded.

Either is read by any number of processes, sharded or not. The one that is newly written replaces the other.
"""

from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.optim.averaging import WeightAverage
from limbeck.runs import Costs
from limbeck.train.checkpoint import load_checkpoint, place_in, save_checkpoint
from limbeck.train.course import Place
from limbeck.train.parallel import from_first
from limbeck.train.setup import Setup
from limbeck.train.sharded_checkpoint import (
    forget,
    load_into_shards,
    load_shards,
    newest,
    place_in_shards,
    save_shards,
    step_of,
)

ONE_FILE = "checkpoint.pt"


def resume(setup: Setup, path: Path, *, optimizer: torch.optim.Optimizer, average: WeightAverage) -> Costs:
    """Bring everything to the last checkpoint in the run folder, and return the costs until there; none without one."""
    into: dict[str, Any] = {"model": setup.trained, "optimizer": optimizer, "average": average, "dtype": setup.dtype}
    shards, file, costs = newest(path), path / ONE_FILE, Costs()
    _require_shared(setup, path, step_of(shards))
    if shards is not None:
        costs = load_shards(shards, **into, processes=setup.processes)
    elif file.is_file():
        costs = load_into_shards(file, **into) if setup.sharded else load_checkpoint(file, **into)
    _require_shared(setup, path, costs.step)
    return costs


def _require_shared(setup: Setup, path: Path, step: int) -> None:
    if from_first(step, setup.processes, setup.device) != step:
        raise LimbeckError(f"{path}: processes find different checkpoints; the run folder must be on a disk that all share")


def place_of(path: Path) -> tuple[Place, str | None]:
    """Where the last checkpoint in the run folder stands in the curriculum, and its precision; the start without one."""
    shards, file = newest(path), path / ONE_FILE
    if shards is not None:
        return place_in_shards(shards)
    return place_in(file) if file.is_file() else (Place(), None)


def save(
    setup: Setup, path: Path, *, optimizer: torch.optim.Optimizer, average: WeightAverage, costs: Costs, place: Place
) -> None:
    """All processes call it. The last checkpoint is kept until the new one is in its place."""
    state: dict[str, Any] = {"model": setup.trained, "optimizer": optimizer, "average": average, "dtype": setup.dtype}
    state["place"] = place
    if setup.sharded:
        save_shards(path, **state, costs=costs, processes=setup.processes)
        if setup.processes.is_first:
            (path / ONE_FILE).unlink(missing_ok=True)
    elif setup.processes.is_first:
        save_checkpoint(path / ONE_FILE, **state, costs=costs)
        forget(path)


def forget_checkpoints(path: Path) -> None:
    """At the end of a run."""
    (path / ONE_FILE).unlink(missing_ok=True)
    forget(path)
