"""What a teacher says about a run of positions, in memory.

Row t speaks of the token that follows position t. Shapes: T positions, K ids of a row, V vocabulary, E teacher's width.
Sparse signals are one thing to an objective: a probability for each of a few ids and the mass outside them (`SparseTarget`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopKRows:
    """The K most probable ids, most probable first, and the mass outside them."""

    ids_TK: Tensor  # int64
    log_probs_TK: Tensor  # float32, nats, at the signal's temperature
    tail_T: Tensor  # float32, probability mass outside the K ids, >= 0


@dataclass(frozen=True)
class SampledRows:
    """Distinct drawn ids with how often each was drawn; short rows are padded with id 0, count 0."""

    ids_TK: Tensor  # int64
    counts_TK: Tensor  # int64, each row sums to `draws`
    draws: int
    entropy_T: Tensor  # float32, nats: the entropy of the distribution that the draws came from


@dataclass(frozen=True)
class HardRows:
    """The most probable id."""

    ids_T: Tensor  # int64


@dataclass(frozen=True)
class DenseRows:
    """The teacher's last hidden states and its head: logits are hidden_TE @ head_VE.T, divided by `temperature`."""

    hidden_TE: Tensor
    head_VE: Tensor
    temperature: float


SparseRows = TopKRows | SampledRows | HardRows
SignalRows = SparseRows | DenseRows


@dataclass(frozen=True)
class SparseTarget:
    """A target distribution on a few ids.

    `entropy_T` is the entropy, in nats, that turns cross-entropy into KL: of head and tail bucket for `topk`, of the whole
    teacher distribution for `sampled`, zero for `hard`.
    """

    ids_TK: Tensor  # int64
    probs_TK: Tensor  # float32, zero in padding
    tail_T: Tensor | None  # float32, None where the ids hold all the mass
    entropy_T: Tensor  # float32


def sparse_target(rows: SparseRows) -> SparseTarget:
    """The rows of any sparse signal as a target distribution."""
    match rows:
        case TopKRows():
            probs_TK = rows.log_probs_TK.exp()
            entropy_T = -torch.xlogy(probs_TK, probs_TK).sum(-1) - torch.xlogy(rows.tail_T, rows.tail_T)
            return SparseTarget(rows.ids_TK, probs_TK, rows.tail_T, entropy_T)
        case SampledRows():
            return SparseTarget(rows.ids_TK, rows.counts_TK.float() / rows.draws, None, rows.entropy_T)
        case HardRows():
            ids_TK = rows.ids_T[:, None]
            return SparseTarget(
                ids_TK, torch.ones(ids_TK.shape, device=ids_TK.device), None, torch.zeros(len(ids_TK), device=ids_TK.device)
            )


def hard_rows(rows: TopKRows | HardRows) -> HardRows:
    """The teacher's top-1 from rows that hold it."""
    return rows if isinstance(rows, HardRows) else HardRows(rows.ids_TK[:, 0])
