"""What texts share, by their words: near duplicates among them, and passages of evaluation sets in them.

A word is a run of letters and digits, whatever its case; of scripts that do not part words by spaces, a character. Both are
exact: duplicates by the Jaccard similarity of sets of n-grams, candidates for which are found by prefixes (Chaudhuri, Ganti &
Kaushik, ICDE 2006; Bayardo, Ma & Srikant, WWW 2007): ordered alike, two sets of similarity t have one of their first
n - ceil(t n) + 1 members in common.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")
LEAST_WORDS = 8
"""Of a text that is looked for whole: shorter ones are found everywhere."""


def words_of(text: str) -> list[str]:
    """Of a text, in lower case."""
    return _WORD.findall(text.casefold())


def grams(words: Sequence[str], *, size: int) -> Iterator[int]:
    """64 bits of every `size` words in a row."""
    for start in range(len(words) - size + 1):
        joined = "\x1f".join(words[start : start + size]).encode("utf-8", errors="replace")
        yield int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


class NearDuplicates:
    """Texts seen so far that were like none before them."""

    def __init__(self, *, similarity: float, words: int) -> None:
        self.similarity, self.words = similarity, words
        self._names: list[str] = []
        self._sets: list[NDArray[np.uint64]] = []
        self._by_gram: dict[int, list[int]] = {}

    def like(self, name: str, text: str) -> str | None:
        """The name of the first kept text that this one is like; None: there is none, and this one is kept by its name.

        Texts with fewer words than an n-gram has are like no other.
        """
        found_N = np.array(sorted(set(grams(words_of(text), size=self.words))), dtype=np.uint64)
        if not len(found_N):
            return None
        prefix = found_N[: len(found_N) - math.ceil(self.similarity * len(found_N) - 1e-9) + 1].tolist()
        candidates = {index for gram in prefix for index in self._by_gram.get(gram, ())}
        for index in sorted(candidates):
            if jaccard(found_N, self._sets[index]) >= self.similarity - 1e-9:
                return self._names[index]
        for gram in prefix:
            self._by_gram.setdefault(gram, []).append(len(self._sets))
        self._names.append(name)
        self._sets.append(found_N)
        return None


def jaccard(one_N: NDArray[np.uint64], other_M: NDArray[np.uint64]) -> float:
    """|intersection| / |union| of two sets, each sorted and without repeats."""
    common = len(np.intersect1d(one_N, other_M, assume_unique=True))
    return common / (len(one_N) + len(other_M) - common)


class Passages:
    """Texts that must not be trained on, by their n-grams; those that are shorter, whole."""

    def __init__(self, texts: Iterable[tuple[str, str]], *, words: int) -> None:
        """`texts` are (source, text)."""
        self.words, self.texts, self.too_short = words, 0, 0
        self._sources: dict[int, dict[int, str]] = {words: {}}
        for source, text in texts:
            found = words_of(text)
            self.texts += 1
            self.too_short += len(found) < min(words, LEAST_WORDS)
            if len(found) >= min(words, LEAST_WORDS):
                size = min(words, len(found))
                kept = self._sources.setdefault(size, {})
                for gram in grams(found, size=size):
                    kept.setdefault(gram, source)

    def found_in(self, text: str) -> str | None:
        """The source of a passage in a text; None where it holds none."""
        words = words_of(text)
        for size, sources in self._sources.items():
            if sources:
                found = next((gram for gram in grams(words, size=size) if gram in sources), None)
                if found is not None:
                    return sources[found]
        return None
