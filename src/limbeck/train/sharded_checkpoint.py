"""A checkpoint of which every process writes its own shards, for any number of processes to resume from.

    RUN/checkpoint-STEP/shard-*.safetensors   tensors, by `torch.distributed.checkpoint`, one file for each process
    RUN/checkpoint-STEP/checkpoint.json       the rest: costs, shapes of all tensors, size and CRC-32 of each file

It is written beside its place and appears by a rename when all processes are done; only then the one before it goes. Nothing in
it is pickled. Tensors are read into those of the run, whatever share of each a process holds: another number of processes, or a
student that is not sharded, reads the same checkpoint.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Replicate

from limbeck.errors import LimbeckError, first_line
from limbeck.optim.averaging import WeightAverage
from limbeck.paths import sync, write_atomically
from limbeck.runs import Costs
from limbeck.train.checkpoint import require_dtype
from limbeck.train.course import Place
from limbeck.train.parallel import Processes, any_says, device_of, wait_for_all

MANIFEST = "checkpoint.json"
_READ_AT_ONCE = 2**24


def newest(run: Path) -> Path | None:
    """The sharded checkpoint of the highest step in a run folder, if there is one."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in run.glob("checkpoint-*") if _is_named_by_step(path)}
    return found[max(found)] if found else None


def step_of(checkpoint: Path | None) -> int:
    """By its name; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))


def forget(run: Path, *, but: Path | None = None) -> None:
    """Remove all sharded checkpoints of a run, finished or not, but for one."""
    for path in (*filter(_is_named_by_step, run.glob("checkpoint-*")), _beside(run)):
        if path != but:
            shutil.rmtree(path, ignore_errors=True)


def save_shards(
    run: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    costs: Costs,
    dtype: torch.dtype,
    place: Place,
    processes: Processes,
) -> None:
    """Write this process's shards. All processes call it; where one fails, all raise a `LimbeckError`."""
    tensors = _tensors(model.state_dict(), optimizer.state_dict()["state"], average.state_dict()["average"])
    partial, target = _beside(run), run / f"checkpoint-{costs.step}"
    if processes.is_first:
        shutil.rmtree(partial, ignore_errors=True)
    wait_for_all(processes)
    files, problem = _written(tensors, partial, processes)
    if processes.is_first and problem is None:
        about = {
            "costs": asdict(costs),
            "dtype": str(dtype),
            "place": asdict(place),
            "average": {key: value for key, value in average.state_dict().items() if key != "average"},
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "files": files,
        }
        problem = _published(partial, target, about)
    if any_says(problem is not None, processes, device_of(model)):
        why = problem or "the first process says why"
        raise LimbeckError(f"{target} cannot be written ({why}): free some space and start again, the last checkpoint is kept")
    if processes.is_first:
        forget(run, but=target)


def _written(tensors: dict[str, Tensor], folder: Path, processes: Processes) -> tuple[dict[str, list[int]], str | None]:
    """The fingerprints of all processes' files, and what the first that failed says."""
    files, problem = {}, None
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer, process_group=processes.group)
        files = {path.name: _fingerprint(path) for path in folder.glob(f"shard-{processes.rank + 1:05d}-*.safetensors")}
    except (OSError, CheckpointException) as error:
        problem = _said(error)
    every: list[Any] = [None] * processes.world_size
    dist.all_gather_object(every, (files, problem), group=processes.group)
    problems = [problem for _, problem in every if problem is not None]
    return {name: each for files, _ in every for name, each in files.items()}, problems[0] if problems else None


def _published(partial: Path, place: Path, about: dict[str, Any]) -> str | None:
    """Put a checkpoint that is whole in its place; what went wrong, if anything."""
    try:
        write_atomically(partial / MANIFEST, json.dumps(about))
        os.rename(partial, place)
        sync(place.parent)
    except OSError as error:
        return _said(error)
    return None


