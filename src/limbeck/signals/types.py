"""What a teacher says about a run of positions, in memory.

Row t speaks of the token that follows position t; of a teacher with another tokenizer, of the chunk of text that ends with it.
Shapes: T positions, K ids of a row, V vocabulary, E teacher's width.
Sparse signals are one thing to an objective: a probability for each of a few ids and the mass outside them (`SparseTarget`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopKRows:
    """The most probable ids, most probable first, and the mass outside them. Shorter rows end in id 0, log-prob -inf."""

    ids_TK: Tensor  # int64
    log_probs_TK: Tensor  # float32, nats, at the signal's temperature
    tail_T: Tensor  # float32, probability mass outside the ids, >= 0
    entropy_T: Tensor  # float32, nats: the entropy of the whole distribution


@dataclass(frozen=True)
class SampledRows:
    """Distinct drawn ids with how often each was drawn; short rows are padded with id 0, count 0.

    A row's draws are the sum of its counts: as many everywhere, or more where the teacher is less certain.
    """

    ids_TK: Tensor  # int64
    counts_TK: Tensor  # int64
    entropy_T: Tensor  # float32, nats: the entropy of the teacher's distribution
    weights_TK: Tensor | None = None  # float32, importance weights p / proposal; None where draws come from p itself
    top1_T: Tensor | None = None  # int64, the most probable id, where it is kept


@dataclass(frozen=True)
class HybridRows:
    """The K most probable ids exactly, and draws from the rest; short rows of draws are padded with id 0, count 0."""

    ids_TK: Tensor  # int64
    log_probs_TK: Tensor  # float32, nats, at the signal's temperature
    tail_T: Tensor  # float32, probability mass outside the ids, >= 0
    drawn_ids_TM: Tensor  # int64
    counts_TM: Tensor  # int64, of the draws from the tail
    entropy_T: Tensor  # float32, nats: the entropy of the whole distribution


@dataclass(frozen=True)
class HardRows:
    """The most probable id."""

    ids_T: Tensor  # int64


@dataclass(frozen=True)
class ChunkRows:
    """What a teacher of another tokenizer says, at the student's positions: row t is of the chunk that ends with token t + 1.

    A chunk is the shortest run of text that both tokenizations bound. It never spans two pieces: of one that a piece cuts there
    is no row. Where no chunk ends, numbers are 0 and there are no ids, but for `signal.distribution=index`, whose ids are at
    every position that has a teacher's token of the same number.
    """

    tokens_T: Tensor  # int64, the student's tokens in the chunk; 0 where none ends
    teacher_tokens_T: Tensor  # int64
    log_prob_T: Tensor  # float32, nats: the teacher's of the chunk, summed over its tokens
    before_T: Tensor  # float32, nats: the same without the chunk's last teacher token
    boundary_T: Tensor  # float32, nats: the teacher's of a next token with white space first, or the end; after the end 0
    ids_TK: Tensor  # int64, what `signal.distribution` says: the teacher's tokens, or bytes with 256 for the end
    log_probs_TK: Tensor  # float32, nats
    tail_T: Tensor  # float32, mass outside the ids; 0 where there are none


@dataclass(frozen=True)
class DenseRows:
    """The teacher's last hidden states and its head: logits are hidden_TE @ head_VE.T, divided by `temperature`."""

    hidden_TE: Tensor
    head_VE: Tensor
    temperature: float


SparseRows = TopKRows | SampledRows | HybridRows | HardRows
StoredRows = SparseRows | ChunkRows
SignalRows = StoredRows | DenseRows


@dataclass(frozen=True)
class SparseTarget:
    """A target distribution on a few ids.

    `entropy_T` is the entropy, in nats, that turns cross-entropy into KL: of head and tail bucket for `topk` and `topp`, of the
    whole teacher distribution for `sampled` and `hybrid`, zero for `hard`. `teacher_entropy_T` is that of the whole
    distribution, None for `hard`.
    """

    ids_TK: Tensor  # int64
    probs_TK: Tensor  # float32, zero in padding; importance weights included, so a row's sum may differ from 1
    tail_T: Tensor | None  # float32, None where the ids stand for all the mass
    entropy_T: Tensor  # float32
    teacher_entropy_T: Tensor | None  # float32


def sparse_target(rows: SparseRows) -> SparseTarget:
    """The rows of any sparse signal as a target distribution."""
    match rows:
        case TopKRows():
            probs_TK = rows.log_probs_TK.exp()
            entropy_T = -torch.xlogy(probs_TK, probs_TK).sum(-1) - torch.xlogy(rows.tail_T, rows.tail_T)
            return SparseTarget(rows.ids_TK, probs_TK, rows.tail_T, entropy_T, rows.entropy_T)
        case SampledRows():
            probs_TK = _shares(rows.counts_TK)
            if rows.weights_TK is not None:
                probs_TK = probs_TK * rows.weights_TK
            return SparseTarget(rows.ids_TK, probs_TK, None, rows.entropy_T, rows.entropy_T)
        case HybridRows():
            ids_TK = torch.cat([rows.ids_TK, rows.drawn_ids_TM], 1)
            drawn_TM = rows.tail_T[:, None] * _shares(rows.counts_TM)
            probs_TK = torch.cat([rows.log_probs_TK.exp(), drawn_TM], 1)
            return SparseTarget(ids_TK, probs_TK, None, rows.entropy_T, rows.entropy_T)
        case HardRows():
            ids_TK = rows.ids_T[:, None]
            ones_TK = torch.ones(ids_TK.shape, device=ids_TK.device)
            return SparseTarget(ids_TK, ones_TK, None, torch.zeros(len(ids_TK), device=ids_TK.device), None)


def _shares(counts_TK: Tensor) -> Tensor:
    """Counts over a row's draws; zero in a row of no draws."""
    return counts_TK.float() / counts_TK.sum(-1, keepdim=True).clamp(min=1)


def hard_rows(rows: TopKRows | HybridRows | HardRows) -> HardRows:
    """The teacher's top-1 from rows that hold it."""
    return rows if isinstance(rows, HardRows) else HardRows(rows.ids_TK[:, 0])
