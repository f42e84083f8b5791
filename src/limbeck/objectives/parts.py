"""An objective as parts: each a loss per position under a name, the factor it enters the sum with, and where it applies.

The factor holds everything but the mean: the term's weight at this moment, temperature squared, and the scale of a divergence
beside that of a KL. Hidden-state terms see other things than logits and are `limbeck.objectives.objective`'s own.

Shapes: T positions, K ids of a row.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from limbeck.objectives.custom import custom_loss
from limbeck.objectives.divergences import (
    coarse_divergence,
    conditional_kl,
    cross_entropy,
    dense_forward_kl,
    forward_kl,
    log_ratio,
    mass_kl,
    renormalised_forward_kl,
    renormalised_reverse_kl,
    sampled_reverse_kl,
    stop_gradient_reverse_kl,
    text_tail_forward_kl,
    z_loss,
)
from limbeck.objectives.head import HeadStatistics
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.objectives.teacher import TeacherView
from limbeck.signals.types import SparseTarget
from limbeck.spec.across_tokenizers import ALM, GOLD, ULD, ByteKL, ProjectedKL
from limbeck.spec.objective import (
    CrossEntropy,
    Custom,
    DecoupledKL,
    EntropyRange,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    Objective,
    PairTerm,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    Term,
    terms,
)


@dataclass(frozen=True)
class Seen:
    """What a term sees of some positions."""

    plain: HeadStatistics
    """At temperature 1; the first id gathered is the text's own token, the second, where there is a top-1, the teacher's."""
    tempered: HeadStatistics
    """At the signal's temperature; the ids gathered are the target's."""
    labels_T: Tensor
    label_logit_T: Tensor
    """Of the text's own token, at the signal's temperature."""
    teacher: TeacherView
    dense: dict[PairTerm, Tensor]
    """Divergences from a dense teacher, read off by the head."""
    sampled_log_prob_T: Tensor | None = None
    """Of the text's own token, by the student that drew it."""

    @property
    def target(self) -> SparseTarget:
        """Of a sparse signal."""
        assert self.teacher.target is not None
        return self.teacher.target

    @property
    def sampled(self) -> tuple[HeadStatistics, Tensor]:
        """Statistics at temperature 1, and what the drawn tokens had when they were drawn."""
        assert self.sampled_log_prob_T is not None
        return self.plain, self.sampled_log_prob_T

    @property
    def head(self) -> tuple[HeadStatistics, SparseTarget]:
        """The most probable ids alone: statistics at the signal's temperature, and the target."""
        assert self.teacher.head is not None
        ids = self.teacher.head.ids_TK.shape[1]
        return HeadStatistics(self.tempered.lse_T, self.tempered.gathered_TK[:, :ids]), self.teacher.head

    @property
    def entropy_T(self) -> Tensor:
        """The teacher's, in nats."""
        sparse = self.teacher.target
        entropy_T = self.tempered.teacher_entropy_T if sparse is None else sparse.teacher_entropy_T
        assert entropy_T is not None
        return entropy_T


LossOf = Callable[[Seen], Tensor]
"""Nats of each position."""


@dataclass(frozen=True)
class Part:
    """A loss per position."""

    name: str
    factor: float
    loss: LossOf
    entropy: EntropyRange | None = None

    def per_token(self, seen: Seen) -> Tensor:
        """Nats of each position; zero where the part does not apply."""
        loss_T = self.loss(seen)
        if self.entropy is None:
            return loss_T
        inside_T = torch.ones_like(seen.entropy_T, dtype=torch.bool)
        if self.entropy.from_nats is not None:
            inside_T &= seen.entropy_T >= self.entropy.from_nats
        if self.entropy.below_nats is not None:
            inside_T &= seen.entropy_T < self.entropy.below_nats
        return torch.where(inside_T, loss_T, 0.0)


def parts_of(objective: Objective, *, temperature: float, moment: Moment) -> list[Part]:
    """The parts that read logits. Names are unique: those of equal kind are numbered."""
    parts: list[Part] = []
    for weighted in terms(objective):
        weight = weight_at(weighted.weight, moment)
        for name, scale, loss in _losses(weighted.term, temperature):
            full_name = unused(name + _suffix(weighted.entropy), {part.name for part in parts})
            parts.append(Part(full_name, weight * scale, loss, weighted.entropy))
    if objective.z_loss_weight > 0:
        name = unused("z_loss", {part.name for part in parts})
        parts.append(Part(name, objective.z_loss_weight, lambda seen: z_loss(seen.plain.lse_T)))
    return parts