def place_in_shards(checkpoint: Path) -> tuple[Place, str]:
    """Where the run stood, and in which precision it computed."""
    with _one_clear_error(checkpoint):
        about = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return Place.read(about.get("place")), about["dtype"].removeprefix("torch.")


def load_shards(
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    dtype: torch.dtype,
    processes: Processes,
) -> Costs:
    """Bring student, optimizer and average, sharded or not, to where the checkpoint left them; returns the costs until there.

    All processes call it. Each one checks a share of the files.
    """
    with _one_clear_error(checkpoint):
        about = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = sorted(about["files"].items())[processes.rank :: processes.world_size]
        changed = [name for name, fingerprint in files if _fingerprint(checkpoint / name) != fingerprint]
        if any_says(bool(changed), processes, device_of(model)):
            raise ValueError(f"{changed[0] if changed else 'a file'} is not what was written")
        tensors = _to_be_filled(about["tensors"], model, optimizer, average)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process alone
            load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), process_group=processes.group)
        average.load_state_dict({**average.state_dict(), **about["average"]})
        costs, computed_in = Costs(**about["costs"]), about["dtype"]
    require_dtype(checkpoint, computed_in, dtype)
    return costs


def load_into_shards(
    path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, dtype: torch.dtype
) -> Costs:
    """The same from the one file of `limbeck.train.checkpoint`, of which every process takes its shards."""
    with _one_clear_error(path):
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        saved = _tensors(state["model"], state["optimizer"]["state"], state["average"]["average"])
        tensors = _to_be_filled({name: list(tensor.shape) for name, tensor in saved.items()}, model, optimizer, average)
        for name, tensor in tensors.items():
            tensor.detach().copy_(_cut_like(tensor, saved[name].to(tensor.device)))
        average.load_state_dict({**state["average"], "average": average.state_dict()["average"]})
        costs, computed_in = Costs(**state["costs"]), state["dtype"]
    require_dtype(path, computed_in, dtype)
    return costs


def _tensors(model: dict[str, Any], optimizer: dict[int, Any], average: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a checkpoint under names of their own."""
    moments = {f"optimizer.{index}.{name}": each for index, state in optimizer.items() for name, each in state.items()}
    weights = {f"model.{name}": each for name, each in model.items()}
    return weights | moments | {f"average.{name}": each for name, each in average.items()}


def _to_be_filled(
    shapes: dict[str, list[int]], model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> dict[str, Tensor]:
    """The run's own tensors, not copies; `ValueError` where they are not those of the checkpoint."""
    _begin_moments(optimizer, {int(name.split(".")[1]) for name in shapes if name.startswith("optimizer.")})
    tensors = _tensors(model.state_dict(), optimizer.state_dict()["state"], average.state_dict()["average"])
    for name in (*shapes, *tensors):
        if name not in tensors or name not in shapes or list(tensors[name].shape) != shapes[name]:
            raise ValueError(f"{name} is not that of this run")
    return tensors


def _begin_moments(optimizer: torch.optim.Optimizer, indices: set[int]) -> None:
    """Let the optimizer make its own state for these parameters, by a step without gradient; weights are loaded afterwards."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index in indices:
        if index < len(parameters):
            parameters[index].grad = torch.zeros_like(parameters[index])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _cut_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """This process's shard of a tensor that every process has, without communication."""
    if not isinstance(tensor, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=tensor.placements)


@contextmanager
def _one_clear_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, UnpicklingError, CheckpointException) as error:
        raise LimbeckError(
            f"{path} is damaged or of another student ({_said(error)}): remove it to start the run again"
        ) from error


def _said(error: BaseException) -> str:
    """One line; of a checkpoint exception, what the first process that failed said."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return first_line(error) or type(error).__name__


def _fingerprint(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_READ_AT_ONCE):
            crc = zlib.crc32(data, crc)
    return [path.stat().st_size, crc]


def _is_named_by_step(path: Path) -> bool:
    return path.name.removeprefix("checkpoint-").isdigit()


def _beside(run: Path) -> Path:
    return run / "checkpoint.tmp"
