"""Rows out of any pieces of any documents of any shards, all lanes side by side. See `write.py` for what a lane holds.

Nothing is trusted: what is read is held inside its bounds while lanes are read, and a lane that does not end as it was begun,
or a number that no rows have, is `DamagedRowsError`. No more is ever held than rows of the signal could be.

Shapes: R rows of all lanes that are read, L lanes, G sets that are not empty, K ids of a set, T steps: ids of a lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from limbeck.signals.codec.chunks import columns_at, head_signal, read_columns, split_document, with_columns
from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.lanes import LaneReader
from limbeck.signals.codec.layout import Columns, Layout, Marks, SetColumns, layout_of, no_columns
from limbeck.signals.codec.model import ENTROPY_BANDS, needs_two_groups
from limbeck.signals.codec.read_sets import SetsToRead, read_sets
from limbeck.signals.codec.rows import by_rank, rows_of
from limbeck.signals.codec.stack import Stack, stack_models
from limbeck.signals.types import HardRows, HybridRows, SampledRows, SparseRows, StoredRows, TopKRows
from limbeck.spec.signal import ChunksSignal, StoredSignal, TokenSignal

_KINDS: dict[str, type[SparseRows]] = {
    "sampled": SampledRows,
    "topk": TopKRows,
    "topp": TopKRows,
    "hybrid": HybridRows,
    "hard": HardRows,
}


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a document whose `num_rows` rows are `data`, uint8, in a shard with this model."""

    data: np.ndarray
    model: bytes
    num_rows: int
    start: int
    stop: int


@dataclass(frozen=True)
class Decoded:
    """The rows of some pieces one after another, their checks (see `row_checks`), and how many bytes they were read from."""

    rows: StoredRows
    checks: np.ndarray  # int64
    num_bytes: int


def row_checks(tokens: np.ndarray) -> np.ndarray:
    """What tells whose rows they are, int64 [n - 1]: the token that each row speaks of, that after its own."""
    return np.asarray(tokens)[1:].astype(np.int64)


def decode(pieces: Sequence[Piece], *, signal: StoredSignal, vocab_size: int) -> Decoded:
    """The rows of all pieces, in order, padded to a common K. Raises `DamagedRowsError` where bytes cannot be rows."""
    if isinstance(signal, ChunksSignal):
        return _decode_chunks(pieces, signal=signal, vocab_size=vocab_size)
    return _decode(pieces, signal=signal, vocab_size=vocab_size)


def _decode_chunks(pieces: Sequence[Piece], *, signal: ChunksSignal, vocab_size: int) -> Decoded:
    """Columns are read of whole documents, heads of the pieces alone."""
    wanted = [piece for piece in pieces if piece.stop > piece.start]
    parts = [split_document(piece.data) for piece in wanted]
    lanes = [replace(piece, data=data) for piece, (_, data) in zip(wanted, parts, strict=True)]
    heads = _decode(lanes, signal=head_signal(signal), vocab_size=vocab_size)
    columns = [
        columns_at(read_columns(packed, num_rows=piece.num_rows), piece.start, piece.stop)
        for piece, (packed, _) in zip(wanted, parts, strict=True)
    ]
    assert isinstance(heads.rows, TopKRows)
    num_bytes = heads.num_bytes + sum(len(packed) for packed, _ in parts)
    return Decoded(with_columns(heads.rows, columns), heads.checks, num_bytes)


def _decode(pieces: Sequence[Piece], *, signal: TokenSignal, vocab_size: int) -> Decoded:
    layout = layout_of(signal)
    wanted = [piece for piece in pieces if piece.stop > piece.start]
    if wanted:
        stack = stack_models([piece.model for piece in wanted], signal=signal, vocab_size=vocab_size)
        plan = _plan(wanted, stack, layout)
        columns, num_bytes = _read(plan, stack, layout=layout, vocab_size=vocab_size), plan.num_bytes
    else:
        columns, num_bytes = no_columns(layout), 0
    rows = rows_of(columns, layout=layout, kind=_KINDS[signal.kind], vocab_size=vocab_size)
    return Decoded(rows, columns.tokens_R, num_bytes)


@dataclass(frozen=True)
class _Plan:
    """Which lanes are read, and which of their rows are wanted."""

    words: np.ndarray  # uint16
    start_L: np.ndarray
    stop_L: np.ndarray
    rows_L: np.ndarray  # of each lane
    model_L: np.ndarray  # which of the stack's models
    is_wanted_R: np.ndarray
    slack: int
    num_bytes: int


