"""The OLMo-3 family: sliding layers and full ones, as `student.kind=olmo3` asks for it."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.layer_types import LayerType, check_layer_types, sliding_pattern
from limbeck.spec.layout import AttentionLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import Rope, Yarn
from limbeck.spec.student_family import SizedFamily


class Olmo3Student(SizedFamily):
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
        check_layer_types(self.layer_types, num_layers=self.num_layers)
        return self

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """Of each layer, the names transformers uses."""
        return self.layer_types or sliding_pattern(self.num_layers, full_every=self.full_attention_every)

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
