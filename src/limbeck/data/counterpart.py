"""A student's documents in a teacher's tokens.

The text of a plain document is had back from the student's tokens: a document's id is the hash of its bytes, so a text that the
student's tokenizer has changed is found for certain, and one that the teacher's changes by comparing bytes. A chat is read
again and written by the teacher's own template. Documents that cannot be aligned are lost for a signal of chunks: they are
counted, and have no chunks.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.alignment import NO_CHUNKS, Alignment, align
from limbeck.data.chat_template import template_digest
from limbeck.data.chat_tokens import Left, read_tokens
from limbeck.data.chats import read_chats
from limbeck.data.prepare import CHAT_FORMAT, ENCODE_AT_ONCE
from limbeck.data.token_bytes import TokenBytes, token_bytes
from limbeck.data.token_store import Encoded, TokenStore, joined, open_token_store, write_token_store
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.paths import cache_folder, write_atomically
from limbeck.progress import progress, say
from limbeck.spec.data import ChatTexts, MixedTexts, TrainingTexts

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
    template: str | None = None
    """Of chats, the digest of the template by which the teacher reads them."""

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

    `texts` is what the store was made of; `teacher` writes chats by its own template. `DataError` where more than a tenth of
    the documents cannot be aligned, or one of the tokenizers cannot be.
    """
    if isinstance(texts, MixedTexts):
        return _of_parts(store, texts, student=student, teacher=teacher)
    of_student, of_teacher = token_bytes(student), token_bytes(teacher)
    path = cache_folder() / "tokens" / _key(store, student=student, teacher=teacher)
    if not path.is_dir():
        _write(path, store, texts, of_student, teacher)
    tokens = open_token_store(path)
    lost_N = _lost(path / "lost.npy", store, tokens, student=of_student, teacher=of_teacher)
    _report(lost_N, store, student=student, teacher=teacher)
    template = None if store.body_numbers is None else template_digest(teacher)
    return Counterpart(store, tokens, of_student, of_teacher, lost_N, template)


def _of_parts(store: TokenStore, texts: MixedTexts, *, student: Tokenizer, teacher: Tokenizer) -> Counterpart:
    sources = [part.texts for part in texts.parts.values()]
    found = [
        counterpart(part, texts=source, student=student, teacher=teacher)
        for part, source in zip(store.parts, sources, strict=True)
    ]
    lost_N = np.zeros(len(store), dtype=bool)
    for each, numbers in reversed(list(zip(found, store.documents_of_parts, strict=True))):
        lost_N[numbers] = each.lost_N  # of a document in two parts, the first is read
    template = next((each.template for each in found if each.template is not None), None)
    return Counterpart(store, joined([each.tokens for each in found]), found[0].student, found[0].teacher, lost_N, template)


def text_of(store: TokenStore, index: int, of: TokenBytes) -> str | None:
    """The text of a plain document; None where its tokens do not give it back."""
    content = of.text_bytes(store.document(index)[1:-1].tolist())
    if hashlib.blake2b(content, digest_size=16).hexdigest() != store.ids[index]:
        return None
    return content.decode("utf-8")


def _write(path: Path, store: TokenStore, texts: TrainingTexts, student: TokenBytes, teacher: Tokenizer) -> None:
    left = Left()
    are_chats = isinstance(texts, ChatTexts)
    documents = _chats(store, texts, teacher, left=left) if isinstance(texts, ChatTexts) else _plain(store, student, teacher)

    def learnt() -> dict[str, Any]:
        return {"chats": left.statistics()} if are_chats else {}

    about = {"format": FORMAT, "tokenizer": teacher.fingerprint, "counterpart of": store.documents_digest}
    write_token_store(path, documents, about=about, learnt=learnt, max_tokens=None, title="the teacher's")


def _plain(store: TokenStore, student: TokenBytes, teacher: Tokenizer) -> Iterator[Encoded]:
    """In the store's order; empty where the text is lost, so that the order stays."""
    numbers = iter(range(len(store)))
    while group := list(islice(numbers, ENCODE_AT_ONCE)):
        texts = [text_of(store, index, student) or "" for index in group]
        for index, tokens in zip(group, teacher.encode(texts), strict=True):
            yield Encoded(store.ids[index], int(store.bytes_per_document[index]), tokens)


def _chats(store: TokenStore, texts: ChatTexts, teacher: Tokenizer, *, left: Left) -> Iterator[Encoded]:
    """In the store's order; of a chat that the teacher's template has no form for, its start and end alone."""
    wanted = frozenset(store.ids)
    chats = (chat for chat in read_chats(texts) if chat.id in wanted)
    found = {each.chat.id: each for each in read_tokens(chats, teacher, texts=None, loss_on=None, left=left)}
    bare = np.array([teacher.start_id, teacher.end_id], dtype=np.uint32)
    for index, name in enumerate(store.ids):
        tokens, bodies = (found[name].tokens_T, found[name].bodies_T) if name in found else (bare, np.array([-1, -1]))
        counted = np.ones(len(tokens), dtype=bool)
        yield Encoded(name, int(store.bytes_per_document[index]), tokens, counted, bodies)


def _key(store: TokenStore, *, student: Tokenizer, teacher: Tokenizer) -> str:
    about: list[object] = [FORMAT, "counterpart", list(store.ids), student.fingerprint, teacher.fingerprint]
    if store.body_numbers is not None:
        about += [store.about["template"], template_digest(teacher), CHAT_FORMAT]
    return hashlib.sha256(json.dumps(about).encode("utf-8")).hexdigest()[:20]


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
    if own.bodies(index) is None and text_of(own, index, student) is None:
        return False
    try:
        _alignment(own, tokens, index, student=student, teacher=teacher)
    except DataError:
        return False
    return True


def _alignment(own: TokenStore, tokens: TokenStore, index: int, *, student: TokenBytes, teacher: TokenBytes) -> Alignment:
    return align(
        own.document(index),
        tokens.document(index),
        student=student,
        teacher=teacher,
        student_bodies=own.bodies(index),
        teacher_bodies=tokens.bodies(index),
    )


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