def label_cross_entropy(seen: Seen) -> Tensor:
    """Cross-entropy on the text, at temperature 1 whatever the signal's: that of the model as it is used."""
    return cross_entropy(seen.plain.lse_T, seen.plain.gathered_TK[:, 0])


def _losses(term: Term, temperature: float) -> list[tuple[str, float, LossOf]]:
    """Name, scale and loss of each part of a term."""
    squared = temperature**2 if getattr(term, "temperature_squared", False) else 1.0
    match term:
        case CrossEntropy():
            return [("ce", 1.0, label_cross_entropy)]
        case HardLabels():
            return [("hard", 1.0, lambda seen: cross_entropy(seen.plain.lse_T, seen.plain.gathered_TK[:, 1]))]
        case ForwardKL(tail="bucket"):
            return [("forward_kl", squared, _forward_kl)]
        case ForwardKL(tail="text"):
            return [("forward_kl_text", squared, _text_tail)]
        case ForwardKL():
            return [("forward_kl_renormalised", squared, lambda seen: renormalised_forward_kl(*seen.head))]
        case DecoupledKL():
            own = term.temperature**2 if term.temperature_squared else 1.0
            return [
                ("decoupled_mass", term.mass_weight, lambda seen: mass_kl(*seen.head)),
                ("decoupled_conditional", term.conditional_weight * own, partial(_conditional, term)),
            ]
        case ReverseKL(form="stop_gradient"):
            return [("reverse_kl_stop_gradient", squared, lambda seen: stop_gradient_reverse_kl(*seen.head))]
        case ReverseKL(form="renormalised"):
            return [("reverse_kl_renormalised", squared, lambda seen: renormalised_reverse_kl(*seen.head))]
        case ReverseKL() | JensenShannon() | SkewKL():
            return [(term.kind, squared / beside_kl(term), partial(_pair, term))]
        case SampledReverseKL():
            # The second, of no weight, is for people: an estimate of the KL itself.
            return [
                (term.kind, 1.0, lambda seen: sampled_reverse_kl(*seen.sampled)),
                ("k1", 0.0, lambda seen: log_ratio(*seen.sampled)),
            ]
        case Custom(function=function):
            # Under a name that no other part or column of a run's metrics has.
            return [(f"custom_{function.rpartition(':')[2]}", squared, partial(_custom, function))]
        case HiddenStates() | ALM() | ULD() | GOLD() | ProjectedKL() | ByteKL():  # these see more than one position's logits
            return []


def beside_kl(term: PairTerm) -> float:
    """What `scale: kl` divides by: the divergence over the KL, in its plain scale, as q nears p; 1 for `scale: plain`."""
    match term:
        case JensenShannon(beta=beta, scale="kl"):
            return beta * (1 - beta)
        case SkewKL(alpha=alpha, scale="kl"):
            return (1 - alpha) ** 2
        case _:
            return 1.0


def _forward_kl(seen: Seen) -> Tensor:
    return dense_forward_kl(seen.tempered) if seen.teacher.target is None else forward_kl(seen.tempered, seen.target)


def _text_tail(seen: Seen) -> Tensor:
    return text_tail_forward_kl(*seen.head, labels_T=seen.labels_T, label_logit_T=seen.label_logit_T)


def _conditional(term: DecoupledKL, seen: Seen) -> Tensor:
    loss_T = conditional_kl(*seen.head, temperature=term.temperature)
    return loss_T * seen.head[1].probs_TK.sum(-1) if term.by_mass else loss_T


def _pair(term: PairTerm, seen: Seen) -> Tensor:
    return seen.dense[term] if seen.teacher.head is None else coarse_divergence(term, *seen.head, labels_T=seen.labels_T)


def _custom(name: str, seen: Seen) -> Tensor:
    return custom_loss(name, student=seen.tempered, target=seen.teacher.target)


def _suffix(entropy: EntropyRange | None) -> str:
    if entropy is None:
        return ""
    ends = ("" if end is None else f"{end:g}" for end in (entropy.from_nats, entropy.below_nats))
    return f"[entropy {'..'.join(ends)}]"


def unused(name: str, taken: Collection[str]) -> str:
    """The name, or the first of its numbers from 2 on, that is not taken."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return next(each for each in numbered if each not in taken)
