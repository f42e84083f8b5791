"""A toy student, teacher and text in float64, and the teacher's signals of every kind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.objective import LossOutput, objective_loss
from limbeck.signals.types import DenseRows, HardRows, SampledRows, SignalRows, TopKRows
from limbeck.spec.objective import Objective


@dataclass(frozen=True)
class Problem:
    """T positions, V vocabulary, D student's width, E teacher's width."""

    hidden_TD: Tensor
    head_VD: Tensor
    targets_T: Tensor
    teacher_hidden_TE: Tensor
    teacher_head_VE: Tensor

    def teacher_probs(self, temperature: float = 1.0) -> Tensor:
        return torch.softmax(self.teacher_hidden_TE @ self.teacher_head_VE.T / temperature, -1)


def problem(tokens: int = 13, vocabulary: int = 37, width: int = 5, seed: int = 0) -> Problem:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return Problem(
        hidden_TD=normal(tokens, width).requires_grad_(),
        head_VD=normal(vocabulary, width).requires_grad_(),
        targets_T=torch.randint(vocabulary, (tokens,), generator=draw),
        teacher_hidden_TE=normal(tokens, width + 2),
        teacher_head_VE=normal(vocabulary, width + 2),
    )


def same_teacher(given: Problem) -> Problem:
    """The teacher is the student."""
    hidden_TE, head_VE = given.hidden_TD.detach().clone(), given.head_VD.detach().clone()
    return Problem(given.hidden_TD, given.head_VD, given.targets_T, hidden_TE, head_VE)


def topk_rows(probs_TV: Tensor, k: int) -> TopKRows:
    top = probs_TV.topk(k)
    rest_TV = probs_TV.scatter(1, top.indices, 0.0)
    return TopKRows(top.indices, top.values.log(), rest_TV.sum(-1), torch.special.entr(probs_TV).sum(-1))


def hard_rows(probs_TV: Tensor) -> HardRows:
    return HardRows(probs_TV.argmax(-1))


def dense_rows(given: Problem, temperature: float = 1.0) -> DenseRows:
    return DenseRows(given.teacher_hidden_TE, given.teacher_head_VE, temperature)


def sampled_rows(draws_TN: Tensor, probs_TV: Tensor) -> SampledRows:
    """Draws counted; rows padded with id 0, count 0 as a store pads them."""
    counted = [row.unique(return_counts=True) for row in draws_TN]
    width = max(len(ids) for ids, _ in counted)
    ids_TK = torch.stack([torch.nn.functional.pad(ids, (0, width - len(ids))) for ids, _ in counted])
    counts_TK = torch.stack([torch.nn.functional.pad(counts, (0, width - len(counts))) for _, counts in counted])
    return SampledRows(ids_TK, counts_TK, torch.special.entr(probs_TV).sum(-1))


def loss_of(objective: Objective, given: Problem, rows: SignalRows | None = None, **options: object) -> LossOutput:
    texts = {"hidden_TD": given.hidden_TD, "head_VD": given.head_VD, "targets_T": given.targets_T}
    return objective_loss(objective, rows=rows, **(texts | options))


def gradients(loss: Tensor, given: Problem) -> tuple[Tensor, Tensor]:
    """With respect to the student's hidden states and head."""
    return torch.autograd.grad(loss, (given.hidden_TD, given.head_VD))
