"""The chunked loss equals its plain float64 twin, in value and in gradient with respect to hidden states and head."""

import pytest
import torch
from objective_problem import Problem, dense_rows, gradients, hard_rows, loss_of, problem, sampled_rows, topk_rows
from reference import bucket_kl, cross_entropy, kl, log_softmax, renormalised_kl, sampled_kl
from torch import Tensor

from limbeck.objectives.objective import _warn
from limbeck.signals.types import SignalRows, TopKRows
from limbeck.spec.objective import CrossEntropy, ForwardKL, HardLabels, Mixture, Objective, WeightedTerm

KINDS = ("topk", "topk k=V", "sampled", "hard", "dense")


def signal_and_twin(kind: str, given: Problem, temperature: float) -> tuple[SignalRows, Tensor]:
    """The signal of a kind, and the plain per-position KL that it stands for."""
    p_TV = given.teacher_probs(temperature)
    logq_TV = log_softmax(given.hidden_TD, given.head_VD, temperature)
    match kind:
        case "topk":
            rows = topk_rows(p_TV, 7)
            return rows, bucket_kl(p_TV, logq_TV, rows.ids_TK)
        case "topk k=V":
            return topk_rows(p_TV, p_TV.shape[1]), kl(p_TV, logq_TV)
        case "sampled":
            # 32 draws: count / draws is exact in float32, in which the rows hold it.
            draws_TN = torch.multinomial(p_TV, 32, replacement=True, generator=torch.Generator().manual_seed(1))
            return sampled_rows(draws_TN, p_TV), sampled_kl(draws_TN, p_TV, logq_TV)
        case "hard":
            return hard_rows(p_TV), cross_entropy(logq_TV, p_TV.argmax(-1))
        case _:
            return dense_rows(given, temperature), kl(p_TV, logq_TV)


def assert_equal(objective: Objective, plain: Tensor, given: Problem, **options: object) -> None:
    fused = loss_of(objective, given, **options).loss
    expected = gradients(plain, given)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(fused, given), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 64, None])
