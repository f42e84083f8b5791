"""How an evaluation that generates does so: what all such kinds have in common."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class Decoding(Spec):
    """Greedy, or sampled from the model's own distribution at a temperature."""

    max_new_tokens: PositiveInt = 256
    """Where a sample is cut off if the model has not stopped."""
    batch_size: PositiveInt = 16
    """Samples that are generated at once; seconds per sample depend on it."""
    temperature: float = Field(0.0, ge=0)
    """0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0)
    """Of the draws."""

    @model_validator(mode="after")
    def _draws_where_it_says_how(self) -> Self:
        if self.temperature == 0 and "top_p" in self.model_fields_set and self.top_p < 1:
            raise ValueError(f"top_p={self.top_p} means nothing at temperature=0, which is greedy: set a temperature")
        return self
