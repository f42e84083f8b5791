"""Adapters: a few parameters beside a model's own, which stay as they are, and in the end go into them.

LoRA (arXiv 2106.09685) adds to a matrix W [out, in] the product (alpha / rank) B A, with A [rank, in] drawn and B [out, rank]
zero, so that training begins at the model itself. DoRA (arXiv 2402.09353) learns each output channel's length apart from its
direction: m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|, where m begins as |W|. Both are peft's.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class _LowRank(Spec):
    rank: PositiveInt = 16
    alpha: float = Field(32.0, gt=0)
    """What is added is alpha / rank times the product."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear maps that are adapted, or what stands after a dot in them; all-linear: every one but the head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what A reads, while training."""
    also: tuple[str, ...] = ()
    """Modules that are trained in full, by how their names end: `norm` is every `input_layernorm` too."""


class LoRA(_LowRank):
    """A low-rank addition to the matrices."""

    kind: Literal["lora"] = "lora"


class DoRA(_LowRank):
    """A low-rank change of the matrices' directions, and their lengths."""

    kind: Literal["dora"] = "dora"


Adapter = Annotated[LoRA | DoRA, Field(discriminator="kind")]
