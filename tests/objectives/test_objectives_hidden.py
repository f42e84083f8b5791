"""Hidden-state terms: the two distances, the projection, and the balance with the other terms."""

import pytest
import torch
from objective_problem import dense_rows, gradients, loss_of, problem, same_teacher
from reference import kl, log_softmax
from torch import nn

from limbeck.objectives.head import HeadStatistics
from limbeck.objectives.hidden import build_projection, hidden_distance
from limbeck.objectives.schedule import Moment
from limbeck.signals.types import SparseTarget
from limbeck.spec.objective import ForwardKL, HiddenStates, Mixture


def distances(distance: str, student_TE: torch.Tensor, teacher_TE: torch.Tensor) -> torch.Tensor:
    if distance == "mse":
        return ((student_TE - teacher_TE) ** 2).sum(-1) / student_TE.shape[1]
    return 1 - (student_TE * teacher_TE).sum(-1) / (student_TE.norm(dim=-1) * teacher_TE.norm(dim=-1))


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_projection_learns_what_the_formula_says(distance: str) -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    mask_T = torch.arange(13) != 4
    output = loss_of(HiddenStates(distance=distance), given, dense_rows(given), projection=projection, mask_T=mask_T)
    plain = distances(distance, given.hidden_TD @ projection.weight.T, given.teacher_hidden_TE)[mask_T].mean()
    torch.testing.assert_close(output.loss, plain, rtol=0, atol=1e-12)
    leaves = (given.hidden_TD, projection.weight)
    *found, head_VD = torch.autograd.grad(output.loss, (*leaves, given.head_VD))
    torch.testing.assert_close(tuple(found), torch.autograd.grad(plain, leaves), rtol=0, atol=1e-12)
    assert not head_VD.any()
    torch.testing.assert_close(output.per_term[f"hidden_{distance}"], plain.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [0.3, {"kind": "points", "at": [[0, 0.1], [1, 0.5]]}])
