"""Selection against torch.topk, float64 softmax and the binomial distribution."""

import math

import numpy as np
import pytest
import torch

from limbeck.errors import SpecError, TeacherError
from limbeck.signals.select import hard, narrow, sample, select, select_all, top_k, uniforms
from limbeck.signals.types import HardRows, SampledRows, TopKRows
from limbeck.spec.signal import HardSignal, SampledSignal, TopKSignal

DOCUMENT = "5f" * 16


def some_logits(rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("vocab", [64, 65, 1000, 4096, 49_153])
@pytest.mark.parametrize("k", [1, 7, 64])
def test_top_k_is_torch_topk(vocab: int, k: int) -> None:
    logits = some_logits(37, vocab)
    rows = top_k(logits, k=k, temperature=1.7)
    log_probs = torch.log_softmax(logits.double() / 1.7, -1)
    expected = log_probs.topk(k)
    # float32 logits of this size are within 2e-6 of themselves after a division and a shift
    torch.testing.assert_close(rows.log_probs_TK.double(), expected.values, rtol=0, atol=4e-6)
    assert torch.equal(rows.ids_TK, (logits / 1.7).topk(k).indices)
    tail = 1 - expected.values.exp().sum(-1)
    torch.testing.assert_close(rows.tail_T.double(), tail, rtol=1e-5, atol=1e-7)


def test_all_best_in_one_block_and_all_in_different_blocks() -> None:
    logits = torch.zeros(2, 640)
    logits[0, 128:138] = torch.arange(10.0) + 5
    logits[1, ::64] = torch.arange(10.0) + 5
    ids = top_k(logits, k=10, temperature=1.0).ids_TK
    assert ids[0].tolist() == list(range(137, 127, -1))
    assert ids[1].tolist() == list(range(576, -1, -64))


def test_a_tiny_tail_keeps_its_precision() -> None:
    logits = torch.full((1, 1000), -40.0)
    logits[0, 3] = 0.0
    tail = top_k(logits, k=1, temperature=1.0).tail_T.item()
    assert tail == pytest.approx(999 * math.exp(-40.0), rel=1e-5)  # 4e-15: 1 - head would be 0


def test_whole_vocabulary_leaves_no_tail() -> None:
    rows = top_k(some_logits(3, 100), k=100, temperature=1.0)
    assert rows.tail_T.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(rows.ids_TK.sort(-1).values, torch.arange(100).expand(3, -1))


def test_k_above_the_vocabulary_names_both() -> None:
    with pytest.raises(SpecError, match=r"k=101 .* 100"):
        top_k(some_logits(3, 100), k=101, temperature=1.0)


def test_masked_logits_are_never_drawn_and_entropy_is_finite() -> None:
    logits = some_logits(40, 130)
    logits[:, 65:] = -torch.inf
    rows = sample(logits, draws=500, temperature=1.0, uniforms_TN=uniforms(DOCUMENT, torch.arange(40), draws=500, seed=0))
    assert rows.ids_TK.max() < 65
    probs = torch.softmax(logits[:, :65].double(), -1)
    torch.testing.assert_close(rows.entropy_T.double(), -(probs * probs.log()).sum(-1), rtol=1e-5, atol=1e-6)
    head = top_k(logits, k=70, temperature=1.0)
    assert head.ids_TK.max() < 130
    assert head.log_probs_TK[:, 65:].max() < -1e20


@pytest.mark.parametrize(("vocab", "temperature"), [(200, 1.0), (321, 2.5)])
def test_draws_follow_the_softmax(vocab: int, temperature: float) -> None:
    """100,000 draws of one distribution: each frequency within its binomial spread, and the spread itself."""
    draws, repeats = 50, 2000
    logits = some_logits(1, vocab, scale=1.5).expand(repeats, -1)
    rows = sample(
        logits, draws=draws, temperature=temperature, uniforms_TN=uniforms(DOCUMENT, torch.arange(repeats), draws=draws, seed=3)
    )
    estimates = torch.zeros(repeats, vocab, dtype=torch.float64)
    estimates.scatter_add_(1, rows.ids_TK, rows.counts_TK.double() / draws)
    probs = torch.softmax(logits[0].double() / temperature, -1)
    assert torch.equal(rows.counts_TK.sum(-1), torch.full((repeats,), draws))
    z = (estimates.mean(0) - probs) / (probs * (1 - probs) / (draws * repeats)).sqrt()
    assert z.pow(2).mean().item() == pytest.approx(1.0, abs=3 * math.sqrt(2 / vocab))  # chi-squared with `vocab` degrees
    assert z.abs().max() < 4.5  # of 321 normal deviates: exceeded once in 500 seeds; the seed is fixed
    common = probs > 0.01
    spread = estimates.var(0)[common] / (probs * (1 - probs) / draws)[common]
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=4 * math.sqrt(2 / repeats))


def test_draws_are_the_inverse_of_the_cumulative_distribution() -> None:
    """Each uniform number falls into the drawn id's interval of the float64 cumulative softmax."""
    logits = some_logits(64, 1000)
    numbers = torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = sample(logits, draws=1, temperature=1.0, uniforms_TN=numbers).ids_TK
    above = torch.softmax(logits.double(), -1).cumsum(-1).gather(1, ids)
    below = above - torch.softmax(logits.double(), -1).gather(1, ids)
    assert (numbers < above + 3e-7).all()
    assert (numbers >= below - 3e-7).all()


