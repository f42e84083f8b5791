"""What the objectives must be, whatever their code: zero for a perfect student, unbiased, aligned, on a fixed scale, finite."""

import itertools

import pytest
import torch
from objective_problem import (
    Problem,
    dense_rows,
    gradients,
    hard_rows,
    loss_of,
    problem,
    same_teacher,
    sampled_rows,
    topk_rows,
)
from reference import bucket_kl, kl, log_softmax

from limbeck.errors import SpecError
from limbeck.objectives.divergences import forward_kl, renormalised_forward_kl
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import DenseRows, SampledRows, SignalRows, SparseTarget, TopKRows, sparse_target
from limbeck.spec.objective import CrossEntropy, ForwardKL, HardLabels

KINDS = ("topk", "sampled", "hard", "dense")


def rows_of(kind: str, given: Problem) -> SignalRows:
    p_TV = given.teacher_probs()
    match kind:
        case "topk":
            return topk_rows(p_TV, 6)
        case "sampled":
            draws_TN = torch.multinomial(p_TV, 16, replacement=True, generator=torch.Generator().manual_seed(2))
            return sampled_rows(draws_TN, p_TV)
        case "hard":
            return hard_rows(p_TV)
        case _:
            return dense_rows(given)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["topk", "topk k=V", "dense"])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(kind: str, temperature: float) -> None:
    given = same_teacher(problem())
    p_TV = given.teacher_probs(temperature)
    k = {"topk": 6, "topk k=V": p_TV.shape[1]}.get(kind)
    rows = dense_rows(given, temperature) if k is None else topk_rows(p_TV, k)
    loss = loss_of(ForwardKL(), given, rows, temperature=temperature).loss
    assert abs(loss.item()) < 1e-12
    for gradient in gradients(loss, given):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def mean_and_error(values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    stacked = torch.stack(values)
    return stacked.mean(0), stacked.std(0) / len(values) ** 0.5


@pytest.mark.parametrize("equal", [False, True])
def test_sampled_averages_to_dense_in_value_and_gradient(equal: bool) -> None:
    given = problem(tokens=3, vocabulary=6, width=4)
    given = same_teacher(given) if equal else given
    p_TV = given.teacher_probs()
    exact = kl(p_TV, log_softmax(given.hidden_TD, given.head_VD)).mean()
    expected = torch.cat([gradient.flatten() for gradient in gradients(exact, given)])
    draw = torch.Generator().manual_seed(3)
    losses, found = [], []
    for _ in range(300):
        rows = sampled_rows(torch.multinomial(p_TV, 8, replacement=True, generator=draw), p_TV)
        loss = loss_of(ForwardKL(), given, rows).loss
        losses.append(loss.detach())
        found.append(torch.cat([gradient.flatten() for gradient in gradients(loss, given)]))
    mean, error = mean_and_error(losses)
    assert abs(mean - exact) < 3 * error
    assert error < 0.05
    # 36 components: at 3 sigma one such test in ten would fail by chance, at 3.5 one in sixty.
    gradient, gradient_error = mean_and_error(found)
    assert ((gradient - expected) / gradient_error).abs().max() < 3.5
    assert gradient_error.norm() < 0.1
    assert equal or expected.norm() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_sure_of_the_text_is_cross_entropy(kind: str) -> None:
    given = problem()
    one_hot_TV = torch.nn.functional.one_hot(given.targets_T, 37).double()
    match kind:
        case "topk":
            rows: SignalRows = topk_rows(one_hot_TV, 5)
        case "sampled":
            rows = sampled_rows(given.targets_T[:, None].expand(-1, 4), one_hot_TV)
        case "hard":
            rows = hard_rows(one_hot_TV)
        case _:
            rows = DenseRows(1e4 * one_hot_TV, torch.eye(37, dtype=torch.float64), 1.0)
    soft, hard = loss_of(ForwardKL(), given, rows), loss_of(CrossEntropy(), given)
    torch.testing.assert_close(soft.loss, hard.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(soft.loss, given), gradients(hard.loss, given), rtol=0, atol=1e-12)
    torch.testing.assert_close(soft.per_term["ce"], hard.loss.detach(), rtol=0, atol=1e-12)


def repeated(rows: SignalRows, times: int) -> SignalRows:
    def many(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat(times, *[1] * (tensor.ndim - 1))

    match rows:
        case TopKRows():
            return TopKRows(many(rows.ids_TK), many(rows.log_probs_TK), many(rows.tail_T), many(rows.entropy_T))
        case SampledRows():
            return SampledRows(many(rows.ids_TK), many(rows.counts_TK), many(rows.entropy_T))
        case DenseRows():
            return DenseRows(many(rows.hidden_TE), rows.head_VE, rows.temperature)
        case _:
            return type(rows)(many(rows.ids_T))


@pytest.mark.parametrize("kind", KINDS)
def test_more_of_the_same_tokens_leaves_loss_and_head_gradient_alone(kind: str) -> None:
    given, rows = problem(), rows_of(kind, problem())
    once = loss_of(ForwardKL(), given, rows).loss
    texts = {"hidden_TD": given.hidden_TD.repeat(4, 1), "targets_T": given.targets_T.repeat(4)}
    four_times = loss_of(ForwardKL(), given, repeated(rows, 4), **texts).loss
    torch.testing.assert_close(four_times, once, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(four_times, given), gradients(once, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["topk", "dense"])
def test_temperature_squared_keeps_gradients_on_one_scale(kind: str) -> None:
    # Hinton et al. 2015, eq. 4: at high temperature tau^2 KL tends to half the mean over V of squared centred differences.
    given = problem()
    tau = 1e5
    p_TV = given.teacher_probs(tau)
    rows = topk_rows(p_TV, 37) if kind == "topk" else dense_rows(given, tau)
    student_TV = given.hidden_TD @ given.head_VD.T
    teacher_TV = given.teacher_hidden_TE @ given.teacher_head_VE.T
    difference_TV = (student_TV - student_TV.mean(-1, keepdim=True)) - (teacher_TV - teacher_TV.mean(-1, keepdim=True))
    limit = gradients(difference_TV.square().mean() / 2, given)
    found = gradients(loss_of(ForwardKL(), given, rows, temperature=tau).loss, given)
    torch.testing.assert_close(found, limit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_listens_to_the_teacher(kind: str) -> None:
    given, other = problem(), problem(seed=9)
    loss, other_loss = (loss_of(ForwardKL(), given, rows_of(kind, teacher)).loss.item() for teacher in (given, other))
    assert abs(loss - other_loss) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_spike_in_the_teacher_at_one_position_reaches_only_that_position(kind: str) -> None:
    given = problem()
    calm = gradients(loss_of(ForwardKL(), given, rows_of(kind, given), chunk_tokens=4).loss, given)[0]
    spiked = problem()  # its draws at other positions are the same: they come from the same uniform numbers
    # Towards the row of the head of an unlikely token: its logit rises far above the others.
    unlikely = given.teacher_probs()[6].argmin()
    spiked.teacher_hidden_TE[6] += 20 * given.teacher_head_VE[unlikely]
    moved = gradients(loss_of(ForwardKL(), given, rows_of(kind, spiked), chunk_tokens=4).loss, given)[0]
    changed = (moved - calm).abs().amax(-1) > 1e-12
    assert changed.nonzero().flatten().tolist() == [6]


def statistics_of(logits_TV: torch.Tensor, ids_TK: torch.Tensor) -> HeadStatistics:
    return HeadStatistics(torch.logsumexp(logits_TV, -1), logits_TV.gather(1, ids_TK))


def test_the_tail_bucket_is_right_on_the_ids_and_renormalising_is_not() -> None:
    """Optimum q = p on the ids with the bucket, whatever the shape of the tail; q = p / P_K without it."""
    p_TV = problem(tokens=4, vocabulary=9).teacher_probs()
    target = sparse_target(topk_rows(p_TV, 3))
    ids_TK = target.ids_TK
    tail_shape_TV = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).scatter(1, ids_TK, 0.0)
    tail_TV = tail_shape_TV / tail_shape_TV.sum(-1, keepdim=True) * target.tail_T[:, None]
    right_TV = torch.zeros_like(p_TV).scatter(1, ids_TK, target.probs_TK) + tail_TV
    z_TV = right_TV.log().requires_grad_()
    loss = forward_kl(statistics_of(z_TV, ids_TK), target).sum()
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, z_TV)[0].abs().max() < 1e-12
    # Renormalised: at q = p it still pulls mass from the tail to the ids, by the analytic q - p / P_K.
    biased = torch.autograd.grad(renormalised_forward_kl(statistics_of(z_TV, ids_TK), target).sum(), z_TV)[0]
    head_TV = torch.zeros_like(p_TV).scatter(1, ids_TK, target.probs_TK)
    expected = right_TV - head_TV / head_TV.sum(-1, keepdim=True)
    torch.testing.assert_close(biased, expected, rtol=0, atol=1e-12)
    # ... and rests where the tail is dead.
    dead_TV = (head_TV / head_TV.sum(-1, keepdim=True)).clamp_min(1e-30).log().requires_grad_()
    rest = torch.autograd.grad(renormalised_forward_kl(statistics_of(dead_TV, ids_TK), target).sum(), dead_TV)[0]
    assert rest.abs().max() < 1e-12


def test_gradient_descent_on_the_bucket_finds_the_teacher_on_the_ids() -> None:
    p_TV = problem(tokens=3, vocabulary=6).teacher_probs()
    target = sparse_target(topk_rows(p_TV, 2))
    z_TV = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z_TV], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward_kl(statistics_of(z_TV, target.ids_TK), target).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    q_TK = torch.softmax(z_TV.detach(), -1).gather(1, target.ids_TK)
    torch.testing.assert_close(q_TK, p_TV.gather(1, target.ids_TK), rtol=0, atol=1e-6)


def test_the_tail_bucket_bounds_the_whole_divergence_from_below() -> None:
    for seed in range(5):
        given = problem(seed=seed)
        whole = loss_of(ForwardKL(), given, dense_rows(given)).loss.item()
        bounds = [loss_of(ForwardKL(), given, topk_rows(given.teacher_probs(), k)).loss.item() for k in (1, 3, 9, 36, 37)]
        assert bounds[0] >= 0
        # More ids say more (chain rule of KL); one left-out id is told by the tail itself.
        assert all(less < more + 1e-12 for less, more in itertools.pairwise(bounds))
        assert bounds[-1] == pytest.approx(whole, abs=1e-12)
        assert bounds[-2] == pytest.approx(whole, abs=1e-12)


def test_ids_of_zero_probability_say_nothing() -> None:
    given = problem()
    p_TV = given.teacher_probs()
    rows = topk_rows(p_TV, 4)
    padding = torch.zeros(13, 3, dtype=torch.int64)
    nothing = torch.full((13, 3), float("-inf"), dtype=torch.float64)
    ids_TK, log_probs_TK = torch.cat([rows.ids_TK, padding], 1), torch.cat([rows.log_probs_TK, nothing], 1)
    padded = TopKRows(ids_TK, log_probs_TK, rows.tail_T, rows.entropy_T)
    plain, with_padding = (loss_of(ForwardKL(), given, signal).loss for signal in (rows, padded))
    torch.testing.assert_close(with_padding, plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradients(with_padding, given), gradients(plain, given), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        plain, bucket_kl(p_TV, log_softmax(given.hidden_TD, given.head_VD), rows.ids_TK).mean(), rtol=0, atol=1e-10
    )


def extreme_target(kind: str) -> SparseTarget:
    """Two ids, 0 and 1, with all mass, with a little tail, or with half of it."""
    tail = {"no tail": 0.0, "denormal tail": 1e-40, "small tail": 1e-7, "half tail": 0.5}[kind]
    probs = torch.tensor([[1 - tail, 0.0]])
    return SparseTarget(torch.tensor([[0, 1]]), probs, torch.tensor([tail]), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("tail", ["no tail", "denormal tail", "small tail", "half tail"])
@pytest.mark.parametrize("logits", [[1e4, 0.0, 0.0], [-1e4, 0.0, 0.0], [0.0, 0.0, -1e4], [50.0, 40.0, 1e4], [0.0, -1e4, -1e4]])
def test_extreme_values_stay_finite_in_float32(logits: list[float], tail: str) -> None:
    target = extreme_target(tail)
    head_VD = torch.tensor(logits)[:, None].requires_grad_()
    hidden_TD = torch.ones(1, 1, requires_grad=True)
    rows = TopKRows(target.ids_TK, target.probs_TK.log(), target.tail_T, target.entropy_T)
    texts = {"hidden_TD": hidden_TD, "head_VD": head_VD, "targets_T": torch.tensor([2])}
    loss = loss_of(ForwardKL(), problem(), rows, **texts).loss
    found = torch.autograd.grad(loss, (hidden_TD, head_VD))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    # A divergence: below zero by rounding alone, which is that of logits as large as these.
    assert loss.item() > -1e-6 * max(1.0, max(map(abs, logits)))


def test_a_student_without_a_tail_is_pushed_to_grow_one() -> None:
    """Its own tail, 1e-9, is lost in float32 beside 1, yet the direction of the gradient must survive."""
    z_TV = torch.tensor([[20.7, 0.0]], requires_grad=True)
    target = SparseTarget(torch.tensor([[0]]), torch.tensor([[0.5]]), torch.tensor([0.5]), torch.tensor([0.6931]), None)
    (gradient,) = torch.autograd.grad(forward_kl(statistics_of(z_TV, target.ids_TK), target).sum(), z_TV)
    assert gradient[0, 1] < 0


def test_what_a_signal_cannot_give_is_refused() -> None:
    given = problem()
    with pytest.raises(SpecError, match="needs a teacher"):
        loss_of(ForwardKL(), given)
    for kind in ("sampled", "dense"):
        with pytest.raises(SpecError, match="use signal hard or topk or topp or hybrid"):
            loss_of(HardLabels(), given, rows_of(kind, given))
