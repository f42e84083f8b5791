"""Divergences from a dense teacher, formed in the head's buffers: blocks, label shares, precision, memory."""

import weakref
from typing import Any

import pytest
import torch
from objective_problem import dense_rows, gradients, loss_of, problem, same_teacher
from reference import jensen_shannon, kl, log_softmax, reverse_kl, skew_forward, skew_reverse
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.objectives import chunks
from limbeck.objectives.pairs import Pair, divergence, gradient
from limbeck.signals.types import DenseRows
from limbeck.spec.objective import ForwardKL, JensenShannon, Mixture, PairTerm, ReverseKL, SkewKL

TERMS: tuple[PairTerm, ...] = (
    ReverseKL(),
    JensenShannon(beta=0.3, scale="plain"),
    SkewKL(alpha=0.2, scale="plain"),
    SkewKL(alpha=0.2, direction="reverse", scale="plain"),
)


def plain(term: PairTerm, p_TV: Tensor, logq_TV: Tensor) -> Tensor:
    match term:
        case ReverseKL():
            return reverse_kl(p_TV, logq_TV)
        case JensenShannon():
            return jensen_shannon(p_TV, logq_TV.exp(), 0.3)
        case SkewKL(direction="forward"):
            return skew_forward(p_TV, logq_TV.exp(), 0.2)
        case _:
            return skew_reverse(p_TV, logq_TV.exp(), 0.2)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("term", TERMS)
