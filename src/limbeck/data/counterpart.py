"""A student's documents in a teacher's tokens.

The text of a plain document is had back from the student's tokens: a document's id is the hash of its bytes, so a text that the
student's tokenizer has changed is found for certain, and one that the teacher's changes by comparing bytes. Such documents are
lost for a signal of chunks: they are counted, and have no chunks.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from limbeck.data.alignment import NO_CHUNKS, Alignment, align
from limbeck.data.texts import Document
from limbeck.data.token_bytes import TokenBytes, token_bytes
from limbeck.data.token_store import TokenStore, open_token_store, write_token_store
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.paths import cache_folder, write_atomically
from limbeck.progress import progress, say
from limbeck.spec.data import TrainingTexts

FORMAT = 1
MOST_LOST = 0.1
"""The share of the documents above which the pair of tokenizers is refused."""


@dataclass(frozen=True, eq=False)
class Counterpart:
    """Two token stores of the same documents in the same order."""

    own: TokenStore
    """The student's."""
    tokens: TokenStore
    """The teacher's."""
    student: TokenBytes
    teacher: TokenBytes
    lost_N: np.ndarray
    """bool of each document: it cannot be aligned."""

    @cached_property
    def lost(self) -> int:
        """Documents that cannot be aligned."""
        return int(self.lost_N.sum())

    def alignment(self, index: int) -> Alignment:
        """The chunks of one document; none where it is lost."""
        if self.lost_N[index]:
            return NO_CHUNKS
        return _alignment(self.own, self.tokens, index, student=self.student, teacher=self.teacher)


def counterpart(store: TokenStore, *, texts: TrainingTexts, student: Tokenizer, teacher: Tokenizer) -> Counterpart:
    """The teacher's tokens of a student's documents, made on first use and kept in the user cache.

    `DataError` where more than a tenth of the documents cannot be aligned, or one of the tokenizers cannot be.
    """
    of_student, of_teacher = token_bytes(student), token_bytes(teacher)
    path = cache_folder() / "tokens" / _key(store, student=student, teacher=teacher)
    if not path.is_dir():
        write_token_store(
            path, _documents(store, of_student), teacher, about=_about(store, teacher), max_tokens=None, title="the teacher's"
        )
    tokens = open_token_store(path)
    lost_N = _lost(path / "lost.npy", store, tokens, student=of_student, teacher=of_teacher)
    _report(lost_N, store, student=student, teacher=teacher)
    return Counterpart(store, tokens, of_student, of_teacher, lost_N)


def text_of(store: TokenStore, index: int, of: TokenBytes) -> str | None:
    """The text of a plain document; None where its tokens do not give it back."""
    content = of.text_bytes(store.document(index)[1:-1].tolist())
    if hashlib.blake2b(content, digest_size=16).hexdigest() != store.ids[index]:
        return None
    return content.decode("utf-8")


def _documents(store: TokenStore, student: TokenBytes) -> Iterator[Document]:
    """In the store's order; empty where the text is lost, so that the order stays."""
    for index, identity in enumerate(store.ids):
        yield Document(identity, text_of(store, index, student) or "", int(store.bytes_per_document[index]))


def _key(store: TokenStore, *, student: Tokenizer, teacher: Tokenizer) -> str:
    about = [FORMAT, "counterpart", list(store.ids), student.fingerprint, teacher.fingerprint]
    return hashlib.sha256(json.dumps(about).encode("utf-8")).hexdigest()[:20]


def _about(store: TokenStore, teacher: Tokenizer) -> dict[str, object]:
    return {"format": FORMAT, "tokenizer": teacher.fingerprint, "counterpart of": store.documents_digest}


def _lost(path: Path, own: TokenStore, tokens: TokenStore, *, student: TokenBytes, teacher: TokenBytes) -> np.ndarray:
    """bool of each document, remembered at `path`."""
    if path.is_file():
        return np.load(path, allow_pickle=False)
    lost_N = np.zeros(len(own), dtype=bool)
    with progress("aligning two tokenizers", total=len(own)) as advance:
        for index in range(len(own)):
            lost_N[index] = not _aligns(own, tokens, index, student=student, teacher=teacher)
            advance(1)
    buffer = io.BytesIO()
    np.save(buffer, lost_N, allow_pickle=False)
    write_atomically(path, [buffer.getvalue()])
    return lost_N


def _aligns(own: TokenStore, tokens: TokenStore, index: int, *, student: TokenBytes, teacher: TokenBytes) -> bool:
    if text_of(own, index, student) is None:
        return False
    try:
        _alignment(own, tokens, index, student=student, teacher=teacher)
    except DataError:
        return False
    return True


def _alignment(own: TokenStore, tokens: TokenStore, index: int, *, student: TokenBytes, teacher: TokenBytes) -> Alignment:
    return align(own.document(index), tokens.document(index), student=student, teacher=teacher)


def _report(lost_N: np.ndarray, store: TokenStore, *, student: Tokenizer, teacher: Tokenizer) -> None:
    lost = int(lost_N.sum())
    if not lost:
        return
    first = store.ids[int(lost_N.argmax())]
    told = (
        f"{lost:,} of {len(store):,} documents (first: {first}) are changed by the tokenizer of {student.folder} or of "
        f"{teacher.folder}"
    )
    if lost > MOST_LOST * len(store):
        raise DataError(f"{told}, so they cannot be compared: normalise the texts first (NFC, no U+2581), or take another pair")
    say(f"{told}: they have no chunks")
