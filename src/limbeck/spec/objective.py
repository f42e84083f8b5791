"""What the student minimises. Divergences are per token; weights, masks, temperature squared and the mean are applied in one
place, `limbeck.objectives.objective`.

Notation: p the teacher's next-token distribution, q the student's, both at the signal's temperature tau; y the text's token;
K the ids that a truncated signal names (topk, topp; the exact head of hybrid), P_K and Q_K their mass.

Mixing labels into the teacher: for a forward KL, KL(a y + (1 - a) p || q) is a CE + (1 - a) KL(p || q) up to a constant, so a
mixture says it. What no mixture can say has a key: `label_share` of the other divergences, `tail: text` of a truncated KL.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from limbeck.spec.across_tokenizers import ALM, GOLD, ULD, AcrossTerm, ByteKL, ObjectiveSpec, ProjectedKL
from limbeck.spec.base import Spec
from limbeck.spec.signal import ChunksSignal, SampledSignal, Signal
from limbeck.spec.weight import Balanced, Constant, Weight


class _Divergence(ObjectiveSpec):
    temperature_squared: bool = True
    """Multiply by temperature squared, so that gradients keep their size across temperatures (Hinton et al. 2015)."""


class _PairDivergence(_Divergence):
    """A divergence that reads both distributions whole: dense, or over K and one more outcome, "any other token"."""

    label_share: float = Field(0.0, ge=0, lt=1)
    """The teacher is (1 - label_share) p + label_share * (the text's own token)."""


class CrossEntropy(ObjectiveSpec):
    """Next-token cross-entropy on the text itself: no teacher."""

    kind: Literal["ce"] = "ce"


class ForwardKL(_Divergence):
    """KL(teacher || student) on the recipe's signal.

    `tail` says what becomes of the mass outside the ids of `topk` and `topp`. 'bucket' compares the two masses as one more
    outcome: a lower bound of the full KL whose optimum is right on the ids. 'text' puts the tail's mass on the text's own
    token: close to unbiased where the teacher is calibrated. 'renormalised' divides the head by its mass: biased,
    over-confident, kept under its honest name for comparison.
    """

    kind: Literal["forward_kl"] = "forward_kl"
    tail: Literal["bucket", "text", "renormalised"] = "bucket"


class DecoupledKL(ObjectiveSpec):
    """The two parts of a KL over K and its tail, apart, so that only the second is softened (LFM2, arXiv 2511.23404).

    mass_weight * KL(P_K || Q_K, both as coins, at temperature 1)
        + conditional_weight * tau^2 * [P_K if by_mass] * KL(p on K, scaled to sum to 1, at tau || q likewise).
    At temperature 1 with both weights 1 it is `forward_kl` with its tail bucket (chain rule). tau is `temperature` here; the
    signal's must be 1: within its ids, and only there, a truncated signal can be brought to another temperature.
    """

    kind: Literal["decoupled"] = "decoupled"
    temperature: float = Field(2.0, gt=0)
    temperature_squared: bool = True
    mass_weight: float = Field(1.0, ge=0)
    conditional_weight: float = Field(1.0, ge=0)
    by_mass: bool = True
    """False: positions weigh alike whatever mass K holds there (Decoupled Knowledge Distillation, arXiv 2203.08679)."""

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.mass_weight == 0 and self.conditional_weight == 0:
            raise ValueError("mass_weight and conditional_weight are both 0: set one of them, or both, above 0")
        return self


class ReverseKL(_PairDivergence):
    """KL(student || teacher): exact on `dense`, truncated on K otherwise.

    'tail' adds the two masses outside K as one more outcome: a lower bound of the whole. 'stop_gradient' is
    sum_K q * constant(log q - log p): without the gradient of Q_K, which would push mass out of K; its value is no divergence,
    and mass outside K is not called back. 'renormalised' scales both to sum to 1 on K, and ignores all that q does outside.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    form: Literal["tail", "stop_gradient", "renormalised"] = "tail"

    @model_validator(mode="after")
    def _labels_need_a_tail(self) -> Self:
        if self.label_share and self.form != "tail":
            raise ValueError(
                f"label_share needs form=tail: with form={self.form} the text's token has no place outside the ids"
            )
        return self


class JensenShannon(_PairDivergence):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649, eq. 1).

    That is `scale: plain`, and vanishes at both ends: its gradient at beta = 0.5 is a quarter of a KL's, at 0.9 less than a
    tenth. `scale: kl` divides by beta (1 - beta): near q = p every beta then equals the KL, and the ends are the two KLs
    (beta -> 0 forward, beta -> 1 reverse), so that beta can be swept at one learning rate.
    """

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1)
    scale: Literal["kl", "plain"] = "kl"


