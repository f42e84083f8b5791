"""Non-negative numbers as a symbol of a small alphabet and some bits as they are.

Small numbers have a symbol of their own; larger ones share one with their neighbours, a few symbols to each octave, and the
bits below tell them apart. Symbols are entropy coded, the bits are not.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Alphabet:
    """Symbol s stands for the numbers first_S[s] .. first_S[s] + 2^bits_S[s] - 1; symbols are in the order of their numbers."""

    first_S: np.ndarray  # int64
    bits_S: np.ndarray  # int64
    greatest: int
    """The number it was made for; its last symbol may reach beyond."""

    def __len__(self) -> int:
        return len(self.first_S)

    def split(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Symbol and low bits of each number, int64 both; numbers must not exceed the alphabet's greatest."""
        symbols = np.searchsorted(self.first_S, numbers, side="right") - 1
        return symbols, numbers - self.first_S[symbols]

    def join(self, symbols: np.ndarray, low_bits: np.ndarray) -> np.ndarray:
        """The numbers again."""
        return self.first_S[symbols] + low_bits


def alphabet(greatest: int, *, exact: int = 32, per_octave: int = 4) -> Alphabet:
    """For numbers up to `greatest`: one symbol each below `exact`, then `per_octave` to each doubling (powers of two, both)."""
    first, bits = list(range(min(exact, greatest + 1))), [0] * min(exact, greatest + 1)
    start = exact
    while start <= greatest:
        width = (start // per_octave).bit_length() - 1
        for place in range(per_octave):
            if start + (place << width) <= greatest:
                first.append(start + (place << width))
                bits.append(width)
        start *= 2
    return Alphabet(np.array(first, dtype=np.int64), np.array(bits, dtype=np.int64), greatest)
