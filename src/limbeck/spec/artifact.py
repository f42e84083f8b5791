"""Students in few bits: how weights are rounded, when training begins to round them, and how an artifact packs them.

A row (what one output channel reads, or one token's embedding) shares a scale: integers of b bits times max|w| / (2^(b-1) - 1).
The defaults are parameter-golf's (github.com/openai/parameter-golf, `records`): 6 bits inside the blocks, 8 for embeddings.
"""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.spec.base import Spec
from limbeck.spec.optim import Schedule, last_factor

LIMIT_BYTES = 16_000_000
"""What parameter-golf allows for code and weights together."""


class Rounding(Spec):
    """The bits of matrices. Norms, gains, scales and routers are never rounded."""

    matrix_bits: int = Field(6, ge=2, le=8)
    """Of linear maps and experts."""
    embedding_bits: int = Field(8, ge=2, le=8)
    """Of embeddings, the head, and tables that are looked up."""
    small_elements: int = Field(65_536, ge=0)
    """Matrices of at most so many weights are left alone (float16 in an artifact): they are few bytes."""
    least_range: float = Field(0.0, ge=0)
    """A row's largest weight counts as at least this. The published script has 1: rows of small weights are rounded coarsely,
    and compress the further for it."""


class QuantisationAware(Rounding):
    """Late in a run the student reads with rounded weights, and its own take the gradients (arXiv 1308.3432: straight-through).

    When is a function of the schedule alone: published runs that asked the clock began at their first step.
    """

    from_lr_factor: float = Field(0.15, gt=0, le=1)
    """Begins once the learning rate is below this share of its peak, after the warmup."""

    def is_on(self, *, lr_factor: float, fraction: float, warmup: float) -> bool:
        """Whether a step rounds, at that share of the peak learning rate and of the budget; `warmup` is the schedule's."""
        return fraction >= warmup and lr_factor < self.from_lr_factor


def check_begins(aware: QuantisationAware, schedule: Schedule) -> None:
    """`ValueError` where the schedule never falls below `from_lr_factor`."""
    last = last_factor(schedule)
    if last >= aware.from_lr_factor:
        raise ValueError(
            f"from_lr_factor={aware.from_lr_factor} is never reached: the schedule ends at {last} of its peak; "
            "lower schedule.final or raise from_lr_factor"
        )


class ArtifactFormat(Rounding):
    """How an artifact packs a student."""

    matrix_clips: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((1.0, 0.99999, 0.9999, 0.9995, 0.999), min_length=1)
    """Quantiles of a row's |w| that are tried as its largest; the one of least squared error is taken (GPTQ-lite)."""
    embedding_clip: float = Field(0.9999984, gt=0, le=1)
    """The same for embeddings, where nothing is tried."""
    compression: Literal["smallest", "lzma", "zlib"] = "smallest"
    """'lzma': preset 9, extreme. 'zlib': level 9 or Huffman codes alone, whichever is smaller. 'smallest': of all three."""
