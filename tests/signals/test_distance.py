"""Distances between rows: against dense distributions in float64, and by expectations over many rows of the same teacher."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from limbeck.signals.distance import drawn_kl, head_of, partition_kl, squared_distance
from limbeck.signals.draws import uniforms
from limbeck.signals.select import select
from limbeck.signals.types import HybridRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

VOCAB = 200
NAME = f"{7:032x}"


def logits(rows: int, *, seed: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def rows_of(logits_TV: Tensor, signal: StoredSignal) -> SparseRows:
    return select(logits_TV, signal, document_id=NAME, positions_T=torch.arange(len(logits_TV)))


def dense(logits_TV: Tensor) -> np.ndarray:
    return torch.softmax(logits_TV.double(), -1).numpy()


def heads(one_TV: Tensor, two_TV: Tensor, one: StoredSignal, two: StoredSignal) -> tuple[np.ndarray, np.ndarray]:
    rows = rows_of(one_TV, one), rows_of(two_TV, two)
    assert isinstance(rows[0], TopKRows | HybridRows)
    assert isinstance(rows[1], TopKRows | HybridRows)
    return partition_kl(head_of(rows[0]), head_of(rows[1]))


def test_with_every_id_it_is_the_whole_kl() -> None:
    one_TV, two_TV = logits(40, seed=1), logits(40, seed=2)
    kl_T, outside_T = heads(one_TV, two_TV, TopKSignal(k=VOCAB), TopKSignal(k=VOCAB))
    expected_T = rel_entr(dense(one_TV), dense(two_TV)).sum(-1)
    np.testing.assert_allclose(kl_T, expected_T, rtol=1e-5)  # float32 log-probs
    np.testing.assert_allclose(outside_T, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (TopKSignal(k=12), TopKSignal(k=12)),
        (TopKSignal(k=5), TopKSignal(k=60)),
        (TopPSignal(p=0.7, cap=30), TopKSignal(k=9)),
        (HybridSignal(k=8, draws=3), TopPSignal(p=0.9, cap=50)),
    ],
    ids=["topk", "k", "topp", "hybrid"],
)
def test_it_is_the_kl_of_the_common_partition(one: StoredSignal, two: StoredSignal) -> None:
    one_TV, two_TV = logits(60, seed=3), logits(60, seed=3) + 0.5 * logits(60, seed=4)
    kl_T, outside_T = heads(one_TV, two_TV, one, two)
    probs_TV, others_TV = dense(one_TV), dense(two_TV)

    def chosen(signal: StoredSignal, probs_V: np.ndarray) -> set[int]:
        order = np.argsort(-probs_V).tolist()
        if not isinstance(signal, TopPSignal):
            return set(order[: signal.k])
        reach = int(np.searchsorted(np.cumsum(probs_V[order]), signal.p)) + 1
        return set(order[: min(reach, signal.cap)])

    for row, (p_V, q_V) in enumerate(zip(probs_TV, others_TV, strict=True)):
        common = sorted(chosen(one, p_V) & chosen(two, q_V))
        p, q = (np.append(values[common], 1 - values[common].sum()) for values in (p_V, q_V))
        assert kl_T[row] == pytest.approx(rel_entr(p, q).sum(), rel=1e-4, abs=1e-6)
        assert outside_T[row] == pytest.approx(p[-1], rel=1e-4, abs=1e-6)
        assert kl_T[row] <= rel_entr(p_V, q_V).sum() + 1e-6
    assert kl_T.mean() > 0.02


def test_equal_rows_are_at_no_distance() -> None:
    one_TV = logits(30, seed=5)
    kl_T, _ = heads(one_TV, one_TV, TopKSignal(k=10), TopKSignal(k=10))
    assert not kl_T.any()


MANY = 20_000
FEW = 12
"""Ids: few enough for draws to meet."""


def few(seed: int) -> Tensor:
    """One teacher's logits at many positions."""
    return logits(1, seed=seed)[:, :FEW].expand(MANY, -1)


def drawn(logits_TV: Tensor, *, draws: int = 6, seed: int = 0, proposal: float = 1.0) -> SampledRows:
    rows = rows_of(logits_TV, SampledSignal(draws=draws, seed=seed, proposal_temperature=proposal))
    assert isinstance(rows, SampledRows)
    return rows


def numbers(draws: int) -> np.ndarray:
    """What `drawn` draws with where its seed is 0."""
    return uniforms(NAME, torch.arange(MANY), draws=draws, seed=0).numpy()


def assert_mean(values_T: np.ndarray, expected: float) -> None:
    """Within five standard errors, which are small enough to say something."""
    error = values_T.std() / len(values_T) ** 0.5
    assert abs(values_T.mean() - expected) <= 5 * error + 1e-12
    assert error < 0.02


