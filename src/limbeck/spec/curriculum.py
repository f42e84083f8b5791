"""A curriculum: stages of one run, each with a share of its budget and with what it changes of the recipe.

One optimizer, one schedule and one budget go through all of them. What a stage may change leaves every parameter as it is.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

from pydantic import Field

from limbeck.spec.base import Spec, nearest

CHANGEABLE = (
    "data.train",
    "data.sequence_length",
    "data.packing",
    "objective",
    "on_policy",
    "signal",
    "store",
    "batch",
    "teacher.context",
    "student.yarn",
    "student.positions.yarn",
    "student.dense.yarn",
    "student.dense.positions.yarn",
    "student.sliding_window",
    "student.full_attention_every",
    "student.layer_types",
    "student.dense.sliding_window",
    "student.dense.full_attention_every",
    "student.dense.layer_types",
    "placement",
    "activation_checkpointing",
)
"""What a stage may change, and all that lies below. Not `data.loss_on`: held-out texts are measured by it."""


class Stage(Spec):
    """A part of a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    share: float = Field(gt=0, le=1)
    """Of the recipe's budget."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the recipe, as dotted paths: `data.train.efforts: [low]`, `data.sequence_length: 2048`, `on_policy: {…}`."""


def borders(curriculum: Sequence[Stage]) -> tuple[float, ...]:
    """The share of the budget at which each stage ends; the last one's is 1.

    Shares are summed as the decimals that they are written as: 0.1 and 0.2 end at 0.3, which their sum in floats exceeds.
    """
    ends = accumulate(Fraction(repr(stage.share)) for stage in curriculum[:-1])
    return (*(float(end) for end in ends), 1.0)


def check_curriculum(curriculum: Sequence[Stage]) -> None:
    """`ValueError` where shares do not sum to 1, a name is there twice, or a stage changes what none may."""
    if not curriculum:
        return
    total = math.fsum(stage.share for stage in curriculum)
    if not math.isclose(total, 1.0, abs_tol=1e-9):
        raise ValueError(f"the shares of the stages of curriculum sum to {total:g}: they must sum to 1")
    names = [stage.name.casefold() for stage in curriculum]
    for stage in curriculum:
        if names.count(stage.name.casefold()) > 1:
            raise ValueError(f"curriculum has two stages named {stage.name}: name each once (folders are named by them)")
        for path in stage.changes:
            if not any(f"{path}.".startswith(f"{each}.") for each in CHANGEABLE):
                raise ValueError(f"stage {stage.name}: {path} is nothing that a stage may change{nearest(path, [*CHANGEABLE])}")
