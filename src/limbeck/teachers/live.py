"""A teacher inside the training loop: the same rows as a store would give, made when asked for.

A piece of a document is read through the same windows as when it is cached, so a live and a cached run differ in nothing but
where the rows come from. Every batch is read afresh, so its rows depend on the batch alone and a resumed run repeats itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.data.windows import Window, windows
from limbeck.errors import TeacherError
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select
from limbeck.signals.types import DenseRows, SignalRows, SparseRows
from limbeck.spec.signal import DenseSignal, Signal
from limbeck.spec.teacher import Context
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.score import Passage, score_hidden


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

    @property
    def is_live(self) -> bool:
        """True."""
        return True

    @property
    def bytes_read(self) -> int:
        """Nothing is read from disk."""
        return 0

    @torch.no_grad()
    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The teacher's rows at every position of the pieces."""
        hidden = self._hidden(pieces)
        if isinstance(self.signal, DenseSignal):
            return DenseRows(torch.cat(hidden), self.head_VE, self.signal.temperature)
        signal = self.signal
        parts: list[SparseRows] = []
        for piece, hidden_RE in zip(pieces, hidden, strict=True):
            logits_RV = torch.nn.functional.linear(hidden_RE, self.head_VE)
            positions_R = torch.arange(piece.start, piece.stop)
            parts.append(select(logits_RV, signal, document_id=self.store.ids[piece.document], positions_T=positions_R))
        return concatenate(parts)

    def _hidden(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Hidden states of each piece's rows. Each window that the pieces touch is read once."""
        needed = {(piece.document, window.first): window for piece in pieces for window in self._windows(piece)}
        documents = sorted({document for document, _ in needed})
        place = {document: index for index, document in enumerate(documents)}
        work = [Passage(place[document], window) for (document, _), window in needed.items()]
        read: dict[tuple[int, int], Tensor] = {}
        for passage, hidden_RE in score_hidden(self.teacher, [self.store.document(document) for document in documents], work):
            document = documents[passage.document]
            if not bool(hidden_RE.isfinite().all()):
                raise TeacherError(
                    f"document {self.store.ids[document]}, from position {passage.window.first}: the hidden states of teacher "
                    f"{self.teacher.files.name} are not finite; check its weights, or load it with teacher.dtype=float32"
                )
            read[document, passage.window.first] = hidden_RE
            self.tokens_scored += passage.window.stop - passage.window.start
        return [torch.cat([_rows_of(piece, window, read) for window in self._windows(piece)]) for piece in pieces]

    def _windows(self, piece: Piece) -> list[Window]:
        """The windows that hold rows of a piece."""
        num_rows = int(self.store.lengths[piece.document]) - 1
        every = windows(num_rows, window=self.context.window, overlap=self.context.overlap)
        return [window for window in every if window.first < piece.stop and window.stop > piece.start]


def _rows_of(piece: Piece, window: Window, read: dict[tuple[int, int], Tensor]) -> Tensor:
    hidden_RE = read[piece.document, window.first]
    return hidden_RE[max(piece.start - window.first, 0) : piece.stop - window.first]
