"""A toy pair of vocabularies, a student in float64, rows of chunks, and what the terms are by plain loops over them.

Nothing of the references imports the code under test. Shapes: T positions, S student's tokens, V teacher's, K ids of a row.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limbeck.data.token_bytes import TokenBytes
from limbeck.data.vocabulary_pair import VocabularyPair
from limbeck.objectives.across_prepared import prepare_across
from limbeck.objectives.objective import LossOutput, objective_loss
from limbeck.signals.types import ChunkRows
from limbeck.spec.objective import Objective

STUDENT = (b"", b"", b"a", b"b", b"c", b" a", b" b", b"ab", b"abc", b"\n", b" ", b"xa", b"xb")
"""Start, end, and tokens of text: 13."""
TEACHER = (b"", b"", b"b", b"a", b"c", b" ", b"\n", b"bc", b" a", b"zz", b"x")
"""11, of which start, end, a, b, c, space, line feed and " a" have an equal."""
PIECES = {6: (5, 2), 7: (3, 2), 8: (3, 7), 11: (10, 3), 12: (10, 2)}
"""How the teacher writes the student's tokens that it lacks."""
START, END = 0, 1


def tokens_of(content: tuple[bytes, ...]) -> TokenBytes:
    special_V = np.array([not one for one in content])
    return TokenBytes(content, content, START, END, None, special_V, np.zeros(len(content), dtype=bool))


def toy_pair(student: tuple[bytes, ...] = STUDENT, teacher: tuple[bytes, ...] = TEACHER) -> VocabularyPair:
    equal = [teacher.index(one) if one and one in teacher else -1 for one in student]
    equal[START], equal[END] = START, END
    return VocabularyPair(tokens_of(student), tokens_of(teacher), np.array(equal))


def toy_pieces() -> tuple[np.ndarray, np.ndarray]:
    written = [PIECES.get(index, ()) for index in range(len(STUDENT))]
    return np.cumsum([0, *map(len, written)]), np.array([one for ids in written for one in ids])


@dataclass(frozen=True)
class ChunkProblem:
    hidden_TD: Tensor
    head_SD: Tensor
    targets_T: Tensor
    rows: ChunkRows
    pair: VocabularyPair

    @property
    def logq_TS(self) -> Tensor:
        return torch.log_softmax(self.hidden_TD @ self.head_SD.T, -1)

    def loss(self, objective: Objective, *, distribution: str = "last", **options: object) -> LossOutput:
        across = prepare_across(objective, self.pair, distribution=distribution, pieces=toy_pieces())
        given = {"hidden_TD": self.hidden_TD, "head_VD": self.head_SD, "targets_T": self.targets_T, "rows": self.rows}
        return objective_loss(objective, across=across, **(given | options))

    def chunks(self) -> list[tuple[int, int]]:
        """First and last position of each."""
        ends = [t for t, tokens in enumerate(self.rows.tokens_T.tolist()) if tokens]
        return [(t - int(self.rows.tokens_T[t]) + 1, t) for t in ends]

    def label_logq_T(self) -> Tensor:
        return self.logq_TS[torch.arange(len(self.targets_T)), self.targets_T]


def chunk_problem(
    lengths: tuple[int, ...] = (1, 2, 1, 3, 1, 1, 2, 1), *, seed: int = 0, k: int = 4, outcomes: int = len(TEACHER)
) -> ChunkProblem:
    """Chunks of so many tokens, one after another; a negative number is of tokens in no chunk."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    total = sum(map(abs, lengths))
    tokens_T = torch.zeros(total, dtype=torch.int64)
    ends = torch.tensor(lengths).abs().cumsum(0) - 1
    tokens_T[ends] = torch.tensor(lengths).clamp(min=0)
    here_T = tokens_T > 0
    p_TV = torch.softmax(2 * torch.randn(total, outcomes, generator=draw, dtype=torch.float64), -1)
    top = p_TV.topk(k)
    before_T = -2 * uniform(total) * (tokens_T > 1)
    rows = ChunkRows(
        tokens_T=tokens_T,
        teacher_tokens_T=tokens_T.clone(),
        log_prob_T=torch.where(here_T, before_T - 3 * uniform(total), 0.0),
        before_T=torch.where(here_T, before_T, 0.0),
        boundary_T=torch.where(here_T, (0.02 + 0.5 * uniform(total)).log(), 0.0),
        ids_TK=torch.where(here_T[:, None], top.indices, 0),
        log_probs_TK=torch.where(here_T[:, None], top.values.log(), -torch.inf),
        tail_T=torch.where(here_T, 1 - top.values.sum(-1), 0.0),
    )
    return ChunkProblem(
        hidden_TD=torch.randn(total, 5, generator=draw, dtype=torch.float64).requires_grad_(),
        head_SD=torch.randn(len(STUDENT), 5, generator=draw, dtype=torch.float64).requires_grad_(),
        targets_T=torch.randint(2, len(STUDENT), (total,), generator=draw),
        rows=rows,
        pair=toy_pair(),
    )


def part_of(given: ChunkProblem, part: slice) -> ChunkProblem:
    rows = replace(given.rows, **{name: tensor[part] for name, tensor in vars(given.rows).items()})
    return replace(given, hidden_TD=given.hidden_TD[part], targets_T=given.targets_T[part], rows=rows)


def alm(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """The published coin's cross-entropy, less its value at s = t."""

    def against(other: Tensor) -> Tensor:
        x = torch.exp(t / temperature - 1e-6)
        return -(x * (other / temperature - 1e-6) + (1 - x) * torch.log(1 - torch.exp(other / temperature - 1e-6)))

    return against(s) - against(t)


def joined(given: ChunkProblem, threshold: float) -> list[tuple[int, int, Tensor]]:
    """First and last position, and the teacher's log-prob with the boundary, of each joined run that counts."""
    runs: list[tuple[int, int, Tensor]] = []
    open_run: tuple[int, Tensor] | None = None
    previous = -2
    for first, last in given.chunks():
        if first != previous + 1:
            open_run = None
        begin, total = open_run or (first, torch.zeros((), dtype=torch.float64))
        total, previous = total + given.rows.log_prob_T[last], last
        special = given.targets_T[last] in (START, END)
        if special or given.rows.boundary_T[last] >= math.log(threshold):
            open_run = None
            if special or last + 1 < len(given.targets_T):
                runs.append((begin, last, total if special else total + given.rows.boundary_T[last]))
        else:
            open_run = begin, total
    return runs
