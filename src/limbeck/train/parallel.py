"""Data parallelism: every process reads its share of each batch and adds its gradients to the others'.

Every process holds the student, or shards of it (`limbeck.train.sharding`). One process is the same code with world size 1.
Start several with `torchrun`. Where the last of them hold teachers alone (`limbeck.train.pool`), the others are a world of
their own: gradients, sums, checkpoints and barriers are among them.
"""

import math
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PATIENCE = timedelta(hours=12)
"""How long the others wait while the first process converts, tokenises, or lets the teacher read the held-out documents."""


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int
    world_size: int
    """Of those that train: the first so many of all."""
    group: dist.ProcessGroup | None = None
    """Those that train; None: all."""
    teachers: int = 0
    """Processes behind them that hold teachers alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def start_processes(device: torch.device, *, teachers: int = 0) -> Processes:
    """Join the others when `torchrun` started this process (gloo on CPU, nccl on CUDA), the last `teachers` of which teach."""
    if "RANK" not in os.environ or number_of_processes() == 1:
        return Processes(0, 1)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            _backend(device, teachers=teachers),
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    if not teachers:
        return Processes(dist.get_rank(), dist.get_world_size())
    students = dist.get_world_size() - teachers
    return Processes(dist.get_rank(), students, dist.new_group(range(students), timeout=PATIENCE), teachers)


def number_of_processes() -> int:
    """That `torchrun` started; 1 where it did not start this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _backend(device: torch.device, *, teachers: int) -> str:
    """Questions to teachers are tensors on the CPU, which nccl does not send."""
    if device.type != "cuda":
        return "gloo"
    return "cpu:gloo,cuda:nccl" if teachers else "nccl"


def sum_gradients(model: nn.Module, processes: Processes) -> None:
    """Add up the gradients of all processes. Losses are already divided by the tokens of the whole batch, so sums are means.

    Those of shards are sums already.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if processes.world_size == 1 or any(isinstance(gradient, DTensor) for gradient in gradients):
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=processes.group)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def clip_gradients(model: nn.Module, *, norm: float | None) -> float:
    """Scale all gradients down to `norm` together, where there is one. Returns the norm that they had, over all shards."""
    parameters = list(model.parameters())
    found = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    total = found.full_tensor() if isinstance(found, DTensor) else found
    torch.nn.utils.clip_grads_with_norm_(parameters, norm if norm is not None else math.inf, total)
    return float(total)


def sum_values(values: Tensor, processes: Processes) -> Tensor:
    """Add up a small tensor over all processes."""
    if processes.world_size > 1:
        dist.all_reduce(values, group=processes.group)
    return values


def from_first(value: float, processes: Processes, device: torch.device) -> float:
    """The first process's value, in all: clocks differ, and all must stop at the same step."""
    if processes.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0, group=processes.group)
    return float(shared.item())


def any_says(asked: bool, processes: Processes, device: torch.device) -> bool:
    """Whether `asked` is true in any process: a signal reaches them at different moments, but all stop at the same step."""
    if processes.world_size == 1:
        return asked
    return bool(sum_values(torch.tensor([int(asked)], device=device), processes).item())


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next(model.parameters()).device


def wait_for_all(processes: Processes) -> None:
    """A barrier of those that train."""
    if processes.world_size > 1:
        dist.barrier(processes.group)


def wait_for_teachers_too(processes: Processes) -> None:
    """A barrier of all that there are."""
    if processes.world_size + processes.teachers > 1:
        dist.barrier()


def leave(processes: Processes) -> None:
    """Wait for all and part, so that none is cut off while another still writes."""
    wait_for_teachers_too(processes)
    if processes.world_size + processes.teachers > 1:
        dist.destroy_process_group()
