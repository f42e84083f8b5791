"""Teachers in processes of their own (`placement.kind=pool`), asked by the processes that train.

Of W processes the last n hold teachers and serve (`limbeck.train.serving`); the first m = W - n train as if they were all.
Student i asks teacher i mod n; where there are more teachers than students it asks teachers i, i + m, i + 2 m, ..., and each
reads about as many tokens of a micro-batch. Rows are those of a teacher on the student's own device, made by the same code.

Rows of the step that follows are asked for before the step at hand is computed, so that teachers read while students learn;
but not before every student has its rows of the step at hand, since a teacher waits until an answer is taken.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.data.packing import Piece
from limbeck.errors import SpecError, TeacherError
from limbeck.signals.rows import concatenate
from limbeck.signals.types import DenseRows, SignalRows, StoredRows
from limbeck.spec.placement import TeacherPool
from limbeck.spec.recipe import Recipe
from limbeck.train.messages import Answer, Sent, Verb, answer_as_rows, receive_answer, send_request
from limbeck.train.parallel import Processes, number_of_processes, wait_for_all


def pool_size(recipe: Recipe) -> int:
    """How many of the processes at hand hold teachers alone. `SpecError` where that leaves none to train."""
    if not isinstance(recipe.placement, TeacherPool):
        return 0
    teachers, everyone = recipe.placement.teachers, number_of_processes()
    if teachers >= everyone:
        raise SpecError(
            f"placement.teachers={teachers} of {everyone} processes leaves none that trains: start more with `torchrun "
            f"--nproc-per-node {teachers + 1}`, or set placement.kind=same"
        )
    return teachers


def teaches(recipe: Recipe) -> bool:
    """Whether this process holds a teacher and nothing else."""
    teachers = pool_size(recipe)
    return teachers > 0 and int(os.environ["RANK"]) >= number_of_processes() - teachers


def teachers_of(student: int, *, students: int, teachers: int) -> list[int]:
    """The processes that a student asks."""
    if teachers <= students:
        return [students + student % teachers]
    return [students + each for each in range(student, teachers, students)]


def students_of(teacher: int, *, students: int, teachers: int) -> list[int]:
    """Who asks the teacher of that process."""
    return [each for each in range(students) if teacher in teachers_of(each, students=students, teachers=teachers)]


def shares(sizes: Sequence[int], *, among: int) -> list[slice]:
    """Neighbours in as many groups, some of which may be empty, of about the same sum: each goes where its middle lies."""
    ends = np.cumsum(sizes)
    group = (among * (ends - np.asarray(sizes) / 2) / ends[-1]).astype(int).clip(max=among - 1)
    borders = np.searchsorted(group, np.arange(among + 1)).tolist()
    return [slice(borders[each], borders[each + 1]) for each in range(among)]


@dataclass(frozen=True)
class _Asked:
    """A question whose answers have not been taken yet: from whom, and what was sent."""

    question: bytes
    teachers: tuple[int, ...]
    sent: tuple[Sent, ...]


class AskedRows:
    """A `RowSource` that asks teachers in other processes. `tokens_scored` is what they read, once it has arrived."""

    def __init__(self, processes: Processes, *, temperature: float, device: torch.device) -> None:
        """Waits until the teachers are loaded. `temperature` is that of a dense signal."""
        self.teachers = teachers_of(processes.rank, students=processes.world_size, teachers=processes.teachers)
        self.processes, self.temperature, self.device = processes, temperature, device
        self.tokens_scored = 0
        self._asked: deque[_Asked] = deque()
        self._taken: dict[bytes, SignalRows] = {}
        self._owed: Counter[int] = Counter()
        self._broken: set[int] = set()
        self.vocab_size, self.head_VE = self._about()

    @property
    def is_live(self) -> bool:
        """True."""
        return True

    @property
    def bytes_read(self) -> int:
        """Nothing is read from disk."""
        return 0

    def ask(self, groups: Sequence[Sequence[Piece]]) -> None:
        """Have the rows of pieces made that `rows` will be called for, group by group. Does not wait for them.

        All students call it together, each once it has the rows that it asked for before: a teacher whose answer is not taken
        would keep another student from rows of the step that they share.
        """
        wait_for_all(self.processes)
        for pieces in groups:
            self._ask_pieces(pieces)

    def _ask_pieces(self, pieces: Sequence[Piece]) -> None:
        numbers = np.array([[piece.document, piece.start, piece.stop] for piece in pieces])
        parts = shares([piece.stop - piece.start for piece in pieces], among=len(self.teachers))
        self._ask(Verb.PIECES, [numbers[part].flatten() for part in parts])

    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The teacher's rows at every position of the pieces."""
        numbers = np.array([[piece.document, piece.start, piece.stop] for piece in pieces])
        question = _question(Verb.PIECES, [numbers.flatten()])
        if question not in self._taken and all(each.question != question for each in self._asked):
            self._ask_pieces(pieces)
        return self._take(question)

    def rows_of(self, sequences: Sequence[np.ndarray]) -> SignalRows:
        """The teacher's rows at every position but the last of sequences of tokens, each read whole and alone."""
        parts = shares([len(tokens) for tokens in sequences], among=len(self.teachers))
        encoded = [_encoded(sequences[part]) for part in parts]
        self._ask(Verb.SEQUENCES, encoded)
        return self._take(_question(Verb.SEQUENCES, encoded))

    def make_reference(self) -> None:
        """Have the held-out documents read; waits until that is done."""
        self._send(Verb.REFERENCE, np.empty(0, int), teacher=self.teachers[0]).arrived()
        self._receive(self.teachers[0])

    @contextmanager
    def told_where_it_fails(self) -> Iterator[None]:
        """Inside, an error also ends the teachers."""
        try:
            yield
        except BaseException:
            self.leave(well=False)
            raise

    def leave(self, *, well: bool) -> None:
        """Tell the teachers that nothing more will be asked; not `well` where something went wrong, which is told elsewhere."""
        tolerated = nullcontext() if well else suppress(TeacherError)
        for teacher in self.teachers:
            with tolerated:
                while self._owed[teacher] and teacher not in self._broken:
                    self._receive(teacher)
                if teacher not in self._broken:
                    send_request(Verb.LEAVE, np.array([well]), teacher=teacher).arrived()

    def _about(self) -> tuple[int, Tensor | None]:
        """All teachers are loaded at the same time; they are the same."""
        for sent in [self._send(Verb.ABOUT, np.empty(0, int), teacher=teacher) for teacher in self.teachers]:
            sent.arrived()
        answers = [self._receive(teacher) for teacher in self.teachers]
        size, head_VE = answers[0].tensors
        assert size is not None
        return int(size), head_VE

    def _ask(self, verb: Verb, parts: Sequence[np.ndarray]) -> None:
        """A part to each teacher that has one to read."""
        mine = [(teacher, part) for teacher, part in zip(self.teachers, parts, strict=True) if len(part)]
        sent = tuple(self._send(verb, part, teacher=teacher) for teacher, part in mine)
        self._asked.append(_Asked(_question(verb, parts), tuple(teacher for teacher, _ in mine), sent))

    def _take(self, question: bytes) -> SignalRows:
        """Its rows; those that were asked for before are kept."""
        while question not in self._taken:
            self._take_next()
        return self._taken.pop(question)

    def _take_next(self) -> None:
        asked = self._asked.popleft()
        answers = [self._receive(teacher) for teacher in asked.teachers]
        for sent in asked.sent:
            sent.arrived()
        self.tokens_scored += sum(answer.tokens_scored for answer in answers)
        parts = [answer_as_rows(answer, head_VE=self.head_VE, temperature=self.temperature) for answer in answers]
        self._taken[asked.question] = _together(parts)

    def _send(self, verb: Verb, numbers: np.ndarray, *, teacher: int) -> Sent:
        """A question that an answer follows."""
        self._owed[teacher] += 1
        return send_request(verb, numbers, teacher=teacher)

    def _receive(self, teacher: int) -> Answer:
        try:
            answer = receive_answer(teacher, device=self.device)
        except TeacherError:
            self._broken.add(teacher)
            raise
        self._owed[teacher] -= 1
        return answer


def _question(verb: Verb, parts: Sequence[np.ndarray]) -> bytes:
    return bytes([verb]) + b"".join(part.astype(np.int64).tobytes() for part in parts)


def _encoded(sequences: Sequence[np.ndarray]) -> np.ndarray:
    if not sequences:
        return np.empty(0, int)
    return np.concatenate([[len(sequences)], [len(tokens) for tokens in sequences], *sequences]).astype(np.int64)


def decoded(numbers: np.ndarray) -> list[np.ndarray]:
    """The sequences of a request."""
    number = int(numbers[0])
    return np.split(numbers[1 + number :], np.cumsum(numbers[1:number]))


def _together(parts: Sequence[SignalRows]) -> SignalRows:
    if len(parts) == 1:
        return parts[0]
    dense = [part for part in parts if isinstance(part, DenseRows)]
    if dense:
        return DenseRows(torch.cat([part.hidden_TE for part in dense]), dense[0].head_VE, dense[0].temperature)
    stored: list[StoredRows] = [part for part in parts if not isinstance(part, DenseRows)]
    return concatenate(stored)
