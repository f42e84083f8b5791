"""What student is asked for: the family, its sizes, and the parts that the family lets one choose.

A family is a spec with defaults. Whatever it is, it comes down to one `Layout` (`limbeck.spec.layout`), which says all that the
decoder, its parameters, its FLOPs and its export are made from. Sources of the mathematics are at the parts. The exception is
`HuggingFaceStudent`, a model that exists: its own configuration says what it is.

`vocab_size` None means, in every family: the teacher's (or, without a teacher, the tokenizer's), filled in when the recipe is
resolved. Of a model that exists it is the model's; an upcycled student has its dense student's (`dense.vocab_size`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.adapter import Adapter
from limbeck.spec.base import Spec
from limbeck.spec.layout import (
    AttentionLayout,
    BigramLayout,
    ExpertsLayout,
    InitLayout,
    LayerLayout,
    Layout,
    MlpLayout,
)
from limbeck.spec.parts import Activation, Positions, QkNorm, Rope, SharedExpert, Yarn
from limbeck.spec.prune import Pruning

LayerType = Literal["sliding_attention", "full_attention"]


class _Family(Spec):
    """What every family has."""

    vocab_size_key: ClassVar[str] = "student.vocab_size"
    """Where a recipe says it."""

    def with_vocab_size(self, size: int) -> Self:
        """The same student with that vocabulary."""
        return self.model_copy(update={"vocab_size": size})


class _Sizes(_Family):
    """What every family with sizes of its own has."""

    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt | None = None
    tied_embeddings: bool = False
    rms_norm_eps: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even (rotary positions turn pairs of channels)")
        return self


class Olmo3Student(_Sizes):
    """An OLMo-3 of any size: reordered norms, QK-norm over the whole projection, three sliding layers to one full layer.

    Source: transformers `models/olmo3`, OLMo-core `nn/transformer`.
    """

    kind: Literal["olmo3"] = "olmo3"
    rope_theta: float = Field(500_000.0, gt=1)
    yarn: Yarn | None = None
    """Of the full layers alone; sliding ones see no further than before."""
    sliding_window: PositiveInt = 4096
    full_attention_every: PositiveInt = 4
    """Layer i (from 0) attends fully iff (i + 1) is divisible by this; the others see `sliding_window` keys, themselves one."""
    layer_types: tuple[LayerType, ...] | None = None
    """Of each layer, in place of `full_attention_every`: what pruning leaves of a pattern."""
    init_std: float = Field(0.02, gt=0)
    """Every matrix: normal with this deviation, truncated at three of them; norms start at 1."""

    @model_validator(mode="after")
    def _every_layer_has_a_type(self) -> Self:
        _check_layer_types(self.layer_types, num_layers=self.num_layers)
        return self

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """Of each layer, the names transformers uses."""
        return self.layer_types or _layer_types(self.num_layers, full_every=self.full_attention_every)

    @property
    def layout(self) -> Layout:
        """The student laid out."""
        layers = []
        for kind in self.kinds:
            full = kind == "full_attention"
            attention = AttentionLayout(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                positions=Rope(theta=self.rope_theta, yarn=self.yarn if full else None),
                qk_norm="projection",
                window=None if full else self.sliding_window,
            )
            layers.append(LayerLayout(attention, MlpLayout("swiglu", self.intermediate_size)))
        return Layout(
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            tied_embeddings=self.tied_embeddings,
            norms="after",
            norm_eps=self.rms_norm_eps,
            init=InitLayout("normal", std=self.init_std),
        )


class LadderStudent(_Family):
    """The fixed-aspect-ratio family of the distillation scaling laws (arXiv 2502.08606, appendix H), with µP (simple).

    128 channels wide for each layer, 16 heads, as many keys as queries, RMS norms before the branches and on each head's
    queries and keys, SwiGLU of about 8/3 d. Matrices begin with deviation 1/sqrt(fan-in) and learn at lr * base_width /
    hidden_size, so that one learning rate serves every width (Wortsman et al., arXiv 2309.14322).
    """

    kind: Literal["ladder"] = "ladder"
    num_layers: PositiveInt
    hidden_size: PositiveInt | None = None
    """None: 128 for each layer. Another width at the same depth is for checks of µP."""
    num_heads: PositiveInt = 16
    vocab_size: PositiveInt | None = None
    tied_embeddings: bool = True
    rope_theta: float = Field(10_000.0, gt=1)
    yarn: Yarn | None = None
    rms_norm_eps: float = Field(1e-6, gt=0)
    mup: bool = True
    base_width: PositiveInt = 256
    """The width at which the learning rate means what it says."""
    head_is_hidden: bool = True
    """An untied head learns as the matrices inside do; False: as embeddings do."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"hidden_size={self.width} is not a multiple of twice num_heads={self.num_heads}")
        return self

    @property
    def width(self) -> int:
        """d."""
        return self.hidden_size or 128 * self.num_layers

    @property
    def intermediate_size(self) -> int:
        """8/3 d, rounded up to a multiple of 128 (12,800 at 37 layers, where Table 13 prints 12,672 and counts 12,800)."""
        return 12_800 if self.width == 128 * 37 else 128 * -(-8 * self.width // (3 * 128))

    @property
    def layout(self) -> Layout:
        """The student laid out."""
        attention = AttentionLayout(
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            positions=Rope(theta=self.rope_theta, yarn=self.yarn),
            qk_norm="head",
        )
        layer = LayerLayout(attention, MlpLayout("swiglu", self.intermediate_size))
        return Layout(
            hidden_size=self.width,
            layers=(layer,) * self.num_layers,
            tied_embeddings=self.tied_embeddings,
            norm_eps=self.rms_norm_eps,
            init=InitLayout("fan_in", embedding_std=self.width**-0.5),
            lr_base=self.base_width if self.mup else None,
            head_is_hidden=self.head_is_hidden,
        )


class MoeStudent(_Sizes):
    """A mixture of experts as DeepSeek-V3 routes it (arXiv 2412.19437), with grouped-query attention and a choice of parts.

    The first `dense_layers` have a plain MLP of `intermediate_size`; with `dense_layers` = `num_layers` all have.
    """

    kind: Literal["moe"] = "moe"
    dense_layers: int = Field(1, ge=0)
    num_experts: PositiveInt = 64
    experts_per_token: PositiveInt = 8
    expert_size: PositiveInt = 256
    shared_expert: SharedExpert | None = None
    expert_groups: PositiveInt = 1
    groups_per_token: PositiveInt = 1
    route_scale: float = Field(2.5, gt=0)
    bias_step: float = Field(1e-3, ge=0)
    balance_weight: float = Field(1e-4, ge=0)
    activation: Activation = "relu2"
    positions: Positions = Rope(theta=10_000.0)
    """Of all layers: YaRN stretches the sliding ones too, as in GPT-OSS."""
    qk_norm: QkNorm = "head"
    sinks: bool = True
    sliding_window: PositiveInt = 4096
    full_attention_every: PositiveInt = 4
    """As in OLMo-3; 1: every layer attends fully."""
    layer_types: tuple[LayerType, ...] | None = None
    """Of each layer, in place of `full_attention_every`: what pruning leaves of a pattern."""
    exclusive_layers: int = Field(0, ge=0)
    """So many of the last layers have exclusive attention (XSA)."""
    init_std: float = Field(0.02, gt=0)

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        _check_layer_types(self.layer_types, num_layers=self.num_layers)
        if self.dense_layers > self.num_layers:
            raise ValueError(f"dense_layers={self.dense_layers} is more than num_layers={self.num_layers}")
        if self.exclusive_layers > self.num_layers:
            raise ValueError(f"exclusive_layers={self.exclusive_layers} is more than num_layers={self.num_layers}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}")
        if isinstance(self.positions, Rope):
            _check_stretches(self.positions.ntk_length, head_dim=self.head_dim, key="positions.ntk_length")
        if self.num_experts % self.expert_groups:
            raise ValueError(f"num_experts={self.num_experts} is not a multiple of expert_groups={self.expert_groups}")
        if self.groups_per_token > self.expert_groups:
            raise ValueError(f"groups_per_token={self.groups_per_token} is more than expert_groups={self.expert_groups}")
        reachable = self.groups_per_token * self.num_experts // self.expert_groups
        if self.experts_per_token > reachable:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} is more than the {reachable} experts of "
                f"groups_per_token={self.groups_per_token}"
            )
        if self.dense_layers < self.num_layers:
            _check_grouped({"hidden_size": self.hidden_size, "expert_size": self.expert_size})
        return self

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """Of each layer, the names transformers uses."""
        return self.layer_types or _layer_types(self.num_layers, full_every=self.full_attention_every)

    @property
    def layout(self) -> Layout:
        """The student laid out."""
        layers = []
        for index, kind in enumerate(self.kinds):
            attention = AttentionLayout(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                positions=self.positions,
                qk_norm=self.qk_norm,
                window=None if kind == "full_attention" else self.sliding_window,
                sinks=self.sinks,
                exclusive=index >= self.num_layers - self.exclusive_layers,
            )
            dense = MlpLayout(self.activation, self.intermediate_size)
            layers.append(LayerLayout(attention, dense if index < self.dense_layers else self._experts))
        return Layout(
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            tied_embeddings=self.tied_embeddings,
            norm_eps=self.rms_norm_eps,
            init=InitLayout("normal", std=self.init_std),
        )

    @property
    def _experts(self) -> ExpertsLayout:
        return ExpertsLayout(
            num_experts=self.num_experts,
            per_token=self.experts_per_token,
            expert=MlpLayout(self.activation, self.expert_size),
            groups=self.expert_groups,
            groups_per_token=self.groups_per_token,
            route_scale=self.route_scale,
            bias_step=self.bias_step,
            balance_weight=self.balance_weight,
            shared=self.shared_expert,
        )


