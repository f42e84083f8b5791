"""A teacher inside the training loop: the same rows as a store would give, made when asked for.

A piece of a document is read through the same windows as when it is cached, so a live and a cached run differ in nothing but
where the rows come from. Every batch is read afresh, so its rows depend on the batch alone and a resumed run repeats itself.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.data.windows import Window, windows
from limbeck.errors import TeacherError
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select
from limbeck.signals.types import DenseRows, SignalRows, SparseRows
from limbeck.spec.signal import DenseSignal, TokenSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.score import Passage, score_hidden


class LiveRows:
    """A `RowSource` that runs the teacher. `tokens_scored` counts every position that the teacher reads."""

    def __init__(self, teacher: Teacher, store: TokenStore, *, signal: TokenSignal | DenseSignal, context: Context) -> None:
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
        named = [(self.store.ids[piece.document], piece.start) for piece in pieces]
        return self._selected(self._hidden(pieces), named)

    @torch.no_grad()
    def rows_of(self, sequences: Sequence[np.ndarray]) -> SignalRows:
        """The teacher's rows at every position but the last of sequences of tokens, each read whole and alone."""
        work = [Passage(index, Window(0, 0, len(tokens) - 1)) for index, tokens in enumerate(sequences)]
        hidden: list[Tensor] = [torch.empty(0)] * len(sequences)
        for passage, hidden_RE in score_hidden(self.teacher, sequences, work):
            self._require_finite(hidden_RE, f"what was written, of {passage.window.stop + 1} tokens")
            hidden[passage.document] = hidden_RE
            self.tokens_scored += passage.window.stop
        named = [(hashlib.sha256(tokens.astype(np.uint32).tobytes()).hexdigest()[:32], 0) for tokens in sequences]
        return self._selected(hidden, named)

    def _selected(self, hidden: Sequence[Tensor], named: Sequence[tuple[str, int]]) -> SignalRows:
        """The signal's rows from hidden states of each piece, of a document and from a position."""
        signal = self.signal
        if isinstance(signal, DenseSignal):
            return DenseRows(torch.cat(list(hidden)), self.head_VE, signal.temperature)
        parts: list[SparseRows] = []
        for (document_id, start), hidden_RE in zip(named, hidden, strict=True):
            logits_RV = torch.nn.functional.linear(hidden_RE, self.head_VE)
            positions_R = torch.arange(start, start + len(hidden_RE))
            parts.append(select(logits_RV, signal, document_id=document_id, positions_T=positions_R))
        return concatenate(parts)

    def _require_finite(self, hidden_RE: Tensor, where: str) -> None:
        if not bool(hidden_RE.isfinite().all()):
            raise TeacherError(
                f"{where}: the hidden states of teacher {self.teacher.files.name} are not finite; check its weights, or load "
                "it with teacher.dtype=float32"
            )

    def _hidden(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Hidden states of each piece's rows. Each window that the pieces touch is read once."""
        needed = {(piece.document, window.first): window for piece in pieces for window in self._windows(piece)}
        documents = sorted({document for document, _ in needed})
        place = {document: index for index, document in enumerate(documents)}
        work = [Passage(place[document], window) for (document, _), window in needed.items()]
        read: dict[tuple[int, int], Tensor] = {}
        for passage, hidden_RE in score_hidden(self.teacher, [self.store.document(document) for document in documents], work):
            document = documents[passage.document]
            self._require_finite(hidden_RE, f"document {self.store.ids[document]}, from position {passage.window.first}")
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
