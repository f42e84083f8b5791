"""A store of chunks: what it serves, what it says of itself, which tools take it and which refuse it."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_rows import chunk_rows
from small_stores import VOCAB, Documents, make_documents, open_writer, write_store

from limbeck.errors import StoreError
from limbeck.signals.diff import diff
from limbeck.signals.fidelity import fidelity
from limbeck.signals.manifest import StoreIdentity, info, read_manifest
from limbeck.signals.merge import merge
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import ChunkRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import ChunksSignal, HardSignal, Signal, TopKSignal

LAST = ChunksSignal(distribution="last", k=6)
PAIR = {"tokenizer": "tok1", "teacher_tokenizer": "tok2"}


def rows_of(signal: ChunksSignal, name: str, tokens: np.ndarray) -> ChunkRows:
    return chunk_rows(signal, max(len(tokens) - 1, 0), vocab=VOCAB, rng=np.random.default_rng(int(name, 16)))


def fill(writer: StoreWriter, signal: ChunksSignal, documents: Documents) -> None:
    texts = dict(documents)
    for shard in writer.pending_shards():
        content = [(name, texts[name], rows_of(signal, name, texts[name])) for name in shard.document_ids]
        writer.write_shard(shard.index, content, seconds=1.0)
    writer.publish()


def store_of(path: Path, signal: ChunksSignal = LAST, *, first: int = 0xAB00, teacher_tokenizer: str = "tok2") -> SignalStore:
    documents = make_documents(first=first)
    changes = {"teacher_tokenizer": teacher_tokenizer, "documents_id": f"of-{first}"}
    fill(open_writer(path, signal, documents=documents, **changes), signal, documents)
    return SignalStore.open(path)


def test_rows_of_a_piece_are_those_of_the_document_but_for_chunks_that_begin_before(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    name, tokens = make_documents()[3]
    whole = store.rows(name, 0, 59, tokens=tokens)
    assert isinstance(whole, ChunkRows)
    first = 11 + int((whole.tokens_T[11:] > 1).nonzero()[0])  # in the middle of a chunk
    some = store.rows(name, first, first + 20, tokens=tokens[first : first + 21])
    assert isinstance(some, ChunkRows)
    cut = 0
    for row in range(20):
        length = int(whole.tokens_T[first + row])
        inside = length <= row + 1
        cut += not inside
        assert int(some.tokens_T[row]) == (length if inside else 0)
        assert float(some.log_prob_T[row]) == (float(whole.log_prob_T[first + row]) if inside else 0)
        has_ids = bool((some.log_probs_TK[row] > -math.inf).any())
        assert has_ids == bool(length and inside)
    assert cut >= 1


SERVED: list[tuple[ChunksSignal, Signal, str | None]] = [
    (LAST, LAST, None),
    (LAST, ChunksSignal(distribution="last", k=2), None),
    (LAST, ChunksSignal(), None),
    (LAST, ChunksSignal(distribution="last", k=7), r"signal\.k=7 exceeds the 6 stored in"),
    (LAST, ChunksSignal(distribution="mean", k=6), r"signal\.distribution=mean is not the last stored in"),
    (ChunksSignal(), LAST, r"signal\.distribution=last is not the none stored in"),
    (LAST, TopKSignal(k=2), r"signal\.kind=topk is not what .* holds .chunks."),
]


@pytest.mark.parametrize(("held", "asked", "message"), SERVED)
def test_what_it_serves(tmp_path: Path, held: ChunksSignal, asked: Signal, message: str | None) -> None:
    store = store_of(tmp_path, held)
    if message is not None:
        with pytest.raises(StoreError, match=message):
            store.check_can_serve(asked, **PAIR)
        return
    assert isinstance(asked, ChunksSignal)
    store.check_can_serve(asked, **PAIR)
    name, tokens = make_documents()[0]
    whole, served = store.rows(name, 0, 39, tokens=tokens), store.rows(name, 0, 39, tokens=tokens, signal=asked)
    assert isinstance(whole, ChunkRows)
    assert isinstance(served, ChunkRows)
    assert torch.equal(served.log_prob_T, whole.log_prob_T)
    if asked.distribution == "none":
        assert served.ids_TK.shape[1] == 0
        assert not bool(served.tail_T.any())
        return
    assert served.ids_TK.shape[1] == min(asked.k, whole.ids_TK.shape[1])
    mass = [rows.log_probs_TK.exp().sum(-1) + rows.tail_T for rows in (served, whole)]
    torch.testing.assert_close(*mass)


@pytest.mark.parametrize(
    ("tokenizer", "teacher_tokenizer"), [("tok9", "tok2"), ("tok1", "tok9"), ("tok1", None), ("tok2", "tok1")]
)
def test_another_pair_is_refused_and_both_are_named(tmp_path: Path, tokenizer: str, teacher_tokenizer: str | None) -> None:
    asked = f"not of {tokenizer} and {teacher_tokenizer or tokenizer}"
    with pytest.raises(StoreError, match=f"of a student's tokenizer tok1 and a teacher's tok2, {asked}"):
        store_of(tmp_path).check_can_serve(LAST, tokenizer=tokenizer, teacher_tokenizer=teacher_tokenizer)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    store_of(tmp_path)
    facts = info(tmp_path)
    rows = [rows_of(LAST, name, tokens) for name, tokens in make_documents()]
    chunks = sum(int((each.tokens_T > 0).sum()) for each in rows)
    tokens = sum(len(each.tokens_T) for each in rows)
    assert facts["chunks_per_token"] == pytest.approx(chunks / tokens)
    nats = sum(float(each.log_prob_T.double().sum()) for each in rows)
    assert facts["chunk_log_prob_nats"] == pytest.approx(nats / chunks)
    assert facts["identity"]["teacher_tokenizer"] == "tok2"
    assert verify(tmp_path).intact


def test_without_ids_bytes_of_an_id_are_not_told(tmp_path: Path) -> None:
    store_of(tmp_path, ChunksSignal())
    facts = info(tmp_path)
    assert facts["distinct_ids_per_token"] == 0
    assert facts["bytes_per_distinct_id"] is None
    json.dumps(facts, allow_nan=False)


def test_stores_of_one_pair_are_merged_and_of_two_are_not(tmp_path: Path) -> None:
    one, two = store_of(tmp_path / "one"), store_of(tmp_path / "two", first=0xCD00)
    merged = merge([one.path, two.path], tmp_path / "both")
    both = SignalStore.open(tmp_path / "both")
    assert merged.documents == len(one.document_ids) + len(two.document_ids)
    name, tokens = make_documents(first=0xCD00)[0]
    for field in dataclasses.fields(ChunkRows):
        found = [getattr(store.rows(name, 0, 39, tokens=tokens), field.name) for store in (both, two)]
        assert torch.equal(*found), field.name
    other = store_of(tmp_path / "other", teacher_tokenizer="tok3")
    with pytest.raises(StoreError, match="teacher_tokenizer: 'tok2' in the store, 'tok3' asked for"):
        merge([one.path, other.path], tmp_path / "never")


def test_what_compares_distributions_refuses_it(tmp_path: Path) -> None:
    store = store_of(tmp_path / "chunks")
    plain = SignalStore.open(write_store(tmp_path / "hard", HardSignal()))
    with pytest.raises(StoreError, match="chunks have no distribution over tokens to compare"):
        diff(store, plain)
    with pytest.raises(StoreError, match="log-probs of chunks, whose loss has no such parts"):
        fidelity(store)


def test_stores_of_tokens_are_as_they_were(tmp_path: Path) -> None:
    """A store that knows of one tokenizer says nothing of a second, so that those begun and written before go on being read."""
    write_store(tmp_path, HardSignal())
    held = read_manifest(tmp_path)["plan"]["identity"]
    assert sorted(held) == ["context", "documents", "signal", "teacher", "tokenizer", "vocab_size"]
    assert StoreIdentity(**held).digest() == SignalStore.open(tmp_path).identity.digest()
