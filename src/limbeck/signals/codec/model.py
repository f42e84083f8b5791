"""What a reader must know before it can read a shard's rows: how probable everything is.

    version u8 | classes u8 | clusters u8 | rows of a lane u16 | width of each table u16 ... | sections | crc32 of all that

A section is its length, how long it is packed (u32 both) and a raw deflate stream of bytes: the levels of all tables, how far
each member is from the one before it (255: so far and on), members' clusters, the classes of their frequencies, and how large
marks are in each band.

Contexts: a row's numbers in 32 bands of its entropy; a set's class in that of the row before it in its lane; clusters in the
class; marks that are counts in what there is left to give out, to how many ids, and how large marks are in the band of the id.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.layout import Layout, Marks, layout_of
from limbeck.signals.codec.numbers import Alphabet, alphabet
from limbeck.signals.codec.tables import MOST_LEVEL, PRECISION, Table, Tables, flatten
from limbeck.signals.codec.words import MOST_MEMBERS, NUM_CLASSES, Words, place_bits
from limbeck.spec.signal import TokenSignal

VERSION = 3
ENTROPY_BANDS = 32
MARK_LEVELS = 4
MOST_CLASSES = 64
_BYTE = alphabet(255, exact=256)
_HEAD = struct.Struct("<BBBH")
_SECTION = struct.Struct("<II")
_LEFT = np.array([1, 2, 4, 6, 10, 16, 26, 42, 68, 110, 178, 288, 466])
"""Counts still to be given out, beyond one for each id: 0, 1, 2-3, 4-5, ..."""
_IDS = np.array([3, 8, 23, 64])
"""Ids still without a count: up to 2, 3-7, ..."""
MARK_CONTEXTS = (len(_LEFT) + 1) * (len(_IDS) + 1) * MARK_LEVELS


class CountContexts:
    """The context of a count less one: what is left (up to `most_left`), to how many ids, and the level of the id's band."""

    def __init__(self, most_left: int, most_ids: int) -> None:
        self._left = np.searchsorted(_LEFT, np.arange(most_left + 1), side="right") * ((len(_IDS) + 1) * MARK_LEVELS)
        self._ids = np.searchsorted(_IDS, np.arange(most_ids + 1), side="right") * MARK_LEVELS

    def of(self, left: np.ndarray, ids: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Contexts, int64; what is left is held in its bounds, which damaged rows may leave."""
        return self._left.take(left, mode="clip") + self._ids[ids] + level


def possible_counts(most_left: int) -> np.ndarray:
    """The greatest count less one in each context, int64 [contexts]: all that is left."""
    greatest = np.minimum(np.append(_LEFT, most_left + 1) - 1, most_left)
    return np.repeat(greatest, (len(_IDS) + 1) * MARK_LEVELS)


@dataclass(frozen=True)
class Shape:
    """Contexts and symbols of a table."""

    contexts: int
    symbols: Alphabet


def table_shapes(layout: Layout, *, classes: int) -> dict[str, Shape]:
    """All tables but those of clusters and bands, in their order."""
    shapes: dict[str, Shape] = {}
    for number in range(layout.numbers):
        shapes[f"number{number}"] = Shape(1 if number == 0 else ENTROPY_BANDS, _BYTE)
    for place, set_ in enumerate(layout.sets):
        shapes[f"base{place}"] = Shape(ENTROPY_BANDS, set_.base)
        shapes[f"count{place}"] = Shape(ENTROPY_BANDS, alphabet(set_.most, exact=64))
        shapes[f"class{place}"] = Shape(classes + 1, alphabet(classes - 1, exact=64))
        contexts = {Marks.NONE: 1, Marks.COUNTS: MARK_CONTEXTS, Marks.STEPS: ENTROPY_BANDS}[set_.marks]
        shapes[f"mark{place}"] = Shape(contexts, set_.mark)
    if layout.weights:
        shapes["weight"] = Shape(1, layout.weight)
    shapes["place"] = Shape(ENTROPY_BANDS, alphabet(layout.sets[0].most + 1))
    shapes["first"] = Shape(1, alphabet(layout.sets[0].most + 1))
    return shapes


@dataclass(frozen=True)
class Model:
    """A shard's model. `levels` are those of `table_shapes`, then of clusters [classes + 1, clusters] and bands."""

    layout: Layout
    classes: int
    lane_rows: int
    words: Words
    levels: dict[str, np.ndarray]
    mark_levels: np.ndarray  # uint8 [clusters, bands]

    @cached_property
    def names(self) -> np.ndarray:
        """Members by band, int64: name `num_names` + i is the i-th."""
        return self.words.bands_by_name()[0]

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row at which each table begins."""
        contexts = [len(levels) for levels in self.levels.values()]
        return dict(zip(self.levels, (np.cumsum(contexts) - contexts).tolist(), strict=True))

    @cached_property
    def tables(self) -> Tables:
        """Everything for the coder."""
        shapes = table_shapes(self.layout, classes=self.classes)
        _, first, bits = self.words.bands_by_name()
        tables = []
        for name, levels in self.levels.items():
            contexts, width = levels.shape
            if name in shapes:
                symbols = shapes[name].symbols
                stands_for = (symbols.first_S[:width], symbols.bits_S[:width])
            elif name == "cluster":
                stands_for = (np.arange(width), np.zeros(width, dtype=np.int64))
            else:
                tables.append(Table(levels, first, bits))
                continue
            tables.append(Table(levels, *(np.broadcast_to(values, (contexts, width)) for values in stands_for)))
        return flatten(tables)

    @cached_property
    def level_P(self) -> np.ndarray:
        """The level of marks of each place that is a band's, int64; 0 elsewhere."""
        level_P = np.zeros(len(self.tables.frequency_P), dtype=np.int64)
        level_P[-self.mark_levels.size :] = self.mark_levels.reshape(-1)
        return level_P

    def to_bytes(self) -> bytes:
        """The same model, the same bytes."""
        words = self.words
        gaps_U = np.diff(words.members_U, prepend=-1) - 1
        gaps = np.full(int((gaps_U // 255 + 1).sum()), 255, dtype=np.uint8)
        gaps[np.cumsum(gaps_U // 255 + 1) - 1] = gaps_U % 255
        head = _HEAD.pack(VERSION, self.classes, words.clusters, self.lane_rows)
        widths = np.array([levels.shape[1] for levels in self.levels.values()], dtype="<u2").tobytes()
        levels = b"".join(levels.tobytes() for levels in self.levels.values())
        sections = [levels, gaps.tobytes(), *(part.astype(np.uint8).tobytes() for part in (words.cluster_U, words.class_U))]
        data = b"".join([head, widths, *map(_pack, [*sections, self.mark_levels.tobytes()])])
        return data + zlib.crc32(data).to_bytes(4, "little")


def needs_two_groups(layout: Layout, vocab_size: int) -> bool:
    """Whether an id and its mark hold more than the 48 bits of precision that a group may have."""
    mark_bits = max(int(set_.mark.bits_S.max()) for set_ in layout.sets)
    return 3 * PRECISION + place_bits(vocab_size) + mark_bits > 48


def _pack(data: bytes) -> bytes:
    packed = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        packed.append(deflate.compress(data) + deflate.flush())
    shortest = min(packed, key=len)
    return _SECTION.pack(len(data), len(shortest)) + shortest


def read_model(data: bytes, signal: TokenSignal, vocab_size: int) -> Model:
    """The model of some bytes. Raises `DamagedRowsError` where no model has these bytes."""
    _require(zlib.crc32(data[:-4]).to_bytes(4, "little") == data[-4:], "its bytes changed since they were written")
    try:
        return _read_model(data[:-4], layout_of(signal), vocab_size)
    except (struct.error, zlib.error, ValueError, IndexError) as error:
        raise DamagedRowsError(f"its model cannot be read: {error}") from error


def _read_model(data: bytes, layout: Layout, vocab_size: int) -> Model:
    version, classes, clusters, lane_rows = _HEAD.unpack_from(data)
    _require(version == VERSION, "version")
    _require(1 <= classes <= MOST_CLASSES and clusters >= 2 and lane_rows >= 1, "classes")
    shapes = table_shapes(layout, classes=classes)
    contexts = {**{name: shape.contexts for name, shape in shapes.items()}, "cluster": classes + 1, "band": clusters}
    most = {**{name: len(shape.symbols) for name, shape in shapes.items()}, "cluster": clusters, "band": 256}
    at = _HEAD.size + 2 * len(contexts)
    widths = dict(zip(contexts, np.frombuffer(data[_HEAD.size : at], dtype="<u2").tolist(), strict=True))
    _require(all(1 <= widths[name] <= most[name] for name in contexts) and widths["cluster"] == clusters, "widths")
    sizes = {name: contexts[name] * widths[name] for name in contexts}
    (flat, gaps, cluster_U, class_U, mark_levels), end = _sections(
        data, at, limits=[sum(sizes.values()), MOST_MEMBERS + vocab_size // 255, MOST_MEMBERS, MOST_MEMBERS, sizes["band"]]
    )
    _require(end == len(data) and len(flat) == sum(sizes.values()) and len(mark_levels) == sizes["band"], "sections")
    _require(int(flat.max()) <= MOST_LEVEL and int(mark_levels.max()) < MARK_LEVELS, "levels")
    parts = np.split(flat, np.cumsum(list(sizes.values()))[:-1])
    levels = {name: part.reshape(contexts[name], -1) for name, part in zip(contexts, parts, strict=True)}
    members_U = np.cumsum(gaps.astype(np.int64) + (gaps != 255))[gaps != 255] - 1
    _require(len(members_U) == len(cluster_U) == len(class_U) and members_U.max(initial=0) < vocab_size, "members")
    words = Words(members_U, cluster_U.astype(np.int64), class_U.astype(np.int64), clusters, vocab_size)
    _require(cluster_U.max(initial=0) < clusters - 1 and class_U.max(initial=0) < NUM_CLASSES, "clusters")
    _require(words.bands == widths["band"], "bands")
    return Model(layout, classes, lane_rows, words, levels, mark_levels.reshape(clusters, -1))


def _sections(data: bytes, at: int, *, limits: list[int]) -> tuple[list[np.ndarray], int]:
    """The sections from byte `at` on, uint8, of no more than `limits` bytes each; and where they end."""
    sections = []
    for limit in limits:
        length, packed = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        _require(length <= limit, "length")
        inflate = zlib.decompressobj(-15)
        section = inflate.decompress(data[at : at + packed], length + 1)
        _require(len(section) == length and at + packed <= len(data), "length")
        sections.append(np.frombuffer(section, dtype=np.uint8))
        at += packed
    return sections, at


def _require(condition: object, what: str) -> None:
    if not condition:
        raise DamagedRowsError(f"its model cannot be read: {what}")
