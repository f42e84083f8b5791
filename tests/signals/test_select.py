"""Selection against a stable sort, the float64 softmax, and what chance allows of unbiased draws."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import SpecError, TeacherError
from limbeck.signals import panel as panel_module
from limbeck.signals.draws import draw, uniforms
from limbeck.signals.panel import panels
from limbeck.signals.select import select, select_all
from limbeck.signals.types import HardRows, HybridRows, SampledRows, SparseRows, TopKRows, sparse_target
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

DOCUMENT = "5f" * 16
EVERY_KIND: list[StoredSignal] = [
    TopKSignal(k=9),
    TopKSignal(k=3, temperature=2.0),
    TopPSignal(p=0.6, cap=12),
    SampledSignal(draws=30),
    SampledSignal(draws=30, min_draws=4, full_entropy_nats=4.0, keep_top1=True, temperature=0.5),
    SampledSignal(draws=30, proposal_temperature=1.5, seed=3),
    HybridSignal(k=5, draws=20),
    HardSignal(),
]


def some_logits(rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def taken(logits: Tensor, signal: StoredSignal) -> SparseRows:
    return select(logits, signal, document_id=DOCUMENT, positions_T=torch.arange(len(logits)))


def top(logits: Tensor, *, k: int, temperature: float = 1.0) -> TopKRows:
    rows = taken(logits, TopKSignal(k=k, temperature=temperature))
    assert isinstance(rows, TopKRows)
    return rows


def top_p(logits: Tensor, *, p: float, cap: int) -> TopKRows:
    rows = taken(logits, TopPSignal(p=p, cap=cap))
    assert isinstance(rows, TopKRows)
    return rows


def sampled(logits: Tensor, **settings_: object) -> SampledRows:
    rows = taken(logits, SampledSignal.model_validate(settings_))
    assert isinstance(rows, SampledRows)
    return rows


def hybrid(logits: Tensor, **settings_: object) -> HybridRows:
    rows = taken(logits, HybridSignal.model_validate(settings_))
    assert isinstance(rows, HybridRows)
    return rows


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.softmax(logits.double() / temperature, -1)


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


def dense(ids: Tensor, values: Tensor, vocab: int) -> Tensor:
    """The values at their ids; 0 elsewhere."""
    return torch.zeros(len(ids), vocab, dtype=torch.float64).scatter_add_(1, ids, values.double())


def assert_same(one: SparseRows, other: SparseRows) -> None:
    """Equal bit for bit, up to padding."""
    assert type(one) is type(other)
    for field in fields(one):
        values = [getattr(rows, field.name) for rows in (one, other)]
        if None in [None if value is None else 0 for value in values]:
            assert values == [None, None], field.name
            continue
        if values[0].ndim == 2:
            width = max(value.shape[1] for value in values)
            filler = -math.inf if field.name == "log_probs_TK" else 0
            values = [torch.nn.functional.pad(value, (0, width - value.shape[1]), value=filler) for value in values]
        assert torch.equal(*values), field.name


@pytest.mark.parametrize("vocab", [64, 65, 1000, 4096, 49_153])
@pytest.mark.parametrize("k", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("few_threads", [0, 1000])
def test_top_k_is_a_stable_sort(
    vocab: int, k: int, dtype: torch.dtype, few_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 logits have many ties, which go by id. With few threads NumPy partitions, with many torch does."""
    monkeypatch.setattr(panel_module, "_FEW_THREADS", few_threads)
    logits = some_logits(37, vocab).to(dtype)
    rows = top(logits, k=k, temperature=1.7)
    order = logits.float().sort(dim=-1, descending=True, stable=True).indices
    log_probs = torch.log_softmax(logits.double() / 1.7, -1).gather(1, order)
    assert torch.equal(rows.ids_TK, order[:, :k])
    # float32 logits of this size are within 1e-6 of themselves after the shift by their maximum
    torch.testing.assert_close(rows.log_probs_TK.double(), log_probs[:, :k], rtol=0, atol=2e-6)
    torch.testing.assert_close(rows.tail_T.double(), log_probs[:, k:].exp().sum(-1), rtol=2e-6, atol=0)


