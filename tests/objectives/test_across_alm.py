"""Likelihood matching of chunks: its formula by plain loops, its joined chunks, its scale, and what it is at equal tokenizers."""

import math

import pytest
import torch
from across_problem import END, STUDENT, ChunkProblem, alm, chunk_problem, joined, part_of
from torch import Tensor

from limbeck.objectives.across_terms import likelihood_matching
from limbeck.spec.across_tokenizers import ALM
from limbeck.spec.objective import CrossEntropy, Mixture, WeightedTerm

BEGINS_ANEW = [index for index, content in enumerate(STUDENT) if index == END or content[:1] in (b" ", b"\n")]


def by_loops(given: ChunkProblem, objective: ALM) -> tuple[Tensor, int]:
    """Mean over tokens, and the tokens that are scored."""
    logq_T = given.label_logq_T()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    scale = objective.temperature if objective.rescaled else 1.0
    if objective.boundary is None:
        runs = [(first, last, given.rows.log_prob_T[last]) for first, last in given.chunks()]
    else:
        runs = joined(given, objective.boundary)
    for first, last, t in runs:
        s = logq_T[first : last + 1].sum()
        if objective.boundary is not None and given.targets_T[last] != END:
            s = s + given.logq_TS[last + 1, BEGINS_ANEW].logsumexp(0)
        total, tokens = total + scale * alm(t, s, objective.temperature), tokens + last - first + 1
    return total / len(logq_T), tokens


@pytest.mark.parametrize("lengths", [(1, 2, 1, 3, 1, 1, 2, 1), (2, -2, 1, 1, -1, 3), (-3,), (1,) * 9])
@pytest.mark.parametrize("objective", [ALM(), ALM(boundary=None), ALM(temperature=2.0, rescaled=False), ALM(boundary=0.4)])
@pytest.mark.parametrize("chunk_tokens", [1, 4, None])
def test_is_the_formula(lengths: tuple[int, ...], objective: ALM, chunk_tokens: int | None) -> None:
    given = chunk_problem(lengths, seed=len(lengths))
    given.targets_T[-3] = END
    expected, tokens = by_loops(given, objective)
    found = given.loss(objective, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-10)
    assert found.per_term["alm_share"].item() == pytest.approx(tokens / len(given.targets_T))
    scale = objective.temperature if objective.rescaled else 1.0
    torch.testing.assert_close(scale * found.per_term["alm"], expected.detach(), rtol=0, atol=1e-10)
    if expected.requires_grad:
        leaves = given.hidden_TD, given.head_SD
        torch.testing.assert_close(
            torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected, leaves), rtol=0, atol=1e-9
        )
