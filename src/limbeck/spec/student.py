"""What student is asked for: the family and its sizes. Derived sizes are properties; nothing is built here.

Source of the OLMo-3 mathematics: transformers `models/olmo3`, OLMo-core `nn/transformer`.
"""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class Olmo3Student(Spec):
    """An OLMo-3 of any size: reordered norms, QK-norm over the whole projection, three sliding layers to one full layer.

    `vocab_size` None means: the teacher's (or, without a teacher, the tokenizer's), filled in when the recipe is resolved.
    """

    kind: Literal["olmo3"] = "olmo3"
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt | None = None
    tied_embeddings: bool = False
    rope_theta: float = Field(500_000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    sliding_window: PositiveInt = 4096
    full_attention_every: PositiveInt = 4
    """Layer i (from 0) attends fully iff (i + 1) is divisible by this; the others see `sliding_window` keys, themselves one."""
    init_std: float = Field(0.02, gt=0)
    """Every matrix: normal with this deviation, truncated at three of them; norms start at 1."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even (rotary positions turn pairs of channels)")
        return self

    @property
    def layer_types(self) -> tuple[str, ...]:
        """One of 'sliding_attention' or 'full_attention' for each layer, the names transformers uses."""
        return tuple(
            "full_attention" if (layer + 1) % self.full_attention_every == 0 else "sliding_attention"
            for layer in range(self.num_layers)
        )


Student = Olmo3Student
