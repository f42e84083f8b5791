"""Bits per byte on held-out texts."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints

from limbeck.spec.base import Spec
from limbeck.spec.data import Texts

DomainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class BitsPerByte(Spec):
    """Every text token is predicted exactly once, in windows that overlap or not."""

    kind: Literal["bits_per_byte"] = "bits_per_byte"
    window: PositiveInt | None = None
    """Tokens read at once; None: the recipe's sequence length, or 2,048, or the longest that the model reads."""
    overlap: int = Field(0, ge=0)
    """Tokens that the next window reads again as context: `window - 1` gives every token all the context there is."""
    domains: dict[DomainName, Texts] = Field(default_factory=dict)
    """Texts by the name of their domain, read in place of the held-out ones: bits per byte of each, and of all together."""
