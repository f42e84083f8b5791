"""The student: one decoder of readable parts, laid out by `limbeck.spec.layout`.

A block adds two branches to the residual stream, attention and an MLP (or experts). Norms stand before the branches (Llama,
Qwen3) or on what they give (OLMo-3). Parameter names are those of transformers where it has the same model: `Olmo3ForCausalLM`
for norms after, `Qwen3ForCausalLM` and `LlamaForCausalLM` for norms before.

`forward` ends before the head: a training step needs log-sum-exp and a few logits, which are computed chunk by chunk from the
hidden states and `head_VD` without holding all logits. Parameters are float32; run under `torch.autocast` for bfloat16.

Shapes: B rows, T positions, D hidden size, V vocabulary, L layers, M layers with experts, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import LimbeckError
from limbeck.roles import Placement, Role
from limbeck.spec.layout import ExpertsLayout, LayerLayout, Layout
from limbeck.spec.parts import GrapeM, Rope
from limbeck.students.attend import Backend, Visible, visible
from limbeck.students.attention import Attention, AttentionInput
from limbeck.students.cache import Cache, KeysValues
from limbeck.students.embeddings import BigramHash, Smear, ValueEmbedding, first_of_document
from limbeck.students.experts import Experts
from limbeck.students.mlp import Mlp
from limbeck.students.model import Reading, StudentModel
from limbeck.students.norms import RMSNorm
from limbeck.students.positions import GrapePlane, GrapeRates, Turn, plane_turn, rope_rates


@dataclass(frozen=True)
class BlockOutput:
    """What a block gives."""

    x_BTD: Tensor
    load_E: Tensor | None = None
    balance: Tensor | None = None


class Block(nn.Module):
    """Attention and an MLP (or experts), with norms before or after."""

    def __init__(self, layer: LayerLayout, layout: Layout) -> None:
        super().__init__()
        size, eps = layout.hidden_size, layout.norm_eps
        self.recomputes = False
        self.compiled: Callable[..., BlockOutput] | None = None
        self.norms = layout.norms
        self.self_attn = Attention(layer.attention, hidden_size=size, eps=eps)
        mlp = layer.mlp
        self.mlp = Experts(mlp, hidden_size=size) if isinstance(mlp, ExpertsLayout) else Mlp(mlp, hidden_size=size)
        before = layout.norms == "before"
        self.input_layernorm = RMSNorm(size, eps=eps, weighted=layout.norm_weights) if before else None
        self.post_attention_layernorm = RMSNorm(size, eps=eps, weighted=layout.norm_weights)
        self.post_feedforward_layernorm = None if before else RMSNorm(size, eps=eps, weighted=layout.norm_weights)
        self.positions = _learned_positions(layer, layout)
        self.mix_2D = nn.Parameter(torch.empty(2, size)) if layer.branch_scales else None
        self.attn_scale_D = nn.Parameter(torch.empty(size)) if layer.branch_scales else None
        self.mlp_scale_D = nn.Parameter(torch.empty(size)) if layer.branch_scales else None

    def forward(
        self,
        x_BTD: Tensor,
        first_BTD: Tensor,
        given: AttentionInput,
        position_BT: Tensor,
        cache: KeysValues | None = None,
        real_BT: Tensor | None = None,
    ) -> BlockOutput:
        """`first_BTD` is what entered the first block; `real_BT` is False at padding, which experts do not count.

        For training alone it may be compiled, and where it `recomputes`, the backward pass begins by computing again.
        """
        inputs = (x_BTD, first_BTD, given, position_BT, cache, real_BT)
        if not torch.is_grad_enabled():
            return self.compute(*inputs)
        compute = self.compiled or self.compute
        if self.recomputes:
            return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        return compute(*inputs)

    def compute(
        self,
        x_BTD: Tensor,
        first_BTD: Tensor,
        given: AttentionInput,
        position_BT: Tensor,
        cache: KeysValues | None,
        real_BT: Tensor | None,
    ) -> BlockOutput:
        """The block itself."""
        if self.mix_2D is not None:
            mix_2D = self.mix_2D.to(x_BTD.dtype)
            x_BTD = mix_2D[0] * x_BTD + mix_2D[1] * first_BTD
        inner_BTD = x_BTD if self.input_layernorm is None else self.input_layernorm(x_BTD)
        if self.positions is not None:
            turn = self.positions(inner_BTD, position_BT, cache)
            given = AttentionInput(turn, given.sees, given.value_BTC)
        branch_BTD = self.self_attn(inner_BTD, given, cache)
        if self.norms == "after":
            branch_BTD = self.post_attention_layernorm(branch_BTD)
        x_BTD = x_BTD + _scaled(branch_BTD, self.attn_scale_D)
        inner_BTD = self.post_attention_layernorm(x_BTD) if self.norms == "before" else x_BTD
        if isinstance(self.mlp, Experts):
            found = self.mlp(inner_BTD, real_BT)
            branch_BTD, load_E, balance = found.x_BTD, found.load_E, found.balance
        else:
            branch_BTD, load_E, balance = self.mlp(inner_BTD), None, None
        if self.post_feedforward_layernorm is not None:
            branch_BTD = self.post_feedforward_layernorm(branch_BTD)
        return BlockOutput(x_BTD + _scaled(branch_BTD, self.mlp_scale_D), load_E, balance)


def _scaled(branch_BTD: Tensor, scale_D: Tensor | None) -> Tensor:
    return branch_BTD if scale_D is None else scale_D.to(branch_BTD.dtype) * branch_BTD


def _learned_positions(layer: LayerLayout, layout: Layout) -> GrapeRates | GrapePlane | None:
    """None where positions have nothing to learn: those are worked out once for all layers."""
    positions, attention = layer.attention.positions, layer.attention
    if not isinstance(positions, GrapeM):
        return None
    if positions.form == "rank2":
        return GrapePlane(positions, kv_heads=attention.num_kv_heads, head_dim=attention.head_dim)
    return GrapeRates(positions, head_dim=attention.head_dim, hidden_size=layout.hidden_size)


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, layout: Layout, *, vocab_size: int) -> None:
        super().__init__()
        self.layout = layout
        self.attention_backend: Backend = "auto"  # of all layers
        size = layout.hidden_size
        self.embed_tokens = nn.Embedding(vocab_size, size)
        self.embed_norm = RMSNorm(size, eps=layout.norm_eps, weighted=layout.norm_weights) if layout.embedding_norm else None
        self.bigram = None if layout.bigram is None else BigramHash(layout.bigram, hidden_size=size)
        self.smear = Smear(size) if layout.smear else None
        self.value_embedding = _value_embedding(layout, vocab_size=vocab_size)
        self.layers = nn.ModuleList(Block(layer, layout) for layer in layout.layers)
        num_skips = len(layout.layers) // 2 if layout.skips else 0
        self.skip_SD = nn.Parameter(torch.empty(num_skips, size)) if num_skips else None
        self.norm = RMSNorm(size, eps=layout.norm_eps, weighted=layout.norm_weights)

    def forward(self, token_BT: Tensor, position_BT: Tensor | None, segments_BT: Tensor | None, cache: Cache | None) -> Reading:
        past = 0 if cache is None else cache.length
        exact = self.layout.exact_length
        if past and exact is not None and past + token_BT.shape[1] > exact:
            raise LimbeckError(
                f"a cache ends at ntk_length={exact} tokens, where positions begin to change with the length: read "
                f"all {past + token_BT.shape[1]} anew without one, as generate does with the saved student"
            )
        if position_BT is None:
            position_BT = torch.arange(past, past + token_BT.shape[1], device=token_BT.device)[None]
        given = self._given(token_BT, position_BT, segments_BT, past=past)
        x_BTD = first_BTD = self._embed(token_BT, segments_BT, cache)
        real_BT = None if segments_BT is None else segments_BT >= 0
        skipped: list[Tensor] = []
        num_skips = 0 if self.skip_SD is None else len(self.skip_SD)
        outputs = []
        for index, layer in enumerate(self.layers):
            if self.skip_SD is not None and index >= num_skips and skipped:
                x_BTD = x_BTD + self.skip_SD[index - num_skips].to(x_BTD.dtype) * skipped.pop()
            kept = None if cache is None else cache.layers[index]
            output = layer(x_BTD, first_BTD, given[index], position_BT, kept, real_BT)
            x_BTD = output.x_BTD
            if index < num_skips:
                skipped.append(x_BTD)
            if output.load_E is not None:
                outputs.append(output)
        if cache is not None:
            cache.length += token_BT.shape[1]
        hidden_BTD = self.norm(x_BTD)
        if not outputs:
            return Reading(hidden_BTD)
        return Reading(
            hidden_BTD, torch.stack([each.load_E for each in outputs]), torch.stack([each.balance for each in outputs]).sum()
        )

    def _embed(self, token_BT: Tensor, segments_BT: Tensor | None, cache: Cache | None) -> Tensor:
        x_BTD = self.embed_tokens(token_BT)
        if self.bigram is None and self.smear is None:
            return self._embedding_norm(x_BTD)
        first_BT = first_of_document(segments_BT, shape=token_BT.shape, device=token_BT.device)
        if cache is not None and cache.length:
            first_BT[:, 0] = False
        if self.bigram is not None:
            before_BT = _shifted(token_BT, None if cache is None else cache.token_B1)
            x_BTD = x_BTD + self.bigram(token_BT, before_BT, first_BT).to(x_BTD.dtype)
        x_BTD = plain_BTD = self._embedding_norm(x_BTD)
        if self.smear is not None:
            x_BTD = self.smear(x_BTD, _shifted(x_BTD, None if cache is None else cache.embedding_B1D), first_BT)
        if cache is not None:
            cache.token_B1, cache.embedding_B1D = token_BT[:, -1:], plain_BTD[:, -1:]
        return x_BTD

    def _embedding_norm(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)

    def _given(self, token_BT: Tensor, position_BT: Tensor, segments_BT: Tensor | None, *, past: int) -> list[AttentionInput]:
        """What each layer's attention reads; what layers have in common is worked out once."""
        device, length = token_BT.device, token_BT.shape[1]
        dtype = torch.promote_types(self.embed_tokens.weight.dtype, torch.float32)
        turns: dict[tuple[Rope, int], Turn] = {}
        seen: dict[tuple[int | None, bool], Visible] = {}
        value_BTC = None if self.value_embedding is None else self.value_embedding(token_BT)
        given = []
        for layer in self.layout.layers:
            spec, channels = layer.attention.positions, layer.attention.head_dim
            window, sinks = layer.attention.window, layer.attention.sinks
            if window is not None and window >= past + length:
                window = None
            sight = (window, sinks)
            if sight not in seen:
                seen[sight] = visible(
                    length=length,
                    past=past,
                    window=window,
                    segments_BT=segments_BT,
                    sinks=sinks,
                    device=device,
                    backend=self.attention_backend,
                )
            turn: Turn = _unturned
            if isinstance(spec, Rope):
                if (spec, channels) not in turns:
                    rate_p = rope_rates(spec, head_dim=channels, length=past + length, dtype=dtype, device=device)
                    factor = 1.0 if spec.yarn is None else spec.yarn.attention_factor
                    turns[spec, channels] = plane_turn(position_BT, rate_p, factor=factor)
                turn = turns[spec, channels]
            given.append(AttentionInput(turn, seen[sight], value_BTC if layer.attention.value_embedding else None))
        return given


