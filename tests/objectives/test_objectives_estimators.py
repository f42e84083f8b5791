"""Estimators of the reverse KL from one drawn token, by exact expectations over six tokens in float64.

What differentiating them does is not what their values say (Schulman, "Approximating KL Divergence", 2020, on the values; the
gradients follow from sum q grad log q = grad sum q = 0). With r = p / q: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r.

Shapes: V tokens, here 6.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.objectives.objective import objective_loss
from limbeck.signals.types import DenseRows, TopKRows
from limbeck.spec.objective import ReverseKL, SampledReverseKL

V = 6
DRAW = torch.Generator().manual_seed(7)
TEACHER_V = torch.randn(V, generator=DRAW, dtype=torch.float64).log_softmax(-1)
LOGITS_V = 1.5 * torch.randn(V, generator=DRAW, dtype=torch.float64)


def gradient_of(loss: Callable[[Tensor], Tensor]) -> Tensor:
    logits_V = LOGITS_V.clone().requires_grad_()
    return torch.autograd.grad(loss(logits_V.log_softmax(-1)), logits_V)[0]


def expected(estimate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of one draw's estimate, (log q, log p) of the drawn token, over all draws by their probability."""
    return gradient_of(lambda logq_V: (logq_V.detach().exp() * estimate(logq_V, TEACHER_V)).sum())


def reverse_kl() -> Tensor:
    return gradient_of(lambda logq_V: (logq_V.exp() * (logq_V - TEACHER_V)).sum())


def forward_kl() -> Tensor:
    return gradient_of(lambda logq_V: (TEACHER_V.exp() * (TEACHER_V - logq_V)).sum())


def test_k1_differentiated_holds_nothing_of_the_teacher() -> None:
    torch.testing.assert_close(expected(lambda logq, logp: logq - logp), torch.zeros(V, dtype=torch.float64))
    assert float(reverse_kl().norm()) > 0.1


def test_k2_differentiated_is_the_reverse_kl() -> None:
    torch.testing.assert_close(expected(lambda logq, logp: (logq - logp) ** 2 / 2), reverse_kl())


def test_k3_differentiated_is_the_forward_kl() -> None:
    found = expected(lambda logq, logp: (logp - logq).exp() - 1 - (logp - logq))
    torch.testing.assert_close(found, forward_kl())
    assert float((found - reverse_kl()).norm()) > 0.05


def dense_rows(tokens: int) -> DenseRows:
    """A teacher whose hidden state is 1 and whose head holds its logits."""
    return DenseRows(torch.ones(tokens, 1, dtype=torch.float64), TEACHER_V[:, None].clone(), 1.0)


def ours(sampler_V: Tensor) -> tuple[Tensor, Tensor]:
    """Expected gradient of `sampled_reverse_kl` over the draws of a sampler, and the expectation of its report."""
    logits_V1 = LOGITS_V[:, None].clone().requires_grad_()
    gradient, report = torch.zeros(V, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for token in range(V):
        output = objective_loss(
            SampledReverseKL(),
            hidden_TD=torch.ones(1, 1, dtype=torch.float64),
            head_VD=logits_V1,
            targets_T=torch.tensor([token]),
            rows=dense_rows(1),
            sampled_log_probs_T=sampler_V[token : token + 1],
        )
        gradient += sampler_V[token].exp() * torch.autograd.grad(output.loss, logits_V1)[0].squeeze(1)
        report += sampler_V[token].exp() * output.per_term["k1"]
    return gradient, report


def test_ours_is_the_reverse_kl_in_expectation_and_reports_its_value() -> None:
    logq_V = LOGITS_V.log_softmax(-1)
    gradient, report = ours(logq_V)
    torch.testing.assert_close(gradient, reverse_kl())
    torch.testing.assert_close(report, (logq_V.exp() * (logq_V - TEACHER_V)).sum())


def test_a_stale_sampler_keeps_its_own_cost_and_is_corrected_by_the_ratio() -> None:
    """sum_a q_s(a) A(a) grad (q(a) / q_s(a)) = sum_a (log q_s - log p)(a) grad q(a), whatever q_s drew."""
    stale_V = (LOGITS_V + torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3, -0.2], dtype=torch.float64)).log_softmax(-1)
    expected_V = gradient_of(lambda logq_V: ((stale_V - TEACHER_V) * logq_V.exp()).sum())
    torch.testing.assert_close(ours(stale_V)[0], expected_V)


def test_top_k_rows_cannot_serve_it() -> None:
    ids_1K = torch.tensor([[0, 1]])
    rows = TopKRows(ids_1K, TEACHER_V[:2][None], 1 - TEACHER_V[:2].exp().sum()[None], torch.ones(1))
    given = {"hidden_TD": torch.ones(1, 1), "head_VD": LOGITS_V[:, None], "targets_T": torch.tensor([3])}
    with pytest.raises(SpecError, match="sampled_reverse_kl cannot read TopKRows: use signal dense"):
        objective_loss(SampledReverseKL(), rows=rows, sampled_log_probs_T=torch.zeros(1), **given)
    with pytest.raises(SpecError, match="tokens that the student drew: set on_policy"):
        objective_loss(SampledReverseKL(), rows=dense_rows(1), **given)


def top_two() -> TopKRows:
    """Of the teacher's most probable two ids."""
    top = TEACHER_V.exp().topk(2)
    rest, entropy = 1 - top.values.sum(), torch.special.entr(TEACHER_V.exp()).sum()
    return TopKRows(top.indices[None], top.values.log()[None], rest[None], entropy[None])


def of_two(objective: ReverseKL) -> Tensor:
    logits_V1 = LOGITS_V[:, None].clone().requires_grad_()
    output = objective_loss(
        objective,
        hidden_TD=torch.ones(1, 1, dtype=torch.float64),
        head_VD=logits_V1,
        targets_T=torch.tensor([0]),
        rows=top_two(),
    )
    return torch.autograd.grad(output.loss, logits_V1)[0].squeeze(1)


def test_a_truncated_reverse_kl_leaks_and_the_stop_gradient_form_does_not() -> None:
    """grad sum_K q log(q / p) = sum_K (log q - log p) grad q + grad Q_K: descending the second pushes mass out of K."""
    ids_K = top_two().ids_TK[0]
    truncated = gradient_of(lambda logq_V: (logq_V.exp() * (logq_V - TEACHER_V))[ids_K].sum())
    main = gradient_of(lambda logq_V: ((logq_V - TEACHER_V).detach() * logq_V.exp())[ids_K].sum())
    mass = gradient_of(lambda logq_V: logq_V.exp()[ids_K].sum())
    torch.testing.assert_close(truncated, main + mass)
    assert float(mass.norm()) > 0.05
    torch.testing.assert_close(of_two(ReverseKL(form="stop_gradient")), main)


def test_the_tail_form_is_the_reverse_kl_of_two_ids_and_the_rest() -> None:
    ids_K = top_two().ids_TK[0]

    def coarse(log_V: Tensor) -> Tensor:
        head_K = log_V.exp()[ids_K]
        return torch.cat([head_K, (1 - head_K.sum())[None]])

    p_J = coarse(TEACHER_V)
    torch.testing.assert_close(
        of_two(ReverseKL()), gradient_of(lambda logq_V: (coarse(logq_V) * (coarse(logq_V) / p_J).log()).sum())
    )
