"""Probabilities of symbols in their contexts, as whole numbers that writer and reader compute alike.

A table has one row of frequencies for each context. What is stored is a level for each symbol, its probability in steps of
half an octave (0: it never occurs there); frequencies are made from levels by integer arithmetic alone, so that every machine
gets the same. Rounding to half an octave costs about 0.007 bit a symbol: half the variance of an error of up to ± ln 2 / 4.

Shapes: C contexts, S symbols, P symbols of all contexts of all tables ("places").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRECISION = 11
"""Frequencies of a context sum to 2^11."""
TOTAL = 1 << PRECISION
MOST_SYMBOLS = 256
_WEIGHTS = np.concatenate([[0], np.round(2.0 ** (np.arange(2 * PRECISION + 1) / 2))]).astype(np.int64)
MOST_LEVEL = len(_WEIGHTS) - 1


def levels_of(counts_CS: np.ndarray) -> np.ndarray:
    """The levels, uint8, that describe how often each symbol was seen; 0 for those never seen in the context."""
    most_C1 = counts_CS.max(-1, keepdims=True)
    most_C1 = np.where(most_C1 > 0, most_C1, 1)
    with np.errstate(divide="ignore"):
        below_CS = np.maximum(2 * np.log2(counts_CS / most_C1), -MOST_LEVEL)
    levels_CS = np.maximum(np.round(below_CS) + MOST_LEVEL, 1)
    return np.where(counts_CS > 0, levels_CS, 0).astype(np.uint8)


def frequencies(levels_CS: np.ndarray) -> np.ndarray:
    """Frequencies, int64, that sum to 2^11 in every context: at least 1 where the level is not 0.

    A context in which nothing was ever seen gets its first symbol: it is never met in whole data, and damaged data are read on.
    """
    weights_CS = _WEIGHTS[levels_CS]
    weights_CS[:, 0] += weights_CS.sum(-1) == 0
    seen_CS = weights_CS > 0
    spare_C1 = TOTAL - seen_CS.sum(-1, keepdims=True)
    frequencies_CS = seen_CS + weights_CS * spare_C1 // weights_CS.sum(-1, keepdims=True)
    frequencies_CS[np.arange(len(weights_CS)), weights_CS.argmax(-1)] += TOTAL - frequencies_CS.sum(-1)
    return frequencies_CS


@dataclass(frozen=True)
class Table:
    """Levels of the symbols in each context, and what a symbol stands for: 2^bits numbers from the first on."""

    levels_CS: np.ndarray  # uint8
    first_CS: np.ndarray  # int64
    bits_CS: np.ndarray  # int64

    @property
    def contexts(self) -> int:
        """C."""
        return len(self.levels_CS)


@dataclass(frozen=True)
class Tables:
    """Several tables in flat arrays, so that one gather serves symbols of all kinds, contexts and models.

    Context `row` has its symbols' places from `at_R[row]` on, and its 2^11 slots from row x 2^11 on.
    """

    slots: np.ndarray  # uint8: the symbol of each slot
    at_R: np.ndarray  # int64
    frequency_P: np.ndarray  # uint64, or uint16 in a reader's `Stack`
    before_P: np.ndarray  # likewise: the frequencies of the symbols before it
    first_P: np.ndarray  # int64, or int32
    bits_P: np.ndarray  # int64, or uint8


def flatten(tables: Sequence[Table]) -> Tables:
    """Tables one after another: the rows of each begin after all contexts of those before it."""
    slots, ats, frequency, before = [], [], [], []
    at = 0
    for table in tables:
        frequencies_CS = frequencies(table.levels_CS)
        names_CS = np.broadcast_to(np.arange(table.levels_CS.shape[1], dtype=np.uint8), frequencies_CS.shape)
        slots.append(np.repeat(names_CS.reshape(-1), frequencies_CS.reshape(-1)))
        ats.append(at + frequencies_CS.shape[1] * np.arange(table.contexts))
        frequency.append(frequencies_CS.reshape(-1))
        before.append((frequencies_CS.cumsum(-1) - frequencies_CS).reshape(-1))
        at += frequencies_CS.size
    return Tables(
        np.concatenate(slots),
        np.concatenate(ats),
        np.concatenate(frequency).astype(np.uint64),
        np.concatenate(before).astype(np.uint64),
        np.concatenate([table.first_CS.reshape(-1) for table in tables]),
        np.concatenate([table.bits_CS.reshape(-1) for table in tables]),
    )
