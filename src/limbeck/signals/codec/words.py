"""How ids are named: a cluster, a band of the cluster, and a place in the band.

Ids that a shard's rows hold often enough are its members. Those of a cluster are cut, most frequent first, into bands of ids of
about the same frequency, as many as a power of two: an id's place in its band is then a few bits as they are. All other ids are
the last cluster, whose bands are stretches of the vocabulary. What is stored of a member is its distance from the one before
it, its cluster and the class of its frequency, each a byte, Huffman coded by zlib.

Shapes: V vocabulary, U members, M clusters (the last but one of them for members that have none of their own), B bands of all
clusters one after another.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from limbeck.signals.codec.tables import MOST_SYMBOLS

_MOST_BAND_BITS = 9
_CLASS_FROM = np.array([6, 12, 24, 34, 48, 68, 96, 136, 192, 272, 384, 543, 768, 1086, 1536, 2172, 3072, 6144, 12288, 24576])
_STRETCHES = 64
MOST_MEMBERS = 1 << 15
"""So that a symbol can name the bands of a cluster that holds them all: 64 of 2^9 ids, and at most 9 more in each class."""


@dataclass(frozen=True)
class Words:
    """The names of all ids."""

    members_U: np.ndarray  # int64, ascending
    cluster_U: np.ndarray  # int64
    class_U: np.ndarray  # int64: of their frequency
    clusters: int
    """With the last one, of ids that are no members."""
    vocab_size: int

    @cached_property
    def band_U(self) -> np.ndarray:
        """The band of each member in its cluster, int64."""
        return _cut_into_bands(self.cluster_U, self.class_U)

    @cached_property
    def bands(self) -> int:
        """The most bands of a cluster."""
        return int(max(self.band_U.max(initial=0) + 1, num_names(self.vocab_size) // self.stretch))

    @property
    def stretch(self) -> int:
        """Ids in a band of the last cluster."""
        return 1 << stretch_bits(self.vocab_size)

    @cached_property
    def naming(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cluster, band and place of every id, int64 [V] each."""
        ids_V = np.arange(self.vocab_size)
        cluster_V = np.full(self.vocab_size, self.clusters - 1)
        band_V, place_V = ids_V // self.stretch, ids_V % self.stretch
        order, starts = self._in_bands()
        cluster_V[self.members_U], band_V[self.members_U] = self.cluster_U, self.band_U
        place_V[self.members_U[order]] = np.arange(len(order)) - starts
        return cluster_V, band_V, place_V

    def bands_by_name(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the reader: members by band, int64 [U], and of every band [M, bands] its first name and the bits of a place.

        A name below `num_names` is an id, and one from there on a place in the array of members. A band that is not there has
        the name 0 and no bits.
        """
        sizes = np.bincount(self.cluster_U * self.bands + self.band_U, minlength=self.clusters * self.bands)
        first = np.where(sizes > 0, np.cumsum(sizes) - sizes + num_names(self.vocab_size), 0).reshape(self.clusters, self.bands)
        bits = np.array([(size - 1).bit_length() if size else 0 for size in sizes.tolist()]).reshape(first.shape)
        stretches = num_names(self.vocab_size) // self.stretch
        first[-1, :stretches] = np.arange(stretches) * self.stretch
        bits[-1, :stretches] = stretch_bits(self.vocab_size)
        order, _ = self._in_bands()
        return self.members_U[order], first, bits

    def _in_bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Members in the order of their bands, and where each one's band begins in it."""
        key_U = self.cluster_U * MOST_SYMBOLS + self.band_U
        order = np.argsort(key_U, kind="stable")
        return order, np.searchsorted(key_U[order], key_U[order])


NUM_CLASSES = len(_CLASS_FROM) + 1
"""Of frequency."""


def num_names(vocab_size: int) -> int:
    """Names that are ids themselves: a whole number of stretches."""
    bits = stretch_bits(vocab_size)
    return -(-vocab_size >> bits) << bits


def stretch_bits(vocab_size: int) -> int:
    """Bits of a place in a band of ids that are no members."""
    return max((vocab_size - 1).bit_length() - (_STRETCHES.bit_length() - 1), 0)


def place_bits(vocab_size: int) -> int:
    """The most bits of a place in any band."""
    return max(stretch_bits(vocab_size), _MOST_BAND_BITS)


def frequency_class(frequency_U: np.ndarray) -> np.ndarray:
    """Which ids are about as frequent, int64: an octave each for the rare, finer for the frequent, who are few."""
    return np.searchsorted(_CLASS_FROM, frequency_U, side="right")


def _cut_into_bands(cluster_U: np.ndarray, class_U: np.ndarray) -> np.ndarray:
    """The band of each member in its cluster: first those of the most frequent class, as many as the greatest power of two."""
    order = np.lexsort((np.arange(len(cluster_U)), -class_U, cluster_U))
    key = cluster_U[order] * (len(_CLASS_FROM) + 1) + class_U[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    sizes = np.diff(starts, append=len(key))
    band_sizes, owner = [], []
    for size, cluster in zip(sizes.tolist(), cluster_U[order][starts].tolist(), strict=True):
        parts = [1 << _MOST_BAND_BITS] * (size >> _MOST_BAND_BITS)
        parts += [1 << bit for bit in reversed(range(_MOST_BAND_BITS)) if size >> bit & 1]
        band_sizes += parts
        owner += [cluster] * len(parts)
    first_of_cluster = np.searchsorted(owner, owner)
    band_U = np.empty(len(cluster_U), dtype=np.int64)
    band_U[order] = np.repeat(np.arange(len(owner)) - first_of_cluster, band_sizes)
    return band_U