class SkewKL(_PairDivergence):
    """KL against a mixture of the two (DistiLLM, arXiv 2402.03898), with alpha the share of the first argument.

    forward: KL(p || alpha p + (1 - alpha) q); reverse: KL(q || alpha q + (1 - alpha) p). `scale: plain` is just that, a factor
    (1 - alpha)^2 below the KL near q = p; `scale: kl` divides by it. alpha -> 0 is the KL of that direction in both.
    """

    kind: Literal["skew_kl"] = "skew_kl"
    direction: Literal["forward", "reverse"] = "forward"
    alpha: float = Field(0.1, gt=0, lt=1)
    scale: Literal["kl", "plain"] = "kl"


class SampledReverseKL(ObjectiveSpec):
    """KL(student || teacher) by the score of the tokens that the student drew (K. Lu et al., "On-Policy Distillation", 2025).

    With a the drawn token, q_s the student that drew it and A = -(log q_s(a) - log p(a)) held constant, the loss is
    -A q(a) / q_s(a), whose expected gradient where q = q_s is that of the KL at this position (what the token does to later
    ones is ignored: discount 0). log q(a) - log p(a) itself, "k1", is an unbiased estimate of the KL and never differentiated:
    the expectation of its gradient, sum q grad log q = grad sum q, is zero, and says nothing of the teacher.

    With a teacher at hand `reverse_kl` is the same without the noise of one draw; this is what can be compared with those who
    have log-probs of drawn tokens alone. Its metric `k1` is the mean of log q_s(a) - log p(a).
    """

    kind: Literal["sampled_reverse_kl"] = "sampled_reverse_kl"


class HardLabels(ObjectiveSpec):
    """Cross-entropy against the teacher's most probable token. Not a proper score: students become over-confident."""

    kind: Literal["hard"] = "hard"


class HiddenStates(ObjectiveSpec):
    """The student's final hidden states against a live teacher's (both after their final norm), for pruned students.

    'cosine': 1 - cos. 'mse': mean over the teacher's width of the squared difference. Where the widths differ, the student's
    pass through a learned linear map to the teacher's width, which trains with the student and is not part of it.
    """

    kind: Literal["hidden"] = "hidden"
    distance: Literal["cosine", "mse"] = "cosine"


class Custom(_Divergence):
    """A loss of one's own: `function` names `package.module:name`, installed or in the working directory.

    It is called with the student's `limbeck.objectives.head.HeadStatistics` and the teacher's
    `limbeck.signals.types.SparseTarget` (None for dense: `expected_T` and `teacher_entropy_T` of the statistics are all that is
    known of it), both at the signal's temperature. Ids of probability 0 are padding. It returns nats per token, float [T],
    unreduced, with a gradient. Its metric is `custom_<name>`. `docs/objectives.md` shows how one is written, and
    `limbeck.testing.check_objective` says whether it keeps the rules that ours keep.
    """

    kind: Literal["custom"] = "custom"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


PairTerm = ReverseKL | JensenShannon | SkewKL
AnyTerm = (
    CrossEntropy
    | ForwardKL
    | DecoupledKL
    | ReverseKL
    | JensenShannon
    | SkewKL
    | SampledReverseKL
    | HardLabels
    | HiddenStates
    | Custom
    | ALM
    | ULD
    | GOLD
    | ProjectedKL
    | ByteKL
)
Term = Annotated[AnyTerm, Field(discriminator="kind")]


