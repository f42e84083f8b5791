"""Mixtures of experts, as `student.kind=moe` asks for them."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.layer_types import LayerType, check_layer_types, sliding_pattern
from limbeck.spec.layout import AttentionLayout, ExpertsLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import Activation, Positions, QkNorm, Rope, SharedExpert
from limbeck.spec.student_checks import check_grouped, check_stretches
from limbeck.spec.student_family import SizedFamily


class MoeStudent(SizedFamily):
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
        check_layer_types(self.layer_types, num_layers=self.num_layers)
        if self.dense_layers > self.num_layers:
            raise ValueError(f"dense_layers={self.dense_layers} is more than num_layers={self.num_layers}")
        if self.exclusive_layers > self.num_layers:
            raise ValueError(f"exclusive_layers={self.exclusive_layers} is more than num_layers={self.num_layers}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}")
        if isinstance(self.positions, Rope):
            check_stretches(self.positions.ntk_length, head_dim=self.head_dim, key="positions.ntk_length")
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
            check_grouped({"hidden_size": self.hidden_size, "expert_size": self.expert_size})
        return self

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """Of each layer, the names transformers uses."""
        return self.layer_types or sliding_pattern(self.num_layers, full_every=self.full_attention_every)

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
