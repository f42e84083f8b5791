"""Where two tokenizations of one text have a boundary in common: chunks.

A chunk is the shortest run of text between two such boundaries; its tokens are those of either side. Boundaries are counted in
UTF-8 bytes, so the alignment is exact for any text (as in TRL's GOLD trainer, `_align_by_byte_offsets`). Special tokens have no
bytes and are mapped by their role.

Legend: C chunks. Every document is `[start] text [end]`.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.data.token_bytes import TokenBytes
from limbeck.errors import DataError


@dataclass(frozen=True, eq=False)
class Alignment:
    """Chunk c is `tokens[starts[c]:ends[c]]` of either side (int64, ascending, indices into the document's tokens)."""

    student_starts_C: np.ndarray
    student_ends_C: np.ndarray
    teacher_starts_C: np.ndarray
    teacher_ends_C: np.ndarray

    def __len__(self) -> int:
        return len(self.student_ends_C)


NO_CHUNKS = Alignment(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
"""Of a document that cannot be aligned."""


def align(
    student_tokens: np.ndarray,
    teacher_tokens: np.ndarray,
    *,
    student: TokenBytes,
    teacher: TokenBytes,
    student_bodies: np.ndarray | None = None,
    teacher_bodies: np.ndarray | None = None,
) -> Alignment:
    """The chunks of a document's two tokenizations; `DataError` where their bytes differ.

    The start token is in no chunk, the end token is one by itself. With bodies (int32 of each token: the number of the message
    body that its bytes belong to, -1 for the template's) each body that both sides have is aligned by itself, and the special
    token right after it is a chunk by itself; the template's other tokens are in none.
    """
    if student_bodies is None or teacher_bodies is None:
        spans = np.array([[1, len(student_tokens) - 1, 1, len(teacher_tokens) - 1]])
    else:
        spans = _common_bodies(student_bodies, teacher_bodies)
    found: list[np.ndarray] = []
    for s0, s1, t0, t1 in spans.tolist():
        chunks_C4 = _align_span(student_tokens[s0:s1], teacher_tokens[t0:t1], student, teacher)
        found.append(chunks_C4 + np.array([s0, s0, t0, t0]))
        if _is_special(student_tokens, s1, student) and _is_special(teacher_tokens, t1, teacher):
            found.append(np.array([[s1, s1 + 1, t1, t1 + 1]]))
    end = np.array([[len(student_tokens) - 1, len(student_tokens), len(teacher_tokens) - 1, len(teacher_tokens)]])
    both_end = student_tokens[-1] == student.end_id and teacher_tokens[-1] == teacher.end_id
    if both_end and not (found and (found[-1][-1:, [1, 3]] == end[:, [1, 3]]).any()):
        found.append(end)
    all_C4 = np.concatenate(found).astype(np.int64) if found else np.zeros((0, 4), dtype=np.int64)
    return Alignment(*(np.ascontiguousarray(column_C) for column_C in all_C4.T))


def _common_bodies(student_bodies: np.ndarray, teacher_bodies: np.ndarray) -> np.ndarray:
    """int64 [bodies, 4]: first and one past the last token of each body that both sides have."""
    common = np.intersect1d(student_bodies[student_bodies >= 0], teacher_bodies[teacher_bodies >= 0])
    spans = np.zeros((len(common), 4), dtype=np.int64)
    for row, body in enumerate(common):
        for column, bodies in ((0, student_bodies), (2, teacher_bodies)):
            (places,) = np.nonzero(bodies == body)
            spans[row, column : column + 2] = places[0], places[-1] + 1
    return spans


def _align_span(student_tokens: np.ndarray, teacher_tokens: np.ndarray, student: TokenBytes, teacher: TokenBytes) -> np.ndarray:
    """int64 [C, 4]: the chunks of tokens that spell the same bytes, counted from the first."""
    of_student, of_teacher = student.text_bytes(student_tokens.tolist()), teacher.text_bytes(teacher_tokens.tolist())
    if of_student != of_teacher:
        raise DataError(_difference(of_student, of_teacher))
    ends_S = student.spelled_lengths_V[student_tokens].cumsum()
    ends_T = teacher.spelled_lengths_V[teacher_tokens].cumsum()
    common_C = np.intersect1d(ends_S, ends_T)
    common_C = common_C[common_C > 0]
    # A token without bytes ends where the one before it does, and goes into its chunk.
    student_ends_C = np.searchsorted(ends_S, common_C, side="right")
    teacher_ends_C = np.searchsorted(ends_T, common_C, side="right")
    starts = [np.concatenate([[0], ends_C[:-1]])[: len(common_C)] for ends_C in (student_ends_C, teacher_ends_C)]
    return np.stack([starts[0], student_ends_C, starts[1], teacher_ends_C], axis=1).astype(np.int64)


def _is_special(tokens: np.ndarray, place: int, of: TokenBytes) -> bool:
    return place < len(tokens) and bool(of.special_V[tokens[place]])


def _difference(of_student: bytes, of_teacher: bytes) -> str:
    shorter = min(len(of_student), len(of_teacher))
    unequal = np.frombuffer(of_student[:shorter], np.uint8) != np.frombuffer(of_teacher[:shorter], np.uint8)
    first = int(unequal.argmax()) if unequal.any() else shorter
    shown = [one[max(first - 8, 0) : first + 8].decode("utf-8", errors="replace") for one in (of_student, of_teacher)]
    return (
        f"the two tokenizers' bytes of a text differ at byte {first} ({shown[0]!r} and {shown[1]!r}): normalise the text, "
        "or leave it out"
    )