def _unturned(x_BHTh: Tensor) -> Tensor:
    """Where the layer has positions of its own."""
    return x_BHTh


def _shifted(x: Tensor, last: Tensor | None) -> Tensor:
    """What stands before each position; before the first `last`, or zeros."""
    start = torch.zeros_like(x[:, :1]) if last is None else last
    return torch.cat([start, x[:, :-1]], 1)


def _value_embedding(layout: Layout, *, vocab_size: int) -> ValueEmbedding | None:
    if layout.value_embedding is None:
        return None
    widths = {each.attention.num_kv_heads * each.attention.head_dim for each in layout.layers if each.attention.value_embedding}
    (width,) = widths
    return ValueEmbedding(vocab_size=vocab_size, size=layout.value_embedding, width=width)


def _role(name: str, parameter: Tensor) -> Role:
    """By the name alone, which says the part."""
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    if ".table." in name:
        return "table"
    if name.endswith(".router.weight"):
        return "router"
    if parameter.ndim == 3:
        return "experts"
    if ".positions." in name:
        return "vector"
    return "matrix" if name.endswith(("_proj.weight", ".proj.weight")) else "vector"


class Decoder(StudentModel):
    """The student. A tied one has no `lm_head`.

    The constructor leaves parameters uninitialised (it works on the meta device): `initialise` them or load them.
    """

    def __init__(self, layout: Layout, *, vocab_size: int) -> None:
        super().__init__()
        self.layout = layout
        self.model = Body(layout, vocab_size=vocab_size)
        self.lm_head = None if layout.tied_embeddings else nn.Linear(layout.hidden_size, vocab_size, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """The output matrix: logits are hidden_BTD @ head_VD.T. The input embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def softcap(self) -> float | None:
        """Logits are softcap * tanh(logits / softcap)."""
        return self.layout.softcap

    def forward(
        self,
        token_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Reading:
        """Hidden states after the final norm, for int64 `token_BT`.

        `positions_BT` (int64) defaults to 0, 1, 2, ... in each row. `segments_BT` (int64) numbers the documents packed into a
        row, -1 padding: a position sees its own document alone. None means one document per row, and is faster. With a
        `cache`, tokens follow those that it remembers; past `ntk_length`, where all rates change with every token, its keys are
        of no use and `LimbeckError` is raised.
        """
        return self.model(token_BT, positions_BT, segments_BT, cache)

    def placements(self) -> dict[str, Placement]:
        """What each parameter is for. Under µP (simple) matrices inside the blocks learn more slowly the wider they are."""
        base, width = self.layout.lr_base, self.layout.hidden_size
        scale = 1.0 if base is None else base / width
        found = {}
        for name, parameter in self.named_parameters():
            role = _role(name, parameter)
            hidden = role in ("matrix", "experts", "router") or (role == "head" and self.layout.head_is_hidden)
            found[name] = Placement(role, scale if hidden else 1.0)
        return found

    def new_cache(self) -> Cache:
        """For generation."""
        return Cache([KeysValues() for _ in self.layout.layers])

    def experts(self) -> list[Experts]:
        """The mixtures, in the order of their layers."""
        return [block.mlp for block in self.blocks() if isinstance(block.mlp, Experts)]

    def rebalance(self, load_ME: Tensor) -> None:
        """After an optimizer step: move every router's biases by how many tokens each expert saw in it, on all processes."""
        for experts, load_E in zip(self.experts(), load_ME, strict=True):
            experts.router.rebalance(load_E)

    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return [block for block in self.model.layers if isinstance(block, Block)]

    def recompute_activations(self) -> None:
        """From now on blocks keep nothing for the backward pass but their inputs."""
        for block in self.blocks():
            block.recomputes = True

    def compile_blocks(self) -> None:
        """From now on blocks are compiled when they are first called with gradients; parameters keep their names.

        Experts' grouped products are called as they are: torch traces them in bfloat16 alone.
        """
        for block in self.blocks():
            block.compiled = torch.compile(block.compute)
        for experts in self.experts():
            experts.experts.forward = torch.compiler.disable(experts.experts.forward)  # type: ignore[method-assign]

    def set_fraction(self, fraction: float) -> None:
        """How much of the budget is spent: shared experts' part depends on it, and whether all learns or routers alone."""
        if self.layout.router_warmup:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(fraction >= self.layout.router_warmup or ".router." in name)
        for experts in self.experts():
            if experts.layout.shared is not None:
                experts.shared_share.fill_(experts.layout.shared.share(fraction))


def empty_decoder(layout: Layout, *, vocab_size: int) -> Decoder:
    """On the meta device, where torch's own initialisation, which would draw global random numbers, does nothing."""
    with torch.device("meta"):
        return Decoder(layout, vocab_size=vocab_size)
