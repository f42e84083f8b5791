"""Two vocabularies beside each other: which tokens are equal, and how one tokenizer writes the tokens of the other.

Legend: S ids of the student, T ids of the teacher.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.data.token_bytes import TokenBytes, token_bytes
from limbeck.data.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class VocabularyPair:
    """A student's tokens and a teacher's."""

    student: TokenBytes
    teacher: TokenBytes
    equal_S: np.ndarray
    """int64: the teacher's id of equal bytes, or of the same role (end, end of turn, start); -1 where there is none. No id of
    the teacher occurs twice."""


def vocabulary_pair(student: Tokenizer, teacher: Tokenizer) -> VocabularyPair:
    """The pair; `DataError` where one of the two has no byte-exact form."""
    of_student, of_teacher = token_bytes(student), token_bytes(teacher)
    return VocabularyPair(of_student, of_teacher, equal_tokens(of_student, of_teacher))


def equal_tokens(student: TokenBytes, teacher: TokenBytes) -> np.ndarray:
    """int64 [S]: the teacher's token for each of the student's, as `VocabularyPair.equal_S`."""
    equal_S = np.full(len(student.content), -1, dtype=np.int64)
    of_teacher = ids_by_bytes(teacher)
    for content, index in ids_by_bytes(student).items():
        equal_S[index] = of_teacher.get(content, -1)
    taken: set[int] = set()
    for own, other in roles(student, teacher):
        if equal_S[own] < 0 and other not in taken:
            equal_S[own] = other
            taken.add(other)
    return equal_S


def ids_by_bytes(of: TokenBytes) -> dict[bytes, int]:
    """The token that stands for some bytes; of several the first one that is no byte of the fallback."""
    found: dict[bytes, int] = {}
    for fallback in (True, False):
        for index in np.flatnonzero(of.fallback_V == fallback)[::-1].tolist():
            if of.content[index]:
                found[of.content[index]] = index
    return found


def roles(student: TokenBytes, teacher: TokenBytes) -> list[tuple[int, int]]:
    """The special tokens of both that mean the same, what ends a document first."""
    pairs = [(student.end_id, teacher.end_id)]
    if student.end_of_turn_id is not None and teacher.end_of_turn_id is not None:
        pairs.append((student.end_of_turn_id, teacher.end_of_turn_id))
    return [*pairs, (student.start_id, teacher.start_id)]


def pieces(student: TokenBytes, teacher: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(int64 offsets [S + 1], int64 ids): how the teacher's tokenizer writes the bytes of each of the student's tokens.

    Empty where they are no UTF-8 by themselves, where the token is special, and where the teacher's tokens do not give the
    bytes back.
    """
    of_teacher = token_bytes(teacher)
    texts = {index: text for index, content in enumerate(student.content) if (text := _text(content))}
    written: list[list[int]] = [[] for _ in student.content]
    for index, tokens in zip(texts, teacher.encode(list(texts.values())), strict=True):
        ids = tokens[1:-1].tolist()
        if b"".join(map(of_teacher.content.__getitem__, ids)) == student.content[index]:
            written[index] = ids
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in written])]).astype(np.int64)
    return offsets, np.array([one for ids in written for one in ids], dtype=np.int64)


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None
