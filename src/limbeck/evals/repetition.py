"""How repetitive a completion is, by its token ids or its text. numpy alone; nothing here knows a model.

seq-rep-n and rep-w are those of Welleck et al. (arXiv 1908.04319); distinct-n is Li et al.'s (arXiv 1510.03055). A loop is
exact: from some token on, each is the one a period before it. All take a completion without its prompt and its stop token.

Suffixes: N tokens of a completion, G n-grams.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST_PERIOD = 256
LEAST_RUN = 24
LEAST_PERIODS = 3
WINDOW_BYTES = 2048

Tokens = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Loop:
    """Tokens `start` to `stop` are the first `period` of them over and over."""

    period: int
    start: int
    stop: int

    @property
    def run(self) -> int:
        """Tokens that are the one a period before."""
        return self.stop - self.start - self.period

    @property
    def repeats(self) -> float:
        """How many times the period is said, the first included."""
        return (self.stop - self.start) / self.period


def seq_rep(tokens: Tokens, *, n: int) -> float:
    """1 - distinct n-grams / n-grams; 0 where there are fewer than n tokens."""
    grams_Gn = _grams(tokens, n=n)
    return 1 - len(np.unique(grams_Gn, axis=0)) / len(grams_Gn) if len(grams_Gn) else 0.0


def distinct(samples: Sequence[Tokens], *, n: int) -> float:
    """Distinct n-grams / n-grams over all samples together; 1 where there is none."""
    grams_Gn = np.concatenate([_grams(tokens, n=n) for tokens in samples])
    return len(np.unique(grams_Gn, axis=0)) / len(grams_Gn) if len(grams_Gn) else 1.0


def rep_w(tokens: Tokens, *, w: int = 16) -> float:
    """The share of tokens that are among the `w` before them; 0 of no tokens."""
    ids_N = np.asarray(tokens)
    seen_N = np.zeros(len(ids_N), dtype=bool)
    for distance in range(1, min(w, len(ids_N) - 1) + 1):
        seen_N[distance:] |= ids_N[distance:] == ids_N[:-distance]
    return float(seen_N.mean()) if len(ids_N) else 0.0


def compression_ratio(text: str, *, window: int = WINDOW_BYTES) -> float:
    """UTF-8 bytes / zlib-9 bytes of the window of 2 KB in which that is most; 0 of an empty text.

    English prose has about 2 and loops more than 10. Ratios grow with the length of what is compressed, so windows are of one
    length (the last ends with the text), and texts shorter than a window have lower ones.
    """
    data = text.encode("utf-8", errors="replace")
    if not data:
        return 0.0
    last = max(0, len(data) - window)
    pieces = [data[start : start + window] for start in [*range(0, last, window), last]]
    return max(len(piece) / len(zlib.compress(piece, 9)) for piece in pieces)


def terminal_loop(tokens: Tokens) -> Loop | None:
    """The loop of smallest period that the tokens end in; None where they end in none.

    Of period P it needs a trailing run of at least max(3 P, 24) tokens that are the one P before.
    """
    ids_N = np.asarray(tokens)
    for period in _periods(ids_N):
        differs = np.flatnonzero(ids_N[period:] != ids_N[:-period])
        start = int(differs[-1]) + 1 if len(differs) else 0
        if len(ids_N) - period - start >= least_run(period):
            return Loop(period, start, len(ids_N))
    return None


def longest_loop(tokens: Tokens) -> Loop | None:
    """The loop anywhere that covers most tokens, of the smallest period among equals: a model may leave one again."""
    ids_N = np.asarray(tokens)
    best: Loop | None = None
    for period in _periods(ids_N):
        differs = np.flatnonzero(ids_N[period:] != ids_N[:-period])
        ends = np.concatenate([[-1], differs, [len(ids_N) - period]])
        runs = np.diff(ends) - 1
        longest = int(runs.argmax())
        found = Loop(period, int(ends[longest]) + 1, int(ends[longest + 1]) + period)
        if found.run >= least_run(period) and (best is None or found.stop - found.start > best.stop - best.start):
            best = found
    return best


def least_run(period: int) -> int:
    """What makes a repetition a loop."""
    return max(LEAST_PERIODS * period, LEAST_RUN)


def _periods(ids_N: NDArray[np.integer]) -> range:
    """Those that may be a loop's in so many tokens."""
    longest = min(LONGEST_PERIOD, len(ids_N) // (LEAST_PERIODS + 1), len(ids_N) - LEAST_RUN)
    return range(1, longest + 1)


def _grams(tokens: Tokens, *, n: int) -> NDArray[np.integer]:
    ids_N = np.asarray(tokens, dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(ids_N, n) if len(ids_N) >= n else np.empty((0, n), dtype=np.int64)
