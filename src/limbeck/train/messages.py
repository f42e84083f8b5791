"""What processes that train and processes that teach say to one another: plain tensors, sizes first, nothing pickled.

    request  student -> teacher   [verb, length] then so many whole numbers
    answer   teacher -> student   [failed, kind, tokens scored, tensors], [tensors, 5] sizes, then each tensor's bytes

Numbers are int64 on the CPU. The tensors of an answer are where the teacher made them: those on CUDA travel by nccl and arrive
on the student's device, everything else travels by gloo. Messages between two processes arrive in the order in which they were
sent; a teacher takes the next request of whoever asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.errors import TeacherError, first_line
from limbeck.signals.types import DenseRows, HardRows, HybridRows, SampledRows, SignalRows, TopKRows

KINDS: tuple[type[SignalRows], ...] = (DenseRows, TopKRows, SampledRows, HybridRows, HardRows)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
_MOST_DIMENSIONS = 2


class Verb(IntEnum):
    """What a teacher is asked for."""

    LEAVE = 0
    """Nothing more: [1] at the end of a run, [0] where it ended before."""
    ABOUT = 1
    """How many logits it has; and its head, where the signal is dense."""
    REFERENCE = 2
    """To read the held-out documents, and to leave what it makes of them in the user cache."""
    PIECES = 3
    """Rows of pieces of the training documents: [document, start, stop] of each."""
    SEQUENCES = 4
    """Rows of tokens: how many sequences, their lengths, all ids."""


@dataclass(frozen=True)
class Request:
    """A question, and who asks."""

    verb: Verb
    numbers: np.ndarray
    student: int


@dataclass(frozen=True)
class Answer:
    """Tensors of at most two dimensions, and what they cost."""

    tensors: tuple[Tensor | None, ...] = ()
    kind: int = 0
    """Place in `KINDS`, where the tensors are rows."""
    tokens_scored: int = 0


@dataclass(frozen=True)
class Sent:
    """A request on its way: its tensors must not go before it has arrived."""

    works: tuple[Any, ...]
    tensors: tuple[Tensor, ...]

    def arrived(self) -> None:
        """Wait until the teacher has it; `TeacherError` where that is gone."""
        try:
            for work in self.works:
                work.wait()
        except RuntimeError as error:
            raise _is_gone() from error


def send_request(verb: Verb, numbers: np.ndarray, *, teacher: int) -> Sent:
    """Does not wait. `TeacherError` where the teacher is gone."""
    head, body = torch.tensor([verb, len(numbers)]), torch.from_numpy(numbers.astype(np.int64))
    tensors = (head, body) if len(numbers) else (head,)
    try:
        return Sent(tuple(dist.isend(each, teacher) for each in tensors), tensors)
    except RuntimeError as error:
        raise _is_gone() from error


def receive_request() -> Request:
    """The next one of whoever asks."""
    head = torch.empty(2, dtype=torch.int64)
    student = dist.recv(head)
    body = torch.empty(int(head[1]), dtype=torch.int64)
    if len(body):
        dist.recv(body, student)
    return Request(Verb(int(head[0])), body.numpy(), student)


def send_answer(answer: Answer, *, student: int) -> None:
    """Waits until the student takes it."""
    _send(answer, student=student, failed=False)


def send_failure(error: BaseException, *, student: int) -> None:
    """In the place of an answer."""
    text = torch.tensor(list((first_line(error) or type(error).__name__).encode("utf-8")), dtype=torch.uint8)
    _send(Answer((text,)), student=student, failed=True)


def _send(answer: Answer, *, student: int, failed: bool) -> None:
    sizes = torch.tensor([_sizes(each) for each in answer.tensors], dtype=torch.int64).view(-1, 5)
    dist.send(torch.tensor([failed, answer.kind, answer.tokens_scored, len(answer.tensors)]), student)
    if len(sizes):
        dist.send(sizes, student)
    for tensor in answer.tensors:
        if tensor is not None and tensor.numel():
            dist.send(tensor.contiguous().flatten().view(torch.uint8), student)


def receive_answer(teacher: int, *, device: torch.device) -> Answer:
    """Tensors from CUDA arrive on `device`. `TeacherError` says what the teacher's process says, or that it is gone."""
    try:
        head = torch.empty(4, dtype=torch.int64)
        dist.recv(head, teacher)
        failed, kind, tokens_scored, number = head.tolist()
        sizes = torch.empty(number, 5, dtype=torch.int64)
        if number:
            dist.recv(sizes, teacher)
        tensors = tuple(_receive(each, teacher, device=device) for each in sizes.tolist())
    except RuntimeError as error:
        raise _is_gone() from error
    if failed:
        text = tensors[0]
        assert text is not None
        raise TeacherError(bytes(text.tolist()).decode("utf-8"))
    return Answer(tensors, kind, tokens_scored)


def _sizes(tensor: Tensor | None) -> list[int]:
    """[dtype, counted from 1, or 0 for no tensor; dimensions; two sizes; whether it is on CUDA]."""
    if tensor is None:
        return [0] * 5
    assert tensor.ndim <= _MOST_DIMENSIONS
    shape = [*tensor.shape, *[1] * (_MOST_DIMENSIONS - tensor.ndim)]
    return [1 + DTYPES.index(tensor.dtype), tensor.ndim, *shape, int(tensor.is_cuda)]


def _receive(sizes: Sequence[int], teacher: int, *, device: torch.device) -> Tensor | None:
    dtype, dimensions, *shape, on_cuda = sizes
    if not dtype:
        return None
    place = device if on_cuda else torch.device("cpu")
    tensor = torch.empty(shape[:dimensions], dtype=DTYPES[dtype - 1], device=place)
    if tensor.numel():
        dist.recv(tensor.flatten().view(torch.uint8), teacher)
    return tensor


def rows_as_answer(rows: SignalRows, *, tokens_scored: int) -> Answer:
    """Of dense rows the hidden states alone: who asks has the head."""
    kind = KINDS.index(type(rows))
    if isinstance(rows, DenseRows):
        return Answer((rows.hidden_TE,), kind, tokens_scored)
    return Answer(tuple(getattr(rows, field.name) for field in fields(rows)), kind, tokens_scored)


def answer_as_rows(answer: Answer, *, head_VE: Tensor | None, temperature: float) -> SignalRows:
    """The inverse."""
    kind = KINDS[answer.kind]
    if kind is DenseRows:
        (hidden_TE,) = answer.tensors
        assert hidden_TE is not None and head_VE is not None
        return DenseRows(hidden_TE, head_VE, temperature)
    named: dict[str, Any] = {field.name: tensor for field, tensor in zip(fields(kind), answer.tensors, strict=True)}
    return kind(**named)


def _is_gone() -> TeacherError:
    return TeacherError("a process that holds a teacher has ended: it says why, unless it was killed")
