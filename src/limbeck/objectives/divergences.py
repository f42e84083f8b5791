"""Losses of one position, as sentences: no mask, no mean, no weight, no temperature squared (see `objective`).

Everything is a function of the student's head statistics, in float32 nats. With q the student's softmax at the statistics'
temperature, log q_i = gathered_i - lse.

Shapes: T positions, K ids of a position.
"""

import torch
from torch import Tensor

from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget


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
        cross_entropy_T = cross_entropy_T - target.tail_T * _log_complement(mass_T)
    return cross_entropy_T - target.entropy_T


def renormalised_forward_kl(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """KL(target on its ids, scaled to sum to 1 || student): biased, its optimum is target / (mass of the ids)."""
    probs_TK = target.probs_TK / target.probs_TK.sum(-1, keepdim=True)
    log_q_TK = statistics.gathered_TK - statistics.lse_T[:, None]
    return (torch.xlogy(probs_TK, probs_TK) - probs_TK * log_q_TK).sum(-1)


def dense_forward_kl(statistics: HeadStatistics) -> Tensor:
    """KL(dense teacher || student) = lse - E_p[z] - H(p)."""
    assert statistics.expected_T is not None, "these statistics hold no dense teacher"
    assert statistics.teacher_entropy_T is not None
    return statistics.lse_T - statistics.expected_T - statistics.teacher_entropy_T


def _log_complement(mass_T: Tensor) -> Tensor:
    """log(1 - mass), where mass carries rounding: below the floor the value stays, the gradient is the floor's.

    A clamp would have no gradient there, and a student that has lost all its tail would never get it back.
    """
    floor = 8 * torch.finfo(mass_T.dtype).eps
    lift_T = (floor - (1 - mass_T)).clamp(min=0).detach()
    return torch.log1p(lift_T - mass_T)
