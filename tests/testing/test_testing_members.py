"""Every objective, on every signal that serves it, passes the public suite and equals its plain float64 formula."""

import warnings
from collections.abc import Callable

import pytest
import torch
from reference import (
    coarse,
    coin_kl,
    cross_entropy,
    jensen_shannon,
    kl,
    on_ids,
    renormalised_kl,
    reverse_kl,
    skew_forward,
    skew_reverse,
    tail_on_text,
    with_labels,
)
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.signals.types import HybridRows, SampledRows, TopKRows
from limbeck.spec.across_tokenizers import ALM
from limbeck.spec.base import parse, spec_classes
from limbeck.spec.objective import (
    CrossEntropy,
    DecoupledKL,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    Mixture,
    Objective,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    check_signal,
)
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import (
    ChunksSignal,
    DenseSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    TopKSignal,
    TopPSignal,
)
from limbeck.testing import Plain, check_objective
from limbeck.testing.objectives import MIDWAY

SIGNALS: dict[str, Signal] = {
    "topk": TopKSignal(k=6),
    "topk at 2": TopKSignal(k=6, temperature=2.0),
    "topk whole": TopKSignal(k=31),
    "topp": TopPSignal(p=0.9, cap=9),
    "sampled": SampledSignal(draws=16),
    "sampled weighted at 0.7": SampledSignal(draws=16, proposal_temperature=1.5, temperature=0.7, keep_top1=True),
    "hybrid": HybridSignal(k=4, draws=8, temperature=1.3),
    "hybrid at 1": HybridSignal(k=4, draws=8),
    "hard": HardSignal(),
    "dense": DenseSignal(),
    "dense at 2": DenseSignal(temperature=2.0),
    "dense at 0.5": DenseSignal(temperature=0.5),
}

Formula = Callable[[Plain], Tensor]