def test_all_best_in_one_block_and_all_in_different_blocks() -> None:
    logits = torch.zeros(2, 640)
    logits[0, 128:138] = torch.arange(10.0) + 5
    logits[1, ::64] = torch.arange(10.0) + 5
    ids = top(logits, k=10).ids_TK
    assert ids[0].tolist() == list(range(137, 127, -1))
    assert ids[1].tolist() == list(range(576, -1, -64))


def test_a_tiny_tail_keeps_its_precision() -> None:
    logits = torch.full((1, 1000), -40.0)
    logits[0, 3] = 0.0
    expected = pytest.approx(999 * math.exp(-40.0), rel=1e-6)  # 4e-15: 1 - head would be 0
    assert top(logits, k=1).tail_T.item() == expected
    assert top_p(logits, p=0.9, cap=5).tail_T.item() == expected
    assert hybrid(logits, k=1).tail_T.item() == expected


def test_logits_far_from_zero_lose_nothing() -> None:
    logits = some_logits(20, 700).bfloat16()
    far = top(logits.double().float() + 4096, k=5), top(logits, k=5)
    # float32 steps near 4096 are 2.4e-4, from the teacher's own arithmetic; beyond those nothing is lost
    torch.testing.assert_close(far[0].entropy_T, far[1].entropy_T, rtol=0, atol=1e-3)
    exact = softmax(logits.double().float() + 4096)
    torch.testing.assert_close(far[0].entropy_T.double(), entropy(exact), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(far[0].log_probs_TK.double(), exact.log().topk(5).values, rtol=0, atol=2e-6)


def test_whole_vocabulary_leaves_no_tail() -> None:
    rows = top(some_logits(3, 100), k=100)
    assert rows.tail_T.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(rows.ids_TK.sort(-1).values, torch.arange(100).expand(3, -1))


@pytest.mark.parametrize("signal", [TopKSignal(k=101), HybridSignal(k=101)])
def test_k_above_the_vocabulary_names_both(signal: StoredSignal) -> None:
    with pytest.raises(SpecError, match=r"k=101 .* 100"):
        taken(some_logits(3, 100), signal)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("cap", [1, 20, 1000])
def test_top_p_is_a_sort_and_a_cumulative_sum(p: float, cap: int) -> None:
    logits = some_logits(240, 300, scale=4.0)
    doubtful = ((softmax(logits).sort(-1, descending=True).values.cumsum(-1) - p).abs() < 2e-6).any(-1)
    logits = logits[~doubtful]  # float32 weights cannot tell there whether the sum reaches p
    assert len(logits) > 200
    rows = top_p(logits, p=p, cap=cap)
    probs, order = softmax(logits).sort(-1, descending=True)
    numbers = ((probs.cumsum(-1) < p).sum(-1) + 1).clamp(max=cap)
    kept = torch.arange(rows.ids_TK.shape[1]) < numbers[:, None]
    assert torch.equal((rows.log_probs_TK > -math.inf).sum(-1), numbers)
    assert rows.ids_TK.shape[1] == numbers.max()
    assert torch.equal(rows.ids_TK, order[:, : kept.shape[1]] * kept)
    expected = torch.where(kept, probs[:, : kept.shape[1]].log(), -math.inf)
    torch.testing.assert_close(rows.log_probs_TK.double(), expected, rtol=0, atol=2e-6)
    outside = torch.where(torch.arange(300) < numbers[:, None], 0.0, probs).sum(-1)
    torch.testing.assert_close(rows.tail_T.double(), outside, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize(("p", "number"), [(0.5, 10), (0.95, 19), (0.95001, 20), (0.05, 1), (0.05001, 2)])
def test_a_mass_of_exactly_p_is_enough(p: float, number: int) -> None:
    rows = top_p(torch.zeros(1, 20), p=p, cap=100)
    assert rows.ids_TK.tolist() == [list(range(number))]
    assert rows.tail_T.item() == pytest.approx(1 - number / 20, abs=1e-7)


def test_masked_logits_are_never_named() -> None:
    logits = some_logits(40, 130)
    logits[:, 65:] = -torch.inf
    drawn = sampled(logits, draws=500)
    assert drawn.ids_TK.max() < 65
    probs = softmax(logits[:, :65])
    torch.testing.assert_close(drawn.entropy_T.double(), entropy(probs), rtol=1e-6, atol=1e-6)
    head = top(logits, k=70)
    assert torch.equal(head.ids_TK[:, :65].sort(-1).values, torch.arange(65).expand(40, -1))
    assert head.log_probs_TK[:, 65:].tolist() == [[-math.inf] * 5] * 40
    assert head.ids_TK[:, 65:].tolist() == [[0] * 5] * 40
    rest = hybrid(logits, k=60, draws=200)
    assert rest.drawn_ids_TM.max() < 65


@pytest.mark.parametrize(("vocab", "temperature"), [(200, 1.0), (321, 2.5)])
def test_draws_follow_the_softmax(vocab: int, temperature: float) -> None:
    """100,000 draws of one distribution: each frequency within its binomial spread, and the spread itself."""
    draws, repeats = 50, 2000
    logits = some_logits(1, vocab, scale=1.5).expand(repeats, -1)
    rows = sampled(logits, draws=draws, temperature=temperature, seed=3)
    assert torch.equal(rows.counts_TK.sum(-1), torch.full((repeats,), draws))
    estimates = dense(rows.ids_TK, rows.counts_TK / draws, vocab)
    probs = softmax(logits[0], temperature)
    z = (estimates.mean(0) - probs) / (probs * (1 - probs) / (draws * repeats)).sqrt()
    assert z.pow(2).mean().item() == pytest.approx(1.0, abs=3 * math.sqrt(2 / vocab))  # chi-squared with `vocab` degrees
    assert z.abs().max() < 4.5  # of 321 normal deviates: exceeded once in 500 seeds; the seed is fixed
    common = probs > 0.01
    spread = estimates.var(0)[common] / (probs * (1 - probs) / draws)[common]
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=4 * math.sqrt(2 / repeats))


@pytest.mark.parametrize("proposal", [0.8, 1.0, 1.6])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_importance_weights_are_the_ratio_and_make_draws_unbiased(proposal: float, temperature: float) -> None:
    draws, repeats, vocab = 50, 2000, 150
    logits = some_logits(1, vocab, scale=1.5).expand(repeats, -1)
    rows = sampled(logits, draws=draws, temperature=temperature, proposal_temperature=proposal)
    probs, asked = softmax(logits[0], temperature), softmax(logits[0], temperature * proposal)
    if proposal == 1.0:
        assert rows.weights_TK is None
    else:
        assert rows.weights_TK is not None
        expected = (probs / asked)[rows.ids_TK] * (rows.counts_TK > 0)
        torch.testing.assert_close(rows.weights_TK.double(), expected, rtol=2e-6, atol=0)
    target = sparse_target(rows)
    estimates = dense(target.ids_TK, target.probs_TK, vocab)
    # A draw is id i with probability q_i and then says p_i / q_i: of variance p_i^2 (1 / q_i - 1).
    z = (estimates.mean(0) - probs) / (probs.square() * (1 / asked - 1) / (draws * repeats)).sqrt()
    assert z.pow(2).mean().item() == pytest.approx(1.0, abs=3 * math.sqrt(2 / vocab))
    assert z.abs().max() < 4.5
    torch.testing.assert_close(rows.entropy_T.double(), entropy(probs).expand(repeats), rtol=1e-6, atol=1e-6)


def test_weights_are_stable_where_probabilities_vanish() -> None:
    """Logits spread over 120 nats: p itself is 0 in float32 for most ids that a flat proposal draws."""
    logits = torch.linspace(0, -120, 400).expand(50, -1)
    rows = sampled(logits, draws=200, proposal_temperature=40.0)
    assert rows.weights_TK is not None
    expected = (softmax(logits[0]) / softmax(logits[0], 40.0))[rows.ids_TK] * (rows.counts_TK > 0)
    assert (expected.float() < 1e-30).sum() > 1000
    torch.testing.assert_close(rows.weights_TK, expected.float(), rtol=2e-5, atol=1e-44)  # 1e-7 of 120 nats


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (12, 1.0), (12, 2.5)])
def test_a_hybrid_is_an_exact_head_and_an_unbiased_tail(k: int, temperature: float) -> None:
    draws, repeats, vocab = 40, 2500, 200
    logits = some_logits(1, vocab, scale=2.0).expand(repeats, -1)
    rows = hybrid(logits, k=k, draws=draws, temperature=temperature)
    probs = softmax(logits[0], temperature)
    best = probs.topk(k)
    assert torch.equal(rows.ids_TK[0], best.indices)
    torch.testing.assert_close(rows.log_probs_TK.exp()[0].double(), best.values, rtol=2e-6, atol=0)
    assert torch.equal(rows.counts_TM.sum(-1), torch.full((repeats,), draws))
    assert not np.intersect1d(rows.drawn_ids_TM[rows.counts_TM > 0], best.indices).size
    tail = probs.clone()
    tail[best.indices] = 0.0
    torch.testing.assert_close(rows.tail_T.double(), tail.sum().expand(repeats), rtol=2e-6, atol=0)
    estimates = dense(rows.drawn_ids_TM, rows.tail_T[:, None] * rows.counts_TM / draws, vocab)
    conditional = tail / tail.sum()
    others = conditional > 0
    spread = tail.sum() * (conditional * (1 - conditional) / (draws * repeats)).sqrt()
    z = ((estimates.mean(0) - tail) / spread)[others]
    assert len(z) == vocab - k
    assert z.pow(2).mean().item() == pytest.approx(1.0, abs=3 * math.sqrt(2 / len(z)))
    assert z.abs().max() < 4.5
    target = sparse_target(rows)
    torch.testing.assert_close(target.probs_TK.sum(-1), torch.ones(repeats), rtol=0, atol=3e-6)