def test_the_ends_of_the_unit_interval_draw_ids_with_mass() -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [70, 130]] = 0.0  # a whole block of 64 without mass comes first
    ends = torch.tensor([[0.0, 1 - 2.0**-53]], dtype=torch.float64)
    assert sample(logits, draws=2, temperature=1.0, uniforms_TN=ends).ids_TK.tolist() == [[70, 130]]


def test_entropy_is_that_of_the_softmax() -> None:
    logits = some_logits(50, 3001)
    rows = select(logits, SampledSignal(draws=5, temperature=0.7), document_id=DOCUMENT, positions_T=torch.arange(50))
    assert isinstance(rows, SampledRows)
    probs = torch.softmax(logits.double() / 0.7, -1)
    torch.testing.assert_close(rows.entropy_T.double(), -(probs * probs.log()).sum(-1), rtol=1e-6, atol=1e-6)


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(DOCUMENT, torch.arange(2000), draws=50, seed=0).numpy()
    histogram = np.bincount((numbers.ravel() * 100).astype(int), minlength=100)
    chi_squared = ((histogram - 1000) ** 2 / 1000).sum()
    assert abs(chi_squared - 99) < 4 * math.sqrt(2 * 99)
    correlations = np.corrcoef(numbers.T)[np.triu_indices(50, 1)]
    assert abs(correlations * math.sqrt(2000)).max() < 4.5
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) * math.sqrt(numbers.size) < 4


def test_uniforms_depend_on_document_position_draw_and_seed_alone() -> None:
    whole = uniforms(DOCUMENT, torch.arange(100), draws=50, seed=0)
    assert torch.equal(uniforms(DOCUMENT, torch.tensor([99, 3]), draws=20, seed=0), whole[[99, 3], :20])
    others = [uniforms("60" * 16, torch.arange(100), draws=50, seed=0), uniforms(DOCUMENT, torch.arange(100), draws=50, seed=1)]
    for other in others:
        assert not np.intersect1d(whole.numpy(), other.numpy()).size
    assert len(np.unique(whole.numpy())) == 5000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_subset_gives_the_same_rows(dtype: torch.dtype) -> None:
    logits = some_logits(100, 5000).to(dtype)
    positions = torch.arange(100) + 17
    signals = (TopKSignal(k=9), SampledSignal(), HardSignal())
    whole = select_all(logits, signals, document_id=DOCUMENT, positions_T=positions)
    for subset in (torch.tensor([40]), torch.tensor([99, 0, 33]), torch.arange(31, 70)):
        part = select_all(logits[subset], signals, document_id=DOCUMENT, positions_T=positions[subset])
        top, drawn, best = whole
        assert isinstance(top, TopKRows)
        assert isinstance(drawn, SampledRows)
        assert isinstance(best, HardRows)
        assert torch.equal(part[0].ids_TK, top.ids_TK[subset])
        assert torch.equal(part[0].log_probs_TK, top.log_probs_TK[subset])
        width = part[1].ids_TK.shape[1]
        assert torch.equal(part[1].ids_TK, drawn.ids_TK[subset, :width])
        assert torch.equal(part[1].counts_TK, drawn.counts_TK[subset, :width])
        assert drawn.counts_TK[subset, width:].sum() == 0
        assert torch.equal(part[2].ids_T, best.ids_T[subset])


def test_signals_taken_together_are_those_taken_alone() -> None:
    logits = some_logits(50, 700)
    signals = (SampledSignal(temperature=2.0), TopKSignal(k=5), HardSignal(), TopKSignal(k=3, temperature=2.0))
    together = select_all(logits, signals, document_id=DOCUMENT, positions_T=torch.arange(50))
    for rows, signal in zip(together, signals, strict=True):
        alone = select(logits, signal, document_id=DOCUMENT, positions_T=torch.arange(50))
        for name, value in vars(alone).items():
            assert value == getattr(rows, name) if name == "draws" else torch.equal(value, getattr(rows, name))


def test_hard_is_the_argmax() -> None:
    logits = some_logits(50, 700)
    assert hard(logits).ids_T.tolist() == [int(row.argmax()) for row in logits.numpy()]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("signal", [TopKSignal(k=5), SampledSignal(), HardSignal()])
def test_logits_that_are_no_distribution_name_document_and_position(value: float, signal: TopKSignal) -> None:
    logits = some_logits(50, 700)
    logits[41, 300] = value
    with pytest.raises(TeacherError, match=f"document {DOCUMENT}, position 1041"):
        select(logits, signal, document_id=DOCUMENT, positions_T=torch.arange(50) + 1000)


def test_narrow_moves_mass_into_the_tail() -> None:
    logits = some_logits(20, 500)
    wide, direct = top_k(logits, k=40, temperature=1.0), top_k(logits, k=6, temperature=1.0)
    narrowed = narrow(wide, TopKSignal(k=6))
    assert isinstance(narrowed, TopKRows)
    assert torch.equal(narrowed.ids_TK, direct.ids_TK)
    torch.testing.assert_close(narrowed.tail_T, direct.tail_T, rtol=1e-5, atol=1e-7)
    assert torch.equal(narrow(wide, HardSignal()).ids_T, logits.argmax(-1))
