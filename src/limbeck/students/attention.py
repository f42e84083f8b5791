"""Who sees whom: causal attention, full or within a sliding window, inside one document or across a packed row.

Position i sees position j iff j <= i, both lie in the same segment (document), and, on sliding layers, i - j < window. Masks
are built once per forward pass and shared by all layers. Where plain causal attention says the same thing no mask is built
(`None`), and `scaled_dot_product_attention` skips the upper triangle itself.

Shapes: B rows, T positions, H query heads, K key/value heads (H a multiple of K), h channels of a head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Masks:
    """True where a query (second to last) sees a key (last); None means plain causal."""

    full_B1TT: Tensor | None
    sliding_B1TT: Tensor | None


def masks(*, length: int, window: int, segments_BT: Tensor | None, device: torch.device) -> Masks:
    """The masks of full and of sliding layers for rows of `length` positions.

    `window` counts the visible keys, the position itself included. `segments_BT` (int64) numbers the documents of each row;
    None means one document. The numbers of two documents of a row must differ; they need not be in order.
    """
    if segments_BT is None and length <= window:
        return Masks(None, None)
    index_T = torch.arange(length, device=device)
    distance_TT = index_T[:, None] - index_T
    full = None
    if segments_BT is not None:
        full = ((distance_TT >= 0) & (segments_BT[:, :, None] == segments_BT[:, None, :]))[:, None]
    if length <= window:
        return Masks(full, full)
    near_TT = (distance_TT >= 0) & (distance_TT < window)
    return Masks(full, near_TT[None, None] if full is None else full & near_TT)


def attend(q_BHTh: Tensor, k_BKTh: Tensor, v_BKTh: Tensor, *, visible_B1TT: Tensor | None) -> Tensor:
    """Softmax attention scaled by h**-0.5, each key/value head serving H/K query heads. None: plain causal."""
    grouped = q_BHTh.shape[1] != k_BKTh.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTh, k_BKTh, v_BKTh, attn_mask=visible_B1TT, is_causal=visible_B1TT is None, enable_gqa=grouped
    )
