"""What families of students have in common: a vocabulary, and the sizes that most of them are given by.

`vocab_size` None means, in every family: the teacher's (or, without a teacher, the tokenizer's), filled in when the recipe is
resolved. Of a model that exists it is the model's; an upcycled student has its dense student's (`dense.vocab_size`).
"""

from typing import ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class StudentFamily(Spec):
    """What every family has."""

    vocab_size_key: ClassVar[str] = "student.vocab_size"
    """Where a recipe says it."""

    def with_vocab_size(self, size: int) -> Self:
        """The same student with that vocabulary."""
        return self.model_copy(update={"vocab_size": size})


class SizedFamily(StudentFamily):
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
