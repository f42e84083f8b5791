"""Quantised weights as numbers: what each scheme makes of a matrix, computed in float32.

`rounded` takes a matrix of R rows and I input channels and gives the values that a scheme can express, in float32. Nothing is
packed; `bits_per_weight` says what packed weights would take. Groups run along the input, as in the kernels. Scales of integers
and of e4m3 are kept in bfloat16 and those of NF4 in float32, as the packages keep them.

Legend: R rows, I input channels, N groups of all rows, G weights of a group.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.spec.quantisation import (
    FP8Quantisation,
    GGUFQuantisation,
    Group,
    IntegerQuantisation,
    MXFP4Quantisation,
    NF4Quantisation,
    Simulated,
)
from limbeck.teachers.gguf_blocks import gguf_bits, gguf_type_for, round_gguf

SCALE_BITS = 16
NF4_SCALE_BITS = 32
MX_BLOCK, MX_EXPONENT_BITS, MX_LARGEST_EXPONENT, MX_LARGEST = 32, 8, 2, 6.0
"""OCP Microscaling Formats 1.0, section 5.3: e2m1 reaches 6 = 1.5 · 2²."""
E4M3_LARGEST = 448.0
# QLoRA (arXiv 2305.14314), appendix E.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def rounded(weight_RI: Tensor, scheme: Simulated) -> Tensor:
    """float32 [R, I]: the nearest that `scheme` can express to each weight."""
    weight_RI = weight_RI.float()
    match scheme:
        case IntegerQuantisation(bits=bits, group=group, symmetric=symmetric):
            integers = _symmetric_integers if symmetric else _affine_integers
            return _by_group(weight_RI, group, lambda weight_NG: integers(weight_NG, bits=bits))
        case FP8Quantisation(group=group):
            return _by_group(weight_RI, group, _e4m3)
        case NF4Quantisation(group=group):
            return _by_group(weight_RI, group, _nf4)
        case MXFP4Quantisation():
            return _by_group(weight_RI, MX_BLOCK, _mxfp4)
        case GGUFQuantisation(type=type):
            return round_gguf(weight_RI, gguf_type_for(type, weight_RI.shape[-1]))


def bits_per_weight(scheme: Simulated, width: int) -> float:
    """What a weight would take on average, scales and zero points included, in rows of `width`."""
    match scheme:
        case IntegerQuantisation(bits=bits, group=group, symmetric=symmetric):
            return bits + _groups(width, group) / width * (SCALE_BITS + (0 if symmetric else bits))
        case FP8Quantisation(group=group):
            return 8 + _groups(width, group) / width * SCALE_BITS
        case NF4Quantisation(group=group):
            return 4 + _groups(width, group) / width * NF4_SCALE_BITS
        case MXFP4Quantisation():
            return 4 + _groups(width, MX_BLOCK) / width * MX_EXPONENT_BITS
        case GGUFQuantisation(type=type):
            return gguf_bits(gguf_type_for(type, width))


def _groups(width: int, group: Group) -> int:
    return 1 if group == "row" else math.ceil(width / group)


def _by_group(weight_RI: Tensor, group: Group, round_groups: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of groups [N, G] to every row; what is left over at the end of a row is a group of its own."""
    width = weight_RI.shape[-1]
    size = width if group == "row" else min(group, width)
    whole = width - width % size
    parts = [round_groups(weight_RI[:, :whole].reshape(-1, size)).reshape(-1, whole)]
    if whole < width:
        parts.append(round_groups(weight_RI[:, whole:]))
    return torch.cat(parts, dim=-1)


def _scale(scale_N1: Tensor) -> Tensor:
    """As it is kept: bfloat16. That of a group of zeros, or of one too small for a float32, is 1."""
    scale_N1 = scale_N1.bfloat16().float()
    return torch.where(scale_N1 > 0, scale_N1, 1.0)


def _symmetric_integers(weight_NG: Tensor, *, bits: int) -> Tensor:
    """q = round(w / s) in [-Q, Q], s = max|w| / Q, Q = 2^(bits - 1) - 1."""
    largest = 2 ** (bits - 1) - 1
    scale_N1 = _scale(weight_NG.abs().amax(-1, keepdim=True) / largest)
    return (weight_NG / scale_N1).round().clamp(-largest, largest) * scale_N1


def _affine_integers(weight_NG: Tensor, *, bits: int) -> Tensor:
    """q = round(w / s) + z in [0, Q], s = (max - min) / Q, z = round(-min / s), Q = 2^bits - 1; zero lies in the range."""
    largest = 2**bits - 1
    low_N1 = weight_NG.amin(-1, keepdim=True).clamp(max=0)
    high_N1 = weight_NG.amax(-1, keepdim=True).clamp(min=0)
    scale_N1 = _scale((high_N1 - low_N1) / largest)
    zero_N1 = (-low_N1 / scale_N1).round().clamp(0, largest)
    return (((weight_NG / scale_N1).round() + zero_N1).clamp(0, largest) - zero_N1) * scale_N1


def _e4m3(weight_NG: Tensor) -> Tensor:
    """The largest weight becomes 448, the largest e4m3; the rest is the cast's rounding."""
    scale_N1 = _scale(weight_NG.abs().amax(-1, keepdim=True) / E4M3_LARGEST)
    scaled_NG = (weight_NG / scale_N1).clamp(-E4M3_LARGEST, E4M3_LARGEST)
    return scaled_NG.to(torch.float8_e4m3fn).float() * scale_N1


def _nf4(weight_NG: Tensor) -> Tensor:
    """The nearest of sixteen levels times the largest |w|."""
    levels = torch.tensor(NF4, device=weight_NG.device)
    largest_N1 = weight_NG.abs().amax(-1, keepdim=True)
    scaled_NG = weight_NG / torch.where(largest_N1 > 0, largest_N1, 1.0)
    return levels[torch.bucketize(scaled_NG, (levels[1:] + levels[:-1]) / 2)] * largest_N1


def _mxfp4(weight_NG: Tensor) -> Tensor:
    """X = 2^(floor(log2 max|w|) - 2), then w / X to e2m1: ties to even, beyond 6 it saturates (section 6.3)."""
    # frexp gives m · 2^e with 1/2 <= m < 1, so that floor(log2 |w|) is e - 1, exactly. A block of zeros gives e = 0.
    exponent_N1 = weight_NG.abs().amax(-1, keepdim=True).frexp().exponent - 1 - MX_LARGEST_EXPONENT
    shared_N1 = torch.ldexp(torch.ones_like(weight_NG[:, :1]), exponent_N1.clamp(min=-126))
    scaled_NG = weight_NG / shared_N1
    # One mantissa bit: the step is half the power of two at or below |v|, and 1/2 for subnormals, below 1.
    step_NG = torch.ldexp(torch.full_like(scaled_NG, 0.5), (scaled_NG.frexp().exponent - 1).clamp(min=0))
    return ((scaled_NG / step_NG).round() * step_NG).clamp(-MX_LARGEST, MX_LARGEST) * shared_N1
