"""What a teacher is asked to say at each position.

`temperature` is the teacher's softmax temperature *when the signal is taken*; the student is compared at the same one. It
lives here and not in the objective because a sparse signal cannot be brought to another temperature afterwards.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from limbeck.spec.base import Spec

Values = Literal["float16", "uint8"]
"""How log-probs are kept: 11 significant bits, or 256 steps; `limbeck.signals.codec` states the error of both."""

MOST_DRAWS = 1 << 16
MOST_IDS = 4096


def _few_enough_to_store(draws: int) -> int:
    if draws > MOST_DRAWS:
        raise ValueError(f"{draws:,} draws, but a row is stored with {MOST_DRAWS:,} ids at most; draw fewer")
    return draws


def _few_enough_to_sort(ids: int) -> int:
    if ids > MOST_IDS:
        raise ValueError(
            f"{ids:,} ids, but time and memory of storing a row grow with their square: {MOST_IDS:,} at most; take fewer, or "
            "signal.kind=dense for all"
        )
    return ids


Draws = Annotated[PositiveInt, AfterValidator(_few_enough_to_store)]
HeadSize = Annotated[PositiveInt, AfterValidator(_few_enough_to_sort)]


class _SparseSignal(Spec):
    live: bool = False
    """True: the teacher runs inside the training loop; False: rows come from a signal store."""


class TopKSignal(_SparseSignal):
    """The k most probable next tokens with their log-probs, and the mass of all others (the tail)."""

    kind: Literal["topk"] = "topk"
    k: HeadSize = 64
    temperature: float = Field(1.0, gt=0)
    values: Values = "float16"


class TopPSignal(_SparseSignal):
    """The fewest most probable tokens whose mass is at least `p`, but no more than `cap`; and the tail's mass."""

    kind: Literal["topp"] = "topp"
    p: float = Field(0.95, gt=0, lt=1)
    cap: HeadSize = 100
    temperature: float = Field(1.0, gt=0)
    values: Values = "float16"


class SampledSignal(_SparseSignal):
    """`draws` independent draws with replacement from the teacher's distribution (Random Sampling KD, arXiv 2503.16870).

    Unbiased: the mean of counts / draws is the teacher's distribution. Draws depend on `seed`, the document and the position
    alone, so scoring again gives the same rows.
    """

    kind: Literal["sampled"] = "sampled"
    draws: Draws = 50
    min_draws: PositiveInt | None = None
    """None: `draws` everywhere. Otherwise so many where the teacher is certain, rising with its entropy to `draws`."""
    full_entropy_nats: float = Field(3.0, gt=0)
    """The entropy from which on `draws` are drawn; means nothing without `min_draws`."""
    proposal_temperature: float = Field(1.0, gt=0)
    """Draws come from the teacher's distribution at this temperature besides its own, and carry importance weights."""
    temperature: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0)
    keep_top1: bool = False
    """Also keep the teacher's most probable token, which draws alone may miss."""

    @model_validator(mode="after")
    def _fewer_at_least(self) -> Self:
        if self.min_draws is not None and self.min_draws > self.draws:
            raise ValueError(f"min_draws={self.min_draws} exceeds draws={self.draws}")
        return self


class HybridSignal(_SparseSignal):
    """The k most probable tokens exactly, and `draws` draws with replacement from the rest: unbiased, with less variance."""

    kind: Literal["hybrid"] = "hybrid"
    k: HeadSize = 12
    draws: Draws = 16
    temperature: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0)
    values: Values = "float16"


class HardSignal(_SparseSignal):
    """The teacher's most probable next token."""

    kind: Literal["hard"] = "hard"


class ChunksSignal(_SparseSignal):
    """For students of another tokenizer: the teacher's log-prob of each chunk of text that both tokenizers bound.

    Rows are kept at the student's positions. `distribution` says what else is kept of a chunk, and of which of its positions:

    - none: nothing;
    - last: the teacher's `k` most probable tokens at the chunk's last token;
    - mean: the `k` largest of the mean of the log-probs over the chunk's tokens, scaled to sum to 1;
    - index: the `k` most probable tokens at the teacher's token of the same number in the document, whatever the chunk;
    - bytes: the `k` most probable next bytes where the chunk begins (256 is the end of the document).
    """

    kind: Literal["chunks"] = "chunks"
    distribution: Literal["none", "last", "mean", "index", "bytes"] = "none"
    k: HeadSize = 64


class DenseSignal(Spec):
    """The teacher's whole distribution. Only ever live: it is projected from hidden states inside the training step."""

    kind: Literal["dense"] = "dense"
    temperature: float = Field(1.0, gt=0)
    live: Literal[True] = True


TokenSignal = TopKSignal | TopPSignal | SampledSignal | HybridSignal | HardSignal
"""Of the token that follows a position."""
StoredSignal = Annotated[
    TopKSignal | TopPSignal | SampledSignal | HybridSignal | HardSignal | ChunksSignal, Field(discriminator="kind")
]
Signal = Annotated[
    TopKSignal | TopPSignal | SampledSignal | HybridSignal | HardSignal | ChunksSignal | DenseSignal,
    Field(discriminator="kind"),
]
