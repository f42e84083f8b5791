"""Causal attention: who sees whom, and the sum.

Position i sees position j iff j <= i, both lie in the same segment (document), and, in a window of W, i - j < W. Masks are
built once per forward pass for each window and shared by its layers. Where plain causal attention says the same thing no mask
is built (`None`), and `scaled_dot_product_attention` skips the upper triangle itself.

**Sinks** (GPT-OSS): a query head's learned logit s takes part in the softmax without a value: p_j = e^{a_j} / (e^s + sum
e^{a}). It is written as a key that every position sees: queries get one more channel with s over the scale, the extra key is 1
there and 0 elsewhere, the others 0, and its value is 0. That is exact in value and gradient on every backend.

**Exclusive attention** (XSA): an output loses its part along the position's own value, y - (y v) v / |v|^2.

Shapes: B rows, T positions, S keys (T, and those of a cache before them), H query heads, K key/value heads (H a multiple of K),
h channels of a head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.spec.layout import AttentionLayout
from limbeck.students.cache import KeysValues
from limbeck.students.norms import RMSNorm
from limbeck.students.positions import Turn

Visible = Tensor | None
"""B1TS, True where a query sees a key; None: plain causal."""


def visible(*, length: int, past: int, window: int | None, segments_BT: Tensor | None, device: torch.device) -> Visible:
    """The mask of layers with `window` for `length` positions after `past` cached ones.

    `segments_BT` (int64) numbers the documents of each row; None means one document. The numbers of two documents of a row must
    differ; they need not be in order. With a cache there is one document.
    """
    near = window is None or past + length <= window
    if segments_BT is None and near and (past == 0 or length == 1):
        return None
    key_S = torch.arange(past + length, device=device)
    distance_TS = key_S[past:, None] - key_S
    sees_TS = distance_TS >= 0
    if window is not None and not near:
        sees_TS &= distance_TS < window
    if segments_BT is None:
        return sees_TS[None, None]
    return (sees_TS & (segments_BT[:, :, None] == segments_BT[:, None, :]))[:, None]


def attend(q_BHTh: Tensor, k_BKSh: Tensor, v_BKSh: Tensor, *, sees_B1TS: Visible, sink_H: Tensor | None = None) -> Tensor:
    """Softmax attention scaled by h**-0.5, each key/value head serving H/K query heads."""
    grouped = q_BHTh.shape[1] != k_BKSh.shape[1]
    if sink_H is not None:
        return _attend_with_sinks(q_BHTh, k_BKSh, v_BKSh, sees_B1TS=sees_B1TS, sink_H=sink_H, grouped=grouped)
    causal = sees_B1TS is None and q_BHTh.shape[2] == k_BKSh.shape[2]
    return F.scaled_dot_product_attention(q_BHTh, k_BKSh, v_BKSh, attn_mask=sees_B1TS, is_causal=causal, enable_gqa=grouped)


_SINK_CHANNELS = 8
"""One is needed; kernels want a multiple of eight."""


def _attend_with_sinks(
    q_BHTh: Tensor, k_BKSh: Tensor, v_BKSh: Tensor, *, sees_B1TS: Visible, sink_H: Tensor, grouped: bool
) -> Tensor:
    length, keys, channels = q_BHTh.shape[2], k_BKSh.shape[2], q_BHTh.shape[3]
    scale = channels**-0.5
    sink_H111 = (sink_H / scale).to(q_BHTh.dtype)[:, None, None]
    extra_BHT1 = sink_H111.expand(*q_BHTh.shape[:3], 1)
    q = F.pad(torch.cat([q_BHTh, extra_BHT1], -1), (0, _SINK_CHANNELS - 1))
    k, v = (F.pad(x, (0, _SINK_CHANNELS, 1, 0)) for x in (k_BKSh, v_BKSh))
    is_sink = F.one_hot(torch.tensor(channels, device=k.device), channels + _SINK_CHANNELS).to(k.dtype)
    k = torch.cat([is_sink.expand(*k.shape[:2], 1, -1), k[:, :, 1:]], 2)
    if sees_B1TS is None:
        sees_B1TS = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)[None, None]
    sees = F.pad(sees_B1TS, (1, 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale, enable_gqa=grouped)[..., :channels]


def without_own_value(y_BHTh: Tensor, v_BKTh: Tensor) -> Tensor:
    """`y` less its part along each position's own value; position 0, which sees itself alone, keeps nothing (XSA)."""
    unit_BKTh = F.normalize(v_BKTh, dim=-1, eps=1e-12)
    unit_BHTh = unit_BKTh.repeat_interleave(y_BHTh.shape[1] // v_BKTh.shape[1], dim=1)
    return y_BHTh - (y_BHTh * unit_BHTh).sum(-1, keepdim=True) * unit_BHTh


@dataclass(frozen=True)
class AttentionInput:
    """What a layer's attention reads beside the residual stream."""

    turn: Turn
    sees_B1TS: Visible
    value_BTC: Tensor | None = None
    """Added to the values, where the layer has a value embedding."""


class Attention(nn.Module):
    """Projections, norms of queries and keys, positions, the sum, and what is done to its outputs."""

    def __init__(self, layout: AttentionLayout, *, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.layout = layout
        heads, kv_heads, channels = layout.num_heads, layout.num_kv_heads, layout.head_dim
        self.q_proj = nn.Linear(hidden_size, heads * channels, bias=False)
        self.k_proj = nn.Linear(hidden_size, kv_heads * channels, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv_heads * channels, bias=False)
        self.o_proj = nn.Linear(heads * channels, hidden_size, bias=False)
        weighted = layout.qk_norm in ("projection", "head")
        whole = layout.qk_norm == "projection"
        self.q_norm = RMSNorm(heads * channels if whole else channels, eps=eps, weighted=weighted)
        self.k_norm = RMSNorm(kv_heads * channels if whole else channels, eps=eps, weighted=weighted)
        self.q_gain_H = nn.Parameter(torch.empty(heads)) if layout.qk_norm == "gain" else None
        self.sink_H = nn.Parameter(torch.empty(heads)) if layout.sinks else None
        self.value_scale = nn.Parameter(torch.empty(())) if layout.value_embedding else None

    def forward(self, x_BTD: Tensor, given: AttentionInput, cache: KeysValues | None = None) -> Tensor:
        q_BHTh, k_BKTh = self._queries_and_keys(x_BTD, given.turn)
        v_BTC = self.v_proj(x_BTD)
        if self.value_scale is not None:
            assert given.value_BTC is not None
            v_BTC = v_BTC + self.value_scale.to(v_BTC.dtype) * given.value_BTC
        v_BKTh = self._heads(v_BTC)
        k_BKSh, v_BKSh = (k_BKTh, v_BKTh) if cache is None else cache.extend(k_BKTh, v_BKTh)
        y_BHTh = attend(q_BHTh, k_BKSh, v_BKSh, sees_B1TS=given.sees_B1TS, sink_H=self.sink_H)
        if self.layout.exclusive:
            y_BHTh = without_own_value(y_BHTh, v_BKTh)
        return self.o_proj(y_BHTh.transpose(1, 2).flatten(2))

    def _queries_and_keys(self, x_BTD: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Normed, then turned: weights after the turn would break what depends on distances alone."""
        q_BTC, k_BTC = self.q_proj(x_BTD), self.k_proj(x_BTD)
        if self.layout.qk_norm == "projection":
            q_BTC, k_BTC = self.q_norm(q_BTC), self.k_norm(k_BTC)
        q_BHTh, k_BKTh = self._heads(q_BTC), self._heads(k_BTC)
        if self.layout.qk_norm in ("head", "gain"):
            q_BHTh, k_BKTh = self.q_norm(q_BHTh), self.k_norm(k_BKTh)
        if self.q_gain_H is not None:
            q_BHTh = q_BHTh * self.q_gain_H[:, None, None].to(q_BHTh.dtype)
        return turn(q_BHTh), turn(k_BKTh)

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(-1, (-1, self.layout.head_dim)).transpose(1, 2)