def test_beside_other_terms_it_is_weighted_like_any(weight: float | dict[str, object]) -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    mixture = Mixture(terms=({"weight": weight, "term": {"kind": "hidden"}}, {"weight": 2, "term": ForwardKL()}))
    loss = loss_of(mixture, given, dense_rows(given), projection=projection, moment=Moment(fraction=0.5)).loss
    states_T = distances("cosine", projection(given.hidden_TD), given.teacher_hidden_TE)
    plain = (0.3 * states_T + 2 * kl(given.teacher_probs(), log_softmax(given.hidden_TD, given.head_VD))).mean()
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(loss, given), gradients(plain, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1])
def test_balanced_is_as_large_as_all_other_terms_whatever_the_order(order: int) -> None:
    """And its gradient is that of a constant weight: the logits' loss over its own, times the share."""
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    terms = (
        {"weight": {"kind": "balanced", "share": 0.5}, "term": {"kind": "hidden", "distance": "mse"}},
        {"weight": 0.7, "term": ForwardKL()},
    )
    mixture = Mixture(terms=terms if order == 0 else terms[::-1])
    loss = loss_of(mixture, given, dense_rows(given), projection=projection).loss
    logits = 0.7 * kl(given.teacher_probs(), log_softmax(given.hidden_TD, given.head_VD)).mean()
    states = distances("mse", projection(given.hidden_TD), given.teacher_hidden_TE).mean()
    torch.testing.assert_close(loss, 1.5 * logits, rtol=0, atol=1e-12)
    constant = 0.5 * (logits / states).detach()
    torch.testing.assert_close(gradients(loss, given), gradients(logits + constant * states, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_balanced_counts_other_hidden_terms_among_the_others(order: int) -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    terms = (
        {"weight": {"kind": "balanced"}, "term": {"kind": "hidden", "distance": "mse"}},
        {"weight": 0.7, "term": ForwardKL()},
        {"weight": 2, "term": {"kind": "hidden"}},
    )
    output = loss_of(Mixture(terms=terms[::order]), given, dense_rows(given), projection=projection)
    others = 0.7 * output.per_term["forward_kl"] + 2 * output.per_term["hidden_cosine"]
    torch.testing.assert_close(output.loss.detach(), 2 * others, rtol=0, atol=1e-12)


def minus_lse(student: HeadStatistics, target: SparseTarget | None) -> torch.Tensor:
    """A loss below zero."""
    return -student.lse_T


def test_balanced_against_a_negative_sum_still_brings_the_two_nearer() -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    terms = (
        {"weight": {"kind": "balanced", "share": 0.5}, "term": {"kind": "hidden"}},
        {"weight": 2, "term": {"kind": "custom", "function": f"{__name__}:minus_lse"}},
    )
    loss = loss_of(Mixture(terms=terms), given, dense_rows(given), projection=projection).loss
    others = -2 * torch.logsumexp(given.hidden_TD @ given.head_VD.T, -1).mean()
    states = distances("cosine", projection(given.hidden_TD), given.teacher_hidden_TE).mean()
    assert others < 0
    constant = 0.5 * (-others / states).detach()
    torch.testing.assert_close(gradients(loss, given), gradients(others + constant * states, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_two_balanced_terms_are_each_as_large_as_those_that_are_not(order: int) -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    terms = (
        {"weight": {"kind": "balanced"}, "term": {"kind": "hidden", "distance": "mse"}},
        {"weight": 0.7, "term": ForwardKL()},
        {"weight": {"kind": "balanced", "share": 0.5}, "term": {"kind": "hidden"}},
    )
    loss = loss_of(Mixture(terms=terms[::order]), given, dense_rows(given), projection=projection).loss
    others = 0.7 * kl(given.teacher_probs(), log_softmax(given.hidden_TD, given.head_VD)).mean()
    torch.testing.assert_close(loss, (1 + 1 + 0.5) * others, rtol=0, atol=1e-12)


def test_two_terms_of_one_distance_are_both_reported_in_their_order() -> None:
    given = problem()
    projection = nn.Linear(5, 7, bias=False).double()
    weights = ({"kind": "balanced"}, 0.7, 2)
    terms = [{"weight": weight, "term": {"kind": "hidden"}} for weight in weights]
    mixture = Mixture(terms=(*terms, {"weight": 1, "term": {"kind": "hidden", "distance": "mse"}}))
    output = loss_of(mixture, given, dense_rows(given), projection=projection)
    assert list(output.per_term) == ["ce", "hidden_cosine", "hidden_cosine_2", "hidden_cosine_3", "hidden_mse"]
    states = {name: distances(name, projection(given.hidden_TD), given.teacher_hidden_TE).mean() for name in ("cosine", "mse")}
    torch.testing.assert_close(output.loss, 2 * (2.7 * states["cosine"] + states["mse"]), rtol=0, atol=1e-12)


def test_balanced_at_the_teacher_is_zero_and_not_nan() -> None:
    given = same_teacher(problem())
    terms = (
        {"weight": {"kind": "balanced"}, "term": {"kind": "hidden", "distance": "mse"}},
        {"weight": 1, "term": ForwardKL()},
    )
    loss = loss_of(Mixture(terms=terms), given, dense_rows(given)).loss
    assert abs(loss.item()) < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(loss, given))


def test_a_projection_is_made_where_widths_differ_alone_and_from_the_seed() -> None:
    assert build_projection(student_width=16, teacher_width=16, seed=0) is None
    one, same, other = (build_projection(student_width=400, teacher_width=300, seed=seed) for seed in (3, 3, 4))
    assert one is not None and one.weight.shape == (300, 400)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    # 120,000 draws of deviation 1/20: the deviation of their deviation is 1 / sqrt(2 * 120,000) of it.
    assert one.weight.std().item() == pytest.approx(0.05, rel=0.01)


def test_distances_are_float32_under_autocast_and_a_zero_vector_is_at_right_angles() -> None:
    hidden_TE, teacher_TE = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).bfloat16(), torch.tensor([[4.0, 3.0], [1.0, 0.0]])
    found_T = hidden_distance(HiddenStates(), hidden_TE=hidden_TE, teacher_TE=teacher_TE)
    assert found_T.dtype == torch.float32
    torch.testing.assert_close(found_T, torch.tensor([0.04, 1.0]), rtol=1e-5, atol=1e-6)
