"""How long a student trains, in one of four currencies. Exactly one; there is no "off" value."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.spec.base import Spec


class Tokens(Spec):
    """Target tokens that the student is trained on, repeats counted."""

    kind: Literal["tokens"] = "tokens"
    amount: float = Field(gt=0)


class Steps(Spec):
    """Optimizer steps; 0 trains nothing and measures the student as it begins."""

    kind: Literal["steps"] = "steps"
    amount: float = Field(ge=0)


class Seconds(Spec):
    """Seconds of training time: without compilation, evaluation and checkpointing."""

    kind: Literal["seconds"] = "seconds"
    amount: float = Field(gt=0)


class Flops(Spec):
    """Floating-point operations of the student (forward and backward); `teacher_share` of the teacher's are added."""

    kind: Literal["flops"] = "flops"
    amount: float = Field(gt=0)
    teacher_share: float = Field(0.0, ge=0, le=1)


Budget = Annotated[Tokens | Steps | Seconds | Flops, Field(discriminator="kind")]