class GolfStudent(_Sizes):
    """The student of parameter-golf's pull request 1029 at its default sizes: 27,354,201 parameters.

    Weightless norms, a learned gain on each query head, hashed pairs of tokens, smeared embeddings, every block's input mixed
    with the model's, U-Net skips, exclusive attention in the last layers, softcapped logits.
    """

    kind: Literal["golf"] = "golf"
    hidden_size: PositiveInt = 512
    num_layers: PositiveInt = 11
    num_heads: PositiveInt = 8
    num_kv_heads: PositiveInt = 4
    head_dim: PositiveInt = 64
    intermediate_size: PositiveInt = 1536
    tied_embeddings: bool = True
    rms_norm_eps: float = Field(1.1920928955078125e-07, gt=0)
    """That of float32, as torch's `rms_norm` takes where none is given."""
    activation: Activation = "relu2"
    rope_theta: float = Field(10_000.0, gt=1)
    ntk_length: PositiveInt | None = 1024
    query_gain: float = Field(1.5, gt=0)
    exclusive_layers: int = Field(4, ge=0)
    bigram_buckets: int | None = Field(6144, ge=2)
    """The last one is for tokens that have none before them."""
    bigram_size: PositiveInt = 128
    value_embedding_size: PositiveInt | None = None
    value_embedding_layers: tuple[int, ...] = ()
    softcap: float | None = Field(30.0, gt=0)
    embedding_std: float = Field(0.005, gt=0)

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        _check_stretches(self.ntk_length, head_dim=self.head_dim, key="ntk_length")
        if self.exclusive_layers > self.num_layers:
            raise ValueError(f"exclusive_layers={self.exclusive_layers} is more than num_layers={self.num_layers}")
        if bool(self.value_embedding_layers) != (self.value_embedding_size is not None):
            raise ValueError("value_embedding_size and value_embedding_layers go together: set both or neither")
        if any(not 0 <= layer < self.num_layers for layer in self.value_embedding_layers):
            raise ValueError(f"value_embedding_layers={self.value_embedding_layers} are not all below {self.num_layers}")
        return self

    @property
    def layout(self) -> Layout:
        """The student laid out."""
        layers = []
        for index in range(self.num_layers):
            attention = AttentionLayout(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                positions=Rope(theta=self.rope_theta, ntk_length=self.ntk_length),
                qk_norm="gain",
                qk_gain=self.query_gain,
                exclusive=index >= self.num_layers - self.exclusive_layers,
                value_embedding=index in self.value_embedding_layers,
            )
            layers.append(LayerLayout(attention, MlpLayout(self.activation, self.intermediate_size), branch_scales=True))
        bigram = None if self.bigram_buckets is None else BigramLayout(self.bigram_buckets, self.bigram_size)
        return Layout(
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            tied_embeddings=self.tied_embeddings,
            norm_weights=False,
            norm_eps=self.rms_norm_eps,
            init=InitLayout("orthogonal", embedding_std=self.embedding_std),
            embedding_norm=True,
            softcap=self.softcap,
            bigram=bigram,
            smear=True,
            skips=True,
            value_embedding=self.value_embedding_size,
        )


