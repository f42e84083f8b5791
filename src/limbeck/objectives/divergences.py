"""Losses of one position, as sentences: no mask, no mean, no weight, no temperature squared (see `objective`).

Everything is a function of the student's head statistics, in float32 nats. With q the student's softmax at the statistics'
temperature, log q_i = gathered_i - lse.

Shapes: T positions, K ids of a position, J = K + 1 outcomes of a truncated signal: its ids and "any other token".
"""

import torch
from torch import Tensor

from limbeck.objectives.head import HeadStatistics
from limbeck.objectives.pairs import Pair, divergence
from limbeck.signals.types import SparseTarget
from limbeck.spec.objective import PairTerm


def cross_entropy(lse_T: Tensor, target_logit_T: Tensor) -> Tensor:
    """-log q(target)."""
    return lse_T - target_logit_T


def z_loss(lse_T: Tensor) -> Tensor:
    """The squared log of the softmax's denominator (PaLM, arXiv 2204.02311, section 5)."""
    return lse_T.square()


def forward_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """KL(target || student); with a tail, over the target's ids and one more outcome, "any other token".

    With the tail it is a lower bound of the whole KL(teacher || student) (log-sum inequality) and zero exactly when the
    student's probabilities of the ids are the teacher's. Ids of zero probability belong to the tail, so padding says nothing.
    The log of the student's own tail is floored at a few units of rounding, with the gradient it has there.
    """
    log_q_TK = statistics.gathered_TK - statistics.lse_T[:, None]
    cross_entropy_T = -(target.probs_TK * log_q_TK).sum(-1)
    if target.tail_T is not None:
        mass_T = torch.where(target.probs_TK > 0, log_q_TK.exp(), 0).sum(-1)
        cross_entropy_T = cross_entropy_T - target.tail_T * log_complement(mass_T)
    return cross_entropy_T - target.entropy_T


def renormalised_forward_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """KL(target on its ids, scaled to sum to 1 || student): biased, its optimum is target / (mass of the ids)."""
    probs_TK = target.probs_TK / target.probs_TK.sum(-1, keepdim=True)
    log_q_TK = statistics.gathered_TK - statistics.lse_T[:, None]
    return (torch.xlogy(probs_TK, probs_TK) - probs_TK * log_q_TK).sum(-1)


def text_tail_forward_kl(
    statistics: HeadStatistics, target: SparseTarget, *, labels_T: Tensor, label_logit_T: Tensor
) -> Tensor:
    """KL(target with its tail's mass put on the text's own token || student)."""
    assert target.tail_T is not None
    hit_TK = (target.ids_TK == labels_T[:, None]) & (target.probs_TK > 0)
    probs_TK = target.probs_TK + target.tail_T[:, None] * hit_TK
    outside_T = target.tail_T * ~hit_TK.any(-1)
    head_T = (probs_TK * (statistics.lse_T[:, None] - statistics.gathered_TK)).sum(-1)
    entropy_T = torch.special.entr(probs_TK).sum(-1) + torch.special.entr(outside_T)
    return head_T + outside_T * (statistics.lse_T - label_logit_T) - entropy_T


def coarse(statistics: HeadStatistics, target: SparseTarget, *, labels_T: Tensor | None, label_share: float) -> Pair:
    """Teacher and student on the target's ids and one more outcome, "any other token"; float32 or wider.

    Ids of zero probability belong to the other outcome. Both of its masses are floored at a few units of rounding, so that a
    student's tail costs a finite amount where the teacher has none. `labels_T` get `label_share` of the teacher, and where they
    are none of the ids, the other outcome gets it.
    """
    assert target.tail_T is not None
    real_TK = target.probs_TK > 0
    log_q_TK = torch.where(real_TK, statistics.gathered_TK - statistics.lse_T[:, None], 0.0)
    q_TK = torch.where(real_TK, log_q_TK.exp(), 0.0)
    log_rest_T = log_complement(q_TK.sum(-1))
    p_TK, tail_T = target.probs_TK.to(q_TK.dtype), target.tail_T.to(q_TK.dtype)
    if label_share:
        assert labels_T is not None
        hit_TK = (target.ids_TK == labels_T[:, None]) & real_TK
        p_TK = (1 - label_share) * p_TK + label_share * hit_TK.to(p_TK.dtype)
        tail_T = (1 - label_share) * tail_T + label_share * (~hit_TK.any(-1)).to(p_TK.dtype)
    tail_T = tail_T.clamp(min=smallest_tail(q_TK.dtype))
    log_p_TK = torch.where(real_TK, p_TK, 1.0).log()
    return Pair(
        p_TJ=torch.cat([p_TK, tail_T[:, None]], 1),
        log_p_TJ=torch.cat([log_p_TK, tail_T.log()[:, None]], 1),
        q_TJ=torch.cat([q_TK, log_rest_T.exp()[:, None]], 1),
        log_q_TJ=torch.cat([log_q_TK, log_rest_T[:, None]], 1),
    )


def coarse_divergence(
    term: PairTerm, statistics: HeadStatistics, target: SparseTarget, *, labels_T: Tensor | None = None
) -> Tensor:
    """`term` between teacher and student on the target's ids and its tail: a lower bound of the whole (data processing)."""
    return divergence(term, coarse(statistics, target, labels_T=labels_T, label_share=term.label_share))