def test_a_hybrid_without_a_tail_draws_nothing() -> None:
    """Every id is in the head, the others are masked, or their mass is nothing in float32."""
    whole = hybrid(some_logits(3, 20), k=20, draws=7)
    assert whole.drawn_ids_TM.shape == whole.counts_TM.shape == (3, 0)
    logits = some_logits(4, 200)
    logits[1, 5:] = -torch.inf
    logits[2] = -200.0
    logits[2, 7] = 0.0
    rows = hybrid(logits, k=5, draws=7)
    assert rows.counts_TM.sum(-1).tolist() == [7, 0, 0, 7]
    assert rows.tail_T[1:3].tolist() == [0.0, 0.0]
    assert rows.ids_TK[1].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert rows.drawn_ids_TM[1:3].sum() == 0


def test_a_tiny_tail_is_drawn_from_in_its_own_proportions() -> None:
    """A tail of 1e-20 with two ids, 3 to 1."""
    logits = torch.full((500, 300), -torch.inf)
    logits[:, 9], logits[:, 100], logits[:, 250] = 0.0, -46.0 + math.log(3), -46.0
    rows = hybrid(logits, k=1, draws=20)
    share = dense(rows.drawn_ids_TM, rows.counts_TM, 300).sum(0)[[100, 250]] / 10_000
    assert share.sum() == 1.0
    assert share[0].item() == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 10_000))


