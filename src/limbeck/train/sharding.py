"""Shards (FSDP2): every process holds a part of each parameter, of its gradient and of the optimizer's moments.

A block is gathered while it computes, forward and backward. What stands outside blocks (embeddings, head, norms) is gathered
from its forward pass to the end of the backward pass, since the objective reads `head_VD` between the two. Parameters are cut
along their first dimension, so that rows and experts stay whole. Gradients are added over processes and not averaged: losses
are already divided by the tokens of the whole batch.

Outside forward and backward parameters are sharded `DTensor`s. What a single process must have in full is `gathered`.
Source: arXiv 2304.11277 and `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.export import register_dataclass

from limbeck.students.decoder import BlockOutput, Decoder, empty_decoder
from limbeck.students.model import Reading, StudentModel
from limbeck.students.pretrained import PretrainedStudent
from limbeck.train.parallel import Processes

_SKELETONS: WeakKeyDictionary[PretrainedStudent, PretrainedStudent] = WeakKeyDictionary()
"""Of each sharded one a copy on the meta device, taken while it was whole: shards cannot be copied."""


def shard(
    student: Decoder | PretrainedStudent, projection: nn.Linear | None, *, processes: Processes, device: torch.device
) -> None:
    """Keep this process's shards alone, on `device`. All processes hold the same weights before."""
    _let_hooks_see_outputs()
    if isinstance(student, PretrainedStudent):
        empty = {name: nn.Parameter(each.to("meta"), each.requires_grad) for name, each in student.named_parameters()}
        _SKELETONS[student] = student.with_parameters(empty)
    if processes.group is None:
        mesh = init_device_mesh(device.type, (processes.world_size,))
    else:
        mesh = DeviceMesh.from_group(processes.group, device.type)
    for block in student.blocks():
        _shard(block, mesh, gather_again=True)
    _shard(student, mesh, gather_again=False)
    if projection is not None:
        _shard(projection, mesh, gather_again=False)


def _shard(module: nn.Module, mesh: DeviceMesh, *, gather_again: bool) -> None:
    """`gather_again`: weights are freed after the forward pass, and gathered again for the backward pass."""
    sharded = fully_shard(module, mesh=mesh, reshard_after_forward=gather_again)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)  # a factor of one as a plain sum, which every backend has


@cache
def _let_hooks_see_outputs() -> None:
    """Torch before 2.13 gathers weights for the backward pass by hooks on tensors that it finds in registered classes alone."""
    for output in (Reading, BlockOutput):
        register_dataclass(output)


@contextmanager
def head_gathered(student: StudentModel) -> Iterator[None]:
    """For forward passes without backward: inside, what stands outside blocks is in full; afterwards all is sharded again."""
    if not isinstance(student, FSDPModule):
        yield
        return
    student.unshard()
    try:
        yield
    finally:
        student.reshard()


def gathered(student: StudentModel, processes: Processes) -> StudentModel | None:
    """A whole copy on the CPU of the first process, None in others; the student itself where it is whole. All must call it."""
    if not isinstance(student, FSDPModule):
        return student
    parameters = dict(student.named_parameters())  # a state dict is without those that an adapter stands beside
    weights: dict[str, Tensor] = {}
    for name, tensor in (parameters | student.state_dict()).items():
        whole = in_full(tensor)
        if processes.is_first:
            weights[name] = whole.detach().cpu()
    if not processes.is_first:
        return None
    if isinstance(student, PretrainedStudent):
        whole_ones = {name: nn.Parameter(weights[name], each.requires_grad) for name, each in parameters.items()}
        return _SKELETONS[student].with_parameters(whole_ones)
    assert isinstance(student, Decoder), "no other is sharded"
    copy = empty_decoder(student.layout, vocab_size=len(student.head_VD))
    copy.load_state_dict(weights, assign=True)
    return copy


def in_full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, in all processes; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