def test_the_slope_gives_the_gradient_of_the_value(term: PairTerm, temperature: float) -> None:
    given = problem()
    p_TV = given.teacher_probs(temperature)
    u_TV = (given.hidden_TD @ given.head_VD.T / temperature).detach().requires_grad_()
    logq_TV = torch.log_softmax(u_TV, -1)
    expected = plain(term, p_TV, logq_TV)
    pair = Pair(p_TV, p_TV.log(), logq_TV.exp().detach(), logq_TV.detach())
    torch.testing.assert_close(divergence(term, pair), expected.detach(), rtol=0, atol=1e-12)
    (by_autograd_TV,) = torch.autograd.grad(expected.sum(), u_TV)
    torch.testing.assert_close(gradient(term, pair), by_autograd_TV, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair_block", [1, 2 * 37, 3 * 37])
@pytest.mark.parametrize("chunk_tokens", [5, None])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_blocks_smaller_than_chunks_change_nothing(
    pair_block: int, chunk_tokens: int | None, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several divergences at once, with cross-entropy's own softmax beside them, in blocks of 1, 2 and 3 positions."""
    given = problem()
    weights = (0.5, 1.0, 1.5, 2.0)
    parts = tuple({"weight": weight, "term": term} for weight, term in zip(weights, TERMS, strict=True))
    mixture = Mixture(terms=(*parts, {"weight": 0.7, "term": ForwardKL()}, {"weight": 0.2, "term": {"kind": "ce"}}))
    p_TV, logq_TV = given.teacher_probs(temperature), log_softmax(given.hidden_TD, given.head_VD, temperature)
    divergences = [weight * plain(term, p_TV, logq_TV) for weight, term in zip(weights, TERMS, strict=True)]
    ce_T = -log_softmax(given.hidden_TD, given.head_VD)[torch.arange(13), given.targets_T]
    expected = (temperature**2 * (torch.stack(divergences).sum(0) + 0.7 * kl(p_TV, logq_TV)) + 0.2 * ce_T).mean()
    monkeypatch.setattr(chunks, "PAIR_BLOCK_ELEMENTS", pair_block)
    monkeypatch.setattr(chunks, "CPU_BLOCK_ELEMENTS", 4 * 37)
    # `scale: plain` and temperature squared are the factors of all but the forward KL, whose scale is 1.
    found = loss_of(mixture, given, dense_rows(given, temperature), temperature=temperature, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(found.loss, given), gradients(expected, given), rtol=0, atol=1e-10)
    names = {"reverse_kl", "jsd", "skew_kl", "skew_kl_2", "forward_kl", "ce"}
    assert set(found.per_term) == names
    torch.testing.assert_close(found.per_term["skew_kl_2"], divergences[3].mean().detach() / 2.0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", [1e-7, 1 - 1e-7])
def test_jsd_on_the_kl_scale_tends_to_the_two_kls(beta: float) -> None:
    given = problem()
    rows = dense_rows(given)
    end = ForwardKL() if beta < 0.5 else ReverseKL()
    expected = loss_of(end, given, rows).loss
    found = loss_of(JensenShannon(beta=beta), given, rows).loss
    # The next order is beta times ratios of probabilities, here up to 1e4; rounding is 1e-16 / beta.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradients(found, given), gradients(expected, given), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_skew_kl_tends_to_the_kl_of_its_direction(direction: str) -> None:
    given = problem()
    rows = dense_rows(given)
    expected = loss_of(ForwardKL() if direction == "forward" else ReverseKL(), given, rows).loss
    found = loss_of(SkewKL(alpha=1e-9, direction=direction, scale="plain"), given, rows).loss
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("term", TERMS)
def test_bfloat16_autocast_stays_near_float64(term: PairTerm) -> None:
    given = problem(tokens=64, vocabulary=300, width=16)
    exact = loss_of(term, given, dense_rows(given)).loss
    expected = gradients(exact, given)
    hidden_TD, head_VD = (tensor.detach().float().requires_grad_() for tensor in (given.hidden_TD, given.head_VD))
    rows = DenseRows(given.teacher_hidden_TE.float(), given.teacher_head_VE.float(), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(term, given, rows, hidden_TD=hidden_TD, head_VD=head_VD, chunk_tokens=16).loss
    assert loss.dtype == torch.float32
    loss.backward()
    # As for the forward KL, a logit errs by about 0.014 (three roundings of 2^-9 to a logit of deviation 4), here both of
    # student and teacher: by sqrt(2) as much in log(q / p). The gradient is q (log(q / p) - its mean): the relative error of q,
    # 0.014, times a slope of size up to ~8 nats, plus the slope's own error, beside a slope whose deviation under q is ~4.
    assert abs(loss.item() - exact.item()) < 0.02
    for found, want in zip((hidden_TD.grad, head_VD.grad), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - want).norm() / want.norm() < 2 * (0.014 * 8 / 4 + 0.02 / 4 + 2 * 2**-9)
    assert (hidden_TD.grad - expected[0]).norm() / expected[0].norm() > 1e-5  # it did run in bfloat16


@pytest.mark.parametrize("term", TERMS)
def test_float32_of_a_student_near_its_teacher_is_small_and_of_either_sign_by_rounding_alone(term: PairTerm) -> None:
    given = same_teacher(problem(tokens=50, vocabulary=300, width=16))
    rows = DenseRows(given.teacher_hidden_TE.float(), given.teacher_head_VE.float(), 1.0)
    hidden_TD, head_VD = (tensor.detach().float().requires_grad_() for tensor in (given.hidden_TD, given.head_VD))
    loss = loss_of(term, given, rows, hidden_TD=hidden_TD, head_VD=head_VD).loss
    # log q comes from q and log p from logits of size ~16: they differ by ~16 * 2^-24 = 1e-6.
    assert abs(loss.item()) < 2e-6
    assert all(found.abs().max() < 1e-6 * 16 for found in torch.autograd.grad(loss, (hidden_TD, head_VD)))


def test_a_teacher_that_rules_ids_out_costs_the_student_finitely_and_by_its_logits() -> None:
    """Teacher logits of minus 1e4: p underflows, log p does not."""
    hidden_TE, head_VE = torch.ones(1, 1), torch.tensor([[0.0], [-1e4], [0.0]])
    head_VD = torch.zeros(3, 1, requires_grad=True)
    texts = {"hidden_TD": torch.ones(1, 1), "head_VD": head_VD, "targets_T": torch.tensor([0])}
    loss = loss_of(ReverseKL(), problem(), DenseRows(hidden_TE, head_VE, 1.0), **texts).loss
    # q is 1/3 each; log p is -log 2, -1e4 - log 2, -log 2.
    assert loss.item() == pytest.approx(torch.tensor(2 / 3).log().item() + 1e4 / 3, rel=1e-6)
    loss.backward()
    # q (log q - log p - D): 1/3 of (2/3 1e4, -1/3 1e4 twice).
    torch.testing.assert_close(head_VD.grad.flatten(), torch.tensor([-1.0, 2.0, -1.0]) * 1e4 / 9, rtol=1e-5, atol=0)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once, by storage."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, weakref.ref[Tensor]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.live |= {id(tensor): weakref.ref(tensor) for tensor in tree_leaves(made) if isinstance(tensor, Tensor)}
        alive = {key: tensor for key, reference in self.live.items() if (tensor := reference()) is not None}
        self.live = {key: self.live[key] for key in alive}
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive.values()}
        self.bytes = max(self.bytes, sum(storages.values()))
        return made


def peak_bytes(term: ForwardKL | PairTerm, *, chunk: int, tokens: int, temperature: float, bf16: bool) -> int:
    texts = {
        "hidden_TD": torch.randn(tokens, 4, requires_grad=True),
        "head_VD": torch.randn(4096, 4, requires_grad=True),
        "targets_T": torch.zeros(tokens, dtype=torch.int64),
    }
    rows = DenseRows(torch.randn(tokens, 4), torch.randn(4096, 4), temperature)
    with Peak() as peak, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss_of(term, problem(), rows, temperature=temperature, chunk_tokens=chunk, **texts).loss.backward()
    return peak.bytes


@pytest.mark.parametrize(
    ("temperature", "bf16", "buffers"), [(1.0, False, 3.0), (1.0, True, 3.0), (2.0, False, 5.0), (2.0, True, 4.0)]
)
@pytest.mark.parametrize("term", [ForwardKL(), JensenShannon(label_share=0.1)])
def test_memory_is_the_stated_number_of_chunks(
    term: ForwardKL | PairTerm, temperature: float, bf16: bool, buffers: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What 16 more positions in a chunk cost; what more chunks cost: nothing but their positions' few numbers."""
    monkeypatch.setattr(chunks, "CPU_BLOCK_ELEMENTS", 4 * 4096)
    options: dict[str, Any] = {"temperature": temperature, "bf16": bf16}
    small, large = (peak_bytes(term, chunk=chunk, tokens=128, **options) for chunk in (16, 32))
    assert (large - small) / (16 * 4096 * 4) == pytest.approx(buffers, rel=0.01)
    longer = peak_bytes(term, chunk=16, tokens=256, **options)
    assert longer - small < 128 * 4 * 100


@pytest.mark.parametrize("term", [*TERMS, JensenShannon(label_share=0.1)])
def test_the_passes_of_a_divergence_hold_the_stated_number_of_blocks(term: PairTerm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PAIR_BLOCK_ELEMENTS", 2 * 4096)
    options: dict[str, Any] = {"chunk": 8, "tokens": 16, "temperature": 1.0, "bf16": False}
    extra = peak_bytes(term, **options) - peak_bytes(ForwardKL(), **options)
    assert extra / (2 * 4096 * 4) < 6
