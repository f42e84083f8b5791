"""What a killed run resumes from: student, optimizer, costs and place in the curriculum, in a file that is replaced as a whole.

Batches, schedules and teachers' draws are pure functions of the step, so nothing else is needed to continue bit for bit. Read
with `weights_only=True`: a checkpoint cannot run code.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.optim.averaging import WeightAverage
from limbeck.runs import Costs
from limbeck.train.course import Place


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    costs: Costs,
    dtype: torch.dtype,
    place: Place,
) -> None:
    """Write the checkpoint beside its place, then put it there."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "costs": asdict(costs),
        "dtype": str(dtype),
        "place": asdict(place),
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        temporary.unlink(missing_ok=True)
        raise LimbeckError(
            f"{path} cannot be written ({error}): free some space and start again, the last checkpoint is kept"
        ) from error


def place_in(path: Path) -> tuple[Place, str]:
    """Where the run stood, and in which precision it computed; tensors are not read."""
    with _one_clear_error(path):
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return Place.read(state.get("place")), state["dtype"].removeprefix("torch.")


def load_checkpoint(
    path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, dtype: torch.dtype
) -> Costs:
    """Bring student, optimizer and average to where the checkpoint left them, and return the costs until there."""
    with _one_clear_error(path):
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        costs, computed_in = Costs(**state["costs"]), state["dtype"]
    require_dtype(path, computed_in, dtype)
    return costs


@contextmanager
def _one_clear_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        found = type(error).__name__  # torch's own words run over many lines and advise to trust the file
        raise LimbeckError(f"{path} is damaged or of another student ({found}): remove it to start the run again") from error


def require_dtype(path: Path, computed_in: str, dtype: torch.dtype) -> None:
    """`LimbeckError` where a checkpoint's run computed in another precision than this one would."""
    if computed_in != str(dtype):
        precision = computed_in.removeprefix("torch.")
        raise LimbeckError(f"{path} was computed in {precision}, this run would use {dtype}: add precision={precision}")
