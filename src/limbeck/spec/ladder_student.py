"""The family of scaling ladders: one depth says every size, as `student.kind=ladder` asks for it."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.layout import AttentionLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import Rope, Yarn
from limbeck.spec.student_family import StudentFamily


class LadderStudent(StudentFamily):
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
