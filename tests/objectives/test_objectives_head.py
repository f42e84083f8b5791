"""The head primitive: statistics and both of its doors, dtypes, tied weights, frozen parts."""

import pytest
import torch
from objective_problem import dense_rows, gradients, loss_of, problem, topk_rows
from reference import cross_entropy, log_softmax

from limbeck.objectives.head import HeadStatistics, LossSums, head_loss, head_statistics
from limbeck.signals.types import DenseRows, TopKRows
from limbeck.spec.objective import CrossEntropy, ForwardKL, Mixture, WeightedTerm

IDS_TK = torch.tensor([[3, 3, 0], [1, 6, 2], [0, 5, 4], [6, 0, 1]])  # one id repeated in a row


@pytest.mark.parametrize("chunk_tokens", [1, 3, None])
def test_statistics_are_those_of_the_plain_logits(chunk_tokens: int | None) -> None:
    given = problem(tokens=4, vocabulary=7, width=3)
    teacher = dense_rows(given, 1.5)
    found = head_statistics(
        given.hidden_TD,
        head_VD=given.head_VD,
        ids_TK=IDS_TK,
        temperatures=(1.0, 2.0),
        teacher=teacher,
        chunk_tokens=chunk_tokens,
    )
    p_TV = given.teacher_probs(1.5)
    for statistics, temperature in zip(found, (1.0, 2.0), strict=True):
        z_TV = given.hidden_TD @ given.head_VD.T / temperature
        torch.testing.assert_close(statistics.lse_T, torch.logsumexp(z_TV, -1), rtol=0, atol=1e-12)
        torch.testing.assert_close(statistics.gathered_TK, z_TV.gather(1, IDS_TK), rtol=0, atol=1e-12)
        torch.testing.assert_close(statistics.expected_T, (p_TV * z_TV).sum(-1), rtol=0, atol=1e-12)
        torch.testing.assert_close(statistics.teacher_entropy_T, -(p_TV * p_TV.log()).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_statistics_gradcheck(with_teacher: bool) -> None:
    given = problem(tokens=4, vocabulary=7, width=3)

    def tensors(hidden_TD: torch.Tensor, head_VD: torch.Tensor) -> list[torch.Tensor]:
        teacher = dense_rows(given) if with_teacher else None
        options = {"ids_TK": IDS_TK, "temperatures": (1.0, 0.7), "teacher": teacher, "chunk_tokens": 3}
        found = head_statistics(hidden_TD, head_VD=head_VD, **options)
        parts = [[s.lse_T, s.gathered_TK] + ([s.expected_T] if with_teacher else []) for s in found]
        return [tensor for part in parts for tensor in part]

    assert torch.autograd.gradcheck(tensors, (given.hidden_TD, given.head_VD))


def sine_of_everything(statistics: tuple[HeadStatistics, ...]) -> torch.Tensor:
    """Uses every statistic, non-linearly, with no shift invariance to hide behind."""
    return torch.stack([(s.lse_T.sin() + s.gathered_TK.cos().sum(-1) + s.expected_T.square()).sum() for s in statistics]).sum()


def test_loss_and_statistics_agree_for_any_function_of_them() -> None:
    given = problem(tokens=4, vocabulary=7, width=3)
    options = {"ids_TK": IDS_TK, "temperatures": (1.0, 3.0), "teacher": dense_rows(given)}
    by_statistics = sine_of_everything(head_statistics(given.hidden_TD, head_VD=given.head_VD, **options))
    by_loss = head_loss(
        given.hidden_TD,
        head_VD=given.head_VD,
        per_token=lambda statistics, _: LossSums(sine_of_everything(statistics), {}),
        chunk_tokens=3,
        **options,
    ).loss
    torch.testing.assert_close(by_loss, by_statistics, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(by_loss, given), gradients(by_statistics, given), rtol=0, atol=1e-12)


def test_statistics_of_one_kind_alone_have_gradients() -> None:
    given = problem(tokens=4, vocabulary=7, width=3)
    (statistics,) = head_statistics(given.hidden_TD, head_VD=given.head_VD, ids_TK=IDS_TK)
    found = gradients(statistics.gathered_TK.sum(), given)
    plain = gradients((given.hidden_TD @ given.head_VD.T).gather(1, IDS_TK).sum(), given)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


def test_per_token_sees_each_position_once_and_at_most_a_chunk() -> None:
    given = problem(tokens=13)
    seen: list[slice] = []

    def per_token(statistics: tuple[HeadStatistics, ...], rows: slice) -> LossSums:
        seen.append(rows)
        assert len(statistics[0].lse_T) == rows.stop - rows.start
        return LossSums(statistics[0].lse_T.sum(), {"lse": statistics[0].lse_T.detach().sum()})

    ids_TK = given.targets_T[:, None]
    sums = head_loss(given.hidden_TD, head_VD=given.head_VD, ids_TK=ids_TK, per_token=per_token, chunk_tokens=5)
    assert seen == [slice(0, 5), slice(5, 10), slice(10, 13)]
    assert sums.report["lse"].item() == pytest.approx(sums.loss.item(), rel=1e-14)


def test_no_grad_gives_the_same_value_and_no_graph() -> None:
    given = problem()
    rows = topk_rows(given.teacher_probs(), 5)
    expected = loss_of(ForwardKL(), given, rows).loss
    with torch.no_grad():
        loss = loss_of(ForwardKL(), given, rows).loss
    assert not loss.requires_grad
    assert loss.item() == expected.item()


@pytest.mark.parametrize("frozen", ["hidden_TD", "head_VD"])
def test_a_frozen_part_gets_no_gradient_and_leaves_the_other_alone(frozen: str) -> None:
    given = problem()
    expected = gradients(loss_of(CrossEntropy(), given).loss, given)
    loss_of(CrossEntropy(), given, **{frozen: getattr(given, frozen).detach()}).loss.backward()
    if frozen == "hidden_TD":
        torch.testing.assert_close(given.head_VD.grad, expected[1], rtol=0, atol=0)
    else:
        torch.testing.assert_close(given.hidden_TD.grad, expected[0], rtol=0, atol=0)


def test_backward_twice_is_refused_rather_than_wrong() -> None:
    given = problem()
    loss = loss_of(CrossEntropy(), given).loss
    gradients_once = torch.autograd.grad(loss, given.head_VD, retain_graph=True)
    assert gradients_once[0].any()
    with pytest.raises(AssertionError, match="once"):
        torch.autograd.grad(loss, given.head_VD)


def test_gradients_through_a_tied_head_add_to_the_embeddings() -> None:
    given = problem()
    weight_VD = torch.nn.Parameter(given.head_VD.detach().clone())
    inputs_T = given.targets_T.roll(1)
    loss_of(CrossEntropy(), given, hidden_TD=torch.tanh(weight_VD[inputs_T]), head_VD=weight_VD).loss.backward()
    twin_VD = weight_VD.detach().clone().requires_grad_()
    cross_entropy(log_softmax(torch.tanh(twin_VD[inputs_T]), twin_VD), given.targets_T).mean().backward()
    torch.testing.assert_close(weight_VD.grad, twin_VD.grad, rtol=0, atol=1e-10)


def test_float32_gives_float32_close_to_float64() -> None:
    given = problem(tokens=50, vocabulary=300, width=16)
    rows = topk_rows(given.teacher_probs(), 8)
    exact = loss_of(ForwardKL(), given, rows).loss
    hidden_TD, head_VD = (tensor.detach().float().requires_grad_() for tensor in (given.hidden_TD, given.head_VD))
    single = loss_of(ForwardKL(), given, rows, hidden_TD=hidden_TD, head_VD=head_VD, chunk_tokens=16).loss
    # A logit is a sum of 16 products of size up to ~10, so it errs by ~16 * 10 * 2^-24 = 1e-5; the loss is a mean of such.
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)
    found = torch.autograd.grad(single, (hidden_TD, head_VD))
    assert [gradient.dtype for gradient in found] == [torch.float32, torch.float32]
    torch.testing.assert_close([g.double() for g in found], list(gradients(exact, given)), rtol=1e-4, atol=1e-6)