def outcomes(plain: Plain, teacher_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher and student over what the signal tells apart: every id, or the head and one other outcome, row by row."""
    q_TV = torch.softmax(plain.logits_TV / plain.temperature, -1)
    if not isinstance(plain.rows, TopKRows | HybridRows):
        return teacher_TV, q_TV
    both = []
    for each_TV in (teacher_TV, q_TV):
        rows = [coarse(each_TV[t : t + 1], real_ids(plain, t)) for t in range(len(each_TV))]
        width = max(row.shape[1] for row in rows)
        both.append(torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]))
    return both[0], both[1]


def real_ids(plain: Plain, t: int) -> Tensor:
    assert isinstance(plain.rows, TopKRows | HybridRows)
    return plain.rows.ids_TK[t : t + 1, plain.rows.log_probs_TK[t] > -torch.inf]


def of_outcomes(formula: Callable[[Tensor, Tensor], Tensor], *, label_share: float = 0.0, scale: float = 1.0) -> Formula:
    def twin(plain: Plain) -> Tensor:
        teacher_TV = with_labels(plain.teacher_TV, plain.targets_T, label_share)
        p_TJ, q_TJ = outcomes(plain, teacher_TV)
        # Outcomes that are not there, one by one: 0 log 0 has no gradient in the plain formulas.
        found = [formula(p_J[None, p_J > 0], q_J[None, p_J > 0]) for p_J, q_J in zip(p_TJ, q_TJ, strict=True)]
        return plain.temperature**2 * scale * torch.cat(found)

    return twin


def by_rows(formula: Callable[[Plain, int, Tensor, Tensor], Tensor]) -> Formula:
    """Position by position: the plain values, the position's real ids, and its student's log-probs."""

    def twin(plain: Plain) -> Tensor:
        logq_TV = torch.log_softmax(plain.logits_TV / plain.temperature, -1)
        return torch.cat([formula(plain, t, real_ids(plain, t), logq_TV[t : t + 1]) for t in range(len(logq_TV))])

    return twin


def ce(plain: Plain) -> Tensor:
    return cross_entropy(torch.log_softmax(plain.logits_TV, -1), plain.targets_T)


def hard(plain: Plain) -> Tensor:
    return cross_entropy(torch.log_softmax(plain.logits_TV, -1), plain.teacher_TV.argmax(-1))


def sparse_forward(plain: Plain) -> Tensor:
    """By the target that the signal stands for, made dense."""
    logq_TV = torch.log_softmax(plain.logits_TV / plain.temperature, -1)
    target_TV = torch.zeros_like(plain.teacher_TV)
    match plain.rows:
        case SampledRows():
            shares_TK = plain.rows.counts_TK / 16
            weights_TK = 1.0 if plain.rows.weights_TK is None else plain.rows.weights_TK
            target_TV.scatter_add_(1, plain.rows.ids_TK, (shares_TK * weights_TK).double())
        case HybridRows():
            target_TV.scatter_add_(1, plain.rows.ids_TK, plain.rows.log_probs_TK.exp())
            target_TV.scatter_add_(1, plain.rows.drawn_ids_TM, plain.rows.tail_T[:, None] * plain.rows.counts_TM / 8)
    entropy_T = torch.special.entr(plain.teacher_TV).sum(-1)
    return plain.temperature**2 * (-(target_TV * logq_TV).sum(-1) - entropy_T)


def stop_gradient(plain: Plain, t: int, ids_1K: Tensor, logq_1V: Tensor) -> Tensor:
    logq_1K, p_1K = logq_1V.gather(1, ids_1K), plain.teacher_TV[t : t + 1].gather(1, ids_1K)
    return plain.temperature**2 * (logq_1K.exp() * (logq_1K - p_1K.log()).detach()).sum(-1)


def renormalised_reverse(plain: Plain, t: int, ids_1K: Tensor, logq_1V: Tensor) -> Tensor:
    p_1K, q_1K = on_ids(plain.teacher_TV[t : t + 1].log(), ids_1K).exp(), on_ids(logq_1V, ids_1K)
    return plain.temperature**2 * reverse_kl(p_1K, q_1K)


def text_tail(plain: Plain, t: int, ids_1K: Tensor, logq_1V: Tensor) -> Tensor:
    target_1V = tail_on_text(plain.teacher_TV[t : t + 1], ids_1K, plain.targets_T[t : t + 1])
    return plain.temperature**2 * kl(target_1V, logq_1V)


def renormalised_forward(plain: Plain, t: int, ids_1K: Tensor, logq_1V: Tensor) -> Tensor:
    return plain.temperature**2 * renormalised_kl(plain.teacher_TV[t : t + 1], logq_1V, ids_1K)


def decoupled(mass: float, conditional: float, tau: float, *, by_mass: bool) -> Formula:
    def of_row(plain: Plain, t: int, ids_1K: Tensor, logq_1V: Tensor) -> Tensor:
        p_1V = plain.teacher_TV[t : t + 1]
        head, student_head = p_1V.gather(1, ids_1K).sum(-1), logq_1V.gather(1, ids_1K).exp().sum(-1)
        inner = kl(on_ids(p_1V.log(), ids_1K, tau).exp(), on_ids(logq_1V, ids_1K, tau))
        return mass * coin_kl(head, student_head) + conditional * tau**2 * inner * (head if by_mass else 1.0)

    return by_rows(of_row)


def drawn(plain: Plain) -> Tensor:
    """Of tokens that this very student drew: the ratio is 1, with the gradient of log q."""
    logq_T, logp_T = (
        each_TV.gather(1, plain.targets_T[:, None]).squeeze(1)
        for each_TV in (torch.log_softmax(plain.logits_TV, -1), plain.teacher_TV.log())
    )
    return (logq_T.detach() - logp_T) * (1 + logq_T - logq_T.detach())


HEADED = ("topk", "topk at 2", "topp", "hybrid", "hybrid at 1")
AT_ONE = ("topk", "topp", "hybrid at 1")
PAIRS = (*HEADED, "dense", "dense at 2", "dense at 0.5")
MEMBERS: dict[str, tuple[Objective, tuple[str, ...], Formula | None]] = {
    "ce": (CrossEntropy(), tuple(SIGNALS), ce),
    "z-loss": (
        CrossEntropy(z_loss_weight=0.01),
        ("dense",),
        lambda plain: ce(plain) + 0.01 * torch.logsumexp(plain.logits_TV, -1) ** 2,
    ),
    "forward": (
        ForwardKL(),
        ("dense", "dense at 2", "dense at 0.5", "topk", "topk at 2", "topp"),
        of_outcomes(lambda p, q: kl(p, q.log())),
    ),
    "forward, sampled": (ForwardKL(), ("sampled", "sampled weighted at 0.7", "hybrid", "hybrid at 1"), sparse_forward),
    "forward, text": (ForwardKL(tail="text"), ("topk", "topk at 2", "topp"), by_rows(text_tail)),
    "forward, renormalised": (ForwardKL(tail="renormalised"), ("topk", "topk at 2", "topp"), by_rows(renormalised_forward)),
    "decoupled": (DecoupledKL(), AT_ONE, decoupled(1, 1, 2.0, by_mass=True)),
    "decoupled, flat": (
        DecoupledKL(temperature=0.7, mass_weight=0.3, conditional_weight=2.0, by_mass=False),
        AT_ONE,
        decoupled(0.3, 2.0, 0.7, by_mass=False),
    ),
    "reverse": (ReverseKL(), PAIRS, of_outcomes(lambda p, q: reverse_kl(p, q.log()))),
    "reverse, labels": (
        ReverseKL(label_share=0.3),
        PAIRS,
        of_outcomes(lambda p, q: reverse_kl(p, q.log()), label_share=0.3),
    ),
    "reverse, stop gradient": (ReverseKL(form="stop_gradient"), HEADED, by_rows(stop_gradient)),
    "reverse, renormalised": (ReverseKL(form="renormalised"), HEADED, by_rows(renormalised_reverse)),
    "jsd": (JensenShannon(), PAIRS, of_outcomes(lambda p, q: jensen_shannon(p, q, 0.5), scale=4)),
    "jsd, plain": (
        JensenShannon(beta=0.1, scale="plain", label_share=0.2),
        PAIRS,
        of_outcomes(lambda p, q: jensen_shannon(p, q, 0.1), label_share=0.2),
    ),
    "jsd, 0.9": (JensenShannon(beta=0.9), PAIRS, of_outcomes(lambda p, q: jensen_shannon(p, q, 0.9), scale=1 / 0.09)),
    "skew": (SkewKL(), PAIRS, of_outcomes(lambda p, q: skew_forward(p, q, 0.1), scale=1 / 0.81)),
    "skew, plain": (
        SkewKL(alpha=0.6, scale="plain", label_share=0.1),
        PAIRS,
        of_outcomes(lambda p, q: skew_forward(p, q, 0.6), label_share=0.1),
    ),
    "skew, reverse": (
        SkewKL(alpha=0.3, direction="reverse"),
        PAIRS,
        of_outcomes(lambda p, q: skew_reverse(p, q, 0.3), scale=1 / 0.49),
    ),
    "reverse, of drawn tokens": (SampledReverseKL(), ("dense",), drawn),
    "hard": (HardLabels(), ("hard", "topk", "topp", "hybrid at 1", "sampled weighted at 0.7"), hard),
    "cosine": (HiddenStates(), ("dense", "dense at 2"), None),
    "mse": (HiddenStates(distance="mse"), ("dense",), None),
}
CASES = [(name, signal) for name, (_, signals, _) in MEMBERS.items() for signal in signals]


@pytest.mark.parametrize(("member", "signal"), CASES)
def test_a_member_passes_the_suite_and_equals_its_formula(member: str, signal: str) -> None:
    objective, _, formula = MEMBERS[member]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*renormalised.*")
        report = check_objective(objective, signal=SIGNALS[signal], twin=formula)
    assert ("plain twin" in report.checks) == (formula is not None)
    assert {"mask", "permutation", "chunks", "micro-batches", "finite"} <= set(report.checks)
    assert report.logit_gradient_norm > 0


def test_the_suite_is_run_on_every_kind_of_objective() -> None:
    kinds = {spec.model_fields["kind"].default for spec in spec_classes(Recipe.model_fields["objective"].annotation)}
    across = {"alm", "uld", "gold", "projected_kl", "byte_kl"}
    assert kinds - {objective.kind for objective, _, _ in MEMBERS.values()} == {"mixture", "custom"} | across


def test_terms_that_score_chunks_are_refused() -> None:
    with pytest.raises(SpecError, match="scores chunks of text"):
        check_objective(ALM(), signal=ChunksSignal())


@pytest.mark.parametrize("member", list(MEMBERS))
def test_what_is_not_checked_is_refused(member: str) -> None:
    """Signals outside a member's list are those that the spec refuses, but for ones that say the same again."""
    objective, signals, _ = MEMBERS[member]
    served = {SIGNALS[signal].kind for signal in signals} | ({"topk"} if "topp" in signals else set())
    for name, signal in SIGNALS.items():
        if signal.kind in served or member in ("z-loss", "forward", "forward, sampled"):
            continue
        with pytest.raises(ValueError, match=r"signal\.kind="):
            check_signal(objective, signal)
        assert name not in signals


MIXTURES: dict[str, tuple[dict[str, object], str, Formula | None]] = {
    "routed": (
        {
            "terms": [
                {"weight": 0.5, "term": {"kind": "ce"}, "entropy": {"below_nats": 0.8}},
                {"weight": 2, "term": {"kind": "forward_kl"}, "entropy": {"from_nats": 0.8}},
            ]
        },
        "dense",
        lambda plain: torch.where(
            torch.special.entr(plain.teacher_TV).sum(-1) < 0.8,
            0.5 * ce(plain),
            2 * kl(plain.teacher_TV, torch.log_softmax(plain.logits_TV, -1)),
        ),
    ),
    "scheduled": (
        {
            "terms": [
                {"weight": {"kind": "points", "at": [[0, 0], [0.4, 0.9], [0.6, 0.1]]}, "term": {"kind": "reverse_kl"}},
                {"weight": {"kind": "with_lr", "at_peak": 0.2, "at_zero": 1.0}, "term": {"kind": "forward_kl"}},
            ]
        },
        "dense",
        # Half-way between 0.9 and 0.1, and between 0.2 and 1.0.
        lambda plain: (
            0.5 * reverse_kl(plain.teacher_TV, torch.log_softmax(plain.logits_TV, -1))
            + 0.6 * kl(plain.teacher_TV, torch.log_softmax(plain.logits_TV, -1))
        ),
    ),
    "two of a kind, and cross-entropy at another temperature": (
        {
            "terms": [
                {"weight": 1, "term": {"kind": "jsd", "beta": 0.3, "scale": "plain"}},
                {"weight": 2, "term": {"kind": "jsd", "beta": 0.6, "scale": "plain"}},
                {"weight": 3, "term": {"kind": "ce"}},
            ]
        },
        "dense at 2",
        lambda plain: (
            3 * ce(plain) + of_outcomes(lambda p, q: jensen_shannon(p, q, 0.3) + 2 * jensen_shannon(p, q, 0.6))(plain)
        ),
    ),
    "balanced": (
        {
            "terms": [
                {"weight": {"kind": "balanced"}, "term": {"kind": "hidden"}},
                {"weight": 1, "term": {"kind": "forward_kl"}},
            ]
        },
        "dense",
        None,
    ),
}


@pytest.mark.parametrize("name", list(MIXTURES))
def test_a_mixture_passes_the_suite_and_equals_its_formula(name: str) -> None:
    values, signal, formula = MIXTURES[name]
    assert MIDWAY.fraction == MIDWAY.lr_factor == 0.5
    report = check_objective(parse(Mixture, values, source="test"), signal=SIGNALS[signal], twin=formula)
    assert ("micro-batches" in report.checks) == (name != "balanced")


@pytest.mark.parametrize(
    ("objective", "scale"),
    [
        (ReverseKL(), 1.0),
        (JensenShannon(beta=0.2), 1.0),
        (JensenShannon(beta=0.2, scale="plain"), 0.16),
        (SkewKL(alpha=0.25), 1.0),
        (SkewKL(alpha=0.25, scale="plain"), 0.5625),
        (SkewKL(alpha=0.25, direction="reverse", scale="plain"), 0.5625),
    ],
)
@pytest.mark.parametrize("signal", ["dense", "topk at 2", "hybrid"])
def test_scales_near_the_teacher_are_those_of_the_second_order(objective: Objective, scale: float, signal: str) -> None:
    """Every f-divergence is f''(1) / 2 chi-squared there: 1 for both KLs, beta (1 - beta), (1 - alpha)^2."""
    assert check_objective(objective, signal=SIGNALS[signal]).scale == pytest.approx(scale, rel=1e-3)