def test_a_hybrids_draws_are_not_those_of_the_sampled_signal() -> None:
    """Of 1000 equal ids, 40 draws of two streams have 1.6 in common by chance; of one stream, nearly all."""
    logits = torch.zeros(100, 1001)
    logits[:, 1000] = 0.01
    drawn, rest = sampled(logits, draws=40), hybrid(logits, k=1, draws=40)
    both = dense(drawn.ids_TK, drawn.counts_TK > 0, 1001) * dense(rest.drawn_ids_TM, rest.counts_TM > 0, 1001)
    assert both.sum(-1).mean().item() == pytest.approx(1.56, abs=4 * math.sqrt(1.6 / 100))


def test_draws_are_the_inverse_of_the_cumulative_distribution() -> None:
    """Each uniform number falls into the drawn id's interval of the float64 cumulative softmax."""
    logits = some_logits(64, 1000)
    numbers = torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.cat([draw(panel.softmax(1.0), numbers[rows]) for rows, panel in panels(logits)])
    above = softmax(logits).cumsum(-1).gather(1, ids)
    below = above - softmax(logits).gather(1, ids)
    assert (numbers < above + 3e-7).all()
    assert (numbers >= below - 3e-7).all()


def test_the_ends_of_the_unit_interval_draw_ids_with_mass() -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [70, 130]] = 0.0  # a whole block of 64 without mass comes first
    ends = torch.tensor([[0.0, 1 - 2.0**-53]], dtype=torch.float64)
    ((_, panel),) = panels(logits)
    assert draw(panel.softmax(1.0), ends).tolist() == [[70, 130]]


