"""Random draws that depend on document, position, draw and seed alone, by inverse transform over a panel's two levels.

A cumulative sum over block masses finds the block of a draw, a second one inside that block finds the id; both in float64.
Scoring any subset of positions again gives the same draws, and more draws begin with the fewer ones. Plain twin, in the tests:
the cumulative sum of the float64 softmax.

Shapes: T positions, N draws of a row, K distinct ids of a row, B blocks of the vocabulary, W ids in a block.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.signals.panel import BLOCK, Softmax

Stream = Literal["whole", "tail"]
"""What is drawn from: the whole distribution or a hybrid's tail. Draws of one do not repeat those of the other."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(document_id: str, positions_T: Tensor, *, draws: int, seed: int, stream: Stream = "whole") -> Tensor:
    """Uniform numbers in [0, 1), float64 [T, N].

    Counter based: splitmix64 (Steele, Lea & Flood, OOPSLA 2014) over a key and the position, then over that and the draw. The
    key is the first 64 bits of the document's id (a hash in hex) mixed with the seed and the stream.
    """
    mixed = _splitmix64(np.array([seed], dtype=np.uint64))
    if stream == "tail":
        mixed = _splitmix64(mixed + _GOLDEN)
    key = np.array([int(document_id[:16], 16)], dtype=np.uint64) ^ mixed
    state_T = _splitmix64(key + _GOLDEN * (positions_T.cpu().numpy().astype(np.uint64) + np.uint64(1)))
    bits_TN = _splitmix64(state_T[:, None] + _GOLDEN * np.arange(1, draws + 1, dtype=np.uint64))
    return torch.from_numpy((bits_TN >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, on uint64 with wrap-around."""
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw(softmax: Softmax, uniforms_TN: Tensor) -> Tensor:
    """The id, int64 [T, N], into whose part of the cumulative distribution each uniform number falls.

    The order is that of the ids. An id without weight is never drawn, except in a row that has no mass at all.
    """
    cumulative_TB = softmax.mass_TB.cumsum(-1)
    # u < 1, but the product may round up to the total.
    mass_TN = _below(uniforms_TN.to(cumulative_TB.device) * cumulative_TB[:, -1:], cumulative_TB[:, -1:])
    block_TN = torch.searchsorted(cumulative_TB, mass_TN, right=True).clamp_(max=cumulative_TB.shape[1] - 1)
    block_mass_TN = softmax.mass_TB.gather(1, block_TN)
    mass_TN = mass_TN - (cumulative_TB.gather(1, block_TN) - block_mass_TN)
    weights_TNW = softmax.room.blocks(softmax.weights_TBW, block_TN)
    inside_TNW = softmax.room.get("inside", *weights_TNW.shape, dtype=torch.float64).copy_(weights_TNW).cumsum_(-1)
    # The block's mass was summed in float32: what is left of the mass may run past the block's end by 1e-7 of it.
    inside_TN = _below(mass_TN, inside_TNW[:, :, -1]).clamp_(min=0.0)
    place_TN = torch.searchsorted(inside_TNW, inside_TN[:, :, None], right=True)[:, :, 0].clamp_(max=BLOCK - 1)
    return block_TN * BLOCK + place_TN


def _below(values: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(values, torch.nextafter(limits, limits.new_zeros(())))


@dataclass(frozen=True)
class Counted:
    """Draws as distinct ids, ascending; shorter rows are padded with id 0, count 0."""

    ids_TK: Tensor
    counts_TK: Tensor
    first_TK: Tensor  # which of the draws says this id; 0 in padding


def count(ids_TN: Tensor, *, draws_T: Tensor) -> Counted:
    """The first `draws_T` draws of each row, counted."""
    num_rows, most = ids_TN.shape
    unused = torch.iinfo(torch.int64).max
    sorted_TN, order_TN = ids_TN.where(torch.arange(most) < draws_T[:, None], unused).sort(-1)
    is_drawn_TN = sorted_TN != unused
    is_first_TN = is_drawn_TN.clone()
    is_first_TN[:, 1:] &= sorted_TN[:, 1:] != sorted_TN[:, :-1]
    place_TN = (is_first_TN.cumsum(-1) - 1).clamp_(min=0)
    width = int(is_first_TN.sum(-1).max()) if ids_TN.numel() else 0
    counted = Counted(*(torch.zeros(num_rows, width, dtype=torch.int64) for _ in range(3)))
    if width:
        counted.ids_TK.scatter_add_(1, place_TN, sorted_TN * is_first_TN)
        counted.counts_TK.scatter_add_(1, place_TN, is_drawn_TN.long())
        counted.first_TK.scatter_add_(1, place_TN, order_TN * is_first_TN)
    return counted
