"""The parameter-golf family, as `student.kind=golf` asks for it."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.layout import AttentionLayout, BigramLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import Activation, Rope
from limbeck.spec.student_checks import check_stretches
from limbeck.spec.student_family import SizedFamily


class GolfStudent(SizedFamily):
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
        check_stretches(self.ntk_length, head_dim=self.head_dim, key="ntk_length")
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
