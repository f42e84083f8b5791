"""The budget of a store, line by line, against the tiny teacher's whole distributions in float64."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr, rel_entr
from small_stores import LENGTHS, Speaks, make_documents, random_teacher, write_store
from small_stores import VOCAB as SMALL_VOCAB

from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import StoreError
from limbeck.signals.diff import diff
from limbeck.signals.fidelity import Fidelity, fidelity
from limbeck.signals.store import SignalStore
from limbeck.signals.types import HybridRows, SampledRows, TopKRows, sparse_target
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.cache import write_stores
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.score import passages, score_logits

CONTEXT = Context(window=48, overlap=16)
VOCAB = 300


def tolerance(positions: int) -> float:
    """Five standard errors of a mean of values that are off by as much as the codec says: the entropy by 0.011 (1/25 + H), and
    ln(tail) by 0.022 (1/4 + |ln tail|), which moves t ln(V / t) by at most 0.022 (1 + ln V), since t (1/4 + |ln t|) < 1/2.
    """
    return 5 * (0.011 * (0.04 + np.log(VOCAB)) + 0.022 * (1 + np.log(VOCAB))) / 3**0.5 / positions**0.5


@dataclass(frozen=True)
class World:
    teacher: Teacher
    tokens: TokenStore
    logits_TV: np.ndarray
    folder: Path

    def probs(self, temperature: float = 1.0) -> np.ndarray:
        return torch.softmax(torch.from_numpy(self.logits_TV) / temperature, -1).numpy()

    def store(self, name: str, signal: StoredSignal) -> SignalStore:
        write_stores(self.teacher, self.tokens, {self.folder / name: signal}, context=CONTEXT)
        return SignalStore.open(self.folder / name)

    def rows(self, store: SignalStore) -> Any:
        return store.whole(self.tokens.ids).rows


@pytest.fixture
def world(teacher_folder: Path, values: dict[str, Any], tmp_path: Path) -> World:
    """The teacher, and its logits at every position of every document, float64, in the order of the documents."""
    recipe = parse(Recipe, values, source="test")
    tokens = prepare(recipe.data, load_tokenizer(str(teacher_folder)))[0]
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=CONTEXT)
    teacher = load_teacher(spec, device=torch.device("cpu"))
    documents = [tokens.document(index) for index in range(len(tokens))]
    work = passages([len(document) for document in documents], context=CONTEXT)
    parts = {
        (passage.document, first): logits_RV.double().numpy().copy()
        for passage, first, logits_RV in score_logits(teacher, documents, work)
    }
    return World(teacher, tokens, np.concatenate([parts[key] for key in sorted(parts)]), tmp_path / "stores")


def lines(found: Fidelity) -> dict[str, float | None]:
    return {source.name: source.nats for source in found.sources}


def entropy_of(head_TK: np.ndarray) -> np.ndarray:
    return entr(head_TK).sum(-1)


@pytest.mark.parametrize("signal", [TopKSignal(k=12), TopKSignal(k=150), TopPSignal(p=0.8, cap=60)], ids=["12", "150", "topp"])
def test_truncation_is_the_kl_to_a_flat_tail(world: World, signal: StoredSignal) -> None:
    """Entropy and tail are kept in 256 steps: they are off by chance, and the mean of many by little (`tolerance`)."""
    store = world.store("store", signal)
    rows = world.rows(store)
    p_TV = world.probs()
    kept_TV = np.zeros(p_TV.shape, dtype=bool)
    row, place = np.nonzero(np.isfinite(rows.log_probs_TK.numpy()))
    kept_TV[row, rows.ids_TK.numpy()[row, place]] = True
    tail_T1 = np.where(kept_TV, 0, p_TV).sum(-1, keepdims=True)
    flat_TV = np.where(kept_TV, p_TV, tail_T1 / (~kept_TV).sum(-1, keepdims=True))
    expected = rel_entr(p_TV, flat_TV).sum(-1).mean()
    assert expected > 0.01
    found = fidelity(store)
    assert lines(found)["truncation"] == pytest.approx(expected, abs=tolerance(len(p_TV)))
    assert found.entropy_nats == pytest.approx(entropy_of(p_TV).mean(), abs=tolerance(len(p_TV)))
    assert found.positions == len(p_TV)
    assert lines(found)["sampling"] == lines(found)["temperature"] == 0
    assert lines(found)["teacher"] is None
    assert found.gradient_noise is None


@pytest.mark.parametrize(
    "signal",
    [
        SampledSignal(draws=10),
        SampledSignal(draws=40, min_draws=5),
        SampledSignal(draws=25, proposal_temperature=1.5),
        HybridSignal(k=8, draws=12),
    ],
    ids=["10", "adaptive", "proposal", "hybrid"],
)
def test_sampling_is_the_kl_from_the_draws(world: World, signal: StoredSignal) -> None:
    """H - H(p̂) and KL(p̂ || p) differ by Σ (p̂ - p) ln p, whose mean is zero; five standard errors of it, and rounding."""
    store = world.store("store", signal)
    rows = world.rows(store)
    assert isinstance(rows, SampledRows | HybridRows)
    target = sparse_target(rows)
    p_TV = world.probs()
    row, place = np.nonzero(target.probs_TK.numpy() > 0)
    drawn_TV = np.zeros(p_TV.shape)
    np.add.at(drawn_TV, (row, target.ids_TK.numpy()[row, place]), target.probs_TK.double().numpy()[row, place])
    if isinstance(rows, HybridRows):  # its head is exact, but for rounding, which is not what is measured here
        head_TV = np.zeros(p_TV.shape, dtype=bool)
        np.put_along_axis(head_TV, rows.ids_TK.numpy(), True, -1)
        tail_T1 = np.where(head_TV, 0, p_TV).sum(-1, keepdims=True)
        drawn_TV = np.where(head_TV, p_TV, drawn_TV / rows.tail_T.double().numpy()[:, None] * tail_T1)
    kl_T = (rel_entr(drawn_TV, p_TV) - drawn_TV + p_TV).sum(-1)
    offset_T = ((drawn_TV - p_TV) * np.log(p_TV)).sum(-1)
    allowed = 5 * offset_T.std() / len(offset_T) ** 0.5 + tolerance(len(p_TV))
    found = fidelity(store)
    assert allowed < kl_T.mean() / 3
    assert lines(found)["sampling"] == pytest.approx(kl_T.mean(), abs=allowed)
    assert lines(found)["truncation"] == 0
    assert found.dominant is not None
    assert found.dominant.name == "sampling"
    assert found.dominant.nature == "noise"
    assert found.gradient_noise == pytest.approx(((drawn_TV - p_TV) ** 2).sum(-1).mean(), rel=0.15)


def test_the_gradients_noise_is_the_formula_of_rs_kd(world: World) -> None:
    """Σ p (1 - p) / N; its estimate has the error of Σ p² from pairs of draws, a few percent over these positions."""
    p_TV = world.probs()
    for draws in (5, 50):
        found = fidelity(world.store(f"store{draws}", SampledSignal(draws=draws)))
        assert found.gradient_noise == pytest.approx((p_TV * (1 - p_TV)).sum(-1).mean() / draws, rel=0.03)


@pytest.mark.parametrize("kept_as", ["float16", "uint8"])
def test_rounding_is_the_kl_of_the_rounded_rows(world: World, kept_as: Any) -> None:
    """From what was really stored: head and tail against the same of the dense distribution. An average of chance errors."""
    store = world.store("store", TopKSignal(k=150, values=kept_as))
    rows = world.rows(store)
    assert isinstance(rows, TopKRows)
    p_TV = world.probs()
    exact_TK = np.take_along_axis(p_TV, rows.ids_TK.numpy(), -1)
    exact_TM = np.append(exact_TK, 1 - exact_TK.sum(-1, keepdims=True), -1)
    stored_TM = np.append(rows.log_probs_TK.double().exp().numpy(), rows.tail_T.double().numpy()[:, None], -1)
    kl = rel_entr(exact_TM, stored_TM / stored_TM.sum(-1, keepdims=True)).sum(-1).mean()
    assert lines(fidelity(store))["values"] == pytest.approx(kl, rel=0.1)


def test_rounded_weights_are_the_kl_of_the_rounded_draws(world: World) -> None:
    """What the draws would be with the weights that the dense distribution and its proposal have."""
    proposal = 1.5
    store = world.store("store", SampledSignal(draws=20, proposal_temperature=proposal))
    rows = world.rows(store)
    ids_TK, counts_TK = rows.ids_TK.numpy(), rows.counts_TK.double().numpy()
    exact_TK, stored_TK = (
        counts_TK * weights_TK
        for weights_TK in (
            np.take_along_axis(world.probs() / world.probs(proposal), ids_TK, -1),
            rows.weights_TK.double().numpy(),
        )
    )
    kl = rel_entr(exact_TK / exact_TK.sum(-1, keepdims=True), stored_TK / stored_TK.sum(-1, keepdims=True)).sum(-1).mean()
    assert lines(fidelity(store))["values"] == pytest.approx(kl, rel=0.15)


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_temperature_is_the_kl_to_the_teacher_at_one(world: World, temperature: float) -> None:
    """Exact but for rounding where every id is held; with fewer, the tail's shape is a guess."""
    expected = rel_entr(world.probs(), world.probs(temperature)).sum(-1).mean()
    whole = fidelity(world.store("whole", TopKSignal(k=VOCAB, temperature=temperature)))
    assert lines(whole)["temperature"] == pytest.approx(expected, rel=1e-2)
    most = fidelity(world.store("most", TopKSignal(k=100, temperature=temperature)))
    assert lines(most)["temperature"] == pytest.approx(expected, rel=0.2)
    draws = fidelity(world.store("draws", SampledSignal(draws=5, temperature=temperature)))
    assert lines(draws)["temperature"] is None