def _plan(pieces: Sequence[Piece], stack: Stack, layout: Layout) -> _Plan:
    words, lengths, lane_rows, models, is_wanted = [], [], [], [], []
    which = {key: index for index, key in enumerate(stack.models)}
    num_bytes = 0
    for piece in pieces:
        assert 0 <= piece.start <= piece.stop <= piece.num_rows
        model = stack.models[piece.model]
        first, last = piece.start // model.lane_rows, -(-piece.stop // model.lane_rows)
        length_L, begin = _lane_lengths(piece.data, -(-piece.num_rows // model.lane_rows))
        ends = np.cumsum(length_L)
        data = piece.data[begin + 2 * int(ends[first] - length_L[first]) : begin + 2 * int(ends[last - 1])]
        words.append(np.frombuffer(data.tobytes(), dtype="<u2"))
        num_bytes += len(data) + begin * (last - first) // len(length_L)
        lengths.append(length_L[first:last])
        starts = np.arange(first, last) * model.lane_rows
        lane_rows.append(np.minimum(starts + model.lane_rows, piece.num_rows) - starts)
        models.append(np.full(last - first, which[piece.model]))
        row = np.arange(starts[0], starts[-1] + lane_rows[-1][-1])
        is_wanted.append((row >= piece.start) & (row < piece.stop))
    length_L = np.concatenate(lengths)
    # What a reader puts back is less than the orders of a row's sets hold, and at most log2 of the ids for each id.
    slack = 8 + sum(set_.most * set_.most.bit_length() // 16 for set_ in layout.sets)
    return _with_slack(words, length_L, slack=slack, rest=(lane_rows, models, is_wanted), num_bytes=num_bytes)


def _with_slack(
    words: Sequence[np.ndarray], length_L: np.ndarray, *, slack: int, rest: tuple[list, list, list], num_bytes: int
) -> _Plan:
    """Room before every lane, for what is put back."""
    flat = np.concatenate(words)
    roomy = np.zeros(len(flat) + slack * len(length_L), dtype=np.uint16)
    stop_L = np.cumsum(length_L + slack)
    place = np.arange(len(flat)) + slack * np.repeat(np.arange(1, len(length_L) + 1), length_L)
    roomy[place] = flat
    lane_rows, models, is_wanted = rest
    return _Plan(
        roomy,
        stop_L - length_L,
        stop_L,
        np.concatenate(lane_rows),
        np.concatenate(models),
        np.concatenate(is_wanted),
        slack,
        num_bytes,
    )


def _lane_lengths(data: np.ndarray, num_lanes: int) -> tuple[np.ndarray, int]:
    """Words of each lane of a document, int64, and the byte at which they begin."""
    shortest, at = 0, 0
    for at in range(min(len(data), 5)):
        shortest |= (int(data[at]) & 127) << (7 * at)
        if data[at] < 128:
            break
    width = int(data[at + 1]) if at + 1 < len(data) else 64
    begin = at + 2 + -(-width * num_lanes // 8)
    if width > 32 or begin > len(data):
        raise DamagedRowsError("fewer bytes than lanes")
    bits = np.unpackbits(data[at + 2 : begin], count=width * num_lanes, bitorder="little").reshape(num_lanes, width)
    length_L = shortest + (bits.astype(np.int64) << np.arange(width)).sum(1)
    if begin + 2 * int(length_L.sum()) != len(data):
        raise DamagedRowsError("it has not as many bytes as its lanes say")
    return length_L, begin


def _read(plan: _Plan, stack: Stack, *, layout: Layout, vocab_size: int) -> Columns:
    lanes = LaneReader(plan.words, starts=plan.start_L, stops=plan.stop_L, slack=plan.slack, tables=stack.tables)
    numbers = _Numbers(lanes, plan, stack, layout)
    positions = range(int(plan.rows_L.max(initial=0)))
    for position in positions:
        numbers.read_heads(position)
    numbers.check_heads()
    sets = read_sets(lanes, numbers.sets(vocab_size), tables=stack.tables, names=stack.names, level_P=stack.level_P)
    for position in positions:
        numbers.read_tokens(position)
    lanes.require_end()
    columns = numbers.columns(sets)
    if max([int(set_.ids_RK.max(initial=0)) for set_ in columns.sets] + [int(columns.tokens_R.max(initial=0))]) >= vocab_size:
        raise DamagedRowsError(f"an id is not below the vocabulary of {vocab_size}")
    return columns


class _Numbers:
    """Reads what rows have besides their sets, for one row of each lane at a time."""

    def __init__(self, lanes: LaneReader, plan: _Plan, stack: Stack, layout: Layout) -> None:
        self._lanes, self._plan, self._stack, self._layout = lanes, plan, stack, layout
        self._starts_L = np.cumsum(plan.rows_L) - plan.rows_L
        num_rows, num_sets = int(plan.rows_L.sum()), len(layout.sets)
        self._numbers_RN = np.zeros((num_rows, layout.numbers), dtype=np.int64)
        self._band_R = np.zeros(num_rows, dtype=np.int64)
        self._first_R, self._place_R, self._other_R = (np.zeros(num_rows, dtype=np.int64) for _ in range(3))
        self._base_UR, self._count_UR, self._class_UR = (np.zeros((num_sets, num_rows), dtype=np.int64) for _ in range(3))
        models = list(stack.models.values())
        self._table_L = {
            name: np.array([model.rows[name] for model in models], dtype=np.int64)[plan.model_L] for name in models[0].rows
        }
        self._classes_L = np.array([model.classes for model in models], dtype=np.int64)[plan.model_L]
        self._before_UL = np.tile(self._classes_L, (num_sets, 1))

    def read_heads(self, position: int) -> None:
        """The numbers of a row of each lane, and of its sets."""
        lanes = np.flatnonzero(self._plan.rows_L > position)
        rows = self._starts_L[lanes] + position
        for number in range(self._layout.numbers):
            numbers = self._read(f"number{number}", lanes, self._band_R[rows] if number else 0)
            self._numbers_RN[rows, number] = numbers
            if number == 0:
                self._band_R[rows] = numbers * ENTROPY_BANDS >> 8
        for place in range(len(self._layout.sets)):
            band = self._band_R[rows]
            self._base_UR[place, rows] = self._read(f"base{place}", lanes, band)
            count = self._read(f"count{place}", lanes, band)
            self._count_UR[place, rows] = count
            filled = np.flatnonzero(count)
            if filled.size:
                at = lanes[filled]
                classes = self._read(f"class{place}", at, self._before_UL[place, at])
                self._class_UR[place, rows[filled]] = self._before_UL[place, at] = classes

    def check_heads(self) -> None:
        """Raises `DamagedRowsError` where a row would hold more than rows of the signal can."""
        for place, set_ in enumerate(self._layout.sets):
            count_R, base_R = self._count_UR[place], self._base_UR[place]
            fits = (count_R <= set_.most) & (base_R <= set_.base.greatest)
            if set_.marks is Marks.COUNTS:
                fits &= (base_R + count_R <= set_.most) & ((count_R > 0) | (base_R == set_.most))
            if not fits.all():
                raise DamagedRowsError("more ids than a row can have")

    def sets(self, vocab_size: int) -> SetsToRead:
        """The sets that are not empty, in the order in which lanes hold them."""
        row_G, place_G = np.nonzero(self._count_UR.T)
        lane_R = np.repeat(np.arange(len(self._plan.rows_L)), self._plan.rows_L)
        lane_G = lane_R[row_G]
        marks = [set_.marks for set_ in self._layout.sets]
        steps_G = np.array([kind is Marks.STEPS for kind in marks])[place_G]
        mark_row_UL = np.stack([self._table_L[f"mark{place}"] for place in range(len(marks))])
        base_G, count_G = self._base_UR[place_G, row_G], self._count_UR[place_G, row_G]
        most_G = np.array([set_.most for set_ in self._layout.sets])[place_G]
        counts_G = np.array([kind is Marks.COUNTS for kind in marks])[place_G].astype(np.int64)
        return SetsToRead(
            num_lanes=len(self._plan.rows_L),
            base_UR=self._base_UR,
            row_G=row_G,
            place_G=place_G,
            lane_G=lane_G,
            count_G=count_G,
            cluster_row_G=self._table_L["cluster"][lane_G] + self._class_UR[place_G, row_G],
            band_row_L=self._table_L["band"],
            mark_row_G=mark_row_UL[place_G, lane_G] + steps_G * self._band_R[row_G],
            counts_G=counts_G,
            left_G=(most_G - base_G - count_G) * counts_G,
            weight_row_L=self._table_L.get("weight"),
            two_groups=needs_two_groups(self._layout, vocab_size),
        )

    def read_tokens(self, position: int) -> None:
        """The token that a row of each lane speaks of, and which of its most probable ids is the first."""
        lanes = np.flatnonzero(self._plan.rows_L > position)
        rows = self._starts_L[lanes] + position
        self._first_R[rows] = self._read("first", lanes, 0)
        place = self._read("place", lanes, self._band_R[rows])
        self._place_R[rows] = place
        missed = np.flatnonzero(place == 0)
        if missed.size:
            at = lanes[missed]
            tables = self._stack.tables
            cluster_places = self._lanes.places(at, self._table_L["cluster"][at] + self._classes_L[at])
            name, _ = self._lanes.numbers(at, self._table_L["band"][at] + tables.first_P[cluster_places])
            self._lanes.refill(at)
            self._other_R[rows[missed]] = self._stack.names[name]

    def columns(self, sets: tuple[SetColumns, ...]) -> Columns:
        """The rows that are wanted."""
        for set_, kind in zip(sets, self._layout.sets, strict=True):
            if kind.marks is Marks.COUNTS and (set_.marks_RK.sum(1) + set_.count_R + set_.base_R != kind.most).any():
                raise DamagedRowsError("counts do not sum to the draws")
        ranked_RK = by_rank(sets[0])
        if (self._place_R > sets[0].count_R).any():
            raise DamagedRowsError("a token is not there")
        tokens_R = self._other_R
        if ranked_RK.shape[1]:
            at_R1 = np.maximum(self._place_R - 1, 0)[:, None]
            tokens_R = np.where(self._place_R > 0, np.take_along_axis(ranked_RK, at_R1, axis=1)[:, 0], self._other_R)
        wanted = self._plan.is_wanted_R
        return Columns(
            self._numbers_RN[wanted],
            tuple(set_.of(wanted) for set_ in sets),
            self._first_R[wanted],
            tokens_R[wanted],
        )

    def _read(self, table: str, lanes: np.ndarray, contexts: np.ndarray | int) -> np.ndarray:
        numbers, _ = self._lanes.numbers(lanes, self._table_L[table][lanes] + contexts)
        self._lanes.refill(lanes)
        return numbers
