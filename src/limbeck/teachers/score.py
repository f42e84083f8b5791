"""Scoring: a model reads documents and says, position by position, what it expects next.

A document is scored alone, whole or in overlapping windows (`limbeck.data.windows`), so its rows do not depend on which
documents happen to be scored with it. Windows of similar length go through the model together.

Legend: B windows, T positions of a window, R rows that are kept, V vocabulary, E width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.windows import Window, windows
from limbeck.spec.teacher import Context

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
HEAD_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that are held at once."""


class Reader(Protocol):
    """Anything that reads tokens and can be asked what it expects next: a teacher, or a student under evaluation."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def head_VE(self) -> Tensor | None:
        """The matrix that turns hidden states into logits, or None where `logits` alone knows how."""
        ...

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, E] of right-padded windows."""
        ...

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        ...


@dataclass(frozen=True)
class Passage:
    """A window of one of the documents at hand."""

    document: int
    window: Window


def passages(lengths: Sequence[int], *, context: Context) -> list[Passage]:
    """All windows over documents of the given lengths in tokens."""
    return [
        Passage(index, window)
        for index, length in enumerate(lengths)
        for window in windows(length - 1, window=context.window, overlap=context.overlap)
    ]


def batches(work: Sequence[Passage], *, batch_tokens: int) -> list[list[Passage]]:
    """Group windows of similar length, longest first, so that a padded group holds at most `batch_tokens` positions."""
    groups: list[list[Passage]] = []
    for passage in sorted(work, key=lambda passage: passage.window.start - passage.window.stop):
        longest = groups[-1][0].window.stop - groups[-1][0].window.start if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(passage)
        else:
            groups.append([passage])
    return groups


@torch.no_grad()
def score_hidden(reader: Reader, documents: Sequence[np.ndarray], work: Sequence[Passage]) -> Iterator[tuple[Passage, Tensor]]:
    """Hidden states [R, E] of the rows that each window keeps, group by group."""
    for group in batches(work, batch_tokens=BATCH_TOKENS.get(reader.device.type, 8192)):
        hidden_BTE = reader.hidden(padded(documents, group))
        for index, passage in enumerate(group):
            window = passage.window
            yield passage, hidden_BTE[index, window.first - window.start : window.stop - window.start]


@torch.no_grad()
def score_logits(
    reader: Reader, documents: Sequence[np.ndarray], work: Sequence[Passage]
) -> Iterator[tuple[Passage, int, Tensor]]:
    """Logits of a few hundred rows at a time: (window, position of the first row, logits [R, V]).

    The logits are valid until the next ones are asked for: they share a buffer, since fresh ones of this size cost page faults.
    """
    if reader.head_VE is None:
        for passage in work:
            window = passage.window
            logits_TV = reader.logits(padded(documents, [passage]))[0, window.first - window.start :]
            yield passage, window.first, logits_TV
        return
    head_VE = reader.head_VE
    rows_at_once = max(1, HEAD_ELEMENTS.get(reader.device.type, 2**25) // len(head_VE))
    buffer_RV = torch.empty(rows_at_once, len(head_VE), dtype=head_VE.dtype, device=head_VE.device)
    for passage, hidden_RE in score_hidden(reader, documents, work):
        for start in range(0, len(hidden_RE), rows_at_once):
            rows_RE = hidden_RE[start : start + rows_at_once]
            yield passage, passage.window.first + start, torch.mm(rows_RE, head_VE.T, out=buffer_RV[: len(rows_RE)])


def padded(documents: Sequence[np.ndarray], group: Sequence[Passage]) -> Tensor:
    """Tokens [B, T] of a group's windows, int64, padded on the right to the first and longest."""
    longest = group[0].window.stop - group[0].window.start
    tokens_BT = np.zeros((len(group), longest), dtype=np.int64)
    for row, passage in enumerate(group):
        window = passage.window
        tokens_BT[row, : window.stop - window.start] = documents[passage.document][window.start : window.stop]
    return torch.from_numpy(tokens_BT)