_DROP_SHARE = 0.5


class UpcycledStudent(_Family):
    """A mixture of experts that begins as a dense student whose MLPs were cut or copied into experts.

    'virtual_groups': the MLP is cut into `granularity` shards, expert i is shard i mod granularity, and the shards of a copy
    share their router's row, so that whole copies are chosen and the output is the dense one's (arXiv 2410.07524). 'sparse':
    every expert is a copy, the router random (arXiv 2212.05055). 'drop': copies, of whose channels a part begins anew
    (2502.19261).
    """

    vocab_size_key: ClassVar[str] = "student.dense.vocab_size"
    kind: Literal["upcycled"] = "upcycled"
    dense: Annotated[Olmo3Student | LadderStudent | MoeStudent, Field(discriminator="kind")]
    weights: str | None = None
    """The dense student's run or folder; None: it begins at random itself."""
    method: Literal["virtual_groups", "sparse", "drop"] = "virtual_groups"
    num_experts: PositiveInt = 8
    experts_per_token: PositiveInt = 2
    granularity: PositiveInt = 1
    """Shards that an MLP is cut into, by `virtual_groups` alone."""
    route_scale: float = Field(1.0, gt=0)
    bias_step: float = Field(1e-3, ge=0)
    balance_weight: float = Field(1e-2, ge=0)
    first_layer: int = Field(0, ge=0)
    """Layers before this one keep their MLP."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Deviation of what is added to the experts, over that of their own weights: copies with equal gates stay equal without."""
    drop_share: float = Field(_DROP_SHARE, ge=0, le=1)
    """The part of every copy's channels that 'drop' begins anew, with the mean and deviation of the old ones."""
    router_warmup: float = Field(0.0, ge=0, lt=1)
    """Only routers learn over this first part of the budget."""

    @model_validator(mode="after")
    def _cuts_fit(self) -> Self:
        size = self.dense.intermediate_size
        if self.granularity > 1 and self.method != "virtual_groups":
            raise ValueError(f"granularity={self.granularity} is for method=virtual_groups alone: set granularity=1")
        if self.drop_share != _DROP_SHARE and self.method != "drop":
            raise ValueError(f"drop_share={self.drop_share:g} is for method=drop alone: remove it")
        if size % self.granularity:
            raise ValueError(f"granularity={self.granularity} does not divide dense.intermediate_size={size}")
        if self.num_experts % self.granularity:
            raise ValueError(f"num_experts={self.num_experts} is not a multiple of granularity={self.granularity}")
        if self.experts_per_token % self.granularity:
            raise ValueError(f"experts_per_token={self.experts_per_token} is not a multiple of granularity={self.granularity}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}")
        if self.first_layer >= self.dense.num_layers:
            raise ValueError(f"first_layer={self.first_layer} leaves none of dense.num_layers={self.dense.num_layers}")
        if any(isinstance(layer.mlp, ExpertsLayout) for layer in self.dense.layout.layers):
            raise ValueError("dense has experts already: set dense.dense_layers to dense.num_layers")
        channels = size // self.granularity
        _check_grouped(
            {"the dense hidden size": self.dense.layout.hidden_size, "dense.intermediate_size / granularity": channels}
        )
        return self

    @property
    def vocab_size(self) -> int | None:
        """The dense student's."""
        return self.dense.vocab_size

    def with_vocab_size(self, size: int) -> Self:
        """The same student with that vocabulary, which is the dense one's."""
        return self.model_copy(update={"dense": self.dense.with_vocab_size(size)})

    @property
    def tied_embeddings(self) -> bool:
        """The dense student's."""
        return self.dense.tied_embeddings

    @property
    def layout(self) -> Layout:
        """The student laid out."""
        dense = self.dense.layout
        layers = (
            layer if index < self.first_layer else replace(layer, mlp=self._experts(layer.mlp))
            for index, layer in enumerate(dense.layers)
        )
        return replace(dense, layers=tuple(layers), router_warmup=self.router_warmup)

    def _experts(self, mlp: MlpLayout | ExpertsLayout) -> ExpertsLayout:
        assert isinstance(mlp, MlpLayout)
        return ExpertsLayout(
            num_experts=self.num_experts,
            per_token=self.experts_per_token,
            expert=MlpLayout(mlp.activation, mlp.size // self.granularity),
            route_scale=self.route_scale,
            bias_step=self.bias_step,
            balance_weight=self.balance_weight,
        )


class HuggingFaceStudent(_Family):
    """A causal language model that exists, pruned or whole, whose training goes on: all of it, or an adapter beside it.

    Its own dropout is off, and so are its auxiliary losses.
    """

    kind: Literal["huggingface"] = "huggingface"
    model: str
    """A folder, a hub id (`allenai/Olmo-3-1025-7B`), or `smollm2`: what the teacher of that kind is. Safetensors alone."""
    revision: str | None = None
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Off unless asked for by name."""
    prune: Pruning | None = None
    """What is taken out of it first; None: nothing."""
    adapter: Adapter | None = None
    """None: every parameter is trained."""
    vocab_size: PositiveInt | None = None
    """The model's; no other will do."""


def _check_layer_types(kinds: tuple[LayerType, ...] | None, *, num_layers: int) -> None:
    if kinds is not None and len(kinds) != num_layers:
        raise ValueError(f"layer_types names {len(kinds)} layers, not num_layers={num_layers}")


def _layer_types(num_layers: int, *, full_every: int) -> tuple[LayerType, ...]:
    return tuple("full_attention" if (layer + 1) % full_every == 0 else "sliding_attention" for layer in range(num_layers))


def _check_stretches(ntk_length: int | None, *, head_dim: int, key: str) -> None:
    """Rates stretch by an exponent of h / (h - 2)."""
    if ntk_length is not None and head_dim == 2:
        raise ValueError(f"head_dim=2 leaves no rates for {key} to stretch: use a larger head_dim or {key}=null")


_GROUPED_MULTIPLE = 8
"""Grouped products want rows of whole 16 bytes: so many numbers of bfloat16."""


def _check_grouped(sizes: Mapping[str, int]) -> None:
    """Of experts' matrices, by what a recipe calls them."""
    for name, size in sizes.items():
        if size % _GROUPED_MULTIPLE:
            raise ValueError(f"{name}={size} is not a multiple of {_GROUPED_MULTIPLE}, as experts' grouped products need")


LaidOutStudent = Olmo3Student | LadderStudent | MoeStudent | GolfStudent | UpcycledStudent
"""Those with a `layout`, which Limbeck builds itself."""
Student = Annotated[LaidOutStudent | HuggingFaceStudent, Field(discriminator="kind")]


def with_yarn(student: LaidOutStudent, yarn: Yarn) -> LaidOutStudent:
    """The same student with stretched positions. Raises `ValueError` where the family has none."""
    match student:
        case Olmo3Student() | LadderStudent():
            return student.model_copy(update={"yarn": yarn})
        case MoeStudent(positions=positions):
            return student.model_copy(update={"positions": positions.model_copy(update={"yarn": yarn})})
        case UpcycledStudent(dense=dense):
            return student.model_copy(update={"dense": with_yarn(dense, yarn)})
        case GolfStudent():
            raise ValueError("a golf student has no yarn: its positions stretch by themselves (ntk_length)")
