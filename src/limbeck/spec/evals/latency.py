"""How long a model takes to read a prompt and to write a token."""

from typing import Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class Latency(Spec):
    """Reading at several lengths, one prompt at a time; writing in several batches."""

    kind: Literal["latency"] = "latency"
    prompt_tokens: tuple[PositiveInt, ...] = Field((128, 512, 1024), min_length=1)
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1)
    context_tokens: PositiveInt = 128
    """Tokens that have been read where writing begins."""
    decode_tokens: PositiveInt = 8
    """Tokens written between two looks at the clock."""
    warmups: int = Field(3, ge=0)
    repeats: int = Field(10, ge=2)