@pytest.mark.parametrize("signal", EVERY_KIND[:-1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_is_that_of_the_softmax(signal: StoredSignal, dtype: torch.dtype) -> None:
    logits = some_logits(50, 3001).to(dtype)
    rows = taken(logits, signal)
    assert not isinstance(rows, HardRows)
    assert not isinstance(signal, HardSignal)
    assert rows.entropy_T.dtype == torch.float32
    torch.testing.assert_close(rows.entropy_T.double(), entropy(softmax(logits, signal.temperature)), rtol=1e-6, atol=1e-6)


def test_certain_teachers_have_no_entropy_and_uniform_ones_all() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, 17] = 300.0
    rows = sampled(logits, draws=10, min_draws=2, full_entropy_nats=math.log(1000))
    assert rows.entropy_T.tolist() == [0.0, pytest.approx(math.log(1000), rel=1e-7)]
    assert rows.counts_TK.sum(-1).tolist() == [2, 10]


def test_draws_rise_with_entropy_to_all_of_them() -> None:
    logits = some_logits(400, 500) * torch.linspace(0.05, 4, 400)[:, None]
    rows = sampled(logits, draws=60, min_draws=6, full_entropy_nats=4.5)
    expected = 6 + (54 * (entropy(softmax(logits)) / 4.5).clamp(max=1)).round()
    assert torch.equal(rows.counts_TK.sum(-1), expected.long())
    assert (expected == 60).sum() > 20
    assert (expected < 12).sum() > 20


@pytest.mark.parametrize("changes", [{}, {"min_draws": 5}, {"proposal_temperature": 1.3}])
def test_more_draws_begin_with_the_fewer_ones(changes: dict[str, object]) -> None:
    logits = some_logits(60, 900)
    few, many = sampled(logits, draws=20, **changes), sampled(logits, draws=70, **changes)
    gained = dense(many.ids_TK, many.counts_TK, 900) - dense(few.ids_TK, few.counts_TK, 900)
    assert gained.min() == 0
    assert gained.sum() > 1000


def test_more_tail_draws_begin_with_the_fewer_ones() -> None:
    few, many = (hybrid(some_logits(60, 900), k=4, draws=draws) for draws in (20, 70))
    gained = dense(many.drawn_ids_TM, many.counts_TM, 900) - dense(few.drawn_ids_TM, few.counts_TM, 900)
    assert gained.min() == 0
    assert gained.sum() == 60 * 50


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(DOCUMENT, torch.arange(2000), draws=50, seed=0).numpy()
    histogram = np.bincount((numbers.ravel() * 100).astype(int), minlength=100)
    chi_squared = ((histogram - 1000) ** 2 / 1000).sum()
    assert abs(chi_squared - 99) < 4 * math.sqrt(2 * 99)
    correlations = np.corrcoef(numbers.T)[np.triu_indices(50, 1)]
    assert abs(correlations * math.sqrt(2000)).max() < 4.5
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) * math.sqrt(numbers.size) < 4


