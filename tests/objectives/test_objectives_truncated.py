"""What truncated divergences must be: bounds, optima, leaks and blind spots, shares and averages, beyond their formulas."""

from dataclasses import replace

import pytest
import torch
from objective_problem import Problem, dense_rows, gradients, loss_of, problem, topk_rows
from reference import kl, log_softmax
from torch import Tensor

from limbeck.objectives.divergences import coarse_divergence, conditional_kl, renormalised_reverse_kl, stop_gradient_reverse_kl
from limbeck.objectives.head import HeadStatistics
from limbeck.objectives.objective import _warn
from limbeck.signals.types import SampledRows, TopKRows, sparse_target
from limbeck.spec.objective import (
    DecoupledKL,
    ForwardKL,
    JensenShannon,
    Mixture,
    Objective,
    PairTerm,
    ReverseKL,
    SkewKL,
)
from limbeck.spec.signal import DenseSignal, HybridSignal, SampledSignal, Signal, TopKSignal
from limbeck.testing.toy import Toy, make_toy, padded, toy_rows

PAIRS: tuple[PairTerm, ...] = (ReverseKL(), JensenShannon(), SkewKL(), SkewKL(direction="reverse"))


def statistics_of(logits_TV: Tensor, ids_TK: Tensor) -> HeadStatistics:
    return HeadStatistics(torch.logsumexp(logits_TV, -1), logits_TV.gather(1, ids_TK))


def toy_loss(toy: Toy, signal: Signal, *, seed: int) -> tuple[Tensor, Tensor]:
    """Forward KL on one draw of the signal, and its gradient of the head."""
    given = Problem(
        toy.hidden_TD, toy.head_VD.clone().requires_grad_(), toy.targets_T, toy.teacher_hidden_TE, toy.teacher_head_VE
    )
    loss = loss_of(ForwardKL(), given, toy_rows(signal, toy, seed=seed)).loss
    return loss.detach(), torch.autograd.grad(loss, given.head_VD)[0].flatten()


@pytest.mark.parametrize(
    "signal", [SampledSignal(draws=8, proposal_temperature=1.6), HybridSignal(k=2, draws=4), SampledSignal(draws=8)]
)
def test_drawn_signals_average_to_the_dense_divergence(signal: Signal) -> None:
    toy = make_toy(tokens=4, vocabulary=7, width=3)
    if isinstance(signal, SampledSignal) and signal.proposal_temperature != 1:
        rows = toy_rows(signal, toy)
        assert isinstance(rows, SampledRows) and rows.weights_TK is not None
        sums_T = (rows.counts_TK / 8 * rows.weights_TK).sum(-1)
        assert (sums_T - 1).abs().min() > 1e-3  # as importance weights do, and nothing divides them by their sum
    exact, expected = toy_loss(toy, DenseSignal(), seed=0)
    losses, found = zip(*(toy_loss(toy, signal, seed=seed) for seed in range(400)), strict=True)
    loss, gradient = torch.stack(losses), torch.stack(found)
    assert abs(loss.mean() - exact) < 3 * loss.std() / 20
    assert loss.std() / 20 < 0.05
    # 21 components: at 3.5 sigma one such test in a hundred would fail by chance.
    assert ((gradient.mean(0) - expected) / (gradient.std(0) / 20)).abs().max() < 3.5
    assert expected.norm() > 3 * (gradient.std(0) / 20).norm()


def test_decoupled_with_equal_weights_at_temperature_one_is_the_tail_bucket() -> None:
    """The chain rule of KL."""
    given = problem()
    rows = topk_rows(given.teacher_probs(), 6)
    whole, parts = (loss_of(each, given, rows) for each in (ForwardKL(), DecoupledKL(temperature=1.0)))
    torch.testing.assert_close(parts.loss, whole.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(parts.loss, given), gradients(whole.loss, given), rtol=0, atol=1e-12)
    assert set(parts.per_term) == {"ce", "decoupled_mass", "decoupled_conditional"}


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1e3])
def test_the_conditional_is_right_at_extreme_temperatures(temperature: float) -> None:
    given = problem()
    p_TV = given.teacher_probs()
    rows = topk_rows(p_TV, 4)
    alone = DecoupledKL(temperature=temperature, mass_weight=0, by_mass=False, temperature_squared=False)
    p_TK = torch.softmax(p_TV.gather(1, rows.ids_TK).log() / temperature, -1)
    z_TK = (given.hidden_TD @ given.head_VD.T).gather(1, rows.ids_TK)
    plain = kl(p_TK, torch.log_softmax(z_TK / temperature, -1)).mean()
    found = loss_of(alone, given, rows).loss
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(found, given)[0], gradients(plain, given)[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "objective", [ReverseKL(label_share=0.2), JensenShannon(label_share=0.2), ForwardKL(tail="text"), DecoupledKL()]
)
def test_a_label_that_looks_like_padding_is_no_padding(objective: Objective) -> None:
    """Padding is id 0 of no probability; here the text's own token is 0, and some rows name it and some do not."""
    given = replace(problem(), targets_T=torch.zeros(13, dtype=torch.int64))
    rows = topk_rows(given.teacher_probs(), 9)
    assert 0 < int((rows.ids_TK == 0).any(-1).sum()) < 13
    plain, with_padding = (loss_of(objective, given, each).loss for each in (rows, padded(rows)))
    torch.testing.assert_close(with_padding, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(with_padding, given), gradients(plain, given), rtol=0, atol=1e-12)


