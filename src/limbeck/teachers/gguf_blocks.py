"""The values of GGUF's block types, as llama.cpp's quantiser would write and read them, without an importance matrix.

Blocks of 32 (`q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`) go through the `gguf` package, both ways. It can read k-quants but not
write them, so those are fitted here, after ggml's reference quantisers (`quantize_row_q4_K_ref` and others, `ggml-quants.c`):

* `q4_k`, `q5_k`: super-blocks of 256 in 8 sub-blocks; w = d · s · q - m' · m, with 6-bit s and m and two float16 d and m';
* `q6_k`: super-blocks of 256 in 16 sub-blocks; w = d · s · q, with 8-bit s, 6-bit q and one float16 d.

A row of no whole super-blocks takes the fallback that llama.cpp takes. `q2_k`, `q3_k` and the `iq` types are not made here.

Legend: R rows, I input channels, N super-blocks, S sub-blocks of one, G weights of a sub-block.
"""

import torch
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.spec.quantisation import GGUFType

SUPER_BLOCK = 256
FALLBACK: dict[GGUFType, GGUFType] = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
TINY = 1e-15
"""Below this a sub-block counts as zeros (ggml's GROUP_MAX_EPS)."""


def gguf_type_for(type: GGUFType, width: int) -> GGUFType:
    """The type that rows of `width` get; `TeacherError` where not even blocks of 32 fit."""
    fitting = FALLBACK[type] if type in FALLBACK and width % SUPER_BLOCK else type
    if width % _block_size(fitting):
        raise TeacherError(f"teacher.quantisation.type={type}: rows of {width} weights are no whole blocks; use kind=integer")
    return fitting


def gguf_bits(type: GGUFType) -> float:
    """Bits of a weight, scales included, as the file would hold it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type.upper()]]
    return 8 * num_bytes / size


def round_gguf(weight_RI: Tensor, type: GGUFType) -> Tensor:
    """float32 [R, I]: the weights written as blocks of `type` and read back. `gguf_type_for` says which types fit."""
    match type:
        case "q4_k":
            return _affine_super_blocks(weight_RI, largest=15, first=-1.0, steps=21)
        case "q5_k":
            return _affine_super_blocks(weight_RI, largest=31, first=-0.5, steps=16)
        case "q6_k":
            return _scaled_super_blocks(weight_RI)
        case _:
            return _by_package(weight_RI, type)


def _block_size(type: GGUFType) -> int:
    return SUPER_BLOCK if type in FALLBACK else 32


def _by_package(weight_RI: Tensor, type: GGUFType) -> Tensor:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[type.upper()]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a block of zeros
        values = dequantize(quantize(weight_RI.cpu().numpy(), kind), kind)
    return torch.from_numpy(values).to(weight_RI.device)


def _affine_super_blocks(weight_RI: Tensor, *, largest: int, first: float, steps: int) -> Tensor:
    """q4_k and q5_k. Each sub-block is fitted alone; then scales and minima become 6-bit multiples of the super-block's."""
    weight_NSG = weight_RI.reshape(-1, 8, 32)
    scale_NS, minimum_NS = _fit_affine(weight_NSG, largest=largest, first=first, steps=steps)
    scale_NS1, minimum_NS1 = (_six_bits(each_NS)[..., None] for each_NS in (scale_NS, minimum_NS))
    shifted_NSG = weight_NSG + minimum_NS1
    levels_NSG = torch.where(scale_NS1 > 0, shifted_NSG / scale_NS1, 0.0).round().clamp(0, largest)
    return (scale_NS1 * levels_NSG - minimum_NS1).reshape(weight_RI.shape)


def _six_bits(positive_NS: Tensor) -> Tensor:
    """Multiples 0 to 63 of a float16, one for each super-block."""
    largest_N1 = positive_NS.amax(-1, keepdim=True)
    multiples_NS = torch.where(largest_N1 > 0, 63 / largest_N1 * positive_NS, 0.0).round().clamp(max=63)
    return (largest_N1 / 63).half().float() * multiples_NS


