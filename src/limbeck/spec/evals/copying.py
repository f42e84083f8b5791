"""Copying: whether a model makes use of what it has just read."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class Copying(Spec):
    """Random tokens read twice, texts read twice, and pairs of tokens of which the first comes again."""

    kind: Literal["copying"] = "copying"
    lags: tuple[Annotated[int, Field(ge=2)], ...] = Field((16, 64, 256), min_length=1)
    """Tokens from a token to its copy. Those that do not fit twice into the window are left out; if all, half the window."""
    sequences: PositiveInt = 64
    """Of each lag."""
    text: bool = True
    """Also read held-out texts twice."""
    window: PositiveInt | None = None
    """The most tokens read at once; None: the recipe's sequence length, or 2,048, or the longest that the model reads."""
    seed: int = Field(0, ge=0)
