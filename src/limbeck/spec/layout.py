"""A student laid out: what every layer is made of. Every family comes down to this, and one decoder is built from it.

Parameters, FLOPs, the decoder and what it is exported as read the layout alone; nothing but the specs of students knows
families. Sizes: D hidden, H query heads, K key/value heads, h channels of a head, E experts.
"""

from dataclasses import dataclass
from typing import Literal

from limbeck.spec.parts import Activation, Positions, QkNorm, Rope, SharedExpert


@dataclass(frozen=True)
class AttentionLayout:
    """Grouped-query attention, causal."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    positions: Positions
    qk_norm: QkNorm
    qk_gain: float = 1.0
    """Where `qk_norm` is 'gain', what gains begin with."""
    window: int | None = None
    """Keys that a position sees, itself one; None: all before it."""
    sinks: bool = False
    """A learned logit for every query head that takes part in the softmax and has no value."""
    exclusive: bool = False
    """Outputs lose their part along the position's own value (XSA)."""
    value_embedding: bool = False
    """Values have a learned function of the token added."""


@dataclass(frozen=True)
class MlpLayout:
    """A dense MLP of `size` channels."""

    activation: Activation
    size: int


@dataclass(frozen=True)
class ExpertsLayout:
    """E MLPs of which a router sends every token to `per_token` (DeepSeek-V3)."""

    num_experts: int
    per_token: int
    expert: MlpLayout
    groups: int = 1
    groups_per_token: int = 1
    route_scale: float = 1.0
    """What a token's gates sum to."""
    bias_step: float = 1e-3
    """How far the balancing biases move in an optimizer step."""
    balance_weight: float = 0.0
    """Of the sequence-wise balance loss."""
    shared: SharedExpert | None = None

    @property
    def shared_mlp(self) -> MlpLayout | None:
        """The shared expert, which is of the routed ones' kind."""
        return None if self.shared is None else MlpLayout(self.expert.activation, self.shared.size)


@dataclass(frozen=True)
class LayerLayout:
    """A block: attention, then an MLP or experts, each on a branch beside the residual stream."""

    attention: AttentionLayout
    mlp: MlpLayout | ExpertsLayout
    branch_scales: bool = False
    """Learned factors for each channel on both branches, and on the block's input and the model's (`mixes`)."""


@dataclass(frozen=True)
class BigramLayout:
    """A table of hashed pairs of tokens, projected to the hidden size."""

    buckets: int
    size: int


@dataclass(frozen=True)
class InitLayout:
    """How matrices begin. Norms, gains and scales begin at 1, sinks at 0.

    'normal': deviation `std`, truncated at three of them. 'fan_in': deviation 1/sqrt(fan-in), likewise truncated, embeddings
    `embedding_std`. 'orthogonal': orthogonal matrices, output projections of branches zero, embeddings `embedding_std`.
    """

    kind: Literal["normal", "fan_in", "orthogonal"] = "normal"
    std: float = 0.02
    embedding_std: float | None = None
    """None: `std`."""


@dataclass(frozen=True)
class Layout:
    """A whole student but for its vocabulary's size."""

    hidden_size: int
    layers: tuple[LayerLayout, ...]
    tied_embeddings: bool
    norms: Literal["before", "after"] = "before"
    """RMS norms on what branches read (Llama), or on what they give (OLMo-3); one more after the last layer in either case."""
    norm_weights: bool = True
    norm_eps: float = 1e-6
    init: InitLayout = InitLayout()
    lr_base: int | None = None
    """µP (simple): matrices inside the blocks learn at lr * lr_base / hidden_size; None: everything learns alike."""
    head_is_hidden: bool = True
    """With `lr_base`: whether the head learns as those matrices do."""
    embedding_norm: bool = False
    """A norm on the embeddings."""
    softcap: float | None = None
    """Logits are softcap * tanh(logits / softcap)."""
    bigram: BigramLayout | None = None
    smear: bool = False
    """Every embedding has a learned part of the one before it mixed in."""
    skips: bool = False
    """The first half of the layers hands its outputs to the second half, last to first (U-Net)."""
    router_warmup: float = 0.0
    """Only routers learn over this first part of the budget."""
    value_embedding: int | None = None
    """The width of the table that layers with `value_embedding` share."""

    @property
    def exact_length(self) -> int | None:
        """Tokens beyond which all rates change with each one more (the shortest `ntk_length`); None: never."""
        ropes = [layer.attention.positions for layer in self.layers if isinstance(layer.attention.positions, Rope)]
        return min((rope.ntk_length for rope in ropes if rope.ntk_length is not None), default=None)
