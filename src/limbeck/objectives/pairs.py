"""Divergences of two whole distributions, and their slope where no autograd graph is wanted.

The same formulas serve two places: `divergences` on the few outcomes of a truncated signal (by autograd), and `head` on blocks
of the whole vocabulary, whose gradient is formed in place from the slope: with D = sum_v F(p_v, q_v), q = softmax(u) and
g_v = dF / dq_v, the gradient is dD / du_v = q_v (g_v - sum_w q_w g_w), in which any constant of g cancels.

Outcomes that do not exist have p = q = 0 and logs of 0, and contribute nothing. Plain twins: `tests/objectives/reference.py`.
Shapes: T positions, J outcomes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.spec.objective import JensenShannon, PairTerm, ReverseKL, SkewKL


@dataclass(frozen=True)
class Pair:
    """Teacher and student at one temperature; the logs are finite everywhere."""

    p_TJ: Tensor
    log_p_TJ: Tensor
    q_TJ: Tensor
    log_q_TJ: Tensor

    def log_mixture(self, teacher_share: float) -> Tensor:
        """log of teacher_share p + (1 - teacher_share) q; where both underflow, of the smallest number."""
        mixture_TJ = self.p_TJ * teacher_share + self.q_TJ * (1 - teacher_share)
        return mixture_TJ.clamp(min=torch.finfo(mixture_TJ.dtype).tiny).log_()


def divergence(term: PairTerm, pair: Pair) -> Tensor:
    """Nats of each position: `term` in its plain scale, without temperature squared; `pair` has its label share in already."""
    match term:
        case ReverseKL():
            return torch.linalg.vecdot(pair.q_TJ, pair.log_q_TJ - pair.log_p_TJ)
        case JensenShannon(beta=beta):
            log_m_TJ = pair.log_mixture(beta)
            to_teacher_T = torch.linalg.vecdot(pair.p_TJ, pair.log_p_TJ - log_m_TJ)
            return beta * to_teacher_T + (1 - beta) * torch.linalg.vecdot(pair.q_TJ, pair.log_q_TJ - log_m_TJ)
        case SkewKL(direction="forward", alpha=alpha):
            return torch.linalg.vecdot(pair.p_TJ, pair.log_p_TJ - pair.log_mixture(alpha))
        case SkewKL(alpha=alpha):
            return torch.linalg.vecdot(pair.q_TJ, pair.log_q_TJ - pair.log_mixture(1 - alpha))


def slope(term: PairTerm, pair: Pair) -> Tensor:
    """dF / dq of each outcome, up to a constant of the position, in a tensor of its own."""
    match term:
        case ReverseKL():  # F = q log(q / p)
            return pair.log_q_TJ - pair.log_p_TJ
        case JensenShannon(beta=beta):  # what p log(p / m) and q log(q / m) give through m adds up to a constant
            return pair.log_mixture(beta).neg_().add_(pair.log_q_TJ).mul_(1 - beta)
        case SkewKL(direction="forward", alpha=alpha):  # F = p log(p / m): -(1 - alpha) p / m
            return pair.log_mixture(alpha).neg_().add_(pair.log_p_TJ).exp_().mul_(alpha - 1)
        case SkewKL(alpha=alpha):  # F = q log(q / m): log(q / m) - alpha q / m
            log_ratio_TJ = pair.log_mixture(1 - alpha).neg_().add_(pair.log_q_TJ)
            return log_ratio_TJ.sub_(log_ratio_TJ.exp(), alpha=alpha)


def gradient(term: PairTerm, pair: Pair) -> Tensor:
    """dD / du of each outcome, where q = softmax(u), in a tensor of its own."""
    slope_TJ = slope(term, pair)
    return slope_TJ.sub_(torch.linalg.vecdot(pair.q_TJ, slope_TJ)[:, None]).mul_(pair.q_TJ)
