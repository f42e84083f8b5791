"""Stores compared: the numbers of a diff against dense distributions in float64, and what cannot be compared."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr, rel_entr
from small_stores import LENGTHS, VOCAB, Documents, Speaks, blurred, make_documents, random_teacher, write_store

from limbeck.errors import StoreError
from limbeck.signals.diff import diff
from limbeck.signals.store import SignalStore
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

BLUR = 0.4
WHOLE = TopKSignal(k=VOCAB)


def opened(path: Path, signal: StoredSignal, *, teacher: Speaks = random_teacher, **named: Any) -> SignalStore:
    return SignalStore.open(write_store(path, signal, teacher=teacher, **named))


def dense(teacher: Speaks, documents: Documents) -> np.ndarray:
    logits = [teacher(name, len(tokens) - 1).double() for name, tokens in documents]
    return torch.cat([torch.softmax(part, -1) for part in logits]).numpy()


def test_whole_distributions_give_the_whole_kl(tmp_path: Path) -> None:
    """float16 log-probs are off by up to 2^-11 of their value, at random; KL of the two is off by p-weighted means of that."""
    documents = make_documents()
    found = diff(opened(tmp_path / "a", WHOLE), opened(tmp_path / "b", WHOLE, teacher=blurred(BLUR)))
    p_TV, q_TV = dense(random_teacher, documents), dense(blurred(BLUR), documents)
    kl_T = rel_entr(p_TV, q_TV).sum(-1)
    assert found.kl is not None
    assert found.kl.value == pytest.approx(kl_T.mean(), rel=5e-3)
    assert found.kl.low is not None
    assert found.kl.high is not None
    assert found.kl.low < found.kl.value < found.kl.high
    assert found.median == pytest.approx(np.median(kl_T), rel=1e-2)
    assert found.p99 == pytest.approx(np.quantile(kl_T, 0.99), rel=1e-2)
    assert found.maximum == pytest.approx(kl_T.max(), rel=1e-2)
    assert found.standard_error is None
    assert found.top1_flips is not None
    assert found.top1_flips.value == pytest.approx((p_TV.argmax(-1) != q_TV.argmax(-1)).mean())
    assert 0.05 < found.top1_flips.value < 0.5
    assert found.entropy_shift is not None
    assert found.entropy_shift.value == pytest.approx((entr(q_TV).sum(-1) - entr(p_TV).sum(-1)).mean(), abs=0.02)
    assert (found.documents, found.positions) == (sum(length > 1 for length in LENGTHS), sum(LENGTHS) - len(LENGTHS))


def test_the_worst_positions_are_the_worst(tmp_path: Path) -> None:
    documents = make_documents()
    found = diff(opened(tmp_path / "a", WHOLE), opened(tmp_path / "b", WHOLE, teacher=blurred(BLUR)), worst=4)
    p_TV, q_TV = dense(random_teacher, documents), dense(blurred(BLUR), documents)
    kl_T = rel_entr(p_TV, q_TV).sum(-1)
    places = [(name, position) for name, tokens in documents for position in range(len(tokens) - 1)]
    worst = np.argsort(-kl_T)[:4]
    assert [(position.document, position.position) for position in found.worst] == [places[row] for row in worst]
    for position, row in zip(found.worst, worst, strict=True):
        assert position.kl_nats == pytest.approx(kl_T[row], rel=2e-2)
        assert position.top1 == (p_TV[row].argmax(), q_TV[row].argmax())
        assert position.top1_probability == pytest.approx((p_TV[row].max(), q_TV[row].max()), rel=2e-3)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (TopKSignal(k=20), TopKSignal(k=20)),
        (TopKSignal(k=40), TopKSignal(k=10)),
        (TopPSignal(p=0.8, cap=60), HybridSignal(k=10, draws=5)),
        (SampledSignal(draws=60), TopKSignal(k=300)),
    ],
    ids=["topk", "truncations", "topp", "sampled"],
)
def test_what_is_not_seen_only_lowers_it(tmp_path: Path, one: StoredSignal, two: StoredSignal) -> None:
    found = diff(opened(tmp_path / "a", one), opened(tmp_path / "b", two, teacher=blurred(BLUR)))
    documents = make_documents()
    whole = rel_entr(dense(random_teacher, documents), dense(blurred(BLUR), documents)).sum(-1).mean()
    assert found.kl is not None
    assert 0 < found.kl.value < whole + 4 * (found.standard_error or 0.0)


def test_draws_of_both_give_half_the_squared_distance(tmp_path: Path) -> None:
    """Within five standard errors of the dense one, for draws of one seed and of two."""
    documents = make_documents([400] * 8)
    p_TV, q_TV = dense(random_teacher, documents), dense(blurred(BLUR), documents)
    expected = ((p_TV - q_TV) ** 2).sum(-1).mean() / 2
    one = opened(tmp_path / "a", SampledSignal(draws=20), documents=documents)
    for seed in (0, 1):
        signal = SampledSignal(draws=20, seed=seed)
        found = diff(one, opened(tmp_path / f"b{seed}", signal, teacher=blurred(BLUR), documents=documents))
        assert found.measure == "pinsker"
        assert found.kl is not None
        assert found.standard_error is not None
        assert abs(found.kl.value - expected) < 5 * found.standard_error
        assert found.standard_error < expected / 10
        assert (found.median, found.maximum, found.worst, found.top1_flips) == (None, None, (), None)
        assert expected < rel_entr(p_TV, q_TV).sum(-1).mean()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (SampledSignal(draws=50), SampledSignal(draws=100)),
        (SampledSignal(draws=100), SampledSignal(draws=25)),
        (SampledSignal(draws=60, min_draws=10, full_entropy_nats=4), SampledSignal(draws=40)),
    ],
    ids=["more", "fewer", "adaptive"],
)
@pytest.mark.parametrize("blur", [0.0, BLUR])
def test_more_draws_of_a_seed_are_compared_with_the_fewer(
    tmp_path: Path, one: SampledSignal, two: SampledSignal, blur: float
) -> None:
    """The fewer are among the more, and which ones they are is known: the estimate stays unbiased. Each document has its own
    numbers, which depend on the first half of its id."""

    def speaks(scale: float) -> Speaks:
        return lambda name, rows: blurred(scale)(name[16:], rows)

    documents = [(f"{index:016x}{index:016x}", tokens) for index, (_, tokens) in enumerate(make_documents([400] * 8), start=77)]
    p_TV, q_TV = dense(speaks(0.0), documents), dense(speaks(blur), documents)
    stores = [
        opened(tmp_path / name, signal, teacher=speaks(scale), documents=documents)
        for name, signal, scale in (("a", one, 0.0), ("b", two, blur))
    ]
    found = diff(*stores)
    assert found.kl is not None
    assert found.standard_error is not None
    assert abs(found.kl.value - ((p_TV - q_TV) ** 2).sum(-1).mean() / 2) < 5 * found.standard_error < 0.003


def test_top1s_are_compared_wherever_both_hold_one(tmp_path: Path) -> None:
    documents = make_documents()
    flips = (dense(random_teacher, documents).argmax(-1) != dense(blurred(BLUR), documents).argmax(-1)).mean()
    kinds: list[StoredSignal] = [
        HardSignal(),
        TopKSignal(k=3),
        TopPSignal(p=0.5, cap=9),
        HybridSignal(k=2, draws=4),
        SampledSignal(draws=4, keep_top1=True),
    ]
    hard = opened(tmp_path / "hard", HardSignal())
    for signal in kinds:
        found = diff(hard, opened(tmp_path / f"b-{signal.kind}", signal, teacher=blurred(BLUR)))
        assert found.measure == "top1"
        assert (found.kl, found.entropy_shift, found.worst) == (None, None, ())
        assert found.top1_flips is not None
        assert found.top1_flips.value == pytest.approx(flips)


@pytest.mark.parametrize(
    "signal",
    [TopKSignal(k=9), TopPSignal(), HybridSignal(k=4, draws=5), SampledSignal(draws=9, keep_top1=True), HardSignal()],
    ids=lambda signal: signal.kind,
)
def test_a_store_does_not_differ_from_itself(tmp_path: Path, signal: StoredSignal) -> None:
    store = opened(tmp_path, signal)
    found = diff(store, store)
    assert found.kl is None or found.kl.value == 0
    assert found.top1_flips is not None
    assert found.top1_flips.value == 0
    assert found.entropy_shift is None or found.entropy_shift.value == 0
    assert (found.differs, found.only_in_a, found.only_in_b) == ((), 0, 0)


def test_only_shared_documents_count(tmp_path: Path) -> None:
    documents = make_documents()
    one = opened(tmp_path / "a", TopKSignal(k=9), documents=documents[:4])
    two = opened(tmp_path / "b", TopKSignal(k=9), documents=[*documents[3:], *make_documents([9, 9], first=0xCC00)])
    found = diff(one, two)
    assert (found.documents, found.positions) == (1, LENGTHS[3] - 1)
    assert (found.only_in_a, found.only_in_b) == (3, 4)
    assert found.kl is not None
    assert (found.kl.low, found.kl.high) == (None, None)  # one document says nothing of others
    with pytest.raises(StoreError, match="share no document"):
        diff(one, opened(tmp_path / "c", TopKSignal(k=9), documents=documents[4:]))


def test_it_says_what_the_stores_differ_in(tmp_path: Path) -> None:
    teacher = {"name": "some/teacher", "weights": "w2", "revision": None, "quantisation": "int8", "dtype": "bfloat16"}
    one = opened(tmp_path / "a", TopKSignal(k=9))
    two = opened(tmp_path / "b", TopKSignal(k=5), documents=make_documents()[:3], identity=teacher, documents_id="docs2")
    assert diff(one, two).differs == (
        "signal.k: 9 in A, 5 in B",
        "teacher.quantisation: None in A, 'int8' in B",
        "teacher.weights: 'w1' in A, 'w2' in B",
    )


def test_of_other_kinds_only_what_both_have_is_said(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "a", SampledSignal(draws=9, seed=3)), opened(tmp_path / "b", TopKSignal(k=9, temperature=2.0))
    assert diff(one, two).differs == ("signal.kind: 'sampled' in A, 'topk' in B", "signal.temperature: 1.0 in A, 2.0 in B")


def test_progress_tells_of_every_row(tmp_path: Path) -> None:
    store = opened(tmp_path, TopKSignal(k=2))
    calls: list[tuple[int, int]] = []
    diff(store, store, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (sum(LENGTHS) - len(LENGTHS),) * 2


def other_tokens(documents: Documents, *, longer: bool) -> Documents:
    name, tokens = documents[3]
    changed = np.append(tokens, 1) if longer else np.concatenate([tokens[:20], [(tokens[20] + 1) % VOCAB], tokens[21:]])
    return [*documents[:3], (name, changed), *documents[4:]]


def test_other_tokens_name_document_and_position(tmp_path: Path) -> None:
    documents = make_documents()
    one = opened(tmp_path / "a", TopKSignal(k=3))
    name = documents[3][0]
    with pytest.raises(StoreError, match=rf"document {name}, position 19: .* speak of different tokens"):
        diff(one, opened(tmp_path / "b", TopKSignal(k=3), documents=other_tokens(documents, longer=False)))
    with pytest.raises(StoreError, match=rf"document {name} has 59 rows in .* and 60 in"):
        diff(one, opened(tmp_path / "c", TopKSignal(k=3), documents=other_tokens(documents, longer=True)))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    top, draws, hard = (
        opened(tmp_path / signal.kind, signal) for signal in (TopKSignal(k=3), SampledSignal(draws=5), HardSignal())
    )
    with pytest.raises(StoreError, match=r"holds draws, which give no KL .* name it first"):
        diff(top, draws)
    with pytest.raises(StoreError, match=r"draws have no top-1 to compare; .*signal\.keep_top1=true"):
        diff(hard, draws)
    single = opened(tmp_path / "single", SampledSignal(draws=5, min_draws=1))
    for pair in ((draws, single), (single, draws)):
        with pytest.raises(StoreError, match=r"single has rows of a single draw.*signal\.min_draws >= 2"):
            diff(*pair)
    assert single.bytes_read == draws.bytes_read == 0
    with pytest.raises(StoreError, match=r"tokenizer tok1 and .* of tok2; only stores of the same tokenizer"):
        diff(top, opened(tmp_path / "tok2", TopKSignal(k=3), tokenizer="tok2"))


def test_large_stores_are_read_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same result, whatever fits at once."""
    one, two = opened(tmp_path / "a", TopKSignal(k=9)), opened(tmp_path / "b", TopKSignal(k=9), teacher=blurred(BLUR))
    at_once = diff(one, two)
    monkeypatch.setattr("limbeck.signals.diff.ROWS_AT_ONCE", 30)
    in_groups = diff(one, two)
    assert dataclasses.asdict(in_groups)["worst"] == dataclasses.asdict(at_once)["worst"]
    assert in_groups.kl == at_once.kl
    assert in_groups.p99 == at_once.p99
