"""Likelihood matching of chunks: its formula by plain loops, joined chunks, its scale, and what it is at equal tokenizers."""

import math

import pytest
import torch
from across_problem import END, STUDENT, ChunkProblem, alm, chunk_problem, joined, part_of
from torch import Tensor

from limbeck.objectives.across_terms import likelihood_matching, log1mexp
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


def test_gradcheck() -> None:
    t_C, s_C = torch.tensor([[-0.2, -3.0, -1e-3], [-1.0, -0.01, -6.0]], dtype=torch.float64)

    def loss(s_C: Tensor) -> Tensor:
        return likelihood_matching(t_C, s_C, temperature=3.0)

    assert torch.autograd.gradcheck(loss, (s_C.requires_grad_(),))


@pytest.mark.parametrize("boundary", [None, 0.1])
def test_micro_batches_add_up_beside_cross_entropy(boundary: float | None) -> None:
    """Where a sequence ends nothing is looked at beyond it, whether or not the next is in the same batch."""
    given = chunk_problem((1, 2, 1, 3, 1, 1, 2, 1, 2, 2))
    objective = Mixture(
        terms=(WeightedTerm(weight=0.5, term=CrossEntropy()), WeightedTerm(weight=2.0, term=ALM(boundary=boundary))),
        z_loss_weight=0.1,
    )
    total, cut = len(given.targets_T), 8  # the first five chunks
    pieces_T = (torch.arange(total) >= cut).long()
    whole = given.loss(objective, pieces_T=pieces_T)
    parts = [part_of(given, part).loss(objective, normaliser=total) for part in (slice(0, cut), slice(cut, total))]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=0, atol=1e-12)
    assert whole.per_term.keys() == {"ce", "alm", "alm_share", "z_loss"}
    for name, value in whole.per_term.items():
        torch.testing.assert_close(sum(part.per_term[name] for part in parts), value, rtol=0, atol=1e-12)
    leaves = given.hidden_TD, given.head_SD
    grads = [torch.autograd.grad(part.loss, leaves) for part in parts]
    for index, gradient in enumerate(torch.autograd.grad(whole.loss, leaves)):
        torch.testing.assert_close(grads[0][index] + grads[1][index], gradient, rtol=0, atol=1e-12)
    one_piece = given.loss(objective)
    assert (one_piece.loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)) == (boundary is None)


def test_cross_entropy_beside_it_is_that_of_the_objective_alone() -> None:
    given, mask_T = chunk_problem((1, 2, 3, 1)), torch.tensor([True, True, True, False, True, True, True])
    mixed = Mixture(terms=(WeightedTerm(weight=0.7, term=CrossEntropy()), WeightedTerm(weight=1.0, term=ALM())))
    found, alone = (given.loss(objective, mask_T=mask_T, chunk_tokens=2) for objective in (mixed, ALM()))
    expected = -given.label_logq_T()[mask_T].mean()
    torch.testing.assert_close(found.loss - alone.loss, 0.7 * expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.per_term["ce"], expected.detach(), rtol=0, atol=1e-12)
    assert found.tokens == 6


def test_a_chunk_that_reaches_into_what_is_masked_is_left_out_even_where_it_is_nan() -> None:
    given, objective = chunk_problem((1, 2, 3, 1)), ALM(boundary=None)
    mask_T = torch.tensor([True, True, True, False, True, True, True])
    with torch.no_grad():
        given.hidden_TD[3] = torch.nan
    s = given.label_logq_T()
    chunks = [(0, 1), (1, 3), (6, 7)]
    expected = sum(100 * alm(given.rows.log_prob_T[end - 1], s[first:end].sum(), 100.0) for first, end in chunks) / 6
    found = given.loss(objective, mask_T=mask_T)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-12)
    assert found.per_term["alm_share"].item() == pytest.approx(4 / 6)
    assert torch.autograd.grad(found.loss, given.hidden_TD)[0][:3].isfinite().all()


def test_no_boundary_is_looked_for_in_what_is_masked() -> None:
    given = chunk_problem((1, 1, 1, 1))
    given = given.__class__(
        **(vars(given) | {"rows": given.rows.__class__(**(vars(given.rows) | {"boundary_T": torch.zeros(4)}))})
    )
    found = given.loss(ALM(), mask_T=torch.tensor([True, True, False, True]))
    assert found.per_term["alm_share"].item() == pytest.approx(1 / 3)  # the first: the others' next position does not count


@pytest.mark.parametrize(("t", "s"), [(-2.0, -1.0), (-1.0, -4.0), (-3.0, -3.0), (-0.5, -9.0)])
def test_its_slope_grows_to_that_of_a_cross_entropy(t: float, s: float) -> None:
    """T dL/ds -> t/s - 1, so a chunk that the teacher is sure of pulls as a cross-entropy does: -1."""
    student = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    loss = 1e3 * likelihood_matching(torch.tensor([t], dtype=torch.float64), student, temperature=1e3)
    (slope,) = torch.autograd.grad(loss.sum(), student)
    assert slope.item() == pytest.approx(t / s - 1, rel=0.02, abs=0.02)