class EntropyRange(Spec):
    """The positions where the teacher's entropy at the signal's temperature is at least `from_nats` and below `below_nats`.

    Two terms, one with `below_nats: x` and one with `from_nats: x`, share the positions out between them.
    """

    from_nats: float | None = Field(None, gt=0)
    below_nats: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.from_nats is None and self.below_nats is None:
            raise ValueError("set from_nats, below_nats or both")
        if self.from_nats is not None and self.below_nats is not None and self.from_nats >= self.below_nats:
            raise ValueError(f"from_nats={self.from_nats} is not below below_nats={self.below_nats}")
        return self


class WeightedTerm(Spec):
    """One term of a mixture, with its weight, and where it applies: everywhere, or by the teacher's entropy.

    Where a term does not apply it is zero; the mean stays over all positions of the batch.
    """

    weight: Weight
    term: Term
    entropy: EntropyRange | None = None

    @model_validator(mode="after")
    def _entropy_of_logits(self) -> Self:
        if self.entropy is not None and isinstance(self.term, HiddenStates):
            raise ValueError("the term hidden applies everywhere: remove its entropy range")
        return self

    @field_validator("weight", mode="before")
    @classmethod
    def _number(cls, weight: Any) -> Any:
        return weight if isinstance(weight, Mapping | Spec) else {"kind": "constant", "value": weight}


