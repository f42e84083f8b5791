"""Depth by a downstream score: which layers a multiple-choice task can best do without (arXiv 2408.11796, section 4.2).

Each choice is scored by the log-likelihood of its text after the question, as `limbeck.evals.local_tasks` has it, and the
likeliest is the answer. A hundred questions tell few losses of accuracy apart, so where accuracies are equal the nats of the
right choices decide.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.evals.answer_nats import Tokens, continuation_nats
from limbeck.evals.chat import document_tokens
from limbeck.evals.local_tasks import Problem, read_problems
from limbeck.surgery.bypass import ModelReader, bypassed
from limbeck.surgery.cheapest import Cost

_HOPELESS_NATS = 1e9
"""Of a choice whose likelihood is no number: finite, as files of costs are JSON."""


class TaskCost:
    """How badly a task is answered without some layers: the share of wrong answers, then the nats of the right choices."""

    measures = ("error", "right_nats")

    def __init__(self, reader: ModelReader, layers: nn.ModuleList, problems: Sequence[Problem], tokenizer: Tokenizer) -> None:
        self.reader, self.layers, self.problems = reader, layers, problems
        self._rows = [row for problem in problems for row in choice_rows(problem, tokenizer)]

    def __call__(self, places: Sequence[int]) -> Cost:
        """Without these layers. Where several choices are right, the likeliest of them counts."""
        with bypassed(self.layers, places):
            nats = np.nan_to_num(
                np.asarray(continuation_nats(self.reader, self._rows)), nan=_HOPELESS_NATS, posinf=_HOPELESS_NATS
            )
        stops = np.cumsum([len(problem.choices) for problem in self.problems])[:-1]
        wrong, right = [], []
        for problem, nats_C in zip(self.problems, np.split(nats, stops), strict=True):
            wrong.append(int(nats_C.argmin()) not in problem.labels or nats_C.min() >= _HOPELESS_NATS)
            right.append(min(nats_C[list(problem.labels)]))
        return float(np.mean(wrong)), float(np.mean(right))


def read_task(file: str, *, limit: int, key: str) -> list[Problem]:
    """The first `limit` problems; `DataError` names the key and what is wrong with the file."""
    try:
        return read_problems(Path(file))[:limit]
    except DataError as error:
        raise DataError(f"{key}={file}: {error}") from error


def choice_rows(problem: Problem, tokenizer: Tokenizer) -> list[tuple[Tokens, Tokens]]:
    """Context and continuation of every choice, in tokens: a choice begins with a space, but for a sentence on its own.

    The text is tokenised whole and parted where the question's own tokens end, as lm-evaluation-harness does; where the two
    merge, a token is left for the choice.
    """
    context = document_tokens(tokenizer, problem.context)
    gap = " " if problem.context else ""
    wholes = [document_tokens(tokenizer, f"{problem.context}{gap}{choice}") for choice in problem.choices]
    parted = [min(len(context), len(whole) - 1) for whole in wholes]
    return [(whole[:at], whole[at:]) for whole, at in zip(wholes, parted, strict=True)]
