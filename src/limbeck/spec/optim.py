"""The optimizer, its schedule, and the averaging of weights. Schedules are functions of the fraction of the budget that is
spent, never of steps, so the same recipe means the same thing whatever the budget is counted in.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class AdamWNumbers(Spec):
    """AdamW's own numbers (Loshchilov & Hutter 2019). Weight decay spares norms, embeddings and tables, as OLMo does."""

    lr: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    independent_weight_decay: bool = False
    """w <- w - f * weight_decay * w in each step, f being the schedule's factor: not multiplied by the learning rate. Without
    it muP's decay vanishes with width (Wortsman et al., arXiv 2309.14322). 1e-4 is then what 0.1 is at lr 1e-3."""

    @model_validator(mode="after")
    def _decay_is_meant(self) -> Self:
        if self.independent_weight_decay and "weight_decay" not in self.model_fields_set:
            raise ValueError(
                f"independent_weight_decay takes weight_decay={self.weight_decay} of every weight in each step: set it too, "
                "such as 1e-4"
            )
        return self


class AdamW(AdamWNumbers):
    """AdamW for every parameter."""

    kind: Literal["adamw"] = "adamw"
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""


class MomentumWarmup(Spec):
    """Momentum rises linearly from `start` to its value over the first `until` of the budget."""

    start: float = Field(0.85, ge=0, lt=1)
    until: float = Field(0.1, gt=0, le=1)


class MuonNumbers(Spec):
    """What Muon and NorMuon share: hidden matrices step along their orthogonalised momentum, all else by AdamW."""

    lr: float = Field(0.02, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    momentum_warmup: MomentumWarmup | None = None
    steps: PositiveInt = 5
    """Of the orthogonaliser."""
    scale: Literal["original", "match_rms_adamw", "spectral"] = "original"
    """Of the step of a matrix with `out` rows and `in` columns: sqrt(max(1, out/in)); 0.2 sqrt(max(out, in)), for which AdamW's
    lr and weight decay serve; sqrt(out/in)."""
    weight_decay: float = Field(0.01, ge=0)
    """Of the hidden matrices, multiplied by their learning rate."""
    adamw: AdamWNumbers = AdamWNumbers()
    """Of embeddings, head, routers, tables and vectors."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""


class Muon(MuonNumbers):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

    kind: Literal["muon"] = "muon"
    orthogonaliser: Literal["newton_schulz", "polar_express"] = "newton_schulz"


class NorMuon(MuonNumbers):
    """Muon with every output neuron's step brought to one size by a running mean of its square (arXiv 2510.05491)."""

    kind: Literal["normuon"] = "normuon"
    orthogonaliser: Literal["newton_schulz", "polar_express"] = "polar_express"
    beta2: float = Field(0.95, ge=0, lt=1)
    """Of the running mean."""


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

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup:g} and decay={self.decay:g} are more than the whole budget")
        return self


class NoAveraging(Spec):
    """The student is the weights of the last step."""

    kind: Literal["none"] = "none"


class ExponentialAverage(Spec):
    """After every step, average <- decay * average + (1 - decay) * weights, from the initial weights on."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.997, ge=0, lt=1)


class SnapshotAverage(Spec):
    """The equal average of snapshots that are taken while the learning rate falls (SWA, arXiv 1803.05407)."""

    kind: Literal["swa"] = "swa"
    below: float = Field(0.2, gt=0, le=1)
    """Snapshots are taken while the learning rate is below this share of its peak; warmup does not count."""
    every: float = Field(0.01, gt=0, le=1)
    """The share of the budget from one snapshot to the next."""


def _adamw_unless_said(values: Any) -> Any:
    """So that `optimizer.lr=3e-4` says enough over a recipe that names no optimizer."""
    return {"kind": "adamw", **values} if isinstance(values, dict) else values


Optimizer = Annotated[AdamW | Muon | NorMuon, Field(discriminator="kind"), BeforeValidator(_adamw_unless_said)]
Schedule = Annotated[Cosine | WarmupStableDecay, Field(discriminator="kind")]
Averaging = Annotated[NoAveraging | ExponentialAverage | SnapshotAverage, Field(discriminator="kind")]


def last_factor(schedule: Schedule) -> float:
    """The share of its peak that the learning rate ends at, which is the lowest after the warmup."""
    return 1.0 if isinstance(schedule, WarmupStableDecay) and schedule.decay == 0 else schedule.final


def check_averages(averaging: Averaging, schedule: Schedule) -> None:
    """`ValueError` where snapshots wait for a learning rate that the schedule never falls to."""
    if isinstance(averaging, SnapshotAverage) and last_factor(schedule) >= averaging.below:
        raise ValueError(
            f"averaging.below={averaging.below} is never reached: the schedule ends at {last_factor(schedule)} of its peak, so "
            "no snapshot would be taken; lower schedule.final, raise averaging.below or set averaging.kind=ema"
        )
