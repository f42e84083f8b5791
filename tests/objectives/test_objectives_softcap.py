"""Losses under a softcap equal their plain float64 twin, in value and gradient, through both doors."""

import pytest
import torch
from objective_problem import Problem, dense_rows, gradients, loss_of, problem, topk_rows
from reference import bucket_kl, cross_entropy, jensen_shannon, kl
from torch import Tensor

from limbeck.objectives.head import head_statistics
from limbeck.spec.objective import CrossEntropy, ForwardKL, JensenShannon

CAP = 3.0


def capped_log_softmax(given: Problem, temperature: float = 1.0) -> Tensor:
    logits_TV = CAP * torch.tanh(given.hidden_TD @ given.head_VD.T / CAP)
    return torch.log_softmax(logits_TV / temperature, -1)


@pytest.mark.parametrize("chunk_tokens", [1, 5, None])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ce", "topk", "dense", "jsd"])
def test_losses_under_a_softcap(name: str, temperature: float, chunk_tokens: int | None) -> None:
    given = problem()
    p_TV, logq_TV = given.teacher_probs(temperature), capped_log_softmax(given, temperature)
    rows = topk_rows(p_TV, 7) if name == "topk" else None if name == "ce" else dense_rows(given, temperature)
    objective, plain_T = {
        "ce": (CrossEntropy(), cross_entropy(capped_log_softmax(given), given.targets_T)),
        "topk": (ForwardKL(), temperature**2 * bucket_kl(p_TV, logq_TV, topk_rows(p_TV, 7).ids_TK)),
        "dense": (ForwardKL(), temperature**2 * kl(p_TV, logq_TV)),
        "jsd": (JensenShannon(scale="plain"), temperature**2 * jensen_shannon(p_TV, logq_TV.exp(), 0.5)),
    }[name]
    options = {"rows": rows, "temperature": temperature} if rows is not None else {}
    loss = loss_of(objective, given, softcap=CAP, chunk_tokens=chunk_tokens, **options).loss
    torch.testing.assert_close(loss, plain_T.mean(), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(loss, given), gradients(plain_T.mean(), given), rtol=0, atol=1e-10)


def test_statistics_under_a_softcap() -> None:
    given = problem()
    ids_TK = given.targets_T[:, None]
    (found,) = head_statistics(given.hidden_TD, head_VD=given.head_VD, ids_TK=ids_TK, softcap=CAP, chunk_tokens=4)
    logits_TV = CAP * torch.tanh(given.hidden_TD @ given.head_VD.T / CAP)
    torch.testing.assert_close(found.lse_T, logits_TV.logsumexp(-1))
    torch.testing.assert_close(found.gathered_TK, logits_TV.gather(1, ids_TK))
    plain = (logits_TV.logsumexp(-1).square() + logits_TV.gather(1, ids_TK)[:, 0]).mean()
    fused = (found.lse_T.square() + found.gathered_TK[:, 0]).mean()
    torch.testing.assert_close(gradients(fused, given), gradients(plain, given), rtol=0, atol=1e-10)


def test_a_softcap_in_bfloat16_is_near() -> None:
    given = problem(tokens=64, vocabulary=300, width=32)
    single = Problem(*(each.detach().float() for each in (given.hidden_TD, given.head_VD)), given.targets_T, None, None)  # type: ignore[arg-type]
    single.hidden_TD.requires_grad_()
    single.head_VD.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(CrossEntropy(), single, softcap=CAP).loss
    plain = cross_entropy(capped_log_softmax(given), given.targets_T).mean()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=5e-3)
    ours, theirs = gradients(loss, single), gradients(plain, given)
    for mine, exact in zip(ours, theirs, strict=True):
        assert float((mine.double() - exact).norm() / exact.norm()) < 0.02
