"""OLMo-3, at any size: the exact mathematics of transformers' `models/olmo3`, and its parameter names.

A block has no norm before its branches; each branch's *output* is normed and then added:
x <- x + RMS(attention(x)), x <- x + RMS(mlp(x)); after the last block a final RMS norm. Queries and keys are RMS-normed over
the whole projection (all heads together), then split into heads and rotated. The MLP is SwiGLU. No biases, no dropout.
Three layers of four see a sliding window, the fourth sees everything. Sources: `transformers/models/olmo3`,
`OLMo-core/nn/transformer`.

`forward` ends before the head: a training step needs log-sum-exp and a few logits, which are computed chunk by chunk from the
hidden states and `head_VD` without holding all logits. Parameters are float32; run under `torch.autocast` for bfloat16.

Shapes: B rows, T positions, D hidden size, V vocabulary, H query heads, K key/value heads, h channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.spec.student import Olmo3Student
from limbeck.students.attention import attend, masks
from limbeck.students.positions import Rotation, rotate, rotation


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x**2) + eps), in float32 at least; the weight is multiplied before the cast back to x's dtype."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * (wide * scale)).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with RMS norms over the whole query and key projections."""

    def __init__(self, spec: Olmo3Student) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        query_size, key_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(query_size, eps=spec.rms_norm_eps)
        self.k_norm = RMSNorm(key_size, eps=spec.rms_norm_eps)

    def forward(self, x_BTD: Tensor, turn: Rotation, visible_B1TT: Tensor | None) -> Tensor:
        q_BHTh = rotate(self._heads(self.q_norm(self.q_proj(x_BTD))), turn)
        k_BKTh = rotate(self._heads(self.k_norm(self.k_proj(x_BTD))), turn)
        v_BKTh = self._heads(self.v_proj(x_BTD))
        out_BHTh = attend(q_BHTh, k_BKTh, v_BKTh, visible_B1TT=visible_B1TT)
        return self.o_proj(out_BHTh.transpose(1, 2).flatten(2))

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, spec: Olmo3Student) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Layer(nn.Module):
    """One block: attention and MLP, each normed on its way into the residual stream."""

    def __init__(self, spec: Olmo3Student, *, kind: str) -> None:
        super().__init__()
        self.sliding = kind == "sliding_attention"
        self.self_attn = Attention(spec)
        self.mlp = SwiGLU(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)

    def forward(self, x_BTD: Tensor, turn: Rotation, visible_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.post_attention_layernorm(self.self_attn(x_BTD, turn, visible_B1TT))
        return x_BTD + self.post_feedforward_layernorm(self.mlp(x_BTD))


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, spec: Olmo3Student, *, vocab_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, kind=kind) for kind in spec.layer_types)
        self.norm = RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor | None, segments_BT: Tensor | None) -> Tensor:
        spec, length, device = self.spec, tokens_BT.shape[1], tokens_BT.device
        if positions_BT is None:
            positions_BT = torch.arange(length, device=device)[None]
        angle_dtype = torch.promote_types(self.norm.weight.dtype, torch.float32)
        turn = rotation(positions_BT, head_dim=spec.head_dim, theta=spec.rope_theta, dtype=angle_dtype)
        visible = masks(length=length, window=spec.sliding_window, segments_BT=segments_BT, device=device)
        x_BTD = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, turn, visible.sliding_B1TT if layer.sliding else visible.full_B1TT)
        return self.norm(x_BTD)


class Olmo3(nn.Module):
    """The student. Parameter names are those of transformers' `Olmo3ForCausalLM`; a tied student has no `lm_head`.

    The constructor leaves parameters uninitialised (it works on the meta device): `initialise` them or load them.
    """

    def __init__(self, spec: Olmo3Student, *, vocab_size: int) -> None:
        super().__init__()
        self.model = Body(spec, vocab_size=vocab_size)
        self.lm_head = None if spec.tied_embeddings else nn.Linear(spec.hidden_size, vocab_size, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """The output matrix: logits are hidden_BTD @ head_VD.T. The input embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, tokens_BT: Tensor, *, positions_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """hidden_BTD after the final norm, for int64 `tokens_BT`.

        `positions_BT` (int64) defaults to 0, 1, 2, ... in each row. `segments_BT` (int64) numbers the documents packed into
        a row: a position sees its own document alone. None means one document per row, and is faster.
        """
        return self.model(tokens_BT, positions_BT, segments_BT)

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Matrices normal with deviation `init_std`, truncated at three of them; norms 1 (OLMo-core).

        The numbers depend on the seed and the sizes alone: they come from a CPU generator of their own.
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.model.spec.init_std
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                values = torch.empty(parameter.shape)
                nn.init.trunc_normal_(values, std=std, a=-3 * std, b=3 * std, generator=generator)
                parameter.copy_(values)