def test_uniforms_depend_on_document_position_draw_seed_and_stream_alone() -> None:
    whole = uniforms(DOCUMENT, torch.arange(100), draws=50, seed=0)
    assert torch.equal(uniforms(DOCUMENT, torch.tensor([99, 3]), draws=20, seed=0), whole[[99, 3], :20])
    others = [
        uniforms("60" * 16, torch.arange(100), draws=50, seed=0),
        uniforms(DOCUMENT, torch.arange(100), draws=50, seed=1),
        uniforms(DOCUMENT, torch.arange(100), draws=50, seed=0, stream="tail"),
        uniforms(DOCUMENT, torch.arange(100), draws=50, seed=1, stream="tail"),
    ]
    everything = torch.stack([whole, *others]).numpy()
    assert len(np.unique(everything)) == everything.size == 25_000
    correlations = np.corrcoef(everything.reshape(5, -1))[np.triu_indices(5, 1)]
    assert abs(correlations).max() * math.sqrt(5000) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("signal", EVERY_KIND, ids=str)
def test_any_subset_gives_the_same_rows(signal: StoredSignal, dtype: torch.dtype) -> None:
    logits = some_logits(100, 2000).to(dtype)
    positions = torch.arange(100) + 17
    whole = select(logits, signal, document_id=DOCUMENT, positions_T=positions)
    for subset in (torch.tensor([40]), torch.tensor([99, 0, 33]), torch.arange(31, 70), torch.arange(0)):
        part = select(logits[subset], signal, document_id=DOCUMENT, positions_T=positions[subset])
        chosen = {
            field.name: None if getattr(whole, field.name) is None else getattr(whole, field.name)[subset]
            for field in fields(whole)
        }
        assert_same(part, type(whole)(**chosen))


def test_signals_taken_together_are_those_taken_alone() -> None:
    """Though a wider head, another temperature, or a tail emptied of its head for a while came before."""
    logits = some_logits(50, 700).bfloat16()
    signals = [*EVERY_KIND, TopPSignal(p=0.9), HybridSignal(k=20, temperature=2.0), *reversed(EVERY_KIND)]
    together = select_all(logits, signals, document_id=DOCUMENT, positions_T=torch.arange(50))
    for rows, signal in zip(together, signals, strict=True):
        assert_same(rows, taken(logits, signal))


def test_the_top_1_is_the_first_of_equals_in_every_kind() -> None:
    logits = some_logits(300, 700, scale=1.0).bfloat16().round()
    expected = [int(np.flatnonzero(row == row.max())[0]) for row in logits.float().numpy()]
    assert (logits == logits.amax(-1, keepdim=True)).sum() > 400  # ties there are
    hard, kept = taken(logits, HardSignal()), sampled(logits, keep_top1=True)
    assert isinstance(hard, HardRows)
    assert kept.top1_T is not None
    for ids in (hard.ids_T, kept.top1_T, top(logits, k=1).ids_TK[:, 0], hybrid(logits, k=3).ids_TK[:, 0]):
        assert ids.tolist() == expected
    assert sampled(logits).top1_T is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("signal", EVERY_KIND, ids=str)
def test_logits_that_are_no_distribution_name_document_and_position(value: float, signal: StoredSignal) -> None:
    logits = some_logits(50, 700)
    logits[41, 300] = value
    with pytest.raises(TeacherError, match=f"document {DOCUMENT}, position 1041"):
        select(logits, signal, document_id=DOCUMENT, positions_T=torch.arange(50) + 1000)


def test_logits_all_masked_are_no_distribution() -> None:
    with pytest.raises(TeacherError, match=r"position 0: .*the greatest is -inf"):
        taken(torch.full((2, 70), -torch.inf), TopKSignal(k=1))


