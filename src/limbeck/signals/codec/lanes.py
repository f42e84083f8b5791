"""The entropy coder: range asymmetric numeral systems (Duda, arXiv 1311.2540), many lanes side by side in numpy.

A lane is a stack of 16-bit words with a 64-bit state on top. Reading a symbol takes its information off the state, and words
from the stack when the state falls below 2^48; writing is the exact inverse. Lanes know nothing of one another: a step does the
same to all of them at once, and a reader takes any lanes of any documents. A state starts at 1 and not at 2^48, and words are
only taken while there are some, so a lane ends with no more than its last word partly empty; after reading, the state must
be 1 again and no word be left, which is the check that a lane is whole.

**Sets** (Severo et al., "Compressing Multisets with Large Alphabets", arXiv 2107.09202): the order in which a row's ids are
written says nothing, so the writer lets the stack choose it. To pick one of n remaining ids it *reads* a number below n, which
takes log2 n bits off the stack; the reader, who knows the ids so far, *writes* the number back. A set of K ids so costs log2 K!
bits less than a sequence. So readers write too, into words that they have read already.

A group of symbols is read before words are taken again, which saves steps. Groups hold no more than 48 bits of precision.
Numbers below n are coded at a precision of 16 bits, which divides 2^48, because an exact inverse needs that; the loss is below
n / 2^16 bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.tables import PRECISION, TOTAL, Tables

_WORD = np.uint64(16)
_LEAST = np.uint64(1 << 48)
_LOW_WORD = np.uint64(0xFFFF)
_SLOT = np.uint64(TOTAL - 1)
_SHIFT = np.uint64(PRECISION)
_INDEX_BITS = 16

Lanes = slice | np.ndarray
"""Which lanes a step is about."""


def _shares(index: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequency, and frequencies before, uint64, of the number `index` among `count` equally likely ones (int64) at 16 bits."""
    before = (index << _INDEX_BITS) // count
    return (((index + 1) << _INDEX_BITS) // count - before).view(np.uint64), before.view(np.uint64)


class LaneReader:
    """Reads lanes. `words` are those of all lanes in uint16, `starts` and `stops` where each lane's are.

    Before each lane's words there must be room for `slack` words: a reader that writes may for a moment hold more than it got.
    """

    def __init__(self, words: np.ndarray, *, starts: np.ndarray, stops: np.ndarray, slack: int, tables: Tables) -> None:
        self._words = words
        self._floor = starts - slack
        self._at = starts.copy()
        self._stops = stops
        self._tables = tables
        self._state = np.zeros(len(starts), dtype=np.uint64)
        self.refill(slice(None))

    def reorder(self, order: np.ndarray) -> None:
        """Lane i is from now on what lane order[i] was."""
        self._floor, self._at, self._stops, self._state = (
            values[order] for values in (self._floor, self._at, self._stops, self._state)
        )

    def places(self, lanes: Lanes, rows: np.ndarray) -> np.ndarray:
        """A symbol of each lane, in the contexts `rows` (int64) of the tables: its place in the tables, int64."""
        state = self._state[lanes]
        slot = (state & _SLOT).view(np.int64)
        places = self._tables.at_R[rows] + self._tables.slots[(rows << PRECISION) + slot]
        self._state[lanes] = (
            self._tables.frequency_P[places] * (state >> _SHIFT) + slot.view(np.uint64) - self._tables.before_P[places]
        )
        return places

    def numbers(self, lanes: Lanes, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A number of each lane, as a symbol and its low bits: the numbers, int64, and the symbols' places."""
        places = self.places(lanes, rows)
        return self._tables.first_P[places] + self.bits(lanes, self._tables.bits_P[places]), places

    def bits(self, lanes: Lanes, widths: np.ndarray) -> np.ndarray:
        """A number of `widths` bits of each lane, int64."""
        state = self._state[lanes]
        shifts = widths.astype(np.uint64)
        numbers = state & ((np.uint64(1) << shifts) - np.uint64(1))
        self._state[lanes] = state >> shifts
        return numbers.view(np.int64)

    def refill(self, lanes: Lanes) -> None:
        """Take words until states are whole again: after every group."""
        state, at, stops = self._state[lanes], self._at[lanes], self._stops[lanes]
        short = (state < _LEAST).nonzero()[0]
        while short.size:
            places = at[short]
            short = short[places < stops[short]]
            places = at[short]
            wider = (state[short] << _WORD) | self._words[places]
            state[short] = wider
            at[short] = places + 1
            short = short[wider < _LEAST]
        self._state[lanes], self._at[lanes] = state, at

    def put_back(self, lanes: Lanes, index: np.ndarray, count: np.ndarray) -> None:
        """Write the number `index` < `count` (int64) that the writer read off each lane."""
        state = self._state[lanes]
        frequency, before = _shares(index, count)
        full = ((state >> np.uint64(48)) >= frequency).nonzero()[0]
        if full.size:
            at = self._at[lanes]
            places = at[full] - 1
            if (places < self._floor[lanes][full]).any():
                raise DamagedRowsError("a lane holds more than was written")
            self._words[places] = (state[full] & _LOW_WORD).astype(np.uint16)
            at[full] = places
            self._at[lanes] = at
            state[full] >>= _WORD
        whole = state // frequency
        self._state[lanes] = (whole << np.uint64(_INDEX_BITS)) + (state - whole * frequency) + before

    def require_end(self) -> None:
        """Raises `DamagedRowsError` unless every lane ends as its writer began."""
        if not ((self._state == 1) & (self._at == self._stops)).all():
            raise DamagedRowsError("a lane does not end where it should")


@dataclass(frozen=True)
class Part:
    """One symbol of a group, for each lane: its frequency and those before it, out of 2^precision."""

    frequency: np.ndarray  # uint64
    before: np.ndarray  # uint64
    precision: np.ndarray  # uint64

    def of(self, some: np.ndarray) -> "Part":
        """Those of some lanes."""
        return Part(self.frequency[some], self.before[some], self.precision[some])


def symbol_part(tables: Tables, places: np.ndarray) -> Part:
    """The part of symbols at these places of the tables."""
    return Part(tables.frequency_P[places], tables.before_P[places], np.full(len(places), _SHIFT))


def bits_part(numbers: np.ndarray, widths: np.ndarray) -> Part:
    """The part of numbers of some bits."""
    return Part(np.ones(len(numbers), dtype=np.uint64), numbers.astype(np.uint64), widths.astype(np.uint64))


class LaneWriter:
    """Writes lanes back to front: the last group to be read is written first."""

    def __init__(self, num_lanes: int, *, room: int) -> None:
        self._words = np.zeros((num_lanes, room), dtype=np.uint16)
        self._filled = np.zeros(num_lanes, dtype=np.int64)
        self._state = np.ones(num_lanes, dtype=np.uint64)

    @property
    def num_lanes(self) -> int:
        """Lanes, full or empty."""
        return len(self._state)

    def write(self, lanes: np.ndarray, parts: Sequence[Part]) -> None:
        """A group of parts, in the order in which they will be read, to the given lanes (int64)."""
        state = self._state[lanes]
        frequency, precision = parts[0].frequency, parts[0].precision
        for part in parts[1:]:
            frequency, precision = frequency * part.frequency, precision + part.precision
        assert frequency.all(), "a symbol that its table does not have"
        spare = np.uint64(64) - precision
        while True:
            full = ((state >> spare) >= frequency).nonzero()[0]
            if not full.size:
                break
            at = self._filled[lanes[full]]
            if at.max() >= self._words.shape[1]:
                self._words = np.concatenate([self._words, np.zeros_like(self._words)], axis=1)
            self._words[lanes[full], at] = (state[full] & _LOW_WORD).astype(np.uint16)
            self._filled[lanes[full]] = at + 1
            state[full] >>= _WORD
        for part in reversed(parts):
            whole = state // part.frequency
            state = (whole << part.precision) + (state - whole * part.frequency) + part.before
        self._state[lanes] = state

    def take(self, lanes: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Read a number below `count` off each lane, int64: what the lane happens to hold."""
        state = self._state[lanes]
        slot = (state & _LOW_WORD).view(np.int64)
        index = ((slot + 1) * count - 1) >> _INDEX_BITS
        frequency, before = _shares(index, count)
        state = frequency * (state >> np.uint64(_INDEX_BITS)) + slot.view(np.uint64) - before
        short = np.flatnonzero((state < _LEAST) & (self._filled[lanes] > 0))
        if short.size:
            at = self._filled[lanes[short]] - 1
            state[short] = (state[short] << _WORD) | self._words[lanes[short], at]
            self._filled[lanes[short]] = at
        self._state[lanes] = state
        return index

    def finish(self) -> list[np.ndarray]:
        """The words of each lane, uint16, in the order in which they are read."""
        state = self._state
        while True:
            left = np.flatnonzero(state > 0)
            if not left.size:
                break
            if self._filled.max() + 1 >= self._words.shape[1]:
                self._words = np.concatenate([self._words, np.zeros_like(self._words)], axis=1)
            self._words[left, self._filled[left]] = (state[left] & _LOW_WORD).astype(np.uint16)
            self._filled[left] += 1
            state[left] >>= _WORD
        return [words[:filled][::-1] for words, filled in zip(self._words, self._filled, strict=True)]