@pytest.mark.parametrize("proposal", [1.0, 1.7])
@pytest.mark.parametrize("k", [4, FEW - 1, FEW])
def test_draws_against_a_head_are_unbiased(k: int, proposal: float) -> None:
    p_V, q_V = dense(few(1))[0], dense(few(2))[0]
    head = rows_of(few(2), TopKSignal(k=k))
    assert isinstance(head, TopKRows)
    kl_T = drawn_kl(drawn(few(1), proposal=proposal), head_of(head))
    order = np.argsort(-q_V)
    at_most_V = q_V.copy()
    at_most_V[order[k:]] = min(q_V[order[k - 1]], q_V[order[k:]].sum())
    entropy = -(p_V * np.log(p_V)).sum()
    assert_mean(kl_T, float(-(p_V * np.log(at_most_V)).sum() - entropy))
    if k >= FEW - 1:  # one id outside: the tail says what it has
        assert_mean(kl_T, float(rel_entr(p_V, q_V).sum()))
    else:
        assert kl_T.mean() < rel_entr(p_V, q_V).sum()


@pytest.mark.parametrize("proposal", [1.0, 1.7])
@pytest.mark.parametrize("draws", [2, 6])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("other", [1, 2], ids=["same", "other"])
def test_the_squared_distance_of_draws_is_unbiased(draws: int, proposal: float, coupled: bool, other: int) -> None:
    one = drawn(few(1), draws=draws, proposal=proposal)
    two = drawn(few(other), draws=draws, proposal=proposal, seed=0 if coupled else 1)
    expected = float(((dense(few(1))[0] - dense(few(other))[0]) ** 2).sum())
    assert_mean(squared_distance(one, two, uniforms_TN=numbers(draws) if coupled else None), expected)


@pytest.mark.parametrize("proposal", [1.0, 1.7])
@pytest.mark.parametrize("other", [1, 2], ids=["same", "other"])
def test_more_draws_of_one_seed_hold_the_fewer_ones(proposal: float, other: int) -> None:
    """Either may have more, and which one may differ from row to row, as where draws rise with the entropy."""
    few_draws, many_draws = drawn(few(1), draws=5, proposal=proposal), drawn(few(other), draws=17, proposal=proposal)
    expected = float(((dense(few(1))[0] - dense(few(other))[0]) ** 2).sum())
    assert_mean(squared_distance(few_draws, many_draws, uniforms_TN=numbers(17)), expected)
    assert_mean(squared_distance(many_draws, few_draws, uniforms_TN=numbers(17)), expected)
    fewer, more = drawn(few(1), draws=9, proposal=proposal), drawn(few(1), draws=13, proposal=proposal)
    width = max(rows.ids_TK.shape[1] for rows in (fewer, more))
    is_more_T1 = torch.arange(MANY)[:, None] % 2 == 0
    mixed = SampledRows(
        *(
            torch.where(is_more_T1, padded(getattr(more, name), width), padded(getattr(fewer, name), width))
            for name in ("ids_TK", "counts_TK")
        ),
        fewer.entropy_T,
        None
        if fewer.weights_TK is None or more.weights_TK is None
        else torch.where(is_more_T1, padded(more.weights_TK, width), padded(fewer.weights_TK, width)),
    )
    between = drawn(few(other), draws=11, proposal=proposal)
    assert_mean(squared_distance(mixed, between, uniforms_TN=numbers(13)), expected)


def padded(values_TK: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values_TK, (0, width - values_TK.shape[1]))


def test_coupled_draws_are_known_by_their_seed_alone() -> None:
    """What would be found if coupled draws were taken for independent ones, and the other way round: both are off."""
    one, two = drawn(few(1)), drawn(few(1), seed=1)
    taken_for_independent, taken_for_coupled = (
        squared_distance(one, one, uniforms_TN=None),
        squared_distance(one, two, uniforms_TN=numbers(6)),
    )
    for values_T in (taken_for_independent, taken_for_coupled):
        assert abs(values_T.mean()) > 20 * values_T.std() / MANY**0.5


def test_padding_is_not_an_id() -> None:
    """Id 0 is what rows are padded with; here it is also the most probable one of half the rows."""
    one_TV = logits(20, seed=8)
    one_TV[::2, 0] = 12.0
    rows = rows_of(one_TV, TopPSignal(p=0.8, cap=40))
    assert isinstance(rows, TopKRows)
    wider = dataclasses.replace(
        rows,
        ids_TK=torch.nn.functional.pad(rows.ids_TK, (0, 3)),
        log_probs_TK=torch.nn.functional.pad(rows.log_probs_TK, (0, 3), value=-torch.inf),
    )
    kl_T, outside_T = partition_kl(head_of(wider), head_of(rows))
    np.testing.assert_allclose(kl_T, 0.0, atol=1e-12)
    np.testing.assert_allclose(outside_T, rows.tail_T.double().numpy(), rtol=1e-5)
