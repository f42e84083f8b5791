"""From documents to sequences of equal length, as a pure function of the seed.

An epoch is a random order of all documents. Laid end to end, their positions form one endless stream, epoch after epoch;
sequence i is the stream's positions [i * T, (i + 1) * T). So every position of every document is trained on exactly once an
epoch, nothing is padded, and sequence i can be found without reading the ones before it, which is what makes resuming exact.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Positions [start, stop) of a document: inputs tokens[start:stop], targets tokens[start + 1:stop + 1]."""

    document: int
    start: int
    stop: int


class SequenceStream(Protocol):
    """Sequences without end, each found by its number."""

    @property
    def sequence_length(self) -> int:
        """Positions of a sequence."""
        ...

    @property
    def rows_per_epoch(self) -> int:
        """Positions that are read until all documents have been."""
        ...

    @property
    def padding_share(self) -> float:
        """Of all positions, those that hold nothing."""
        ...

    @property
    def left_out(self) -> int:
        """Documents that are never read, being too long."""
        ...

    def documents(self) -> np.ndarray:
        """The numbers of the documents that are read."""
        ...

    def distinct_rows(self, read: float) -> float:
        """Of so many positions from the beginning on, how many are different."""
        ...

    def sequence(self, index: int) -> list[Piece]:
        """The pieces of sequence `index`, in order; they may leave room at its end."""
        ...


class TokenStream:
    """The endless stream of positions over documents of the given lengths (in tokens)."""

    def __init__(self, lengths: np.ndarray, *, sequence_length: int, seed: int) -> None:
        self.rows = lengths.astype(np.int64) - 1  # the last token has no next one
        self.rows_per_epoch = int(self.rows.sum())
        self.sequence_length = sequence_length
        self.seed = seed
        self.padding_share, self.left_out = 0.0, 0
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def sequence(self, index: int) -> list[Piece]:
        """The pieces that make up sequence `index`, in order; their lengths sum to the sequence length."""
        pieces: list[Piece] = []
        begin = index * self.sequence_length
        needed = self.sequence_length
        while needed:
            epoch, within = divmod(begin, self.rows_per_epoch)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, within, side="right"))
            document = int(order[place])
            start = within - (int(ends[place]) - int(self.rows[document]))
            length = min(needed, int(self.rows[document]) - start)
            pieces.append(Piece(document, start, start + length))
            begin += length
            needed -= length
        return pieces

    def documents(self) -> np.ndarray:
        """The numbers of the documents that are read: all."""
        return np.arange(len(self.rows))

    def distinct_rows(self, read: float) -> float:
        """Of so many positions from the beginning on, how many are different."""
        return min(read, self.rows_per_epoch)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.rows))
        return order, np.cumsum(self.rows[order])
