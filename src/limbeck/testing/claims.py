"""What an objective claims of itself on a signal, and so what a conformance check may hold against it."""

from dataclasses import dataclass

from limbeck.objectives.parts import beside_kl
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.spec.across_tokenizers import ALM, GOLD, ULD, ByteKL, ProjectedKL
from limbeck.spec.objective import (
    CrossEntropy,
    Custom,
    DecoupledKL,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    Objective,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    Term,
    terms,
)
from limbeck.spec.signal import Signal
from limbeck.spec.weight import Balanced


@dataclass(frozen=True)
class Claims:
    """Properties that not every objective has. The others (mask, chunks, permutation, padding, finiteness, a pull on the
    logits) every one must.
    """

    zero_at_teacher: bool
    """A student equal to its teacher has no loss and no gradient."""
    has_potential: bool = True
    """The gradient is that of the value: not where part of it is held constant."""
    additive: bool = True
    """Micro-batches add up to the whole batch: not where a weight is taken from the micro-batch."""
    hears_misalignment: bool = True
    """Student and teacher one position apart cost more than aligned ones."""
    prefers_its_teacher: bool = True
    """A student near its teacher costs less than one that knows nothing of it, on topk, topp and dense."""
    scale: float | None = None
    """Loss over temperature squared times the forward KL on the same signal, near the teacher; None: not claimed."""


def claims_of(objective: Objective, signal: Signal | None, *, moment: Moment) -> Claims:
    """What Limbeck's own objectives claim, from their spec. A `custom` term claims that its value has a gradient, and that it
    prefers a student near its teacher.
    """
    parts = terms(objective)
    found = [weighted.term for weighted in parts]
    zero = objective.z_loss_weight == 0 and all(_is_zero_at_teacher(term, signal) for term in found)
    frozen = [term for term in found if isinstance(term, ReverseKL) and term.form == "stop_gradient"]
    drawn = any(isinstance(term, SampledReverseKL) for term in found)
    balanced = any(isinstance(weighted.weight, Balanced) for weighted in parts)
    scales = [_scale(weighted.term) for weighted in parts]
    everywhere = all(weighted.entropy is None for weighted in parts)
    weights = [weight_at(weighted.weight, moment) for weighted in parts]
    known = zero and not balanced and everywhere and all(scale is not None for scale in scales)
    return Claims(
        zero_at_teacher=zero,
        has_potential=not frozen and not balanced,
        additive=not balanced,
        # Where the student's mass leaves the ids, a sum over the ids alone forgets it.
        hears_misalignment=not frozen and not drawn and not any(isinstance(term, Custom) for term in found),
        # A z-loss is no distance, and the value beside a constant part, or of drawn tokens, is not one that falls towards the
        # teacher.
        prefers_its_teacher=not frozen and not drawn and objective.z_loss_weight == 0,
        scale=sum(weight * (scale or 0.0) for weight, scale in zip(weights, scales, strict=True)) if known else None,
    )


def _is_zero_at_teacher(term: Term, signal: Signal | None) -> bool:
    exact = signal is not None and signal.kind in ("topk", "topp", "dense")
    match term:
        case CrossEntropy() | HardLabels() | Custom():
            return False
        case ForwardKL(tail=tail):
            return exact and tail == "bucket"
        case ReverseKL() | JensenShannon() | SkewKL():
            return term.label_share == 0
        case DecoupledKL() | HiddenStates() | SampledReverseKL():
            return True
        case ALM() | ULD() | GOLD() | ProjectedKL() | ByteKL():  # they are not checked: see `check_objective`
            return False


def _scale(term: Term) -> float | None:
    """Of the term beside the KL at the same temperature, temperature squared counted in both."""
    match term:
        case ForwardKL() if term.temperature_squared:
            return 1.0
        case ReverseKL(form="tail") | JensenShannon(scale="kl") | SkewKL(scale="kl") if term.temperature_squared:
            return 1.0
        case JensenShannon() | SkewKL() if term.temperature_squared:
            return beside_kl(term.model_copy(update={"scale": "kl"}))
        case _:
            return None
