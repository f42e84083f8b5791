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
    token right after it is a chunk by itself; the template's other tokens are in none. White space around a body may differ.
    """
    if student_bodies is None or teacher_bodies is None:
        spans = np.array([[1, len(student_tokens) - 1, 1, len(teacher_tokens) - 1]])
    else:
        spans = _common_bodies(student_bodies, teacher_bodies)
    found: list[np.ndarray] = []
    for s0, s1, t0, t1 in spans.tolist():
        own, other = _Side(student_tokens[s0:s1], student), _Side(teacher_tokens[t0:t1], teacher)
        found.append(_chunks(own, other, trimmed=student_bodies is not None) + np.array([s0, s0, t0, t0]))
        if _is_special(student_tokens, s1, student) and _is_special(teacher_tokens, t1, teacher):
            found.append(np.array([[s1, s1 + 1, t1, t1 + 1]]))
    all_C4 = np.concatenate(found)
    ends = np.array([[len(student_tokens) - 1, len(student_tokens), len(teacher_tokens) - 1, len(teacher_tokens)]])
    free = (all_C4[:, [1, 3]] < ends[0, [1, 3]]).all()
    if free and student_tokens[-1] == student.end_id and teacher_tokens[-1] == teacher.end_id:
        all_C4 = np.concatenate([all_C4, ends])
    return Alignment(*(np.ascontiguousarray(column_C, dtype=np.int64) for column_C in all_C4.T))


def _common_bodies(student_bodies: np.ndarray, teacher_bodies: np.ndarray) -> np.ndarray:
    """int64 [bodies, 4]: first and one past the last token of each body that both sides have."""
    common = np.intersect1d(student_bodies[student_bodies >= 0], teacher_bodies[teacher_bodies >= 0])
    spans = np.zeros((len(common), 4), dtype=np.int64)
    for row, body in enumerate(common):
        for column, bodies in ((0, student_bodies), (2, teacher_bodies)):
            (places,) = np.nonzero(bodies == body)
            spans[row, column : column + 2] = places[0], places[-1] + 1
    if not len(common) or (np.diff(spans, axis=0) <= 0).any():
        raise DataError("the two chat templates have no message in common, or in another order: leave the chat out")
    return spans


class _Side:
    """Some tokens of one of the two, and what they spell."""

    def __init__(self, tokens: np.ndarray, of: TokenBytes) -> None:
        self.content = of.text_bytes(tokens.tolist())
        self.bounds = np.concatenate([[0], of.spelled_lengths_V[tokens].cumsum()])
        """In bytes: where the first token begins, and where each ends."""


def _chunks(own: _Side, other: _Side, *, trimmed: bool) -> np.ndarray:
    """int64 [C, 4]: the chunks of tokens that spell the same bytes, counted from the first.

    `trimmed`: white space around them may differ, since templates trim it, and tokens may reach into it: then chunks are within
    what is not white space, and tokens that share no bound there are in none.
    """
    bounds_S, bounds_T = own.bounds, other.bounds
    if own.content != other.content:
        core = own.content.strip()
        if not trimmed or core != other.content.strip():
            raise DataError(_difference(own.content, other.content))
        bounds_S = bounds_S - own.content.find(core)
        bounds_T = bounds_T - other.content.find(core)
        common = np.intersect1d(bounds_S, bounds_T)
        common = common[(common >= 0) & (common <= len(core))]
    else:
        common = np.intersect1d(bounds_S, bounds_T)
    columns = []
    for bounds in (bounds_S, bounds_T):
        # A token without bytes ends where the one before it does, and goes into its chunk.
        ends = np.searchsorted(bounds, common, side="right") - 1
        if len(ends):
            ends[0] = np.searchsorted(bounds, common[0], side="left")
        columns += [ends[:-1], ends[1:]]
    return np.stack(columns, axis=1)


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