def test_the_teachers_line_is_the_diff_and_the_sum_is_the_sum(world: World) -> None:
    signal = TopKSignal(k=30, temperature=2.0)
    reference = world.store("reference", signal)
    for parameter in world.teacher.model.parameters():
        parameter.data = parameter.data.half().float() * 1.02
    store = world.store("store", signal)
    found = fidelity(store, reference=reference)
    compared = diff(reference, store)
    assert compared.kl is not None
    assert lines(found)["teacher"] == compared.kl.value > 0
    nats = [source.nats for source in found.sources if source.nats is not None]
    assert len(nats) == 5
    assert found.total_nats == pytest.approx(sum(nats))
    assert found.dominant is not None
    assert found.dominant.nats == max(nats)


def small(
    path: Path, signal: StoredSignal, *, teacher: Speaks = random_teacher, lengths: tuple[int, ...] = LENGTHS
) -> SignalStore:
    return SignalStore.open(write_store(path, signal, teacher=teacher, documents=make_documents(lengths)))


def dense(teacher: Speaks) -> np.ndarray:
    """The distributions behind `small`, float64."""
    logits = [teacher(name, len(tokens) - 1).double() for name, tokens in make_documents(LENGTHS)]
    return torch.cat([torch.softmax(part, -1) for part in logits]).numpy()


