"""The optimizer and its schedule. Schedules are functions of the fraction of the budget that is spent, never of steps, so the
same recipe means the same thing whatever the budget is counted in.
"""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.spec.base import Spec


class AdamW(Spec):
    """AdamW (Loshchilov & Hutter 2019). Weight decay touches matrices only: not norms, and not embeddings, as OLMo does."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""


class Cosine(Spec):
    """Linear warmup, then half a cosine down to `final` of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    final: float = Field(0.1, ge=0, le=1)


class WarmupStableDecay(Spec):
    """Linear warmup, constant, then linear decay to `final` of the peak over the last `decay` of the budget."""

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(0.05, ge=0, lt=1)
    decay: float = Field(0.2, ge=0, le=1)
    final: float = Field(0.0, ge=0, le=1)


Optimizer = AdamW
Schedule = Annotated[Cosine | WarmupStableDecay, Field(discriminator="kind")]