def in_float32(rows: TopKRows | DenseRows) -> TopKRows | DenseRows:
    if isinstance(rows, DenseRows):
        return DenseRows(rows.hidden_TE.float(), rows.head_VE.float(), rows.temperature)
    return TopKRows(rows.ids_TK, rows.log_probs_TK.float(), rows.tail_T.float(), rows.entropy_T.float())


@pytest.mark.parametrize("signal", ["topk", "dense"])
def test_bfloat16_autocast_stays_near_float64(signal: str) -> None:
    given = problem(tokens=64, vocabulary=300, width=16)
    rows = topk_rows(given.teacher_probs(), 8) if signal == "topk" else dense_rows(given)
    halves = (WeightedTerm(weight=0.5, term=CrossEntropy()), WeightedTerm(weight=0.5, term=ForwardKL()))
    exact = loss_of(Mixture(terms=halves), given, rows).loss
    expected = gradients(exact, given)
    hidden_TD, head_VD = (tensor.detach().float().requires_grad_() for tensor in (given.hidden_TD, given.head_VD))
    rows = in_float32(rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(Mixture(terms=halves), given, rows, hidden_TD=hidden_TD, head_VD=head_VD, chunk_tokens=16).loss
    assert loss.dtype == torch.float32
    loss.backward()
    # bfloat16 rounds by up to 2^-9 relative. A logit of standard deviation 4 = sqrt(16) is rounded in both factors and in the
    # result: absolute error about sqrt(3) * 4 * 2^-9 = 0.014 each, which a probability feels as a relative error. Averaged over
    # 64 positions the loss errs by less than one such; the gradient, as a vector, by a relative 0.014 of its softmax part plus
    # 2^-9 for each of the rounded factors of its product. Factor 2 for luck.
    assert abs(loss.item() - exact.item()) < 0.014
    for found, want in zip((hidden_TD.grad, head_VD.grad), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - want).norm() / want.norm() < 2 * (0.014 + 2 * 2**-9)
    assert (hidden_TD.grad - expected[0]).norm() / expected[0].norm() > 1e-5  # it did run in bfloat16


def test_the_head_gradient_is_summed_in_float32_over_bfloat16_chunks() -> None:
    # Equal positions: each chunk of one adds the same gradient. In bfloat16 the sum would stall once it is 2^8 times an addend.
    hidden_TD = torch.ones(600, 4, requires_grad=True)
    head_VD = torch.zeros(8, 4, requires_grad=True)
    targets_T = torch.zeros(600, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(
            CrossEntropy(), problem(), hidden_TD=hidden_TD, head_VD=head_VD, targets_T=targets_T, chunk_tokens=1
        ).loss
    loss.backward()
    expected = torch.full((8, 4), 1 / 8)
    expected[0] -= 1
    torch.testing.assert_close(head_VD.grad, expected, rtol=1e-6, atol=0)