def stop_gradient_reverse_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """sum_K q * constant(log q - log p), whose gradient lacks that of q's mass on the ids (arXiv 2605.11182)."""
    real_TK = target.probs_TK > 0
    log_q_TK = torch.where(real_TK, statistics.gathered_TK - statistics.lse_T[:, None], 0.0)
    cost_TK = log_q_TK - torch.where(real_TK, target.probs_TK, 1.0).log()
    return (torch.where(real_TK, log_q_TK.exp(), 0.0) * cost_TK.detach()).sum(-1)


def renormalised_reverse_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """KL(student || target), both scaled to sum to 1 on the target's ids: blind to what the student does elsewhere."""
    log_p_TK, log_q_TK = _conditionals(statistics, target, temperature=1.0)
    return (log_q_TK.exp() * (log_q_TK - log_p_TK)).sum(-1)


def sampled_reverse_kl(statistics: HeadStatistics, sampled_log_prob_T: Tensor) -> Tensor:
    """(log q_s - log p) q / q_s of the drawn token, the first id: its gradient is that of the KL(student || teacher), expected.

    The first factor is constant, and so is minus the advantage of K. Lu et al. ("On-Policy Distillation", 2025); the ratio
    corrects for what the student has learnt since it drew.
    """
    log_q_T = statistics.gathered_TK[:, 0] - statistics.lse_T
    return log_ratio(statistics, sampled_log_prob_T) * (log_q_T - sampled_log_prob_T).exp()


def log_ratio(statistics: HeadStatistics, sampled_log_prob_T: Tensor) -> Tensor:
    """log q_s - log p of the drawn token, the first id: "k1", whose mean is the KL's; without a gradient."""
    assert statistics.teacher_log_prob_T is not None, "these statistics hold no dense teacher"
    return sampled_log_prob_T - statistics.teacher_log_prob_T


def mass_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """KL between the masses on the target's ids, as two coins."""
    assert target.tail_T is not None
    head_T = target.probs_TK.sum(-1)
    q_TK = torch.where(target.probs_TK > 0, (statistics.gathered_TK - statistics.lse_T[:, None]).exp(), 0.0)
    log_head_T = _log_mass(statistics, target)
    entropy_T = torch.special.entr(head_T) + torch.special.entr(target.tail_T)
    return -head_T * log_head_T - target.tail_T * log_complement(q_TK.sum(-1)) - entropy_T


def conditional_kl(statistics: HeadStatistics, target: SparseTarget, *, temperature: float) -> Tensor:
    """KL(target || student), both scaled to sum to 1 on the target's ids, at a temperature besides the signal's."""
    log_p_TK, log_q_TK = _conditionals(statistics, target, temperature=temperature)
    return (log_p_TK.exp() * (log_p_TK - log_q_TK)).sum(-1)


def _conditionals(statistics: HeadStatistics, target: SparseTarget, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs on the target's real ids, of teacher and student."""
    real_TK = target.probs_TK > 0
    log_p_TK = torch.where(real_TK, target.probs_TK, 1.0).log()
    return _conditional(log_p_TK, real_TK, temperature), _conditional(statistics.gathered_TK, real_TK, temperature)


def _conditional(logits_TK: Tensor, real_TK: Tensor, temperature: float) -> Tensor:
    """log_softmax over the real ids; the others, of either distribution, get the log of nothing."""
    nothing = -1e4  # its exponential is 0; infinities would meet as infinity minus infinity
    # Relative to the largest, lest a large temperature or logit bring a real id down to `nothing`.
    largest_T1 = torch.where(real_TK, logits_TK, torch.finfo(logits_TK.dtype).min).amax(-1, keepdim=True).detach()
    scaled_TK = torch.where(real_TK, (logits_TK - largest_T1) / temperature, nothing)
    return torch.where(real_TK, torch.log_softmax(scaled_TK, -1), nothing)


def _log_mass(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """log of the student's mass on the target's real ids, right where that mass underflows."""
    lowest = torch.finfo(statistics.gathered_TK.dtype).min
    gathered_TK = statistics.gathered_TK.masked_fill(target.probs_TK <= 0, lowest)
    return torch.logsumexp(gathered_TK, -1) - statistics.lse_T


def dense_forward_kl(statistics: HeadStatistics) -> Tensor:
    """KL(dense teacher || student) = lse - E_p[z] - H(p)."""
    assert statistics.expected_T is not None, "these statistics hold no dense teacher"
    assert statistics.teacher_entropy_T is not None
    return statistics.lse_T - statistics.expected_T - statistics.teacher_entropy_T


def log_complement(mass_T: Tensor) -> Tensor:
    """log(1 - mass), where mass carries rounding: below the floor the value stays, the gradient is the floor's.

    A clamp would have no gradient there, and a student that has lost all its tail would never get it back.
    """
    lift_T = (smallest_tail(mass_T.dtype) - (1 - mass_T)).clamp(min=0).detach()
    return torch.log1p(lift_T - mass_T)


def smallest_tail(dtype: torch.dtype) -> float:
    """The smallest mass of a tail that is more than rounding."""
    return 8 * torch.finfo(dtype).eps
