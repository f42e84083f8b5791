"""Attention of a layer: projections, norms of queries and keys, positions, the sum (`limbeck.students.attend`), what follows.

**Norms of queries and keys** come before the turn: over the whole projection with weights (OLMo-2 and 3), over each head with
weights (Qwen3), or over each head without, and a learned gain on each query head (nanoGPT speedruns).

**Exclusive attention** (XSA, arXiv 2603.09078): an output loses its part along the position's own value, y - (y v) v / |v|^2.

Shapes: B rows, T positions, S keys (T, and those of a cache before them), H query heads, K key/value heads (H a multiple of K),
h channels of a head, C channels of all heads, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.spec.layout import AttentionLayout
from limbeck.students.attend import Visible, attend
from limbeck.students.cache import KeysValues
from limbeck.students.norms import RMSNorm
from limbeck.students.positions import Turn


def without_own_value(y_BHTh: Tensor, v_BKTh: Tensor) -> Tensor:
    """`y` less its part along each position's own value, in float32 at least.

    Position 0, which sees itself alone, keeps nothing at all: there y is v, and (y v) / (v v) one.
    """
    wide = torch.promote_types(y_BHTh.dtype, torch.float32)
    y = y_BHTh.to(wide)
    v = v_BKTh.to(wide).repeat_interleave(y_BHTh.shape[1] // v_BKTh.shape[1], dim=1)
    part_BHT1 = (y * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True).clamp(min=_LEAST_SQUARE)
    return (y - part_BHT1 * v).to(y_BHTh.dtype)


_LEAST_SQUARE = 1e-24
"""A value of no length has no direction, and takes nothing."""


@dataclass(frozen=True)
class AttentionInput:
    """What a layer's attention reads beside the residual stream."""

    turn: Turn
    sees: Visible
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
        self.value_scale = nn.Parameter(torch.empty(1)) if layout.value_embedding else None

    def forward(self, x_BTD: Tensor, given: AttentionInput, cache: KeysValues | None = None) -> Tensor:
        q_BHTh, k_BKTh = self._queries_and_keys(x_BTD, given.turn)
        v_BTC = self.v_proj(x_BTD)
        if self.value_scale is not None:
            assert given.value_BTC is not None
            v_BTC = v_BTC + self.value_scale.to(v_BTC.dtype) * given.value_BTC
        v_BKTh = self._heads(v_BTC)
        k_BKSh, v_BKSh = (k_BKTh, v_BKTh) if cache is None else cache.extend(k_BKTh, v_BKTh)
        y_BHTh = attend(q_BHTh, k_BKSh, v_BKSh, sees=given.sees, sink_H=self.sink_H)
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
