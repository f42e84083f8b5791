"""Who sees whom, and the sum: softmax attention, scaled by h**-0.5, each key/value head serving H/K query heads.

Position i sees position j iff j <= i, both lie in the same segment (document), and, in a window of W, i - j < W. What a layer
may see is worked out once in a forward pass for all layers that see alike, in the form that the backend reads:

* SDPA (`scaled_dot_product_attention`): no mask where plain causal attention says the same thing, so that it skips the upper
  triangle itself; otherwise a boolean mask, T x S bytes for each row.
* FlexAttention (`torch.nn.attention.flex_attention`): a `BlockMask`, whose empty blocks cost nothing. It has gradients on CUDA
  alone. `auto` takes it there wherever SDPA would need a mask, which its fast kernels refuse.

**Sinks** (GPT-OSS): a query head's learned logit s takes part in the softmax without a value: p_j = e^{a_j} / (e^s + sum
e^{a}). SDPA has it as one more key in front that every position sees: queries get one more channel with s over the scale, the
key is 1 there and 0 elsewhere, all other keys are 0 there, and its value is 0. That is exact in value and gradient on every
kernel. FlexAttention multiplies by sigmoid(lse - s), which is the same; its log-sum-exp has gradients.

The plain twin of everything here is `attend_reference` in the tests.

Shapes: B rows, T positions, S keys (T, and those of a cache before them), H query heads, K key/value heads (H a multiple of K),
h channels of a head.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

Backend = Literal["auto", "sdpa", "flex"]
"""What sums. `auto`: flex on CUDA where SDPA would need a mask, SDPA elsewhere."""
Visible = Tensor | BlockMask | None
"""For SDPA a mask, B1TS, True where a query sees a key, the sink's in front where there is one; None: plain causal."""


def visible(
    *,
    length: int,
    past: int,
    window: int | None,
    segments_BT: Tensor | None,
    sinks: bool,
    device: torch.device,
    backend: Backend = "auto",
) -> Visible:
    """What layers with `window` see of `length` positions after `past` cached ones.

    `segments_BT` (int64) numbers the documents of each row; None means one document. The numbers of two documents of a row must
    differ; they need not be in order. With a cache there is one document, and SDPA.
    """
    assert past == 0 or segments_BT is None
    window = None if window is None or past + length <= window else window
    plain = segments_BT is None and window is None and (past == 0 or length == 1)
    if past == 0 and (backend == "flex" or (backend == "auto" and device.type == "cuda" and not plain)):
        return _blocks(length, window, device) if segments_BT is None else _document_blocks(segments_BT, window)
    if plain:
        return None
    key_S = torch.arange(past + length, device=device)
    distance_TS = key_S[past:, None] - key_S
    sees_TS = distance_TS >= 0
    if window is not None:
        sees_TS &= distance_TS < window
    sees_B1TS = sees_TS[None, None]
    if segments_BT is not None:
        sees_B1TS = (sees_TS & (segments_BT[:, :, None] == segments_BT[:, None, :]))[:, None]
    return F.pad(sees_B1TS, (1, 0), value=True) if sinks else sees_B1TS


@lru_cache(maxsize=16)
def _blocks(length: int, window: int | None, device: torch.device) -> BlockMask:
    """One document a row: the same for every batch."""
    reach = length if window is None else window

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < reach)

    return _block_mask(sees, torch.zeros(1, length, dtype=torch.int64, device=device), reach=reach)


def _document_blocks(segments_BT: Tensor, window: int | None) -> BlockMask:
    reach = segments_BT.shape[1] if window is None else window

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < reach) & (segments_BT[b, query] == segments_BT[b, key])

    return _block_mask(sees, segments_BT, reach=reach)


_BLOCK = 128
"""Queries, and keys, of a block: what flex has by default."""


