"""What a row of each kind is made of, as whole numbers.

A row has some numbers of its own and one or two sets of ids. An id of a set may carry a mark (a count, or how far its log-prob
is above the least of the row) and a weight. Everything the entropy coder sees is in `Columns`; `rows.py` makes them from rows
and rows from them.

| signal          | numbers of a row  | sets                                                                             |
|-----------------|-------------------|----------------------------------------------------------------------------------|
| `sampled`       | entropy           | drawn (marks: counts less one; weights where a proposal was), and top-1 if kept   |
| `topk`, `topp`  | entropy, tail     | head (marks: steps above the row's least log-prob)                               |
| `hybrid`        | entropy, tail     | head, drawn                                                                      |
| `hard`          |                   | top-1                                                                            |

Shapes: R rows, K the most ids of a set.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from limbeck.signals.codec.numbers import Alphabet, alphabet
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, TokenSignal, TopKSignal, TopPSignal

MOST_VALUE = {"uint8": 255, "float16": 0x7BFF}
"""The greatest log-prob step of either way of keeping values (`values.py`)."""
MOST_WEIGHT = (1 << 16) + 1
MARK_BITS, WEIGHT_BITS = 17, 18
"""An id with its mark and its weight is one int64 while ids are sorted."""
MOST_IDS = 1 << 16
"""Of a set: which of its ids comes next is coded at 16 bits (`lanes.py`)."""


class Marks(Enum):
    """What an id carries."""

    NONE = 0
    COUNTS = 1
    """Its count less one; those of a row sum to the draws less the ids."""
    STEPS = 2
    """Steps of its log-prob above the row's least."""


@dataclass(frozen=True)
class SetLayout:
    """A set of ids of every row."""

    marks: Marks
    most: int
    """Ids, at most."""
    base: Alphabet
    """Of the number that the marks of a row are told from: its least log-prob, or how many draws it is short of the most."""
    mark: Alphabet

    def __post_init__(self) -> None:
        assert self.most <= MOST_IDS and self.mark.greatest < 1 << MARK_BITS, "the spec asks for no more"


@dataclass(frozen=True)
class Layout:
    """What rows of a signal are made of."""

    numbers: int
    """Entropy and tail, entropy alone, or none: bytes of a row."""
    sets: tuple[SetLayout, ...]
    values: str = "uint8"
    weights: bool = False
    """Whether ids have weights besides; those of a set that has none are 0."""
    weight: Alphabet = field(default_factory=lambda: alphabet(MOST_WEIGHT, exact=8, per_octave=8))


def layout_of(signal: TokenSignal) -> Layout:
    """The layout of a signal's rows."""
    match signal:
        case SampledSignal(draws=draws):
            sets = (_drawn(draws), _TOP_1) if signal.keep_top1 else (_drawn(draws),)
            return Layout(1, sets, weights=signal.proposal_temperature != 1)
        case TopKSignal(k=k):
            return Layout(2, (_head(k, signal.values),), signal.values)
        case TopPSignal(cap=cap):
            return Layout(2, (_head(cap, signal.values),), signal.values)
        case HybridSignal(k=k, draws=draws):
            return Layout(2, (_head(k, signal.values), _drawn(draws)), signal.values)
        case HardSignal():
            return Layout(0, (_TOP_1,))


_TOP_1 = SetLayout(Marks.NONE, 1, alphabet(0), alphabet(0))


def _drawn(draws: int) -> SetLayout:
    return SetLayout(Marks.COUNTS, draws, alphabet(draws), alphabet(draws, exact=64))


def _head(most: int, values: str) -> SetLayout:
    greatest = MOST_VALUE[values]
    steps = alphabet(greatest, exact=256) if values == "uint8" else alphabet(greatest, exact=16, per_octave=16)
    return SetLayout(Marks.STEPS, most, steps, steps)


@dataclass(frozen=True)
class SetColumns:
    """A set of ids of every row: the first `count_R` of each row of `ids_RK`, ascending. All int64."""

    count_R: np.ndarray
    base_R: np.ndarray
    ids_RK: np.ndarray
    marks_RK: np.ndarray
    weights_RK: np.ndarray

    def of(self, rows: np.ndarray) -> "SetColumns":
        """Those of some rows, no wider than they need."""
        width = int(self.count_R[rows].max(initial=0))
        return SetColumns(
            self.count_R[rows],
            self.base_R[rows],
            self.ids_RK[rows, :width],
            self.marks_RK[rows, :width],
            self.weights_RK[rows, :width],
        )


@dataclass(frozen=True)
class Columns:
    """Rows as whole numbers, int64."""

    numbers_RN: np.ndarray
    sets: tuple[SetColumns, ...]
    first_R: np.ndarray
    """Where the most probable id is among those of the first set that share the highest mark; 0 where marks are no steps."""
    tokens_R: np.ndarray
    """The token that each row speaks of."""


def no_columns(layout: Layout) -> Columns:
    """No rows."""
    none, empty = np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.int64)
    sets = tuple(SetColumns(none, none, empty, empty, empty) for _ in layout.sets)
    return Columns(np.zeros((0, layout.numbers), dtype=np.int64), sets, none, none)
