"""Weights rounded by rows, and training with rounded weights (late quantisation-aware training).

`round_rows` gives integers and scales; `limbeck.students.artifact` stores those same numbers, so that without a search for
clips a student reads while `quantising` exactly what an artifact of it would hold.

**Straight-through**: the loss is that of rounded weights, its gradient goes to the student's own as if rounding were the
identity (Bengio et al., arXiv 1308.3432). `quantising` does so without a word to autograd: inside it parameters *hold* the
rounded values, gradients gather on the parameters themselves, and on leaving the own values are back, bit for bit, for the
optimizer to step. So names, state dict, optimizer and checkpoints know nothing of it, weights are rounded once a step however
many micro-batches it has, tied heads and anything else that reads a parameter is included, and a compiled student cannot have
folded a switch away, as there is none in it. Its plain twin, w + (rounded(w) - w).detach(), is in the tests.

A row's range is its largest |w|, so that no weight is clipped and every gradient passes. Under FSDP2 each process rounds its
own shard: parameters are cut along their first dimension, so that rows and experts stay whole.

Shapes: R rows, I weights of a row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.roles import Role, placements
from limbeck.spec.artifact import QuantisationAware, Rounding

MATRICES: tuple[Role, ...] = ("matrix", "experts")
EMBEDDINGS: tuple[Role, ...] = ("embedding", "head", "table")
WEIGHTS_AT_ONCE = 2**20
"""A search for clips holds some ten times as many float32."""


@dataclass(frozen=True)
class RoundedParameter:
    """A parameter that is rounded by rows."""

    role: Role
    bits: int
    axis: Literal[-1, -2]
    """Along which a row's weights lie: -1 of [out, in], -2 of experts' [E, in, out]."""


@dataclass(frozen=True)
class RowCodes:
    """Integers and the scale of each row."""

    code_RI: Tensor  # int8
    scale_R: Tensor  # bfloat16, which has the exponents of float32; integers are rounded to the scale as it is kept

    def values(self) -> Tensor:
        """float32 [R, I], exact: 8 bits times 8 bits."""
        return self.code_RI.float() * self.scale_R.float()[:, None]


def rounded_parameters(student: nn.Module, rounding: Rounding) -> dict[str, RoundedParameter]:
    """Which parameters are rounded, by their names."""
    parameters = dict(student.named_parameters())
    bits = dict.fromkeys(MATRICES, rounding.matrix_bits) | dict.fromkeys(EMBEDDINGS, rounding.embedding_bits)
    return {
        name: RoundedParameter(placed.role, bits[placed.role], -2 if placed.role == "experts" else -1)
        for name, placed in placements(student).items()
        if placed.role in bits and parameters[name].numel() > rounding.small_elements
    }


def as_rows(weight: Tensor, *, axis: int) -> Tensor:
    """[R, I], of a weight whose rows lie along `axis`."""
    return weight.transpose(axis, -1).flatten(0, -2)


def from_rows(rows_RI: Tensor, shape: Sequence[int], *, axis: int) -> Tensor:
    """Back to a weight of `shape`."""
    moved = torch.empty(tuple(shape), device="meta").transpose(axis, -1).shape
    return rows_RI.view(moved).transpose(axis, -1)


def round_rows(rows_RI: Tensor, *, bits: int, clips: Sequence[float] = (1.0,), least_range: float = 0.0) -> RowCodes:
    """Every row as integers in [-2^(b-1), 2^(b-1) - 1] times range / (2^(b-1) - 1).

    A row's range is one of the `clips` (quantiles of |w|, by linear interpolation; 1: the largest), but `least_range` at least:
    that of least squared error, the first of equals.
    """
    rows_at_once = max(1, WEIGHTS_AT_ONCE // rows_RI.shape[1])
    parts = [_best(part.float(), bits=bits, clips=clips, least_range=least_range) for part in rows_RI.split(rows_at_once)]
    return RowCodes(torch.cat([part.code_RI for part in parts]), torch.cat([part.scale_R for part in parts]))


def _best(rows_RI: Tensor, *, bits: int, clips: Sequence[float], least_range: float) -> RowCodes:
    found = [_rounded(rows_RI, range_R.clamp(min=least_range), bits=bits) for range_R in _ranges(rows_RI.abs(), clips)]
    best = found[0]
    if len(found) > 1:
        error_CR = torch.stack([(each.values() - rows_RI).double().square().sum(1) for each in found])
        chosen_R = error_CR.argmin(0)
        for index, each in enumerate(found[1:], 1):
            better_R = chosen_R == index
            best = RowCodes(
                torch.where(better_R[:, None], each.code_RI, best.code_RI), torch.where(better_R, each.scale_R, best.scale_R)
            )
    return best


def _ranges(size_RI: Tensor, clips: Sequence[float]) -> Tensor:
    """[clips, R]; nothing is sorted for the largest alone."""
    if tuple(clips) == (1.0,):
        return size_RI.amax(1)[None]
    return size_RI.quantile(torch.tensor(clips, dtype=size_RI.dtype, device=size_RI.device), dim=1)


def _rounded(rows_RI: Tensor, range_R: Tensor, *, bits: int) -> RowCodes:
    largest = 2 ** (bits - 1) - 1
    scale_R = (range_R / largest).bfloat16()
    # Of a row of zeros, or of weights too small for a float32, the scale is 1 and all integers are 0.
    scale_R = torch.where(scale_R.float() >= torch.finfo(torch.float32).tiny, scale_R, 1.0)
    # Integers have no NaN: the scale carries it, so that a loss says what became of the weights.
    scale_R = torch.where(range_R.isfinite(), scale_R, torch.nan)
    code_RI = (rows_RI / scale_R.float()[:, None]).round().clamp(-largest - 1, largest)
    return RowCodes(code_RI.to(torch.int8), scale_R)


@contextmanager
def quantising(
    student: nn.Module, spec: QuantisationAware | None, *, lr_factor: float, fraction: float, warmup: float
) -> Iterator[bool]:
    """Around the forward and backward passes of a step. Inside, where the spec's time has come, the student's weights are
    rounded; afterwards they are its own again. Gives whether they are.

    The backward pass belongs inside: autograd refuses a graph whose weights have changed since.
    """
    if spec is None or not spec.is_on(lr_factor=lr_factor, fraction=fraction, warmup=warmup):
        yield False
        return
    parameters = dict(student.named_parameters())
    rounded = rounded_parameters(student, spec)
    held = {name: _shard(parameters[name]) for name in rounded}
    own = {name: weight.clone() for name, weight in held.items()}
    try:
        for name, how in rounded.items():
            codes = round_rows(as_rows(own[name], axis=how.axis), bits=how.bits, least_range=spec.least_range)
            held[name].copy_(from_rows(codes.values(), own[name].shape, axis=how.axis))
        yield True
    finally:
        for name, weight in own.items():
            held[name].copy_(weight)


@torch.no_grad()
def _shard(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter: the same memory, without gradient."""
    weight = parameter.detach()
    return weight.to_local() if isinstance(weight, DTensor) else weight
