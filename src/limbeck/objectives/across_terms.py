"""Divergences across tokenizers, of one chunk each: no mask, no mean, no weight.

t and s are a chunk's log-prob by the teacher and by the student. All is float32 (float64 for float64 inputs), and finite in
value and gradient whatever finite numbers come in.

Shapes: C chunks or positions, K outcomes.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.objectives.divergences import log_complement, smallest_tail

SURE = 1e-6
"""Taken off scaled log-probs, so that no chunk is certain (tokenkit, github.com/bminixhofer/tokenkit)."""

LEAST = -80.0
"""The least of a teacher's scaled log-probs; e^-80 is a number still in float32."""


def likelihood_matching(t_C: Tensor, s_C: Tensor, *, temperature: float) -> Tensor:
    """KL of the coins e^(t/T) and e^(s/T): ALM's cross-entropy (arXiv 2503.20083) less the teacher's entropy, a constant.

    Its slope dL/ds is (t/s - 1) / T for large T: zero at s = t. Rounding may leave a log-prob a little above 0: that is 0.
    """
    t_C = (t_C / temperature).clamp(min=LEAST, max=0) - SURE
    s_C = (s_C / temperature).clamp(max=0) - SURE
    p_C, log_not_p_C = t_C.exp(), log1mexp(t_C)
    return p_C * (t_C - s_C) + log_not_p_C.exp() * (log_not_p_C - log1mexp(s_C))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, by the form that is exact on either side of -log 2 (Maechler, 2012)."""
    near = x > -math.log(2)
    # Each form is given only numbers on its side: the gradient of the other would be 0 times infinity.
    of_near = torch.where(near, x, -1.0).expm1().neg().log()
    return torch.where(near, of_near, torch.where(near, -1.0, x).exp().neg().log1p())


def sorted_distance(p_CK: Tensor, q_CK: Tensor, *, tail_p_C: Tensor, tail_q_C: Tensor) -> Tensor:
    """L1 of two lists of probabilities, most probable first, and of the masses beyond. The shorter is filled with zeros."""
    width = max(p_CK.shape[1], q_CK.shape[1])
    p_CK, q_CK = (pad(each, (0, width - each.shape[1])) for each in (p_CK, q_CK))
    return (p_CK - q_CK).abs().sum(-1) + (tail_p_C - tail_q_C).abs()


def shared_divergence(log_p_CK: Tensor, log_q_CK: Tensor, *, real_CK: Tensor, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, on the real outcomes and one for all else.

    beta 0 is KL(p || q) and 1 is KL(q || p), as in TRL.
    """
    log_p_CJ, log_q_CJ = _with_rest(log_p_CK, real_CK), _with_rest(log_q_CK, real_CK)
    real_CJ = pad(real_CK, (0, 1), value=True)
    if beta in (0.0, 1.0):
        log_p_CJ, log_q_CJ = (log_p_CJ, log_q_CJ) if beta == 0 else (log_q_CJ, log_p_CJ)
        return torch.where(real_CJ, log_p_CJ.exp() * (log_p_CJ - log_q_CJ), 0.0).sum(-1)
    log_m_CJ = torch.logaddexp(log_p_CJ + math.log(beta), log_q_CJ + math.log1p(-beta))
    to_p_CJ, to_q_CJ = (each.exp() * (each - log_m_CJ) for each in (log_p_CJ, log_q_CJ))
    return torch.where(real_CJ, beta * to_p_CJ + (1 - beta) * to_q_CJ, 0.0).sum(-1)


def _with_rest(log_p_CK: Tensor, real_CK: Tensor) -> Tensor:
    """With the log of all other mass as a last column; the log of nothing where an outcome is not real."""
    log_p_CK = torch.where(real_CK, log_p_CK, LEAST)
    mass_C = torch.where(real_CK, log_p_CK.exp(), 0.0).sum(-1)
    return torch.cat([log_p_CK, log_complement(mass_C)[:, None]], 1)


def coarse_forward_kl(p_CK: Tensor, q_CK: Tensor, *, real_CK: Tensor) -> Tensor:
    """KL(p || q) on the real outcomes and one for all else; q is floored where it is below the least float."""
    p_CK, q_CK = (torch.where(real_CK, each, 0.0) for each in (p_CK, q_CK))
    log_q_CK = q_CK.clamp(min=torch.finfo(q_CK.dtype).tiny).log()
    rest_C = 1 - p_CK.sum(-1)
    rest_C = rest_C.where(rest_C > smallest_tail(rest_C.dtype), 0.0)
    cross_C = -(p_CK * log_q_CK).sum(-1) - rest_C * log_complement(q_CK.sum(-1))
    return cross_C - torch.special.entr(p_CK).sum(-1) - torch.special.entr(rest_C)