@pytest.mark.parametrize("x", [-1e-6, -1e-3, -0.5, -0.7, -3.0, -15.0, -60.0])
def test_the_other_side_of_the_coin_is_exact_in_float32(x: float) -> None:
    found = log1mexp(torch.tensor(x))
    expected = -sum(math.exp(k * x) / k for k in range(1, 60)) if x < -1 else math.log(-math.expm1(x))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_it_is_finite_at_the_ends_in_float32() -> None:
    ends = torch.tensor([0.0, -1e-30, -1e-6, -0.1, -69.3, -1e3, -1e5])
    t_C, s_C = (each.flatten() for each in torch.meshgrid(ends, ends, indexing="ij"))
    s_C = s_C.clone().requires_grad_()
    for temperature in (1.0, 100.0):
        loss_C = likelihood_matching(t_C, s_C, temperature=temperature)
        (slope_C,) = torch.autograd.grad(loss_C.sum(), s_C)
        assert loss_C.isfinite().all() and slope_C.isfinite().all()
        assert loss_C.min() > -1e-6


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_logits_of_any_size_are_finite_in_float32(size: float) -> None:
    given = chunk_problem()
    hidden_TD, head_SD = given.hidden_TD.detach().float().requires_grad_(), (size * given.head_SD.detach()).float()
    loss = given.loss(ALM(), hidden_TD=hidden_TD, head_VD=head_SD.requires_grad_()).loss
    found = torch.autograd.grad(loss, (hidden_TD, head_SD))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_at_equal_tokenizers_it_orders_students_as_the_exact_kl_does(temperature: float) -> None:
    """Expected over the teacher's tokens, chunk by chunk; students on rays from the teacher, near and far."""
    draw = torch.Generator().manual_seed(5)
    teacher_TV = torch.randn(40, 13, generator=draw, dtype=torch.float64)
    log_p_TV = teacher_TV.log_softmax(-1)
    noise_TV = torch.randn(40, 13, generator=draw, dtype=torch.float64)
    students = [(teacher_TV + step * noise_TV).log_softmax(-1) for step in (0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0)]
    kl = [(log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean().item() for log_q_TV in students]
    found = [
        (log_p_TV.exp() * likelihood_matching(log_p_TV, log_q_TV, temperature=temperature)).sum(-1).mean().item()
        for log_q_TV in students
    ]
    assert kl == sorted(kl)
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.0, abs=1e-12)


def test_at_equal_tokenizers_it_orders_trained_students_as_the_exact_kl_does() -> None:
    """Bigram tables that learn from a teacher's draws, from three beginnings, looked at five times each: one order."""
    log_p_VV = (1.5 * torch.randn(13, 13, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).log_softmax(-1)
    found: list[tuple[float, float]] = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        student_VV = torch.randn(13, 13, generator=draw, dtype=torch.float64, requires_grad=True)
        for step in range(41):
            if step % 10 == 0:
                log_q_VV = student_VV.detach().log_softmax(-1)
                kl_VV, alm_VV = log_p_VV - log_q_VV, likelihood_matching(log_p_VV, log_q_VV, temperature=100.0)
                found.append(tuple((log_p_VV.exp() * each_VV).sum().item() for each_VV in (kl_VV, alm_VV)))
            texts_VN = torch.multinomial(log_p_VV.exp(), 64, replacement=True, generator=draw)
            loss = -student_VV.log_softmax(-1).gather(1, texts_VN).mean(-1).sum()
            (gradient_VV,) = torch.autograd.grad(loss, student_VV)
            student_VV = (student_VV - 0.3 * gradient_VV).detach().requires_grad_()
    by_kl, by_alm = (sorted(range(15), key=[pair[place] for pair in found].__getitem__) for place in (0, 1))
    assert by_kl == by_alm


def test_the_end_of_a_document_needs_no_position_after_it() -> None:
    given = chunk_problem((1, 2, 1))
    given.rows.boundary_T.fill_(-20.0)
    given.targets_T[-1] = END
    expected, tokens = by_loops(given, ALM())
    found = given.loss(ALM())
    assert tokens == 4
    assert found.per_term["alm_share"].item() == 1
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-12)


def test_rounding_above_certainty_is_certainty() -> None:
    at_most = torch.tensor([0.0, 0.0, -1.0])
    above = torch.tensor([3e-6, 3e-6, -1.0])
    other = torch.tensor([-2.0, 0.0, 3e-6])
    exact = likelihood_matching(at_most, other.clamp(max=0), temperature=1.0)
    torch.testing.assert_close(likelihood_matching(above, other, temperature=1.0), exact)
    assert exact.isfinite().all()
