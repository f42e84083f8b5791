"""Random rows of every kind, for tests of the codec."""

import math

import numpy as np
import torch
from torch import Tensor

from limbeck.signals.codec import Encoded, Piece, encode
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import ChunksSignal, HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

Documents = list[tuple[np.ndarray, SparseRows]]


def counted(ids_RN: np.ndarray, draws_R: np.ndarray) -> tuple[Tensor, Tensor]:
    """The first draws of each row as distinct ids, ascending, with counts."""
    pairs = [np.unique(row[:draws], return_counts=True) for row, draws in zip(ids_RN, draws_R, strict=True)]
    width = max((len(ids) for ids, _ in pairs), default=0)
    padded = [[np.pad(column, (0, width - len(column))) for column in pair] for pair in pairs]
    stacked = np.array(padded, dtype=np.int64).reshape(len(pairs), 2, width)
    return torch.from_numpy(stacked[:, 0].copy()), torch.from_numpy(stacked[:, 1].copy())


def skewed(rng: np.random.Generator, shape: tuple[int, int], *, vocab: int, power: float) -> np.ndarray:
    """Ids of which the low ones are likelier, the more so the higher the power."""
    return (vocab * rng.random(shape) ** power).astype(np.int64)


def head(rng: np.random.Generator, rows: int, *, most: int, vocab: int, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids, most probable first, log-probs with -inf after the last, and a tail."""
    most_ids = min(most, vocab)
    ids_RK = np.zeros((rows, most), dtype=np.int64)
    log_probs_RK = np.full((rows, most), -np.inf, dtype=np.float32)
    for row in range(rows):
        count = most_ids if whole else int(rng.integers(1, most_ids + 1))
        ids_RK[row, :count] = (
            rng.choice(vocab, count, replace=False) if vocab < 2**16 else rng.integers(0, vocab) - np.arange(count)
        )
        log_probs_RK[row, :count] = -np.sort(rng.exponential(rng.choice([0.01, 1.0, 6.0]), count))
    tail_R = np.where(rng.random(rows) < 0.2, 0, np.exp(-rng.exponential(20, rows)))
    return torch.from_numpy(ids_RK % vocab), torch.from_numpy(log_probs_RK), torch.from_numpy(tail_R.astype(np.float32))


def rows_for(signal: StoredSignal, rows: int, *, vocab: int, rng: np.random.Generator, power: float = 4.0) -> SparseRows:
    """Random rows that the signal could be."""
    entropy_R = torch.from_numpy(rng.uniform(0, math.log(vocab), rows).astype(np.float32))
    match signal:
        case SampledSignal(draws=draws):
            low = signal.min_draws or draws
            ids_RK, counts_RK = counted(
                skewed(rng, (rows, draws), vocab=vocab, power=power), rng.integers(low, draws + 1, rows)
            )
            weights = torch.from_numpy(np.exp(rng.normal(0, 2, ids_RK.shape)).astype(np.float32)) * (counts_RK > 0)
            top1_R = ids_RK[:, 0].clone() if ids_RK.shape[1] else torch.zeros(rows, dtype=torch.int64)
            top1_R = torch.where(torch.from_numpy(rng.random(rows)) < 0.3, rng.integers(0, vocab), top1_R)
            return SampledRows(
                ids_RK,
                counts_RK,
                entropy_R,
                weights if signal.proposal_temperature != 1 else None,
                top1_R if signal.keep_top1 else None,
            )
        case TopKSignal(k=k):
            return TopKRows(*head(rng, rows, most=k, vocab=vocab, whole=True), entropy_R)
        case TopPSignal(cap=cap):
            return TopKRows(*head(rng, rows, most=cap, vocab=vocab, whole=False), entropy_R)
        case HybridSignal(k=k, draws=draws):
            ids_RK, log_probs_RK, tail_R = head(rng, rows, most=k, vocab=vocab, whole=True)
            drawn_RN = skewed(rng, (rows, draws), vocab=vocab, power=power)
            drawn_RM, counts_RM = counted(drawn_RN, np.where(rng.random(rows) < 0.1, 0, draws))
            return HybridRows(ids_RK, log_probs_RK, tail_R, drawn_RM, counts_RM, entropy_R)
        case ChunksSignal():
            return chunk_rows(signal, rows, vocab=vocab, rng=rng)
        case HardSignal():
            return HardRows(torch.from_numpy(rng.integers(0, vocab, rows)))


def chunk_rows(signal: ChunksSignal, rows: int, *, vocab: int, rng: np.random.Generator) -> ChunkRows:
    """Chunks of a few of the student's tokens and of any number of the teacher's, some far less probable than others."""
    tokens_R = np.zeros(rows, dtype=np.int64)
    ends = np.flatnonzero(rng.random(rows) < 0.6)
    tokens_R[ends] = rng.integers(1, np.diff(ends, prepend=-1) + 1)
    is_end_R = tokens_R > 0
    ids_RK, log_probs_RK, tail_R = head(rng, rows, most=signal.k, vocab=vocab, whole=False)
    has_ids_R = is_end_R & (signal.distribution != "none")
    has_ids_R |= (rng.random(rows) < 0.5) & (signal.distribution == "index")
    log_probs_RK[~torch.from_numpy(has_ids_R)] = -torch.inf

    def nats() -> Tensor:
        return torch.from_numpy(np.where(is_end_R, -rng.exponential(rng.choice([0.01, 4, 3000], rows)), 0).astype(np.float32))

    return ChunkRows(
        torch.from_numpy(tokens_R),
        torch.from_numpy(np.where(is_end_R, 1 + rng.poisson(0.7, rows) * rng.choice([1, 300], rows), 0)),
        nats(),
        nats(),
        nats(),
        torch.where(log_probs_RK > -torch.inf, ids_RK, 0),
        log_probs_RK,
        torch.where(torch.from_numpy(has_ids_R), tail_R, 0),
    )


def documents_for(signal: StoredSignal, lengths: list[int], *, vocab: int, seed: int, power: float = 4.0) -> Documents:
    """Documents of these many rows (-1: not even a token), whose tokens are often among a row's ids."""
    rng = np.random.default_rng(seed)
    documents: Documents = []
    for length in lengths:
        rows = rows_for(signal, max(length, 0), vocab=vocab, rng=rng, power=power)
        tokens = rng.integers(0, vocab, length + 1)
        ids = rows.ids_T[:, None] if isinstance(rows, HardRows) else rows.ids_TK
        if length > 0:
            known = rng.random(length) < 0.7
            tokens[1:][known] = ids[:, 0].numpy()[known]
        documents.append((tokens, rows))
    return documents


def whole(encoded: Encoded, documents: Documents) -> list[Piece]:
    """All rows of all documents."""
    rows = [max(len(tokens) - 1, 0) for tokens, _ in documents]
    return [
        Piece(np.frombuffer(data, dtype=np.uint8), encoded.model, count, 0, count)
        for data, count in zip(encoded.documents, rows, strict=True)
    ]


def encoded(documents: Documents, signal: StoredSignal, vocab: int) -> Encoded:
    """The documents of a shard."""
    return encode(documents, signal=signal, vocab_size=vocab)
