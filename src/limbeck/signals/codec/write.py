"""Rows of a shard's documents as bytes: a model of them all, and each document's lanes.

A document is

    shortest (LEB128) | width u8 | how much longer each lane is, `width` bits each | words of all lanes, u16

where a lane's length is in words. All numbers are little-endian. A document without rows is empty. A lane holds, in the order
of reading: the numbers of its rows, one row after another; the ids of their sets, with their marks; and the tokens the rows
speak of. See `lanes.py` for how the ids of a set give the bits of their order back.

Shapes: R rows of all documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.signals.codec.chunks import head_signal, heads_of, write_columns
from limbeck.signals.codec.fit import Fitted, Flat, classes_before, fit, flatten_rows
from limbeck.signals.codec.lanes import LaneWriter, bits_part, symbol_part
from limbeck.signals.codec.layout import layout_of
from limbeck.signals.codec.model import table_shapes
from limbeck.signals.codec.rows import columns_of
from limbeck.signals.codec.write_sets import id_parts, write_sets
from limbeck.signals.types import ChunkRows, SparseRows, StoredRows
from limbeck.spec.signal import ChunksSignal, StoredSignal, TokenSignal


@dataclass(frozen=True)
class Encoded:
    """The rows of some documents: what a reader must be given of them all, and the bytes of each."""

    model: bytes
    documents: tuple[bytes, ...]


def encode(documents: Sequence[tuple[np.ndarray, StoredRows]], *, signal: StoredSignal, vocab_size: int) -> Encoded:
    """(tokens, rows) of each document as bytes; the same ones give the same bytes. Tokens are one more than rows."""
    if not isinstance(signal, ChunksSignal):
        return _encode([(tokens, _of_tokens(rows)) for tokens, rows in documents], signal=signal, vocab_size=vocab_size)
    chunks = [_of_chunks(rows) for _, rows in documents]
    heads = [(tokens, heads_of(rows)) for (tokens, _), rows in zip(documents, chunks, strict=True)]
    encoded = _encode(heads, signal=head_signal(signal), vocab_size=vocab_size)
    columns = [write_columns(rows) if len(rows.tokens_T) else b"" for rows in chunks]
    return Encoded(encoded.model, tuple(before + lanes for before, lanes in zip(columns, encoded.documents, strict=True)))


def _of_tokens(rows: StoredRows) -> SparseRows:
    assert not isinstance(rows, ChunkRows), "rows of another signal"
    return rows


def _of_chunks(rows: StoredRows) -> ChunkRows:
    assert isinstance(rows, ChunkRows), "rows of another signal"
    return rows


def _encode(documents: Sequence[tuple[np.ndarray, SparseRows]], *, signal: TokenSignal, vocab_size: int) -> Encoded:
    layout = layout_of(signal)
    columns = [columns_of(rows, layout=layout, vocab_size=vocab_size, tokens=tokens) for tokens, rows in documents]
    flat = flatten_rows(columns, num_sets=len(layout.sets))
    fitted = fit(flat, layout=layout, vocab_size=vocab_size)
    lanes = _write_lanes(flat, fitted)
    lane_rows = fitted.model.lane_rows
    encoded = []
    at = 0
    for document in columns:
        num_lanes = -(-len(document.tokens_R) // lane_rows)
        encoded.append(_document(lanes[at : at + num_lanes]))
        at += num_lanes
    return Encoded(fitted.model.to_bytes(), tuple(encoded))


def _document(lanes: Sequence[np.ndarray]) -> bytes:
    if not lanes:
        return b""
    lengths = np.array([len(lane) for lane in lanes])
    longer = lengths - lengths.min()
    width = int(longer.max()).bit_length()
    bits = (longer[:, None] >> np.arange(width)) & 1
    packed = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    return b"".join([_leb128(int(lengths.min())), bytes([width]), packed, *(lane.astype("<u2").tobytes() for lane in lanes)])


def _leb128(number: int) -> bytes:
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _write_lanes(flat: Flat, fitted: Fitted) -> list[np.ndarray]:
    """The words of every lane, back to front: what is read last is written first."""
    by_position = np.argsort(flat.position_R, kind="stable")
    ends = np.searchsorted(flat.position_R[by_position], np.arange(flat.lane_rows + 1))
    at_position = [by_position[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
    lanes = LaneWriter(int(flat.lane_R.max(initial=-1)) + 1, room=64)
    numbers = _Numbers(lanes, flat, fitted)
    for rows in reversed(at_position):
        numbers.write_tokens(rows)
    write_sets(lanes, flat, fitted)
    for rows in reversed(at_position):
        numbers.write_heads(rows)
    return lanes.finish()


class _Numbers:
    """Writes what rows have besides their sets, for one row of each lane at a time."""

    def __init__(self, lanes: LaneWriter, flat: Flat, fitted: Fitted) -> None:
        self._lanes, self._flat, self._model, self._class_RU = lanes, flat, fitted.model, fitted.class_RU
        self._shapes = table_shapes(self._model.layout, classes=self._model.classes)
        self._band_R = flat.entropy_band_R
        self._zero_R = np.zeros_like(self._band_R)
        self._before_UR = [
            classes_before(flat, set_.count_R > 0, self._class_RU[:, place], classes=self._model.classes)
            for place, set_ in enumerate(flat.sets)
        ]
        self._token_parts = id_parts(self._model, flat.tokens_R, np.full(len(flat.tokens_R), self._model.classes))

    def write_heads(self, rows: np.ndarray) -> None:
        """The numbers of rows and of their sets."""
        flat = self._flat
        for place, set_ in reversed(list(enumerate(flat.sets))):
            filled = rows[set_.count_R[rows] > 0]
            self._write(f"class{place}", filled, self._before_UR[place], self._class_RU[:, place])
            self._write(f"count{place}", rows, self._band_R, set_.count_R)
            self._write(f"base{place}", rows, self._band_R, set_.base_R)
        for number in reversed(range(self._model.layout.numbers)):
            self._write(f"number{number}", rows, self._band_R if number else self._zero_R, flat.numbers_RN[:, number])

    def write_tokens(self, rows: np.ndarray) -> None:
        """Which of its most probable ids is the first, and which of its ids the token is, or which other."""
        missed = rows[self._flat.place_R[rows] == 0]
        if missed.size:
            self._lanes.write(self._flat.lane_R[missed], [part.of(missed) for part in self._token_parts])
        self._write("place", rows, self._band_R, self._flat.place_R)
        self._write("first", rows, self._zero_R, self._flat.first_R)

    def _write(self, table: str, rows: np.ndarray, contexts_R: np.ndarray, numbers_R: np.ndarray) -> None:
        if not rows.size:
            return
        tables = self._model.tables
        symbols, low_bits = self._shapes[table].symbols.split(numbers_R[rows])
        places = tables.at_R[self._model.rows[table] + contexts_R[rows]] + symbols
        self._lanes.write(self._flat.lane_R[rows], [symbol_part(tables, places), bits_part(low_bits, tables.bits_P[places])])
