"""What a teacher is asked to say at each position.

`temperature` is the teacher's softmax temperature *when the signal is taken*; the student is compared at the same one. It
lives here and not in the objective because a sparse signal cannot be brought to another temperature afterwards.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class TopKSignal(Spec):
    """The k most probable next tokens with their log-probs, and the mass of all others (the tail)."""

    kind: Literal["topk"] = "topk"
    k: PositiveInt = 64
    temperature: float = Field(1.0, gt=0)
    live: bool = False
    """True: the teacher runs inside the training loop; False: rows come from a signal store."""


class SampledSignal(Spec):
    """`draws` independent draws with replacement from the teacher's distribution (Random Sampling KD, arXiv 2503.16870).

    Unbiased: the mean of counts / draws is the teacher's distribution. Draws depend on `seed`, the document and the position
    alone, so scoring again gives the same rows.
    """

    kind: Literal["sampled"] = "sampled"
    draws: PositiveInt = 50
    temperature: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0)
    live: bool = False


class HardSignal(Spec):
    """The teacher's most probable next token."""

    kind: Literal["hard"] = "hard"
    live: bool = False


class DenseSignal(Spec):
    """The teacher's whole distribution. Only ever live: it is projected from hidden states inside the training step."""

    kind: Literal["dense"] = "dense"
    temperature: float = Field(1.0, gt=0)
    live: Literal[True] = True


StoredSignal = Annotated[TopKSignal | SampledSignal | HardSignal, Field(discriminator="kind")]
Signal = Annotated[TopKSignal | SampledSignal | HardSignal | DenseSignal, Field(discriminator="kind")]