def nearly_certain(document_id: str, rows: int) -> torch.Tensor:
    """An entropy of about 0.01 nats, the same for all rows but for a tenth of it: errors of the codec do not average out."""
    generator = torch.Generator().manual_seed(int(document_id, 16))
    logits_TV = torch.randn(rows, SMALL_VOCAB, generator=generator) / 2
    logits_TV[:, 3] += 14
    return logits_TV


def test_a_nearly_certain_teacher_is_measured_as_well(tmp_path: Path) -> None:
    """To a fifth of 0.001 nats; int8 weights cost 0.006."""
    p_TV = dense(nearly_certain)
    store = small(tmp_path, TopKSignal(k=64), teacher=nearly_certain)
    kept_TV = np.zeros(p_TV.shape, dtype=bool)
    np.put_along_axis(kept_TV, store.whole([n for n in store.document_ids if store.num_rows(n)]).rows.ids_TK.numpy(), True, -1)
    tail_T1 = np.where(kept_TV, 0, p_TV).sum(-1, keepdims=True)
    flat_TV = np.where(kept_TV, p_TV, tail_T1 / (~kept_TV).sum(-1, keepdims=True))
    found = fidelity(store)
    assert found.entropy_nats == pytest.approx(entropy_of(p_TV).mean(), abs=2e-4)
    assert lines(found)["truncation"] == pytest.approx(rel_entr(p_TV, flat_TV).sum(-1).mean(), abs=2e-4)
    assert "a bound from above" in found.sources[0].how


def certain_at_first(document_id: str, rows: int) -> torch.Tensor:
    """One id has all the mass in each document's first rows."""
    logits_TV = random_teacher(document_id, rows)
    logits_TV[:4] = -torch.inf
    logits_TV[:4, 5] = 0
    return logits_TV


