"""Calibration: how far a model's confidence is to be trusted, and how far what it says is from what its teacher says."""

from typing import Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class Calibration(Spec):
    """Errors of calibration to the next token and to the teacher, divergences and agreement, on held-out texts."""

    kind: Literal["calibration"] = "calibration"
    window: PositiveInt | None = None
    """Tokens read at once; None: the recipe's sequence length, or 2,048, or the longest that the model reads."""
    overlap: int = Field(0, ge=0)
    """Tokens that the next window reads again as context. The teacher reads with its own context."""
    bins: PositiveInt = 21
    """Of equal width over confidences from 0 to 1."""
    agreement: tuple[PositiveInt, ...] = (1, 5, 10)
    """How many of the most probable tokens of model and teacher are held against one another."""
    to_teacher: bool = True
    """Also measure against the teacher, where there is one."""
