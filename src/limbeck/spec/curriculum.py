"""A curriculum: stages of one run, each with a share of its budget and with what it changes of the recipe.

One optimizer, one schedule and one budget go through all of them.
"""

from typing import Any

from pydantic import Field

from limbeck.spec.base import Spec

CHANGEABLE = (
    "data.train",
    "data.sequence_length",
    "data.packing",
    "data.loss_on",
    "objective",
    "on_policy",
    "signal",
    "store",
    "batch",
    "teacher.context",
    "student.positions.yarn",
    "student.sliding_window",
    "placement",
    "activation_checkpointing",
)
"""What a stage may change, and all that lies below."""


class Stage(Spec):
    """A part of a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    share: float = Field(gt=0, le=1)
    """Of the recipe's budget."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the recipe, as dotted paths: `data.train.efforts: [low]`, `data.sequence_length: 2048`, `on_policy: {…}`."""