def test_the_conditional_does_not_see_where_logits_lie() -> None:
    """Padding stands for nothing beside real ids whose logits are all far below zero."""
    given = problem()
    rows = topk_rows(given.teacher_probs(), 4)
    z_TV = (given.hidden_TD @ given.head_VD.T).detach()
    losses = [
        conditional_kl(statistics_of(z_TV - shift, each.ids_TK), sparse_target(each), temperature=2.0)
        for each, shift in ((rows, 0.0), (padded(rows), 3e4))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("term", PAIRS)
def test_the_coarse_divergence_is_a_lower_bound_and_grows_with_the_ids(term: PairTerm) -> None:
    given = problem(seed=4)
    p_TV = given.teacher_probs()
    bounds = [loss_of(term, given, topk_rows(p_TV, k)).loss.item() for k in (1, 3, 9, 36, 37)]
    assert 0 <= bounds[0] < bounds[1] < bounds[2] < bounds[3]
    assert bounds[3] == pytest.approx(bounds[4], abs=1e-10)


def test_the_truncated_reverse_kl_leaks_by_the_gradient_of_its_mass_and_the_stopped_one_does_not() -> None:
    """d of sum_K q log(q / p) is sum_K log(q / p) dq + dQ_K, and the last term pushes mass out of K."""
    p_TV = problem(tokens=4, vocabulary=9).teacher_probs()
    rows = topk_rows(p_TV, 3)
    target = sparse_target(rows)
    z_TV = problem(tokens=4, vocabulary=9, seed=8).teacher_probs().log().requires_grad_()
    logq_TK = torch.log_softmax(z_TV, -1).gather(1, rows.ids_TK)
    raw = (logq_TK.exp() * (logq_TK - target.probs_TK.log())).sum()
    (raw_TV,) = torch.autograd.grad(raw, z_TV, retain_graph=True)
    (mass_TV,) = torch.autograd.grad(logq_TK.exp().sum(), z_TV)
    stopped = stop_gradient_reverse_kl(statistics_of(z_TV, rows.ids_TK), target).sum()
    (stopped_TV,) = torch.autograd.grad(stopped, z_TV)
    torch.testing.assert_close(stopped_TV, raw_TV - mass_TV, rtol=0, atol=1e-12)
    assert mass_TV.abs().max() > 0.01
    # Where q = p on K and the tails differ in shape alone, all three forms rest but the raw one.
    rest_TV = p_TV.log().requires_grad_()
    for form in (stop_gradient_reverse_kl, renormalised_reverse_kl, lambda s, t: coarse_divergence(ReverseKL(), s, t)):
        (gradient_TV,) = torch.autograd.grad(form(statistics_of(rest_TV, rows.ids_TK), target).sum(), rest_TV)
        assert gradient_TV.abs().max() < 1e-12


def test_the_renormalised_form_is_blind_outside_its_ids_and_the_tail_is_not() -> None:
    given = problem(tokens=4, vocabulary=9)
    rows = topk_rows(given.teacher_probs(), 3)
    target = sparse_target(rows)
    z_TV = (given.hidden_TD @ given.head_VD.T).detach()
    outside_TV = torch.ones_like(z_TV).scatter(1, rows.ids_TK, 0.0)
    before, after = (statistics_of(each_TV, rows.ids_TK) for each_TV in (z_TV, z_TV + 5 * outside_TV))
    torch.testing.assert_close(
        renormalised_reverse_kl(after, target), renormalised_reverse_kl(before, target), rtol=0, atol=1e-12
    )
    assert (coarse_divergence(ReverseKL(), after, target) > coarse_divergence(ReverseKL(), before, target)).all()


def test_biased_forms_warn_once_each() -> None:
    given = problem()
    rows = topk_rows(given.teacher_probs(), 6)
    _warn.cache_clear()
    with pytest.warns(UserWarning, match="form=renormalised is blind"):
        loss_of(ReverseKL(form="renormalised"), given, rows)
    loss_of(ReverseKL(form="renormalised"), given, rows)
    loss_of(ReverseKL(form="stop_gradient"), given, rows)


@pytest.mark.parametrize("term", [*PAIRS, ReverseKL(form="stop_gradient"), ReverseKL(form="renormalised")])
@pytest.mark.parametrize("tail", [0.0, 1e-40, 1e-7, 0.5])
@pytest.mark.parametrize("logits", [[1e4, 0.0, 0.0], [-1e4, 0.0, 0.0], [0.0, 0.0, -1e4], [50.0, 40.0, 1e4], [0.0, -1e4, -1e4]])
@pytest.mark.filterwarnings("ignore:.*renormalised.*")
def test_extreme_values_stay_finite_in_float32(term: PairTerm, tail: float, logits: list[float]) -> None:
    head_VD = torch.tensor(logits)[:, None].requires_grad_()
    hidden_TD = torch.ones(1, 1, requires_grad=True)
    rows = TopKRows(torch.tensor([[0, 1]]), torch.tensor([[1 - tail, 0.0]]).log(), torch.tensor([tail]), torch.zeros(1))
    texts = {"hidden_TD": hidden_TD, "head_VD": head_VD, "targets_T": torch.tensor([2])}
    loss = loss_of(term, problem(), rows, **texts).loss
    found = torch.autograd.grad(loss, (hidden_TD, head_VD))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found)


