"""Terms that compare a student with a teacher of another tokenizer, over the chunks of text that both bound with tokens.

A chunk is the shortest run of text between two places where both tokenizations have a boundary. t and s are the teacher's and
the student's log-prob of a chunk: the sum over its tokens. All of them read `signal.kind=chunks`, live or from a store.

A loss is the sum over chunks divided by the target tokens of the step, as every loss is: micro-batches add up, and where each
chunk is one token this is the mean over chunks.
"""

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.spec.base import Spec


class ObjectiveSpec(Spec):
    """What every objective has."""

    z_loss_weight: float = Field(0.0, ge=0)
    """Weight of (log of the softmax's denominator) squared, which keeps logits from drifting."""


class AcrossTerm(ObjectiveSpec):
    """A term that needs no common vocabulary."""

    distributions: ClassVar[tuple[str, ...]]
    """The values of `signal.distribution` that hold what it reads."""


class ALM(AcrossTerm):
    """Approximate likelihood matching (Minixhofer et al., arXiv 2503.20083): a coin's KL for each chunk.

    -[e^(t/T) s/T + (1 - e^(t/T)) log(1 - e^(s/T))] less its value at s = t, a constant. Its gradient is about 1/T of a
    cross-entropy's; `rescaled` multiplies by T, so that it can be mixed with one.
    """

    kind: Literal["alm"] = "alm"
    temperature: float = Field(100.0, gt=0)
    rescaled: bool = True
    boundary: float | None = Field(0.1, gt=0, lt=1)
    """Chunks are joined with those after them until the teacher gives at least this much to a next token that begins with white
    space or ends the document, and the log of that probability is added to t, and the student's to s. What no such place ends
    within a sequence is not scored. None: chunks as they are."""
    distributions: ClassVar[tuple[str, ...]] = ("none", "last", "mean", "index", "bytes")


class ULD(AcrossTerm):
    """Universal logit distillation (Boizard et al., arXiv 2402.12030): the L1 distance of sorted probabilities.

    Positions are paired by chunks (`signal.distribution=last`), with the probabilities of a chunk's earlier tokens multiplied
    in, or, as published, by index (`index`). Beyond the k largest the two masses are compared.
    """

    kind: Literal["uld"] = "uld"
    distributions: ClassVar[tuple[str, ...]] = ("last", "index")


class GOLD(AcrossTerm):
    """The hybrid of General Online Logit Distillation (TRL's GOLD): tokens of equal bytes by Jensen-Shannon, the rest by ULD.

    A chunk of several tokens has its distribution at the last of them, times the probabilities of those before ("bayesian").
    Of equal tokens those among the row's k are compared one by one, and all else as one more outcome, which TRL leaves out.
    """

    kind: Literal["gold"] = "gold"
    beta: float = Field(0.5, ge=0, le=1)
    """Of the Jensen-Shannon divergence on equal tokens: 0 is the forward KL, 1 the reverse."""
    matched_weight: float | None = Field(None, ge=0, le=1)
    """Of the equal tokens; the rest weighs 1 minus this. None: the share of the teacher's vocabulary that has an equal."""
    distributions: ClassVar[tuple[str, ...]] = ("last",)


class ProjectedKL(AcrossTerm):
    """P-KL of X-Token (NVIDIA, arXiv 2605.21699): the student's probabilities projected onto the teacher's tokens, forward KL.

    A student's token of equal bytes keeps its weight; one that the teacher splits gives 0.9, 0.09, ... to the pieces, scaled to
    sum to 1. Within a chunk the student's are averaged as probabilities, the teacher's as log-probs. All but the row's k tokens
    are one more outcome, where X-Token renormalises.
    """

    kind: Literal["projected_kl"] = "projected_kl"
    distributions: ClassVar[tuple[str, ...]] = ("mean",)


class ByteKL(AcrossTerm):
    """KL(teacher || student) of the next byte, at every place where both tokenizations have a boundary.

    The probability of a byte is that of all tokens that begin with it; the end of the document is a 257th outcome. Tokens that
    continue an unfinished one are not considered (only the canonical tokenization is).
    """

    kind: Literal["byte_kl"] = "byte_kl"
    distributions: ClassVar[tuple[str, ...]] = ("bytes",)
