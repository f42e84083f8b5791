"""Whole documents in sequences of equal length, by best fit: none is cut, and what stays empty is padding.

Documents are taken from the longest to the shortest, and each goes where it leaves the least room (best fit decreasing, at most
11/9 of the fewest sequences that would do, and 6/9 of one; D. S. Johnson 1974). How long the documents of each sequence are
follows from all lengths alone, so every epoch has as many sequences. Which of the documents of one length goes where, and the
order of the sequences, are drawn afresh each epoch from the seed. So sequence i is found without reading the ones before it.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from limbeck.data.packing import Piece
from limbeck.errors import DataError


class WholeStream:
    """The endless stream of sequences of whole documents of the given lengths (in tokens); longer ones are left out."""

    def __init__(self, lengths: np.ndarray, *, sequence_length: int, seed: int) -> None:
        """`DataError` where no document fits."""
        rows = lengths.astype(np.int64) - 1  # the last token has no next one
        self.kept = np.flatnonzero(rows <= sequence_length)
        """The documents that fit."""
        self.rows, self.left_out = rows[self.kept], len(rows) - len(self.kept)
        if not len(self.kept):
            raise DataError(
                f"data.packing=whole: none of the {len(rows):,} documents fits into data.sequence_length={sequence_length}; "
                f"the shortest needs {int(rows.min()):,}"
            )
        self.sequence_length, self.seed = sequence_length, seed
        self.rows_per_epoch = int(self.rows.sum())
        self._bins = best_fit(-np.sort(-self.rows), capacity=sequence_length)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def padding_share(self) -> float:
        """Of all positions of an epoch, those that hold nothing."""
        return 1 - self.rows_per_epoch / (len(self._bins) * self.sequence_length)

    def documents(self) -> np.ndarray:
        """The numbers of the documents that are read."""
        return self.kept

    def distinct_rows(self, read: float) -> float:
        """Of so many positions from the beginning on, how many are different."""
        return min(read, self.rows_per_epoch)

    def sequence(self, index: int) -> list[Piece]:
        """The documents of sequence `index`, the longest first."""
        epoch, within = divmod(index, len(self._bins))
        in_order, bins = self._epoch(epoch)
        documents = (int(in_order[rank]) for rank in self._bins[bins[within]])
        return [Piece(int(self.kept[each]), 0, int(self.rows[each])) for each in documents]

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents from the longest to the shortest, those of one length in a new order; and the order of the sequences."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        shuffled = generator.permutation(len(self.rows))
        return shuffled[np.argsort(-self.rows[shuffled], kind="stable")], generator.permutation(len(self._bins))


def best_fit(sizes: np.ndarray, *, capacity: int) -> list[Sequence[int]]:
    """Bins of the given sizes, which descend and are at most `capacity`, each with the places of the sizes that it holds."""
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # ascending, each once
    for place, size in enumerate(sizes.tolist()):
        at = bisect_left(rooms, size)
        if at == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        bins[chosen].append(place)
        left = room - size
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(chosen)
    return [tuple(each) for each in bins]
