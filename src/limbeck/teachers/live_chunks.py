"""A teacher of another tokenizer inside the training loop: the same rows of chunks as a store would give, made when asked for.

The documents that a batch touches are read in the teacher's own tokens, in the whole windows that hold the chunks of its
pieces, so a live and a cached run differ in nothing but where the rows come from.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from limbeck.data.counterpart import Counterpart
from limbeck.data.packing import Piece
from limbeck.signals.rows import concatenate
from limbeck.signals.types import StoredRows
from limbeck.spec.signal import ChunksSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.chunks import ChunkReading, ChunkText, Vocabulary
from limbeck.teachers.huggingface import Teacher

_DOCUMENTS_AT_HAND = 64
"""Whose alignment is kept: the pieces of a long one come one after another."""


class LiveChunks:
    """A `RowSource` that runs the teacher over its own tokens. `tokens_scored` counts every one of them that it reads."""

    def __init__(self, teacher: Teacher, texts: Counterpart, *, signal: ChunksSignal, context: Context) -> None:
        self.teacher, self.signal, self.context = teacher, signal, context
        self.tokens_scored = 0
        self._texts = texts
        self._vocabulary = Vocabulary(texts.teacher, vocab_size=teacher.vocab_size, device=teacher.device)
        self._text = lru_cache(maxsize=_DOCUMENTS_AT_HAND)(self._make_text)

    @property
    def is_live(self) -> bool:
        """True."""
        return True

    @property
    def bytes_read(self) -> int:
        """Nothing is read from disk."""
        return 0

    @torch.no_grad()
    def rows(self, pieces: Sequence[Piece]) -> StoredRows:
        """The teacher's rows at every position of the pieces."""
        documents = sorted({piece.document for piece in pieces})
        place = {document: index for index, document in enumerate(documents)}
        named = [Piece(place[piece.document], piece.start, piece.stop) for piece in pieces]
        texts = [self._text(document) for document in documents]
        reading = ChunkReading(texts, named, signals=[self.signal], context=self.context)
        found = reading.read(self.teacher, self._vocabulary)
        self.tokens_scored += sum(passage.window.stop - passage.window.start for passage in reading.work)
        return concatenate([rows for (rows,) in found])

    def _make_text(self, document: int) -> ChunkText:
        return chunk_text(self._texts, document)


def chunk_text(texts: Counterpart, document: int) -> ChunkText:
    """One of a student's documents, in the teacher's tokens."""
    return ChunkText(texts.tokens.ids[document], texts.tokens.document(document), texts.alignment(document))
