"""The plain twins of `limbeck.objectives`: float64, one [tokens, vocabulary] matrix, straight from the textbook formulas.

Nothing here imports the code under test. Shapes: T positions, V vocabulary, K ids.
"""

import torch
from torch import Tensor


def log_softmax(hidden_TD: Tensor, head_VD: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.log_softmax(hidden_TD @ head_VD.T / temperature, -1)


def cross_entropy(logq_TV: Tensor, targets_T: Tensor) -> Tensor:
    return -logq_TV[torch.arange(len(targets_T)), targets_T]


def kl(p_TV: Tensor, logq_TV: Tensor) -> Tensor:
    """sum_v p log(p / q), with 0 log 0 = 0."""
    return torch.where(p_TV > 0, p_TV * (p_TV.clamp_min(1e-300).log() - logq_TV), 0).sum(-1)


def coarse(p_TV: Tensor, ids_TK: Tensor) -> Tensor:
    """The distribution over the K ids and one bucket for all others, from a dense one."""
    inside_TV = torch.zeros_like(p_TV, dtype=torch.bool).scatter(1, ids_TK, True)
    return torch.cat([p_TV.gather(1, ids_TK), (p_TV * ~inside_TV).sum(-1, keepdim=True)], 1)


def bucket_kl(p_TV: Tensor, logq_TV: Tensor, ids_TK: Tensor) -> Tensor:
    """KL between the two coarse distributions."""
    return kl(coarse(p_TV, ids_TK), coarse(logq_TV.exp(), ids_TK).log())


def renormalised_kl(p_TV: Tensor, logq_TV: Tensor, ids_TK: Tensor) -> Tensor:
    head_TV = torch.zeros_like(p_TV).scatter(1, ids_TK, p_TV.gather(1, ids_TK))
    return kl(head_TV / head_TV.sum(-1, keepdim=True), logq_TV)


def draw_frequencies(draws_TN: Tensor, vocabulary: int) -> Tensor:
    """The share of each token among N draws per position."""
    return torch.stack([torch.bincount(row, minlength=vocabulary) for row in draws_TN]).double() / draws_TN.shape[1]


def sampled_kl(draws_TN: Tensor, p_TV: Tensor, logq_TV: Tensor) -> Tensor:
    """The one-sample-at-a-time estimate of KL(p || q): mean over draws of -log q, less the entropy of p."""
    entropy_T = torch.special.entr(p_TV).sum(-1)
    return -logq_TV.gather(1, draws_TN).mean(-1) - entropy_T
