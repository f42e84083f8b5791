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


def reverse_kl(p_TV: Tensor, logq_TV: Tensor) -> Tensor:
    """sum_v q log(q / p)."""
    return (logq_TV.exp() * (logq_TV - p_TV.log())).sum(-1)


def jensen_shannon(p_TV: Tensor, q_TV: Tensor, beta: float) -> Tensor:
    """GKD's eq. 1, by the entropy form: H(m) - beta H(p) - (1 - beta) H(q)."""
    mixed_TV = beta * p_TV + (1 - beta) * q_TV
    h = [torch.special.entr(each_TV).sum(-1) for each_TV in (mixed_TV, p_TV, q_TV)]
    return h[0] - beta * h[1] - (1 - beta) * h[2]


def skew_forward(p_TV: Tensor, q_TV: Tensor, alpha: float) -> Tensor:
    return kl(p_TV, (alpha * p_TV + (1 - alpha) * q_TV).log())


def skew_reverse(p_TV: Tensor, q_TV: Tensor, alpha: float) -> Tensor:
    return kl(q_TV, (alpha * q_TV + (1 - alpha) * p_TV).log())


def with_labels(p_TV: Tensor, targets_T: Tensor, share: float) -> Tensor:
    """The teacher with a share of its mass moved to the text's own token."""
    return (1 - share) * p_TV + share * torch.nn.functional.one_hot(targets_T, p_TV.shape[1]).double()


def tail_on_text(p_TV: Tensor, ids_TK: Tensor, targets_T: Tensor) -> Tensor:
    """The teacher's head, and all its other mass on the text's own token."""
    head_TV = torch.zeros_like(p_TV).scatter(1, ids_TK, p_TV.gather(1, ids_TK))
    return head_TV + (1 - head_TV.sum(-1, keepdim=True)) * torch.nn.functional.one_hot(targets_T, p_TV.shape[1])


def on_ids(logits_TV: Tensor, ids_TK: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs within the ids alone, of logits or log-probs brought to a temperature."""
    return torch.log_softmax(logits_TV.gather(1, ids_TK) / temperature, -1)


def coin_kl(p_T: Tensor, q_T: Tensor) -> Tensor:
    """KL between two coins."""
    return p_T * (p_T / q_T).log() + (1 - p_T) * ((1 - p_T) / (1 - q_T)).log()