class Mixture(ObjectiveSpec):
    """The weighted sum of several terms, for example 0.5 CE + 0.5 forward KL."""

    kind: Literal["mixture"] = "mixture"
    terms: tuple[WeightedTerm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_z_loss(self) -> Self:
        if any(weighted.term.z_loss_weight for weighted in self.terms):
            raise ValueError("z_loss_weight belongs to the mixture, not to one of its terms")
        return self

    @model_validator(mode="after")
    def _balance_of_two(self) -> Self:
        balanced = [weighted.term for weighted in self.terms if isinstance(weighted.weight, Balanced)]
        if any(not isinstance(term, HiddenStates) for term in balanced):
            raise ValueError("weight.kind=balanced is for the term hidden alone: give the others a number")
        if balanced and len(balanced) == len(self.terms):
            raise ValueError("weight.kind=balanced has nothing to balance against: add a term with a number as its weight")
        return self

    @model_validator(mode="after")
    def _across_beside_text(self) -> Self:
        across = [weighted for weighted in self.terms if isinstance(weighted.term, AcrossTerm)]
        others = [weighted.term.kind for weighted in self.terms if not isinstance(weighted.term, AcrossTerm | CrossEntropy)]
        if across and others:
            raise ValueError(
                f"the term {others[0]} compares tokens of one vocabulary and the term {across[0].term.kind} chunks of text: "
                "mix either with ce, not with each other"
            )
        if any(weighted.entropy is not None for weighted in across):
            raise ValueError(f"the term {across[0].term.kind} applies everywhere: remove its entropy range")
        return self


AnyObjective = AnyTerm | Mixture
Objective = Annotated[AnyObjective, Field(discriminator="kind")]


def terms(objective: AnyObjective) -> tuple[WeightedTerm, ...]:
    """Every objective as a weighted sum: a single term weighs 1."""
    if isinstance(objective, Mixture):
        return objective.terms
    return (WeightedTerm(weight=Constant(value=1.0), term=objective),)


def needs_teacher(objective: AnyObjective) -> bool:
    """Whether any term reads a teacher's signal, or its entropy."""
    return any(not isinstance(weighted.term, CrossEntropy) or weighted.entropy is not None for weighted in terms(objective))


def needs_samples(objective: AnyObjective) -> bool:
    """Whether any term reads tokens that the student drew, and what it gave them."""
    return any(isinstance(weighted.term, SampledReverseKL) for weighted in terms(objective))


def crosses_tokenizers(objective: AnyObjective) -> bool:
    """Whether any term compares models that read other tokens."""
    return any(isinstance(weighted.term, AcrossTerm) for weighted in terms(objective))


def needs_hidden_states(objective: AnyObjective) -> bool:
    """Whether any term reads the teacher's hidden states."""
    return any(isinstance(weighted.term, HiddenStates) for weighted in terms(objective))


HEADED = ("topk", "topp", "hybrid")
"""Signals that name the most probable ids exactly, and the mass outside them."""


def serving_signals(term: Term) -> tuple[str, ...]:
    """The kinds of signal that hold what a term reads."""
    match term:
        case ForwardKL(tail="bucket"):
            return ("topk", "topp", "sampled", "hybrid", "dense")
        case ForwardKL():
            return ("topk", "topp")
        case ReverseKL(form="tail") | JensenShannon() | SkewKL():
            return (*HEADED, "dense")
        case ReverseKL() | DecoupledKL():
            return HEADED
        case HardLabels():
            return ("hard", *HEADED)
        case HiddenStates() | SampledReverseKL():
            return ("dense",)
        case ALM() | ULD() | GOLD() | ProjectedKL() | ByteKL():
            return ("chunks",)
        case CrossEntropy():
            return ("hard", *HEADED, "sampled", "dense", "chunks")
        case Custom():
            return ("hard", *HEADED, "sampled", "dense")


def check_signal(objective: AnyObjective, signal: Signal | None) -> None:
    """Raise `ValueError`, in one sentence with the remedy, if the signal does not hold what the objective reads."""
    if not needs_teacher(objective):
        return
    if signal is None:
        raise ValueError(f"objective.kind={objective.kind} reads a teacher's signal: set signal.kind")
    for weighted in terms(objective):
        term = weighted.term
        if isinstance(term, HardLabels) and isinstance(signal, SampledSignal):
            if not signal.keep_top1:
                raise ValueError("signal.kind=sampled may miss the top-1, which hard labels need: set signal.keep_top1=true")
        elif signal.kind not in serving_signals(term):
            needed = " or ".join(serving_signals(term))
            raise ValueError(f"signal.kind={signal.kind} {_lack(term)}: {_named(term)} needs {needed}")
        if isinstance(term, AcrossTerm) and isinstance(signal, ChunksSignal) and signal.distribution not in term.distributions:
            raise ValueError(
                f"signal.distribution={signal.distribution} is not what {term.kind} reads: set it to "
                f"{' or '.join(term.distributions)}"
            )
        if weighted.entropy is not None and signal.kind in ("hard", "chunks"):
            raise ValueError(
                f"signal.kind={signal.kind} keeps no entropy, so terms cannot be shared out by it: use another signal"
            )
        if isinstance(term, SampledReverseKL) and getattr(signal, "temperature", 1.0) != 1.0:
            raise ValueError("objective sampled_reverse_kl reads tokens drawn at temperature 1: set signal.temperature=1")
        if isinstance(term, DecoupledKL) and getattr(signal, "temperature", 1.0) != 1.0:
            raise ValueError(
                "objective decoupled has a temperature of its own and reads a signal at 1: set signal.temperature=1 "
                "and objective.temperature"
            )


def _lack(term: Term) -> str:
    match term:
        case ForwardKL(tail="bucket"):
            return "is no distribution"
        case ForwardKL():
            return "leaves no tail"
        case HardLabels():
            return "has no top-1"
        case ALM() | ULD() | GOLD() | ProjectedKL() | ByteKL():
            return "is about the teacher's tokens and not about chunks of text"
        case HiddenStates():
            return "has no hidden states"
        case SampledReverseKL():
            return "does not give every token its probability"
        case ReverseKL(form="stop_gradient" | "renormalised"):
            return "does not name the most probable ids alone"
        case _:
            return "does not give the most probable ids their probabilities"


def _named(term: Term) -> str:
    match term:
        case ForwardKL(tail=choice) if choice != "bucket":
            return f"forward_kl with tail={choice}"
        case ReverseKL(form=choice) if choice != "tail":
            return f"reverse_kl with form={choice}"
        case _:
            return term.kind