@st.composite
def teachers(draw_: st.DrawFn) -> Tensor:
    """Few ids, many ties, masked logits, and magnitudes up to what underflows."""
    rows, vocab = draw_(st.integers(1, 3)), draw_(st.integers(1, 140))
    values = st.sampled_from([0.0, 0.0, 1.0, 2.5, -3.0, -30.0, -90.0, -105.0, 60.0, -math.inf])
    numbers = draw_(st.lists(values, min_size=rows * vocab, max_size=rows * vocab))
    logits = torch.tensor(numbers).view(rows, vocab)
    logits[:, draw_(st.integers(0, vocab - 1))] = draw_(st.sampled_from([0.0, 1.0, -30.0]))
    return logits


@settings(max_examples=150, deadline=None)
@given(teachers(), st.integers(1, 150), st.floats(0.01, 0.99), st.sampled_from([0.5, 1.0, 3.0]))
def test_heads_of_awkward_teachers(logits: Tensor, size: int, p: float, temperature: float) -> None:
    vocab = logits.shape[1]
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    probs = softmax(logits, temperature).gather(1, order)
    cut = taken(logits, TopPSignal(p=p, cap=size, temperature=temperature))
    full = taken(logits, TopKSignal(k=min(size, vocab), temperature=temperature))
    for rows in (cut, full):
        assert isinstance(rows, TopKRows)
        width = rows.ids_TK.shape[1]
        named = rows.log_probs_TK > -math.inf
        assert torch.equal(rows.ids_TK[named], order[:, :width][named])
        assert (rows.ids_TK[~named] == 0).all()
        torch.testing.assert_close(rows.log_probs_TK[named].double(), probs[:, :width][named].log(), rtol=2e-6, atol=2e-6)
        mass = rows.log_probs_TK.double().exp().sum(-1) + rows.tail_T
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=2e-6)
        torch.testing.assert_close(rows.entropy_T.double(), entropy(probs), rtol=1e-6, atol=1e-6)
    assert isinstance(full, TopKRows)
    assert torch.equal(full.log_probs_TK > -math.inf, logits.gather(1, order)[:, : min(size, vocab)] > -math.inf)
    assert isinstance(cut, TopKRows)
    head = (cut.log_probs_TK > -math.inf).sum(-1)
    for row, number in enumerate(head.tolist()):
        assert 1 <= number <= min(size, vocab)
        reached = probs[row].cumsum(-1)
        assert number == 1 or reached[number - 2] < p + 1e-6
        assert number == min(size, vocab) or reached[number - 1] >= p - 1e-6


@settings(max_examples=150, deadline=None)
@given(teachers(), st.integers(1, 20), st.integers(1, 30), st.sampled_from([0.5, 1.0, 3.0]))
def test_draws_of_awkward_teachers(logits: Tensor, k: int, draws: int, temperature: float) -> None:
    vocab = logits.shape[1]
    k = min(k, vocab)
    rows = hybrid(logits, k=k, draws=draws, temperature=temperature)
    flat = sampled(logits, draws=draws, temperature=temperature, proposal_temperature=2.0, keep_top1=True)
    assert torch.equal(flat.counts_TK.sum(-1), torch.full((len(logits),), draws))
    assert flat.weights_TK is not None
    assert flat.weights_TK.isfinite().all()
    named = dense(rows.ids_TK, (rows.log_probs_TK > -math.inf).long(), vocab)
    assert named.max() == 1
    drawn = dense(rows.drawn_ids_TM, rows.counts_TM, vocab)
    assert (drawn[named > 0] == 0).all()
    assert torch.equal(drawn.sum(-1), torch.where(rows.tail_T > 0, draws, 0).double())
    for ids, counts in ((rows.drawn_ids_TM, rows.counts_TM), (flat.ids_TK, flat.counts_TK)):
        assert (logits.gather(1, ids)[counts > 0] > -math.inf).all()
        assert (ids[counts == 0] == 0).all()
        ascending = (ids[:, 1:] > ids[:, :-1]) | (counts[:, 1:] == 0)
        assert ascending.all()
        assert ((counts[:, 1:] > 0) <= (counts[:, :-1] > 0)).all()  # padding comes last
