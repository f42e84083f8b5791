"""A teacher inside the training loop: the same rows as a store would give, made when asked for.

A piece of a document is read through the same windows as when it is cached, so a live and a cached run differ in nothing but
where the rows come from. The windows of the last few documents are kept, because the next piece often lies in the same one.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.errors import TeacherError
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select
from limbeck.signals.types import DenseRows, SignalRows, SparseRows
from limbeck.spec.signal import DenseSignal, Signal
from limbeck.spec.teacher import Context
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.score import Passage, passages, score_hidden

KEPT_WINDOWS = 64


class LiveRows:
    """A `RowSource` that runs the teacher. `tokens_scored` counts every position that the teacher reads."""

    def __init__(self, teacher: Teacher, store: TokenStore, *, signal: Signal, context: Context) -> None:
        if teacher.head_VE is None:
            raise TeacherError(
                f"teacher {teacher.files.name} has no plain head and cannot teach live: write a store, cached rows work"
            )
        self.teacher, self.store, self.signal, self.context = teacher, store, signal, context
        self.head_VE = teacher.head_VE
        self.tokens_scored = 0
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @property
    def is_live(self) -> bool:
        """True."""
        return True

    @property
    def bytes_read(self) -> int:
        """Nothing is read from disk."""
        return 0

    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The teacher's rows at every position of the pieces."""
        hidden = [self._hidden(piece) for piece in self._scored(pieces)]
        if isinstance(self.signal, DenseSignal):
            return DenseRows(torch.cat(hidden), self.head_VE, self.signal.temperature)
        signal = self.signal
        parts: list[SparseRows] = []
        for piece, hidden_RE in zip(pieces, hidden, strict=True):
            logits_RV = torch.nn.functional.linear(hidden_RE, self.head_VE)
            positions_R = torch.arange(piece.start, piece.stop)
            parts.append(select(logits_RV, signal, document_id=self.store.ids[piece.document], positions_T=positions_R))
        return concatenate(parts)

    def _scored(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Let the teacher read the windows that these pieces need and that are not kept."""
        wanted = {(piece.document, passage.window.first): passage for piece in pieces for passage in self._windows_of(piece)}
        documents = sorted({document for document, _ in wanted})
        place = {document: index for index, document in enumerate(documents)}
        missing = [Passage(place[key[0]], passage.window) for key, passage in wanted.items() if key not in self._kept]
        tokens = [self.store.document(document) for document in documents]
        for passage, hidden_RE in score_hidden(self.teacher, tokens, missing):
            self._kept[documents[passage.document], passage.window.first] = hidden_RE.clone()
            self.tokens_scored += passage.window.stop - passage.window.start
        for key in wanted:
            self._kept.move_to_end(key)
        while len(self._kept) > max(KEPT_WINDOWS, len(wanted)):
            self._kept.popitem(last=False)
        return pieces

    def _hidden(self, piece: Piece) -> Tensor:
        parts = []
        for passage in self._windows_of(piece):
            first = passage.window.first
            kept_RE = self._kept[piece.document, first]
            parts.append(kept_RE[max(piece.start - first, 0) : piece.stop - first])
        return torch.cat(parts)

    def _windows_of(self, piece: Piece) -> list[Passage]:
        length = int(self.store.offsets[piece.document + 1] - self.store.offsets[piece.document])
        every = passages([length], context=self.context)
        return [passage for passage in every if passage.window.first < piece.stop and passage.window.stop > piece.start]
