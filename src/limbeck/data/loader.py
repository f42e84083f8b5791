"""Batches: tokens, targets, positions and the teacher's rows for the same positions.

A batch of a step is a pure function of the step, the recipe and the rank. Teachers enter at one door, `RowSource`: a signal
store and a live teacher give the same rows for the same pieces. Legend: B sequences, T positions in each.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.packing import Piece, SequenceStream
from limbeck.data.token_store import TokenStore
from limbeck.signals.rows import rows_at, split
from limbeck.signals.types import DenseRows, SignalRows

PREFETCH = 2
"""Groups of steps that wait, read."""
ROWS_AT_ONCE = 16_384
"""Steps are read together until there are so many rows: decoding goes faster the more there is."""


class RowSource(Protocol):
    """Where the teacher's rows come from."""

    @property
    def is_live(self) -> bool:
        """Whether a teacher runs to make the rows (beside the student nothing is fetched ahead: it would compete with it)."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk so far."""
        ...

    @property
    def tokens_scored(self) -> int:
        """Positions that a live teacher has read so far."""
        ...

    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The rows of all positions of the pieces, one after another."""
        ...


class LiveRowSource(RowSource, Protocol):
    """One whose teacher also reads what is no document."""

    def rows_of(self, sequences: Sequence[np.ndarray]) -> SignalRows:
        """The rows of all positions but the last of sequences of tokens, each read whole and alone, one after another."""
        ...


@dataclass(frozen=True)
class Batch:
    """A micro-batch. `rows` speaks of positions in the order of `tokens_BT.flatten()`."""

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor | None
    """Which document each position belongs to, counted within its sequence, -1 where there is none; None where every sequence
    is one text."""
    rows: SignalRows | None
    pieces: tuple[Piece, ...]
    bytes_read: int = 0
    """Of what was read in one go with other batches, its share."""
    tokens_scored: int = 0
    mask_BT: Tensor | None = None
    """True where a position counts; None: everywhere. Of chats, targets may not; padding never does."""
    sampled_log_probs_BT: Tensor | None = None
    """float32: what the targets had of whoever drew them, in nats; 0 where nobody did."""
    tokens_generated: int = 0
    """Positions that the student read, one after another, to write this batch."""
    padding: int = 0
    """Positions that hold nothing."""

    @property
    def counted(self) -> int:
        """Positions that have a loss."""
        return self.read if self.mask_BT is None else int(self.mask_BT.sum())

    @property
    def read(self) -> int:
        """Positions that hold something."""
        return self.tokens_BT.numel() - self.padding


class Loader:
    """Makes the micro-batches of each step, ahead of time where nothing else needs the cores."""

    def __init__(
        self,
        store: TokenStore,
        *,
        stream: SequenceStream,
        packing: str,
        sequences: int,
        micro_sequences: int,
        rank: int,
        world_size: int,
        source: RowSource | None,
        reads_ahead: bool = True,
        teacher_apart: bool = False,
        ask_ahead: Callable[[Sequence[Sequence[Piece]]], None] | None = None,
    ) -> None:
        """`reads_ahead`: in a thread while the student trains. Where it trains on the same cores, that slows it by more.

        Of a live teacher's rows the same goes where it is `teacher_apart`, on another device; one in another process is told
        by `ask_ahead` which rows the next step will ask for, a list of pieces for each micro-batch.
        """
        self.reads_ahead = reads_ahead
        self.teacher_apart, self.ask_ahead = teacher_apart, ask_ahead
        self.store, self.stream, self.packing, self.source = store, stream, packing, source
        self.sequences, self.micro_sequences = sequences, micro_sequences
        self.rank, self.world_size = rank, world_size

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step: sequences rank, rank + world_size, … of the step's share of the stream."""
        return [self.batch(sequences) for sequences in self._sequences(step)]

    def _sequences(self, step: int) -> list[list[Sequence[Piece]]]:
        """Of this rank's micro-batches of a step."""
        first = step * self.sequences
        mine = range(first + self.rank, first + self.sequences, self.world_size)
        groups = [mine[start : start + self.micro_sequences] for start in range(0, len(mine), self.micro_sequences)]
        return [[self.stream.sequence(index) for index in group] for group in groups]

    def _group(self, index: int) -> list[list[Batch]]:
        """The micro-batches of several steps, their rows read together: the same rows as `step` gives one by one."""
        number = self._steps_at_once
        of_steps = [self._sequences(step) for step in range(index * number, (index + 1) * number)]
        if self.source is None:
            return [[self.batch(sequences) for sequences in micro] for micro in of_steps]
        every = [sequences for micro in of_steps for sequences in micro]
        pieces = [[piece for sequence in sequences for piece in sequence] for sequences in every]
        before = self.source.bytes_read
        rows = self.source.rows([piece for found in pieces for piece in found])
        assert not isinstance(rows, DenseRows)
        parts = split(rows, [sum(piece.stop - piece.start for piece in found) for found in pieces])
        share, rest = divmod(self.source.bytes_read - before, len(every))
        costs = [share + (index < rest) for index in range(len(every))]
        batches = [self._batch(one, part, bytes_read=cost) for one, part, cost in zip(every, parts, costs, strict=True)]
        ready = iter(batches)
        return [[next(ready) for _ in micro] for micro in of_steps]

    def batch(self, sequences: Sequence[Sequence[Piece]]) -> Batch:
        """The batch of the given sequences."""
        if self.source is None:
            return self._batch(sequences, None)
        before = (self.source.bytes_read, self.source.tokens_scored)
        rows = self.source.rows([piece for sequence in sequences for piece in sequence])
        costs = (self.source.bytes_read - before[0], self.source.tokens_scored - before[1])
        return self._batch(sequences, rows, bytes_read=costs[0], tokens_scored=costs[1])

    def _batch(
        self, sequences: Sequence[Sequence[Piece]], rows: SignalRows | None, *, bytes_read: int = 0, tokens_scored: int = 0
    ) -> Batch:
        arrays = [self._sequence(pieces) for pieces in sequences]
        columns = (torch.from_numpy(np.stack(column)) for column in zip(*arrays, strict=True))
        tokens, targets, positions, segments, mask = columns
        pieces = tuple(piece for sequence in sequences for piece in sequence)
        padding = int((segments < 0).sum())
        single = (len(pieces) == len(sequences) and not padding) or self.packing == "plain"
        return Batch(
            tokens,
            targets,
            positions,
            None if single else segments,
            _beside(rows, segments),
            pieces,
            bytes_read=bytes_read,
            tokens_scored=tokens_scored,
            mask_BT=mask if self.masks else None,
            padding=padding,
        )

    @property
    def masks(self) -> bool:
        """Whether some positions may have no loss: then how many do is counted in every step."""
        return self.store.has_masks or self.stream.padding_share > 0

    def _sequence(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, ...]:
        """Tokens, targets, positions, segments and mask; at the end, where pieces leave room, token 0 in segment -1."""
        documents = [self.store.document(piece.document) for piece in pieces]
        lengths = [piece.stop - piece.start for piece in pieces]
        room = self.stream.sequence_length - sum(lengths)
        empty = np.zeros(room, dtype=np.int64)
        tokens = [document[piece.start : piece.stop] for document, piece in zip(documents, pieces, strict=True)]
        targets = [document[piece.start + 1 : piece.stop + 1] for document, piece in zip(documents, pieces, strict=True)]
        if self.packing == "plain":
            positions = np.arange(self.stream.sequence_length)
        else:
            positions = np.concatenate([np.arange(length) for length in [*lengths, room]])
        segments = np.repeat([*range(len(pieces)), -1], [*lengths, room])
        mask = np.concatenate([*(self._counted(piece) for piece in pieces), empty.astype(bool)])
        both = (np.concatenate([*found, empty]).astype(np.int64) for found in (tokens, targets))
        return *both, positions, segments, mask

    def _counted(self, piece: Piece) -> np.ndarray:
        counted = self.store.counted(piece.document)
        return np.ones(piece.stop - piece.start, dtype=bool) if counted is None else counted[piece.start + 1 : piece.stop + 1]

    def steps(self, first: int) -> Generator[list[Batch], None, None]:
        """Micro-batches of step `first`, `first + 1`, … without end. Steps are read in groups, the same ones from any start."""
        if self.source is not None and self.source.is_live:
            yield from self._live_steps(first)
        number = self._steps_at_once
        begin = first // number
        for group in _ahead(self._group, begin) if self.reads_ahead else map(self._group, itertools.count(begin)):
            yield from group[first % number :]
            first = 0  # all of the groups that follow

    def _live_steps(self, first: int) -> Generator[list[Batch], None, None]:
        """Without end."""
        if self.teacher_apart and self.reads_ahead:
            for steps in _ahead(lambda step: [self.step(step)], first):
                yield from steps
        for step in itertools.count(first):
            batches = self.step(step)
            if self.ask_ahead is not None:
                self.ask_ahead([[piece for pieces in sequences for piece in pieces] for sequences in self._sequences(step + 1)])
            yield batches

    @property
    def _steps_at_once(self) -> int:
        rows = self.sequences // self.world_size * self.stream.sequence_length
        return 1 if self.source is None else max(1, ROWS_AT_ONCE // rows)


def _beside(rows: SignalRows | None, segments_BT: Tensor) -> SignalRows | None:
    """The rows of all positions from those that hold something; padding gets those of another, which count nowhere."""
    held_T = segments_BT.flatten() >= 0
    if rows is None or bool(held_T.all()):
        return rows
    return rows_at(rows, (held_T.cumsum(0) - 1).clamp(min=0))


def _ahead(make: Callable[[int], list[list[Batch]]], first: int) -> Generator[list[list[Batch]], None, None]:
    """Call `make(first)`, `make(first + 1)`, … in a thread, a few calls ahead; its errors are raised here."""
    ready: queue.Queue[list[list[Batch]] | BaseException] = queue.Queue(maxsize=PREFETCH)
    stop = threading.Event()

    def work() -> None:
        index = first
        while not stop.is_set():
            try:
                item: list[list[Batch]] | BaseException = make(index)
            except BaseException as error:  # handed to the consumer, which raises it
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            index += 1

    thread = threading.Thread(target=work, daemon=True, name="limbeck-loader")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
