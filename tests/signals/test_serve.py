"""What a store serves: narrowed rows are those that would have been taken, and a refusal says what to set."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import StoreError
from limbeck.signals.manifest import StoreIdentity, signal_identity
from limbeck.signals.select import select
from limbeck.signals.serve import check_can_serve, narrow
from limbeck.signals.types import SparseRows, TopKRows
from limbeck.spec.signal import (
    DenseSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    StoredSignal,
    TopKSignal,
    TopPSignal,
)

PATH = Path("stores/a")


def identity_of(signal: StoredSignal) -> StoreIdentity:
    return StoreIdentity(
        teacher={"name": "some/teacher"},
        tokenizer="tok1",
        documents="docs1",
        context={"window": 2048, "overlap": 512},
        signal=signal_identity(signal),
        vocab_size=300,
    )


def check(held: StoredSignal, asked: Signal) -> None:
    check_can_serve(identity_of(held), asked, path=PATH, tokenizer="tok1", vocab_size=300)


def taken(signal: StoredSignal, *, seed: int = 0) -> SparseRows:
    """Peaked and flat rows with ties, as a bfloat16 teacher has them."""
    logits = torch.randn(60, 300, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.3, 6, 60)[:, None]
    return select(logits.bfloat16(), signal, document_id="5f" * 16, positions_T=torch.arange(60))


TOPK, TOPP, HYBRID = TopKSignal(k=20), TopPSignal(p=0.8, cap=20), HybridSignal(k=20, draws=8)
SAMPLED = SampledSignal(draws=30, keep_top1=True)
SERVED: list[tuple[StoredSignal, StoredSignal]] = [
    (TOPK, TOPK),
    (TOPK, TopKSignal(k=6)),
    (TOPK, TopPSignal(p=0.9, cap=20)),
    (TOPK, TopPSignal(p=0.7, cap=3)),
    (TOPK, HardSignal()),
    (TopKSignal(k=9, temperature=2.0, values="uint8"), TopKSignal(k=4, temperature=2.0, values="uint8")),
    (TOPP, TOPP),
    (TOPP, TopPSignal(p=0.5, cap=7)),
    (TOPP, HardSignal()),
    (HYBRID, HYBRID),
    (HYBRID, TopKSignal(k=20)),
    (HYBRID, TopKSignal(k=1)),
    (HYBRID, TopPSignal(p=0.8, cap=11)),
    (HYBRID, HardSignal()),
    (SAMPLED, SAMPLED),
    (SAMPLED, SampledSignal(draws=30)),
    (SAMPLED, HardSignal()),
    (SampledSignal(draws=30, full_entropy_nats=2.0), SampledSignal(draws=30)),
    (SampledSignal(draws=30, proposal_temperature=0.8), SampledSignal(draws=30, proposal_temperature=0.8)),
    (HardSignal(), HardSignal()),
]


@pytest.mark.parametrize(("held", "asked"), SERVED, ids=str)
def test_what_is_served_is_what_would_have_been_taken(held: StoredSignal, asked: StoredSignal) -> None:
    check(held, asked)
    narrowed, direct = narrow(taken(held), asked), taken(asked)
    assert type(narrowed) is type(direct)
    for field in dataclasses.fields(direct):
        served, expected = getattr(narrowed, field.name), getattr(direct, field.name)
        if field.name == "tail_T":  # sums in another order, of float32 exponentials of float32 logs
            torch.testing.assert_close(served, expected, rtol=1e-5, atol=1e-6)
        elif expected is None:
            assert served is None
        else:
            assert torch.equal(served, expected), field.name


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(0, 3))
def test_a_smaller_p_and_cap_come_out_of_larger_ones(cap: int, other: int, p: float, q: float, seed: int) -> None:
    held, asked = TopPSignal(p=max(p, q), cap=max(cap, other)), TopPSignal(p=min(p, q), cap=min(cap, other))
    check(held, asked)
    served, direct = narrow(taken(held, seed=seed), asked), taken(asked, seed=seed)
    assert isinstance(served, TopKRows)
    assert isinstance(direct, TopKRows)
    numbers = [(rows.log_probs_TK > -math.inf).sum(-1) for rows in (served, direct)]
    same = numbers[0] == numbers[1]
    assert same.float().mean() > 0.95  # a sum within rounding of p may fall to either side
    width = min(served.ids_TK.shape[1], direct.ids_TK.shape[1])
    assert torch.equal(served.ids_TK[same, :width], direct.ids_TK[same, :width])
    torch.testing.assert_close(served.tail_T[same], direct.tail_T[same], rtol=1e-5, atol=1e-6)


REFUSED: list[tuple[StoredSignal, Signal, str]] = [
    (TOPK, TopKSignal(k=21), "signal.k=21 exceeds the 20 stored in stores/a; set signal.k=20"),
    (TOPK, TopKSignal(k=2, temperature=2.0), "signal.temperature=2.0 is not the 1.0 stored in"),
    (TOPK, TopKSignal(k=2, values="uint8"), "signal.values=uint8 is not the float16 stored in"),
    (TOPK, TopPSignal(cap=21), "signal.cap=21 exceeds the 20 stored in"),
    (TOPK, TopPSignal(cap=2, temperature=2.0), "signal.temperature=2.0 is not the 1.0"),
    (TOPK, HYBRID, "signal.kind=hybrid is not what .* holds .topk."),
    (TOPK, SampledSignal(), "signal.kind=sampled is not what .* holds .topk."),
    (TOPK, DenseSignal(), "signal.kind=dense is not what .* holds .topk."),
    (TOPP, TopPSignal(p=0.81, cap=20), "signal.p=0.81 exceeds the 0.8 stored in"),
    (TOPP, TopPSignal(p=0.8, cap=21), "signal.cap=21 exceeds the 20 stored in"),
    (TOPP, TopKSignal(k=1), "signal.kind=topk is not what .* holds .topp."),
    (HYBRID, HybridSignal(k=19, draws=8), "signal.k=19 is not the 20 stored in"),
    (HYBRID, HybridSignal(k=20, draws=7), "signal.draws=7 is not the 8 stored in"),
    (HYBRID, HybridSignal(k=20, draws=8, seed=1), "signal.seed=1 is not the 0 stored in"),
    (HYBRID, TopKSignal(k=21), "signal.k=21 exceeds the 20"),
    (HYBRID, TopPSignal(cap=21), "signal.cap=21 exceeds the 20"),
    (HYBRID, SampledSignal(), "signal.kind=sampled is not what"),
    (SAMPLED, SampledSignal(draws=29), "signal.draws=29 is not the 30 stored in"),
    (SAMPLED, SampledSignal(draws=30, seed=1), "signal.seed=1 is not the 0"),
    (SAMPLED, SampledSignal(draws=30, min_draws=4), "signal.min_draws=4 is not the None"),
    (SAMPLED, SampledSignal(draws=30, proposal_temperature=0.9), "signal.proposal_temperature=0.9 is not the 1.0"),
    (
        SampledSignal(min_draws=4),
        SampledSignal(min_draws=4, full_entropy_nats=2.0),
        "signal.full_entropy_nats=2.0 is not the 3.0",
    ),
    (SampledSignal(), SampledSignal(keep_top1=True), "signal.keep_top1=True is not the False"),
    (SampledSignal(), HardSignal(), "signal.kind=hard is not what .* without the top-1.* signal.keep_top1=true"),
    (SampledSignal(), TopKSignal(), "signal.kind=topk is not what"),
    (HardSignal(), TopKSignal(k=1), "signal.kind=topk is not what"),
]


@pytest.mark.parametrize(("held", "asked", "message"), REFUSED, ids=str)
def test_what_a_store_does_not_hold_is_refused(held: StoredSignal, asked: Signal, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        check(held, asked)


def test_other_tokens_and_contexts_are_refused() -> None:
    identity = identity_of(TOPK)
    with pytest.raises(StoreError, match="tokenizer tok1, not of tok2"):
        check_can_serve(identity, TOPK, path=PATH, tokenizer="tok2")
    with pytest.raises(StoreError, match=r"vocabulary of 300 but 301"):
        check_can_serve(identity, TOPK, path=PATH, tokenizer="tok1", vocab_size=301)
    with pytest.raises(StoreError, match="the context asked for"):
        check_can_serve(identity, TOPK, path=PATH, tokenizer="tok1", context={"window": 1024, "overlap": 512})
    check_can_serve(identity, TOPK, path=PATH, tokenizer="tok1", context={"window": 2048, "overlap": 512})


def test_rows_that_hold_no_such_signal_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="SampledRows do not hold a topk signal"):
        narrow(taken(SAMPLED), TOPK)