def test_cross_entropy_equals_plain_at_any_chunk(chunk_tokens: int | None) -> None:
    given = problem()
    plain = cross_entropy(log_softmax(given.hidden_TD, given.head_VD), given.targets_T).mean()
    assert_equal(CrossEntropy(), plain, given, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("chunk_tokens", [1, 5, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_kl_equals_plain(kind: str, temperature: float, chunk_tokens: int | None) -> None:
    given = problem()
    rows, kl_T = signal_and_twin(kind, given, temperature)
    plain = temperature**2 * kl_T.mean()
    assert_equal(ForwardKL(), plain, given, rows=rows, temperature=temperature, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_mixture_with_z_loss_equals_plain(kind: str, temperature: float) -> None:
    given = problem()
    rows, kl_T = signal_and_twin(kind, given, temperature)
    ce_T = cross_entropy(log_softmax(given.hidden_TD, given.head_VD), given.targets_T)
    z_T = torch.logsumexp(given.hidden_TD @ given.head_VD.T, -1) ** 2
    soft = WeightedTerm(weight=0.7, term=ForwardKL(temperature_squared=False))
    mixture = Mixture(terms=(WeightedTerm(weight=0.3, term=CrossEntropy()), soft), z_loss_weight=0.01)
    assert_equal(
        mixture, (0.3 * ce_T + 0.7 * kl_T + 0.01 * z_T).mean(), given, rows=rows, temperature=temperature, chunk_tokens=6
    )


@pytest.mark.parametrize("kind", ["topk", "hard"])
def test_hard_labels_equal_plain_at_temperature_one(kind: str) -> None:
    given = problem()
    p_TV = given.teacher_probs()
    rows = topk_rows(p_TV, 4) if kind == "topk" else hard_rows(p_TV)
    plain = cross_entropy(log_softmax(given.hidden_TD, given.head_VD), p_TV.argmax(-1)).mean()
    assert_equal(HardLabels(), plain, given, rows=rows, temperature=2.0)


def test_renormalised_equals_plain_and_warns_once() -> None:
    given = problem()
    p_TV = given.teacher_probs()
    rows = topk_rows(p_TV, 6)
    plain = renormalised_kl(p_TV, log_softmax(given.hidden_TD, given.head_VD), rows.ids_TK).mean()
    _warn.cache_clear()
    with pytest.warns(UserWarning, match="biased"):
        assert_equal(ForwardKL(tail="renormalised"), plain, given, rows=rows)
    output = loss_of(ForwardKL(tail="renormalised"), given, rows=rows)  # a second warning would be an error
    assert set(output.per_term) == {"ce", "forward_kl_renormalised"}


def test_masked_positions_are_as_if_absent_whatever_they_hold() -> None:
    given = problem()
    p_TV = given.teacher_probs()
    mask_T = torch.arange(13) % 3 != 0
    logq_TV = log_softmax(given.hidden_TD, given.head_VD)
    rows = topk_rows(p_TV, 7)
    plain = bucket_kl(p_TV, logq_TV, rows.ids_TK)[mask_T].mean()
    rows.log_probs_TK[~mask_T] = float("nan")
    rows.tail_T[~mask_T] = float("nan")
    assert_equal(ForwardKL(), plain, given, rows=rows, mask_T=mask_T, chunk_tokens=4)
    dense = kl(p_TV, log_softmax(given.hidden_TD, given.head_VD))[mask_T].mean()
    assert_equal(ForwardKL(), dense, given, rows=dense_rows(given), mask_T=mask_T, chunk_tokens=4)
    assert loss_of(ForwardKL(), given, rows, mask_T=mask_T).tokens == int(mask_T.sum())


def test_all_masked_is_zero_with_zero_gradients() -> None:
    given = problem()
    output = loss_of(ForwardKL(), given, topk_rows(given.teacher_probs(), 3), mask_T=torch.zeros(13, dtype=torch.bool))
    assert output.tokens == 0
    assert output.loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(output.loss, given))


def test_per_term_reports_unweighted_means_without_temperature_squared() -> None:
    given = problem()
    rows, kl_T = signal_and_twin("topk", given, 2.0)
    logits_TV = given.hidden_TD @ given.head_VD.T
    terms = (WeightedTerm(weight=0.25, term=ForwardKL()), WeightedTerm(weight=3.0, term=HardLabels()))
    output = loss_of(Mixture(terms=terms, z_loss_weight=0.5), given, rows, temperature=2.0, normaliser=20.0, chunk_tokens=5)
    logq_TV = torch.log_softmax(logits_TV, -1)
    expected = {
        "ce": cross_entropy(logq_TV, given.targets_T).sum() / 20,
        "forward_kl": kl_T.sum() / 20,
        "hard": cross_entropy(logq_TV, given.teacher_probs().argmax(-1)).sum() / 20,
        "z_loss": torch.logsumexp(logits_TV, -1).square().sum() / 20,
    }
    assert set(output.per_term) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(output.per_term[name], value.detach(), rtol=0, atol=1e-12)
        assert not output.per_term[name].requires_grad


def test_micro_batches_with_the_global_normaliser_sum_to_the_whole() -> None:
    given = problem()
    rows = topk_rows(given.teacher_probs(), 5)
    mask_T = torch.arange(13) != 2
    whole = loss_of(ForwardKL(), given, rows, mask_T=mask_T).loss
    expected = gradients(whole, given)
    total = torch.zeros((), dtype=torch.float64)
    found = [torch.zeros_like(given.hidden_TD), torch.zeros_like(given.head_VD)]
    # Parts of 4 and 9 positions: a mean of their means would weigh them alike.
    for part in (slice(0, 4), slice(4, 13)):
        part_rows = TopKRows(rows.ids_TK[part], rows.log_probs_TK[part], rows.tail_T[part], rows.entropy_T[part])
        texts = {"hidden_TD": given.hidden_TD[part], "targets_T": given.targets_T[part], "mask_T": mask_T[part]}
        loss = loss_of(ForwardKL(), given, part_rows, normaliser=torch.tensor(12.0), **texts).loss
        total += loss.detach()
        found = [a + b for a, b in zip(found, gradients(loss, given), strict=True)]
    torch.testing.assert_close(total, whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(tuple(found), expected, rtol=0, atol=1e-12)
