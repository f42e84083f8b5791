"""Unions of stores: every document once, rows as they were, whole or not at all."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_stores import (
    Documents,
    blurred,
    fill,
    make_documents,
    open_writer,
    random_teacher,
    rows_of,
    write_store,
)

from limbeck.errors import StoreError
from limbeck.signals import merge as merging
from limbeck.signals.manifest import info, is_published
from limbeck.signals.merge import absorb, documents_digest, merge, supersede
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal

SIGNAL = TopKSignal(k=6)
ONE = make_documents([40, 25, 30, 60])
TWO = make_documents([33, 20, 50, 9, 70], first=0xCC00)
SIGNALS: list[StoredSignal] = [TopKSignal(k=6), SampledSignal(draws=9, seed=2), HardSignal()]


def write(path: Path, documents: Documents, signal: StoredSignal = SIGNAL, **named: Any) -> Path:
    return write_store(path, signal, documents=documents, documents_id=documents_digest(name for name, _ in documents), **named)


def assert_holds(path: Path, documents: Documents, *, sources: dict[str, Path]) -> None:
    """Exactly these documents, each with the rows of the store it came from, read for its tokens."""
    store = SignalStore.open(path)
    assert set(store.document_ids) == {name for name, _ in documents}
    for name, tokens in documents:
        here = store.rows(name, 0, len(tokens) - 1, tokens=tokens)
        there = SignalStore.open(sources[name]).rows(name, 0, len(tokens) - 1, tokens=tokens)
        for field, value in vars(here).items():
            other = getattr(there, field)
            assert value is other is None or torch.equal(value, other), field


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.kind)
def test_disjoint_stores_are_one(tmp_path: Path, signal: StoredSignal) -> None:
    one, two = write(tmp_path / "a", ONE, signal), write(tmp_path / "b", TWO, signal)
    merged = merge([one, two], tmp_path / "c")
    assert_holds(tmp_path / "c", [*ONE, *TWO], sources={n: one for n, _ in ONE} | {n: two for n, _ in TWO})
    assert verify(tmp_path / "c").intact
    assert (merged.documents, merged.duplicates, merged.dead_bytes) == (9, 0, 0)
    whole, parts = info(tmp_path / "c"), [info(one), info(two)]
    for name in ("documents", "tokens", "shards", "scoring_seconds"):
        assert whole[name] == sum(part[name] for part in parts)
    for name in ("distinct_ids_per_token", *(key for key in ("entropy_nats", "tail_mass") if key in whole)):
        assert whole[name] * whole["tokens"] == pytest.approx(sum(part[name] * part["tokens"] for part in parts))
    assert whole["bytes"] == sum(file.stat().st_size for file in (tmp_path / "c").iterdir())


def test_its_documents_have_the_name_of_the_same_token_store(tmp_path: Path) -> None:
    from limbeck.data.token_store import TokenStore

    names = [name for name, _ in [*TWO, *ONE]]
    empty = np.zeros(0, dtype=np.int64)
    tokens = TokenStore(tmp_path, empty, empty, empty, tuple(names), "tok1")
    merge([write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)], tmp_path / "c")
    assert SignalStore.open(tmp_path / "c").identity.documents == tokens.documents_digest


def test_shards_go_over_byte_for_byte(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)
    merge([one, two], tmp_path / "c")
    sources = [*sorted(one.glob("*.rows")), *sorted(two.glob("*.rows"))]
    copies = sorted((tmp_path / "c").glob("*.rows"))
    assert [file.read_bytes() for file in copies] == [file.read_bytes() for file in sources]
    copies[0].write_bytes(b"")
    assert verify(one).intact  # a copy, and not another name of the same file


def test_duplicates_are_kept_once(tmp_path: Path) -> None:
    """Of two shards of the second store one brings nothing; of the other the known document is passed over."""
    one = write(tmp_path / "a", ONE)
    two = write(tmp_path / "b", [ONE[3], ONE[1], *TWO[:3]])
    assert len(list(two.glob("*.rows"))) == 3
    merged = merge([one, two], tmp_path / "c")
    assert (merged.documents, merged.duplicates) == (7, 2)
    kept = len(list(one.glob("*.rows"))) + 2
    assert merged.shards == kept == len(list((tmp_path / "c").glob("*.rows")))
    documents = [*ONE, *TWO[:3]]
    assert_holds(tmp_path / "c", documents, sources={n: one for n, _ in ONE} | {n: two for n, _ in TWO[:3]})
    assert verify(tmp_path / "c").intact
    facts = info(tmp_path / "c")
    assert facts["documents"] == 7
    assert facts["tokens"] == sum(len(tokens) - 1 for _, tokens in documents)
    assert facts["distinct_ids_per_token"] == pytest.approx(6)
    index = merging.read_index(two / "shard-00001.rows")
    assert merged.dead_bytes == index.sizes[index.document_ids.index(ONE[1][0])] > 0
    # A union is a store like any other: what it passes over stays passed over.
    again = merge([tmp_path / "c", write(tmp_path / "d", TWO[3:])], tmp_path / "e")
    assert again.documents == 9
    sources = {n: one for n, _ in ONE} | {n: two for n, _ in TWO[:3]} | {n: tmp_path / "d" for n, _ in TWO[3:]}
    assert_holds(tmp_path / "e", [*ONE, *TWO], sources=sources)


def test_a_store_merged_with_itself_is_itself(tmp_path: Path) -> None:
    one = write(tmp_path / "a", ONE)
    merged = merge([one, one], tmp_path / "c")
    assert (merged.documents, merged.duplicates, merged.shards) == (4, 4, len(list(one.glob("*.rows"))))


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.kind)
def test_rows_that_differ_are_an_error_or_the_firsts(tmp_path: Path, signal: StoredSignal) -> None:
    one = write(tmp_path / "a", ONE, signal)
    two = write(tmp_path / "b", [ONE[1], *TWO], signal, teacher=blurred(2.0))
    with pytest.raises(StoreError, match=rf"document {ONE[1][0]}, position \d+: .* hold different rows; .*--keep-first"):
        merge([one, two], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    merge([one, two], tmp_path / "c", keep_first=True)
    assert_holds(tmp_path / "c", [*ONE, *TWO], sources={n: one for n, _ in ONE} | {n: two for n, _ in TWO})


def test_the_row_that_differs_is_named(tmp_path: Path) -> None:
    name, tokens = ONE[1]

    def slips(document_id: str, rows: int) -> torch.Tensor:
        logits = random_teacher(document_id, rows)
        if document_id == name:
            logits[17] = logits[17].roll(1)
        return logits

    one, two = write(tmp_path / "a", ONE), write(tmp_path / "b", [*TWO, *ONE], teacher=slips)
    with pytest.raises(StoreError, match=f"document {name}, position 17: "):
        merge([one, two], tmp_path / "c")
    changed = np.append(tokens[:-1], (tokens[-1] + 1) % 700)
    three = write(tmp_path / "d", [(name, changed)])
    with pytest.raises(StoreError, match=rf"document {name}, position 23: .* hold different tokens"):
        merge([one, three], tmp_path / "e")
    four = write(tmp_path / "f", [(name, tokens[:-1])])
    with pytest.raises(StoreError, match=f"document {name} has other tokens in"):
        merge([one, four], tmp_path / "g")


def test_stores_that_differ_in_more_than_documents_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a", ONE)
    for name, other in {
        "signal.k: 6 in the store, 5 asked for": write(tmp_path / "b", TWO, TopKSignal(k=5)),
        "tokenizer: 'tok1' in the store, 'tok2' asked for": write(tmp_path / "c", TWO, tokenizer="tok2"),
    }.items():
        with pytest.raises(StoreError, match=name):
            merge([one, other], tmp_path / "d")


def test_another_store_is_never_overwritten(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)
    with pytest.raises(StoreError, match="is one of the stores to be merged"):
        merge([one, two], one)
    merge([one, two], tmp_path / "c")
    before = {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()}
    merge([one, two], tmp_path / "c")  # again: the same
    with pytest.raises(StoreError, match="holds another store; name another folder"):
        merge([two, one], tmp_path / "c")
    assert {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()} == before


def test_an_interrupted_merge_is_no_store_and_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)
    copies, copy = 0, shutil.copyfile

    def interrupted(source: str, target: str) -> None:
        nonlocal copies
        copies += 1
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        if copies == 2:
            raise KeyboardInterrupt
        copy(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(merging.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge([one, two], tmp_path / "c")
    assert not is_published(tmp_path / "c")
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["shard-00000.rows"]
    merge([one, two], tmp_path / "c")
    assert verify(tmp_path / "c").intact


def test_readers_of_a_store_that_grows_see_it_as_it_was(tmp_path: Path) -> None:
    path, addition = write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)
    reader = SignalStore.open(path)
    before = {file.name: file.read_bytes() for file in path.glob("*.rows")}
    absorb(path, addition)
    assert reader.missing_documents([TWO[0][0]]) == [TWO[0][0]]
    for name, tokens in ONE:
        reader.rows(name, 0, len(tokens) - 1, tokens=tokens)
    assert {name: (path / name).read_bytes() for name in before} == before
    shutil.rmtree(addition)
    store = SignalStore.open(path)
    assert set(store.document_ids) == {name for name, _ in [*ONE, *TWO]}
    assert verify(path).intact
    absorb(path, path)  # nothing new: nothing changes
    assert verify(path).intact


def test_a_writer_takes_a_union_for_complete(tmp_path: Path) -> None:
    """Asked for the same documents, in whatever order and shards; other documents are another store."""
    path = tmp_path / "c"
    merge([write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)], path)
    every = [*TWO, *ONE]
    digest = documents_digest(name for name, _ in every)
    writer = open_writer(path, SIGNAL, documents=every, shard_tokens=1000, documents_id=digest)
    assert writer.is_complete
    assert writer.pending_shards() == []
    with pytest.raises(StoreError, match=r"identity\.documents"):
        open_writer(path, SIGNAL, documents=ONE, documents_id=documents_digest(name for name, _ in ONE))
    with pytest.raises(StoreError, match=r"identity\.signal\.k: 6 in the store, 7 asked for"):
        open_writer(path, TopKSignal(k=7), documents=every, documents_id=digest)


def test_a_store_that_is_being_written_is_not_merged_into(tmp_path: Path) -> None:
    one, path = write(tmp_path / "a", ONE), tmp_path / "begun"
    fill(open_writer(path, SIGNAL), at_most=2)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(StoreError, match="begun holds a store that is being written; name another folder"):
        merge([one], path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_where_there_are_no_hard_links_shards_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    path, addition = write(tmp_path / "a", ONE), write(tmp_path / "b", TWO)
    monkeypatch.setattr(os, "link", no_links)
    absorb(path, addition)
    shutil.rmtree(addition)
    assert verify(path).intact
    assert len(SignalStore.open(path).document_ids) == 9


FEW, MANY = SampledSignal(draws=9, seed=2), SampledSignal(draws=40, seed=2)


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (FEW, MANY),
        (SampledSignal(draws=9, min_draws=3), SampledSignal(draws=40, min_draws=3)),
        (SampledSignal(draws=9, proposal_temperature=1.5), SampledSignal(draws=40, proposal_temperature=1.5)),
        (HybridSignal(k=4, draws=6), HybridSignal(k=4, draws=30)),
    ],
    ids=["sampled", "adaptive", "proposal", "hybrid"],
)
def test_more_draws_take_the_place_of_fewer(tmp_path: Path, few: StoredSignal, many: StoredSignal) -> None:
    """Readers see what a store of more draws says, under names that none of the old shards had; it can grow further."""
    path, more = write(tmp_path / "a", ONE, few), write(tmp_path / "b", ONE, many)
    old = len(list(path.glob("*.rows")))
    merged = supersede(path, more)
    assert merged.documents == len(ONE)
    assert_holds(path, ONE, sources={name: more for name, _ in ONE})
    assert SignalStore.open(path).identity == SignalStore.open(more).identity
    names = [f"shard-{number:05d}.rows" for number in range(old, old + len(list(more.glob("*.rows"))))]
    assert sorted(file.name for file in path.glob("*.rows")) == names
    assert verify(path).intact
    addition = write(tmp_path / "c", TWO, many)
    absorb(path, addition)
    sources = {name: more for name, _ in ONE} | {name: addition for name, _ in TWO}
    assert_holds(path, [*ONE, *TWO], sources=sources)
    assert verify(path).intact
    assert info(path)["bytes"] == sum(file.stat().st_size for file in path.iterdir())


def slightly_other(document_id: str, rows: int) -> torch.Tensor:
    """The random teacher, but for one row of one document."""
    logits = random_teacher(document_id, rows)
    if document_id == ONE[3][0]:
        logits[17] = logits[17].roll(1)
    return logits


@pytest.mark.parametrize("signal", [MANY, HybridSignal(k=4, draws=30)], ids=lambda signal: signal.kind)
def test_draws_that_are_not_the_first_of_more_are_refused(tmp_path: Path, signal: SampledSignal | HybridSignal) -> None:
    path = write(tmp_path / "a", ONE, signal.model_copy(update={"draws": 9}))
    more = write(tmp_path / "b", ONE, signal, teacher=slightly_other)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(StoreError, match=rf"document {ONE[3][0]}, position 17: the draws in .* move it to a folder of its own"):
        supersede(path, more)
    with pytest.raises(StoreError, match=r"signal\.seed: \d in the store, 7 asked for"):
        supersede(path, write(tmp_path / "c", ONE, signal.model_copy(update={"seed": 7})))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_another_seed_under_the_same_name_is_found(tmp_path: Path) -> None:
    """The proof is in the draws, not in what the manifest says."""
    path = write(tmp_path / "a", ONE, FEW)
    writer, texts = open_writer(tmp_path / "b", MANY, documents=ONE), dict(ONE)
    other = MANY.model_copy(update={"seed": 3})
    for shard in writer.pending_shards():
        writer.write_shard(shard.index, [(name, texts[name], rows_of(name, texts[name], other)) for name in shard.document_ids])
    writer.publish()
    with pytest.raises(StoreError, match="the draws in"):
        supersede(path, tmp_path / "b")


@pytest.mark.parametrize("dies_at", ["link", "manifest", "old shards"])
def test_a_kill_while_draws_take_their_place_leaves_one_store_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    path, more = write(tmp_path / "a", ONE, FEW), write(tmp_path / "b", ONE, MANY)
    reader = SignalStore.open(path)
    for name, tokens in ONE:
        reader.rows(name, 0, len(tokens) - 1, tokens=tokens)
    places = {"link": "link_or_copy", "manifest": "write_json", "old shards": "remove_superseded"}

    def killed(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merging, places[dies_at], killed)
        with pytest.raises(KeyboardInterrupt):
            supersede(path, more)
    assert SignalStore.open(path).signal == (MANY if dies_at == "old shards" else FEW)
    assert verify(path).intact
    for name, tokens in ONE:
        reader.rows(name, 0, len(tokens) - 1, tokens=tokens)  # open before, and its shards mapped
    if dies_at == "old shards":
        merging.remove_superseded(path)
    else:
        supersede(path, more)
    assert_holds(path, ONE, sources={name: more for name, _ in ONE})
    assert info(path)["bytes"] == sum(file.stat().st_size for file in path.iterdir())