@pytest.mark.parametrize("rows_at_once", [1, 30, 8192])
def test_rows_without_a_tail_have_no_noise_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    """The same number however rows are grouped: t² (1 - Σ (p / t)²) / N over ids outside the head, in float64."""
    monkeypatch.setattr("limbeck.signals.diff.ROWS_AT_ONCE", rows_at_once)
    lengths, draws = (3, 200, 2, 400, 300), 30
    store = small(tmp_path, HybridSignal(k=4, draws=draws), teacher=certain_at_first, lengths=lengths)
    documents = make_documents(lengths)
    logits = torch.cat([certain_at_first(name, len(tokens) - 1).double() for name, tokens in documents])
    outside_TV = np.sort(torch.softmax(logits, -1).numpy(), -1)[:, :-4]
    expected = (outside_TV.sum(-1) ** 2 - (outside_TV**2).sum(-1)).mean() / draws
    assert fidelity(store).gradient_noise == pytest.approx(expected, rel=0.02)


def test_single_draws_tell_no_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the rows that have more either: those are where the teacher is less certain."""
    monkeypatch.setattr("limbeck.signals.diff.ROWS_AT_ONCE", 30)
    for name, fewest, is_known in (("one", 1, False), ("two", 2, True)):
        signal = SampledSignal(draws=8, min_draws=fewest, full_entropy_nats=1.0)
        found = fidelity(small(tmp_path / name, signal, teacher=certain_at_first))
        assert (found.gradient_noise is not None) == is_known
    assert fidelity(small(tmp_path / "hybrid", HybridSignal(k=4, draws=1))).gradient_noise is None


@pytest.mark.parametrize(
    ("reference", "signal", "how"),
    [
        (HardSignal(), TopKSignal(k=3), "the top-1 alone"),
        (HardSignal(), SampledSignal(draws=5, temperature=2), "the top-1 alone"),
        (TopKSignal(k=20), SampledSignal(draws=5), "takes a reference of two draws a row or more"),
        (HybridSignal(), SampledSignal(draws=5), "takes a reference of two draws a row or more"),
        (SampledSignal(draws=5, min_draws=1), SampledSignal(draws=5), "takes a reference of two draws a row or more"),
        (SampledSignal(draws=5), SampledSignal(draws=5, min_draws=1), "rows of a single draw tell no distance"),
    ],
    ids=["hard", "hard-draws", "topk", "hybrid", "single-reference", "single"],
)
def test_what_the_reference_cannot_tell_is_said(
    tmp_path: Path, reference: StoredSignal, signal: StoredSignal, how: str
) -> None:
    found = fidelity(small(tmp_path / "b", signal), reference=small(tmp_path / "a", reference))
    assert lines(found)["teacher"] is None
    assert how in found.sources[3].how
    assert found.entropy_nats > 1


def test_draws_are_measured_against_draws(tmp_path: Path) -> None:
    one, two = small(tmp_path / "a", SampledSignal(draws=40)), small(tmp_path / "b", SampledSignal(draws=20, seed=1))
    compared = diff(one, two)
    assert compared.kl is not None
    assert lines(fidelity(two, reference=one))["teacher"] == max(compared.kl.value, 0.0)


@pytest.mark.parametrize(
    "signal", [TopKSignal(k=3, temperature=2.0), SampledSignal(draws=5, temperature=2.0)], ids=["k", "draws"]
)
def test_a_reference_at_another_temperature_is_refused_before_rows_are_read(tmp_path: Path, signal: StoredSignal) -> None:
    """It would count the temperature as a difference of the teachers, and once more on its own line."""
    reference, store = small(tmp_path / "a", TopKSignal(k=3)), small(tmp_path / "b", signal)
    with pytest.raises(StoreError, match=r"at temperature 1\.0 and .* at 2\.0.*reference of signal\.temperature=2\.0"):
        fidelity(store, reference=reference)
    assert store.bytes_read == reference.bytes_read == 0


def test_hard_labels_have_no_budget(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds hard labels and no distribution"):
        fidelity(small(tmp_path, HardSignal()))


def test_progress_tells_of_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.signals.diff.ROWS_AT_ONCE", 30)
    store = SignalStore.open(write_store(tmp_path, TopKSignal(k=3)))
    calls: list[tuple[int, int]] = []
    fidelity(store, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 1
    assert calls[-1] == (store.tokens, store.tokens)
