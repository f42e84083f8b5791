"""Losses with one fault each, for `check_objective` to find, and a sound one."""

import torch
from torch import Tensor

from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget


def _log_q(statistics: HeadStatistics) -> Tensor:
    return statistics.gathered_TK - statistics.lse_T[:, None]


def sound(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """Squared error of the log-probs of the ids, weighted by the teacher: not a divergence of the whole, but well made."""
    real_TK = target.probs_TK > 0
    log_p_TK = torch.where(real_TK, target.probs_TK, 1.0).log()
    return (target.probs_TK * (log_p_TK - _log_q(statistics)).square()).sum(-1)


def hides_a_factor(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return 0.5 * sound(statistics, target)


def wrong_gradient(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return sound(HeadStatistics(statistics.lse_T.detach(), statistics.gathered_TK), target)


def means_over_the_batch(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    loss_T = sound(statistics, target)
    return loss_T * loss_T.mean()


def knows_its_position(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    loss_T = sound(statistics, target)
    return loss_T * torch.arange(1, len(loss_T) + 1)


def reads_padding(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return sound(statistics, target) + _log_q(statistics).square().mean(-1)


def is_deaf_to_the_teacher(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return torch.ones_like(statistics.lse_T) + 0 * statistics.lse_T


def overflows(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    log_q_TK = (statistics.gathered_TK.exp() / statistics.lse_T.exp()[:, None]).log()
    return -(target.probs_TK * log_q_TK).sum(-1)


def forgets_the_mean(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return sound(statistics, target).mean()


def is_never_at_rest(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return -(target.probs_TK * _log_q(statistics)).sum(-1)


def has_the_wrong_sign(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return -is_never_at_rest(statistics, target)


def says_nothing(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return 0 * statistics.lse_T


def subtracts_itself(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    """A gradient of rounding errors: the student's probabilities of all ids always sum to 1."""
    return torch.where(target.probs_TK > 0, _log_q(statistics).exp(), 0).sum(-1)


def stumbles(statistics: HeadStatistics, target: SparseTarget) -> Tensor:
    return statistics.lse_T + target.no_such_field


def wants_the_text(statistics: HeadStatistics, target: SparseTarget, labels_T: Tensor) -> Tensor:
    return statistics.lse_T


def is_wrong_on_dense(statistics: HeadStatistics, target: SparseTarget | None) -> Tensor:
    assert statistics.expected_T is not None
    return statistics.expected_T - statistics.lse_T