def _fit_affine(weight_NSG: Tensor, *, largest: int, first: float, steps: int) -> tuple[Tensor, Tensor]:
    """Scale and minus the minimum of each sub-block: least squares over several ways to round, large weights counting more.

    ggml's `make_qkx2_quants`: for each of several starting scales, round, solve for scale and minimum, keep the best. What is
    found is where the next one starts from.
    """
    importance_NSG = weight_NSG.square().mean(-1, keepdim=True).sqrt() + weight_NSG.abs()
    high_NS1, minimum_NS1 = weight_NSG.amax(-1, keepdim=True), weight_NSG.amin(-1, keepdim=True).clamp(max=0)
    flat_NS1 = high_NS1 == minimum_NS1

    def levels(boost: float, minimum_NS1: Tensor) -> Tensor:
        range_NS1 = torch.where(flat_NS1, 1.0, high_NS1 - minimum_NS1)
        return ((boost + largest) / range_NS1 * (weight_NSG - minimum_NS1)).round().clamp(0, largest)

    def error(scale_NS1: Tensor, minimum_NS1: Tensor, levels_NSG: Tensor) -> Tensor:
        difference_NSG = scale_NS1 * levels_NSG + minimum_NS1 - weight_NSG
        return (importance_NSG * difference_NSG.square()).sum(-1, keepdim=True)

    scale_NS1 = (high_NS1 - minimum_NS1) / largest
    best_NS1 = error(scale_NS1, minimum_NS1, levels(0.0, minimum_NS1))
    for step in range(steps):
        levels_NSG = levels(first + 0.1 * step, minimum_NS1)
        new_scale_NS1, new_minimum_NS1, solved_NS1 = _weighted_line(levels_NSG, weight_NSG, importance_NSG)
        new_NS1 = error(new_scale_NS1, new_minimum_NS1, levels_NSG)
        better_NS1 = solved_NS1 & (new_NS1 < best_NS1) & ~flat_NS1
        scale_NS1 = torch.where(better_NS1, new_scale_NS1, scale_NS1)
        minimum_NS1 = torch.where(better_NS1, new_minimum_NS1, minimum_NS1)
        best_NS1 = torch.where(better_NS1, new_NS1, best_NS1)
    return scale_NS1[..., 0], -minimum_NS1[..., 0]


def _weighted_line(levels_NSG: Tensor, weight_NSG: Tensor, importance_NSG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and intercept (at most 0) of the weights over their levels, and where they are determined."""

    def total(values_NSG: Tensor) -> Tensor:
        return (importance_NSG * values_NSG).sum(-1, keepdim=True)

    ones, x, y = total(torch.ones_like(weight_NSG)), total(levels_NSG), total(weight_NSG)
    xx, xy = total(levels_NSG.square()), total(levels_NSG * weight_NSG)
    determinant = ones * xx - x * x
    solved = determinant > 0
    determinant = torch.where(solved, determinant, 1.0)
    slope, intercept = (ones * xy - y * x) / determinant, (xx * y - x * xy) / determinant
    through_zero = intercept > 0
    slope = torch.where(through_zero, xy / torch.where(xx > 0, xx, 1.0), slope)
    return slope, intercept.clamp(max=0), solved


def _scaled_super_blocks(weight_RI: Tensor) -> Tensor:
    """q6_k. Sub-block scales become signed 8-bit multiples of the super-block's, of which the largest is -128."""
    weight_NSG = weight_RI.reshape(-1, 16, 16)
    scale_NS = _fit_scale(weight_NSG)
    largest_N1 = scale_NS.gather(-1, scale_NS.abs().argmax(-1, keepdim=True))
    zero_N1 = largest_N1.abs() < TINY
    safe_N1 = torch.where(zero_N1, 1.0, largest_N1)
    multiples_NS = (-128 / safe_N1 * scale_NS).round().clamp(max=127)
    scale_NS1 = torch.where(zero_N1, 0.0, (safe_N1 / -128).half().float() * multiples_NS)[..., None]
    levels_NSG = torch.where(scale_NS1 != 0, weight_NSG / scale_NS1, 0.0).round().clamp(-32, 31)
    return (scale_NS1 * levels_NSG).reshape(weight_RI.shape)


def _fit_scale(weight_NSG: Tensor) -> Tensor:
    """ggml's `make_qx_quants`: among 19 starting scales, the least-squares scale whose explained energy is largest."""
    peak_NS1 = weight_NSG.gather(-1, weight_NSG.abs().argmax(-1, keepdim=True))
    zero_NS1 = peak_NS1.abs() < TINY
    peak_NS1 = torch.where(zero_NS1, 1.0, peak_NS1)
    energy_NSG = weight_NSG.square()
    scale_NS1, best_NS1 = torch.zeros_like(peak_NS1), torch.zeros_like(peak_NS1)
    for step in sorted(range(-9, 10), key=lambda step: step != 0):  # the plain one first, to win ties
        levels_NSG = (-(32 + 0.1 * step) / peak_NS1 * weight_NSG).round().clamp(-32, 31)
        xy_NS1 = (energy_NSG * weight_NSG * levels_NSG).sum(-1, keepdim=True)
        xx_NS1 = (energy_NSG * levels_NSG.square()).sum(-1, keepdim=True)
        better_NS1 = (xx_NS1 > 0) & (xy_NS1.square() > best_NS1 * xx_NS1)
        scale_NS1 = torch.where(better_NS1, xy_NS1 / xx_NS1, scale_NS1)
        best_NS1 = torch.where(better_NS1, xy_NS1.square() / xx_NS1, best_NS1)
    return torch.where(zero_NS1, 0.0, scale_NS1)[..., 0]
