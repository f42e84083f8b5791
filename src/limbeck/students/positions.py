"""Rotary positions (RoPE, arXiv 2104.09864) in the half-split convention of Llama and OLMo.

Channel i of a head and channel i + h/2 form a plane, turned by the angle position * theta**(-2i/h), so that a query's product
with a key depends on the distance of the two positions alone. Angles are float32 at least, as in transformers' `olmo3`: in
bfloat16 position 257 would already be position 256.

Shapes: B rows, T positions, H heads, h channels of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every position's angles, each plane's angle twice: once for either half of a head's channels."""

    cos_B1Th: Tensor  # float32, or float64 where asked for
    sin_B1Th: Tensor


def rotation(positions_BT: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype = torch.float32) -> Rotation:
    """The rotation of `positions_BT` (int64; its B may be 1 and is then broadcast), angles computed in `dtype`."""
    even_channels = torch.arange(0, head_dim, 2, dtype=dtype, device=positions_BT.device)
    rate = 1.0 / (theta ** (even_channels / head_dim))
    angle_BTp = positions_BT[..., None].to(dtype) * rate
    angle_B1Th = torch.cat((angle_BTp, angle_BTp), dim=-1)[:, None]
    return Rotation(angle_B1Th.cos(), angle_B1Th.sin())


def rotate(x_BHTh: Tensor, turn: Rotation) -> Tensor:
    """`x_BHTh` turned by its positions, computed in the rotation's dtype and returned in its own."""
    first, second = x_BHTh.chunk(2, dim=-1)
    quarter_turn_BHTh = torch.cat((-second, first), dim=-1)
    return (x_BHTh * turn.cos_B1Th + quarter_turn_BHTh * turn.sin_B1Th).to(x_BHTh.dtype)
