"""Which sequences come from which part of a mixture of texts, and one stream of all parts.

Parts are dealt by R. Tijdeman's rule ("The chairman assignment problem", 1980): among the parts that are due, the one that must
come soonest. After every number of sequences each part has had its share of them to within less than one. Every part has a
stream of its own, so a small part begins again while a large one goes on.
"""

from collections.abc import Sequence

import numpy as np

from limbeck.data.packing import Piece, SequenceStream

_DEAL_AT_ONCE = 1024


class MixedStream:
    """The endless stream of sequences of several parts; `documents_of_parts` numbers the documents of each among all."""

    def __init__(
        self, parts: Sequence[SequenceStream], *, shares: Sequence[float], documents_of_parts: Sequence[np.ndarray]
    ) -> None:
        self.parts, self.shares, self.documents_of_parts = parts, np.array(shares, dtype=np.float64), documents_of_parts
        self.sequence_length = parts[0].sequence_length
        self._part_of = np.empty(0, dtype=np.int64)
        self._place_of = np.empty(0, dtype=np.int64)
        self._dealt = np.zeros(len(parts), dtype=np.int64)

    @property
    def rows_per_epoch(self) -> int:
        """Of all parts, each read once."""
        return sum(part.rows_per_epoch for part in self.parts)

    @property
    def left_out(self) -> int:
        """Documents that are too long."""
        return sum(part.left_out for part in self.parts)

    @property
    def padding_share(self) -> float:
        """Of all positions, those that hold nothing."""
        return float(sum(share * part.padding_share for share, part in zip(self.shares, self.parts, strict=True)))

    def documents(self) -> np.ndarray:
        """The numbers of the documents that are read."""
        parts = zip(self.parts, self.documents_of_parts, strict=True)
        return np.unique(np.concatenate([numbers[part.documents()] for part, numbers in parts]))

    def distinct_rows(self, read: float) -> float:
        """Of so many positions from the beginning on, how many are different; a document in two parts counts in each."""
        filled = self.shares * [1 - part.padding_share for part in self.parts]
        each_reads = (read * filled / filled.sum()).tolist()  # numbers of Python's, which alone a checkpoint may hold
        return sum(part.distinct_rows(its) for part, its in zip(self.parts, each_reads, strict=True))

    def sequence(self, index: int) -> list[Piece]:
        """The pieces of sequence `index`, all of one part."""
        part, place = self.place(index)
        numbers = self.documents_of_parts[part]
        return [Piece(int(numbers[each.document]), each.start, each.stop) for each in self.parts[part].sequence(place)]

    def place(self, index: int) -> tuple[int, int]:
        """The part of sequence `index`, and how many came from it before."""
        while index >= len(self._part_of):
            self._deal(max(_DEAL_AT_ONCE, len(self._part_of)))
        return int(self._part_of[index]), int(self._place_of[index])

    def _deal(self, more: int) -> None:
        first, margin = len(self._part_of), 1 / (2 * len(self.parts) - 2)
        parts, places = np.empty(more, dtype=np.int64), np.empty(more, dtype=np.int64)
        for each in range(more):
            owed = self.shares * (first + each + 1) - self._dealt
            due = np.where(owed >= margin, (1 - margin - owed) / self.shares, np.inf)
            chosen = int(np.argmin(due))
            parts[each], places[each] = chosen, self._dealt[chosen]
            self._dealt[chosen] += 1
        self._part_of, self._place_of = np.concatenate([self._part_of, parts]), np.concatenate([self._place_of, places])
