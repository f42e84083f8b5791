"""Mixtures of experts made from a dense student, as `student.kind=upcycled` asks for them."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.layout import ExpertsLayout, Layout, MlpLayout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.student_checks import check_grouped
from limbeck.spec.student_family import StudentFamily

_DROP_SHARE = 0.5


class UpcycledStudent(StudentFamily):
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
        check_grouped(
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