def _block_mask(sees: Callable[..., Tensor], segments_BT: Tensor, *, reach: int) -> BlockMask:
    """Which blocks are empty, partly or wholly seen, told from their ends: `create_block_mask`, its plain twin, holds T x T.

    Documents are stretches of a row. So of an earlier block of keys its last one is seen by the first query if any is by any,
    and all are by all if its first one is by the last query.
    """
    length, device = segments_BT.shape[1], segments_BT.device
    first_N = torch.arange(0, length, _BLOCK, device=device)
    last_N = (first_N + _BLOCK - 1).clamp(max=length - 1)

    def seen(query_N: Tensor, key_N: Tensor) -> Tensor:
        near_NN = query_N[:, None] - key_N < reach
        return near_NN & (segments_BT[:, query_N][:, :, None] == segments_BT[:, key_N][:, None, :])

    number_N = torch.arange(len(first_N), device=device)
    earlier_NN = number_N[:, None] > number_N
    whole_NN = earlier_NN & (last_N - first_N == _BLOCK - 1)[:, None]
    all_BNN = whole_NN & seen(last_N, first_N)
    some_BNN = (earlier_NN & seen(first_N, last_N) | (number_N[:, None] == number_N)) & ~all_BNN
    return BlockMask.from_kv_blocks(
        *_in_order(some_BNN), *_in_order(all_BNN), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def _in_order(chosen_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries how many blocks of keys are chosen, and which: those first; int32."""
    index_BNN = chosen_BNN.int().argsort(dim=2, descending=True, stable=True)
    return chosen_BNN.sum(2, dtype=torch.int32)[:, None], index_BNN.int()[:, None]


def attend(q_BHTh: Tensor, k_BKSh: Tensor, v_BKSh: Tensor, *, sees: Visible, sink_H: Tensor | None = None) -> Tensor:
    """The values' sums, BHTh. `sees` is what `visible` gave, with `sinks` iff there is a `sink_H`."""
    if isinstance(sees, BlockMask):
        return _by_flex(q_BHTh, k_BKSh, v_BKSh, sees=sees, sink_H=sink_H)
    if sink_H is not None:
        return _with_sinks(q_BHTh, k_BKSh, v_BKSh, sees_B1TS=sees, sink_H=sink_H)
    square = q_BHTh.shape[2] == k_BKSh.shape[2]
    grouped = q_BHTh.shape[1] != k_BKSh.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTh, k_BKSh, v_BKSh, attn_mask=sees, is_causal=sees is None and square, enable_gqa=grouped
    )


_SINK_CHANNELS = 8
"""One is needed; kernels want a multiple of eight."""


def _with_sinks(q_BHTh: Tensor, k_BKSh: Tensor, v_BKSh: Tensor, *, sees_B1TS: Tensor | None, sink_H: Tensor) -> Tensor:
    channels = q_BHTh.shape[3]
    scale = channels**-0.5
    causal = sees_B1TS is None and q_BHTh.shape[2] == k_BKSh.shape[2]
    sink_BHT1 = (sink_H / scale).to(q_BHTh.dtype)[:, None, None].expand(*q_BHTh.shape[:3], 1)
    # One more query in front too, where queries and keys count alike: query i + 1 then sees keys 0 (the sink) to i + 1.
    q = F.pad(torch.cat([q_BHTh, sink_BHT1], -1), (0, _SINK_CHANNELS - 1, int(causal), 0))
    k, v = (F.pad(x, (0, _SINK_CHANNELS)) for x in (k_BKSh, v_BKSh))
    is_sink = k.new_zeros(k.shape[3])
    is_sink[channels] = 1
    k = torch.cat([is_sink.expand(*k.shape[:2], 1, -1), k], 2)
    y = F.scaled_dot_product_attention(
        q,
        k,
        F.pad(v, (0, 0, 1, 0)),
        attn_mask=sees_B1TS,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return y[:, :, int(causal) :, :channels]


def _by_flex(q_BHTh: Tensor, k_BKTh: Tensor, v_BKTh: Tensor, *, sees: BlockMask, sink_H: Tensor | None) -> Tensor:
    given: dict[str, Any] = {"block_mask": sees, "enable_gqa": q_BHTh.shape[1] != k_BKTh.shape[1]}
    flex = _compiled_flex() if q_BHTh.is_cuda else flex_attention
    if sink_H is None:
        return flex(q_BHTh, k_BKTh, v_BKTh, **given)
    y_BHTh, more = flex(q_BHTh, k_BKTh, v_BKTh, return_aux=AuxRequest(lse=True), **given)
    kept_BHT = torch.sigmoid(more.lse - sink_H[:, None])  # float32: rounded to bfloat16 first, lse would be off by 2**-9 of it
    return (y_BHTh * kept_BHT[..., None]).to(y_BHTh.dtype)


@cache
def _compiled_flex() -> Any:
    """Uncompiled, it would hold every score."""
    return torch.compile(flex_attention)