def test_a_student_whose_tail_is_lost_in_rounding_is_still_pulled_back() -> None:
    """Its tail, 1e-9, is nothing beside 1 in float32; a teacher with half its mass there must raise it."""
    target = sparse_target(TopKRows(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5]), torch.tensor([0.7])))
    for term in PAIRS:
        z_TV = torch.tensor([[20.7, 0.0]], requires_grad=True)
        loss = coarse_divergence(term, statistics_of(z_TV, target.ids_TK), target).sum()
        assert loss > 0
        assert torch.autograd.grad(loss, z_TV)[0][0, 1] < 0


@pytest.mark.parametrize("threshold", [0.6, 1.0])
@pytest.mark.parametrize("signal", ["topk", "dense", "sampled"])
def test_routing_shares_positions_out(signal: str, threshold: float) -> None:
    """Below and from the threshold add up to the whole, and are the halves that the teacher's own entropy says."""
    toy = make_toy()
    spec: dict[str, Signal] = {"topk": TopKSignal(k=2), "dense": DenseSignal(), "sampled": SampledSignal(draws=9)}
    given = Problem(toy.hidden_TD, toy.head_VD, toy.targets_T, toy.teacher_hidden_TE, toy.teacher_head_VE)
    rows = toy_rows(spec[signal], toy)
    whole = loss_of(ForwardKL(), given, rows)
    halves = Mixture(
        terms=(
            {"weight": 1, "term": ForwardKL(), "entropy": {"below_nats": threshold}},
            {"weight": 1, "term": ForwardKL(), "entropy": {"from_nats": threshold}},
        )
    )
    output = loss_of(halves, given, rows, chunk_tokens=5)
    torch.testing.assert_close(output.loss, whole.loss, rtol=0, atol=1e-12)
    low_T = torch.special.entr(toy.teacher_probs(1.0)).sum(-1) < threshold
    assert 0 < int(low_T.sum()) < len(low_T)
    alone = loss_of(ForwardKL(), given, rows, mask_T=low_T, normaliser=len(low_T)).loss
    torch.testing.assert_close(output.per_term[f"forward_kl[entropy ..{threshold:g}]"], alone, rtol=0, atol=1e-12)


def test_a_forward_kl_to_labels_mixed_in_is_a_mixture_up_to_a_constant() -> None:
    """So it has no key of its own: the difference to a CE + (1 - a) KL is the same for every student."""
    share, constants = 0.3, []
    for seed in (0, 5):
        student = problem(seed=seed)
        given = replace(problem(), hidden_TD=student.hidden_TD, head_VD=student.head_VD)
        p_TV, logq_TV = given.teacher_probs(), log_softmax(given.hidden_TD, given.head_VD)
        mixed_TV = (1 - share) * p_TV + share * torch.nn.functional.one_hot(given.targets_T, 37).double()
        terms = ({"weight": share, "term": {"kind": "ce"}}, {"weight": 1 - share, "term": ForwardKL()})
        constants.append((kl(mixed_TV, logq_TV).mean() - loss_of(Mixture(terms=terms), given, dense_rows(given)).loss).item())
    assert constants[0] == pytest.approx(constants[1], abs=1e-12)
    assert abs(constants[0]) > 0.1
