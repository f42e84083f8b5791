"""Bits per byte on held-out texts."""

from typing import Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class BitsPerByte(Spec):
    """Every text token is predicted exactly once, in windows that overlap or not."""

    kind: Literal["bits_per_byte"] = "bits_per_byte"
    window: PositiveInt | None = None
    """Tokens read at once; None: the recipe's sequence length, or 2,048, or the longest that the model reads."""
    overlap: int = Field(0, ge=0)
    """Tokens that the next window reads again as context."""
