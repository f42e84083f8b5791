"""A process that holds a teacher and nothing else: it answers the processes that train until the last of them has left.

It opens the same texts as they do and makes rows by the code of a teacher beside its student, so that the rows are the same.
A mistake that it finds is told to who asked and ends both. A first SIGTERM or Ctrl-C changes nothing here: the others finish
their step, which needs rows, and then say that they leave.
"""

from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist

from limbeck.compute import pick_device
from limbeck.data.packing import Piece
from limbeck.evals.reference import teacher_reference
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import ChunksSignal, DenseSignal
from limbeck.teachers.huggingface import load_teacher
from limbeck.teachers.live import LiveRows
from limbeck.train.interrupt import EndedEarly, finish_the_step
from limbeck.train.messages import Answer, Request, Verb, receive_request, rows_as_answer, send_answer, send_failure
from limbeck.train.parallel import leave, start_processes
from limbeck.train.pool import decoded, pool_size, students_of
from limbeck.train.texts import Texts, first_process_first


def serve(recipe: Recipe) -> None:
    """Teach those that ask this process, until they leave."""
    device = pick_device(recipe.device)
    processes = start_processes(device, teachers=pool_size(recipe))
    desk = Desk(recipe, first_process_first(recipe, processes), device)
    asking = set(students_of(dist.get_rank(), students=processes.world_size, teachers=processes.teachers))
    with finish_the_step():
        while asking:
            request = _next()
            if request.verb == Verb.LEAVE:
                asking.remove(request.student)
                if not request.numbers[0]:
                    raise EndedEarly(f"process {request.student} stopped before the end of its run: it says why")
            else:
                _answer(desk, request)
    leave(processes)


class Desk:
    """A teacher and the texts that it is asked about. The teacher is loaded by the first question."""

    def __init__(self, recipe: Recipe, texts: Texts, device: torch.device) -> None:
        self.recipe, self.texts, self.device = recipe, texts, device

    @cached_property
    def source(self) -> LiveRows:
        """The teacher, as it would be beside a student."""
        teacher, signal = self.recipe.teacher, self.recipe.signal
        assert teacher is not None and signal is not None, "the recipe's validator requires them"
        assert not isinstance(signal, ChunksSignal), "the recipe's validator refuses it"
        return LiveRows(load_teacher(teacher, device=self.device), self.texts.train, signal=signal, context=teacher.context)

    def answer(self, verb: Verb, numbers: np.ndarray) -> Answer:
        """To anything but a leave-taking."""
        before = self.source.tokens_scored
        match verb:
            case Verb.ABOUT:
                head_VE = self.source.head_VE if isinstance(self.source.signal, DenseSignal) else None
                return Answer((torch.tensor([self.source.teacher.vocab_size]), head_VE))
            case Verb.REFERENCE:
                assert self.recipe.teacher is not None
                teacher_reference(self.recipe.teacher, self.texts.heldout, device=self.device, teacher=self.source.teacher)
                return Answer()
            case Verb.PIECES:
                rows = self.source.rows([Piece(*each) for each in numbers.reshape(-1, 3).tolist()])
            case _:
                rows = self.source.rows_of(decoded(numbers))
        return rows_as_answer(rows, tokens_scored=self.source.tokens_scored - before)


def _next() -> Request:
    try:
        return receive_request()
    except RuntimeError as error:
        raise _left_alone() from error


def _answer(desk: Desk, request: Request) -> None:
    try:
        answer = desk.answer(request.verb, request.numbers)
    except Exception as error:
        send_failure(error, student=request.student)
        raise
    try:
        send_answer(answer, student=request.student)
    except RuntimeError as error:
        raise _left_alone() from error


def _left_alone() -> EndedEarly:
    return EndedEarly("a process that this teacher served has ended: it says why, unless it was killed")
