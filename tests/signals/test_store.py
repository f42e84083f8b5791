"""The signal store: what is read is what was written, for these tokens, or an error that names the place."""

import dataclasses
import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import LENGTHS, VOCAB, fill, identity_of, make_documents, open_writer, rows_of, write_store

from limbeck.errors import StoreError
from limbeck.signals.manifest import info
from limbeck.signals.select import select
from limbeck.signals.serve import narrow
from limbeck.signals.shards import read_index
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import SampledRows, SparseRows, TopKRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import DenseSignal, HardSignal, SampledSignal, StoredSignal, TopKSignal

SIGNALS = [TopKSignal(k=6), SampledSignal(draws=20, seed=5), HardSignal()]


@pytest.fixture(params=SIGNALS, ids=lambda signal: signal.kind)
def signal(request: pytest.FixtureRequest) -> StoredSignal:
    return request.param


@pytest.fixture
def store_path(tmp_path: Path, signal: StoredSignal) -> Path:
    return write_store(tmp_path / "store", signal, seconds=1.5)


def ids_of(rows: SparseRows) -> torch.Tensor:
    return rows.ids_TK if isinstance(rows, (TopKRows, SampledRows)) else rows.ids_T


def test_every_piece_is_what_was_written(store_path: Path, signal: StoredSignal) -> None:
    store = SignalStore.open(store_path)
    assert store.signal == signal
    rng = np.random.default_rng(1)
    for document_id, tokens in make_documents():
        written = rows_of(document_id, tokens, signal)
        for _ in range(5):
            start, stop = np.sort(rng.integers(0, len(tokens), 2)).tolist()
            read = store.rows(document_id, start, stop, tokens=tokens[start : stop + 1])
            expected = ids_of(written)[start:stop]
            width = ids_of(read).shape[-1] if expected.ndim == 2 else None
            assert torch.equal(ids_of(read), expected[..., :width])
            if isinstance(read, SampledRows) and isinstance(written, SampledRows):
                assert torch.equal(read.counts_TK.sum(-1), torch.full((stop - start,), 20))
                assert torch.equal(read.counts_TK, written.counts_TK[start:stop, :width])


def test_a_batch_is_its_pieces_one_after_another(store_path: Path) -> None:
    store = SignalStore.open(store_path)
    documents = make_documents()
    pieces = [(documents[3][0], 10, 59), (documents[0][0], 0, 3), (documents[4][0], 0, 1), (documents[0][0], 3, 39)]
    texts = dict(documents)
    tokens = [texts[name][start : stop + 1] for name, start, stop in pieces]
    together = ids_of(store.read(pieces, tokens=tokens))
    alone = [
        ids_of(store.rows(name, start, stop, tokens=part)) for (name, start, stop), part in zip(pieces, tokens, strict=True)
    ]
    assert len(together) == 49 + 3 + 1 + 36
    for part, whole in zip(alone, together.split([49, 3, 1, 36]), strict=True):
        assert torch.equal(part, whole[..., : part.shape[-1]] if part.ndim == 2 else whole)


def test_bytes_read_over_a_pass_are_the_rows_stored(tmp_path: Path) -> None:
    store = SignalStore.open(write_store(tmp_path, TopKSignal(k=6)))
    for name, tokens in make_documents():
        store.rows(name, 0, len(tokens) - 1, tokens=tokens)
    indices = [read_index(path) for path in tmp_path.glob("*.rows")]
    assert store.bytes_read == sum(sum(index.sizes) for index in indices)


def test_other_tokens_name_document_and_position(store_path: Path) -> None:
    store = SignalStore.open(store_path)
    documents = make_documents()
    tokens = [documents[0][1][:11].copy(), documents[3][1][5:51].copy()]
    pieces = [(documents[0][0], 0, 10), (documents[3][0], 5, 50)]
    store.read(pieces, tokens=tokens)
    tokens[1][20] += 1
    # token 25 is the second of row 24 and the first of row 25
    with pytest.raises(StoreError, match=f"document {documents[3][0]}, position 24: the row belongs to other tokens"):
        store.read(pieces, tokens=tokens)
    with pytest.raises(StoreError, match="belongs to other tokens"):
        store.rows(documents[0][0], 0, 30, tokens=documents[0][1][1:32])


def test_a_missing_document_and_rows_past_the_end_are_errors(store_path: Path) -> None:
    store = SignalStore.open(store_path)
    with pytest.raises(StoreError, match="has no document ffff; score it with `limbeck cache write`"):
        store.rows("ffff", 0, 1, tokens=np.arange(2))
    name, _ = make_documents()[0]
    with pytest.raises(StoreError, match=rf"{name} has 39 rows but \[30, 40\)"):
        store.rows(name, 30, 40, tokens=np.arange(11))
    assert store.missing_documents([name, "ffff"]) == ["ffff"]
    assert name in store


def test_shards_are_whole_documents_in_order(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, HardSignal())
    held = [[length for _, length in shard.documents] for shard in writer.pending_shards()]
    assert held == [[40, 25, 1], [60, 2], [33]]
    tiny = StoreWriter(tmp_path / "b", identity=identity_of(HardSignal()), documents=[("a", 500), ("b", 2)], shard_tokens=70)
    assert [shard.document_ids for shard in tiny.shards] == [("a",), ("b",)]


def test_a_document_named_twice_is_stored_once(tmp_path: Path) -> None:
    writer = StoreWriter(
        tmp_path / "a", identity=identity_of(HardSignal()), documents=[("a", 5), ("b", 2), ("a", 5)], shard_tokens=70
    )
    assert writer.shards[0].document_ids == ("a", "b")
    with pytest.raises(StoreError, match="document a is listed with 5 and with 6 tokens"):
        StoreWriter(tmp_path / "b", identity=identity_of(HardSignal()), documents=[("a", 5), ("a", 6)], shard_tokens=70)


def test_a_killed_write_resumes_to_the_same_bytes(tmp_path: Path, signal: StoredSignal) -> None:
    whole = write_store(tmp_path / "whole", signal, seconds=1.5)
    path = tmp_path / "killed"
    fill(open_writer(path, signal), at_most=1, seconds=1.5)
    leftover = path / "shard-00001.rows.123-0123abcd.tmp"
    leftover.write_bytes(b"half a shard")
    os.utime(leftover, (0, 0))
    with pytest.raises(StoreError, match=r"incomplete \(1 of 3 shards\); `limbeck cache write` with its recipe resumes it"):
        SignalStore.open(path)
    with pytest.raises(StoreError, match="incomplete"):
        verify(path)
    writer = open_writer(path, signal)
    assert [shard.index for shard in writer.pending_shards()] == [1, 2]
    with pytest.raises(StoreError, match=r"2 of 3 shards are missing \(first: shard-00001.rows\)"):
        writer.publish()
    fill(writer, seconds=1.5)
    writer.publish()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir()
    }
    again = open_writer(path, signal)
    assert again.is_complete
    assert again.pending_shards() == []


def test_publishing_leaves_what_others_may_still_be_writing(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, HardSignal())
    fill(writer)
    hour = 3600.0
    ages = {
        "shard-00001.rows.123-0123abcd.tmp": 2 * hour,
        "store.json.9-00ff00ff.tmp": 2 * hour,
        "shard-00002.rows.123-0123abcd.tmp": hour / 2,
        "notes.tmp": 2 * hour,
        "shard-00002.rows.copy.tmp": 2 * hour,
    }
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    writer.publish()
    assert sorted(path.name for path in tmp_path.glob("*.tmp")) == sorted(list(ages)[2:])


def test_a_cut_shard_is_written_again_on_resume(tmp_path: Path) -> None:
    fill(open_writer(tmp_path, HardSignal()))
    file = tmp_path / "shard-00001.rows"
    file.write_bytes(file.read_bytes()[:-1])
    assert [shard.index for shard in open_writer(tmp_path, HardSignal()).pending_shards()] == [1]


@pytest.mark.parametrize("published", [False, True])
def test_another_identity_names_the_field_and_both_values(tmp_path: Path, published: bool) -> None:
    writer = open_writer(tmp_path, TopKSignal(k=6))
    if published:
        fill(writer)
        writer.publish()
    with pytest.raises(StoreError, match=r"identity.tokenizer: 'tok1' in the store, 'tok2' asked for"):
        open_writer(tmp_path, TopKSignal(k=6), tokenizer="tok2")
    teacher = {**identity_of(HardSignal()).teacher, "weights": "w2"}
    with pytest.raises(StoreError, match=r"identity.teacher.weights: 'w1' in the store, 'w2' asked for"):
        open_writer(tmp_path, TopKSignal(k=6), teacher=teacher)
    with pytest.raises(StoreError, match=r"identity.signal.k: 6 in the store, 7 asked for"):
        open_writer(tmp_path, TopKSignal(k=7))
    with pytest.raises(StoreError, match="shard_tokens: 70 in the store, 80 asked for"):
        open_writer(tmp_path, TopKSignal(k=6), shard_tokens=80)


def test_shards_of_another_plan_are_not_taken_for_finished(tmp_path: Path) -> None:
    write_store(tmp_path, HardSignal())
    (tmp_path / "store.json").unlink()
    assert len(open_writer(tmp_path, HardSignal(), tokenizer="tok2").pending_shards()) == 3


def test_identities_are_equal_where_all_fields_are(tmp_path: Path) -> None:
    store = SignalStore.open(write_store(tmp_path, TopKSignal(k=6)))
    assert store.identity == identity_of(TopKSignal(k=6))
    assert store.identity.digest() == identity_of(TopKSignal(k=6, live=True)).digest()
    assert store.identity.digest() != identity_of(TopKSignal(k=6), documents_id="docs2").digest()


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    first, second = open_writer(tmp_path, HardSignal()), open_writer(tmp_path, HardSignal())
    fill(first, at_most=2)
    assert [shard.index for shard in second.pending_shards()] == [2]
    finished = (tmp_path / "shard-00000.rows").read_bytes()
    texts = dict(make_documents())
    content = [(name, texts[name], rows_of(name, texts[name], HardSignal())) for name in first.shards[0].document_ids]
    open_writer(tmp_path, HardSignal()).write_shard(0, content, seconds=99.0)
    assert (tmp_path / "shard-00000.rows").read_bytes() == finished
    fill(second)
    second.publish()
    first.publish()
    fill(first)
    assert verify(tmp_path).intact


def test_a_full_disk_keeps_finished_shards_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path, TopKSignal(k=6))
    fill(writer, at_most=1)
    before = {file.name for file in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("limbeck.paths.os.fsync", full)
    with pytest.raises(StoreError, match=r"the disk is full: .*shard-00001.rows needs [\d,]+ bytes .*resume"):
        fill(writer)
    assert {file.name for file in tmp_path.iterdir()} == before
    monkeypatch.undo()
    fill(open_writer(tmp_path, TopKSignal(k=6)))
    writer.publish()
    assert verify(tmp_path).intact


def test_every_flipped_byte_is_found_and_its_file_named(store_path: Path) -> None:
    """Each byte of the manifest and of one shard (rows, index, trailer), one at a time."""
    assert verify(store_path).problems == ()
    for file in (store_path / "store.json", store_path / "shard-00001.rows"):
        original = file.read_bytes()
        for place in range(0, len(original), 31 if len(original) > 1000 else 5):
            changed = bytearray(original)
            changed[place] ^= 1 << (place % 8)
            file.write_bytes(changed)
            problems = verify(store_path).problems
            assert problems, f"byte {place} of {file.name}"
            assert all(str(file) in problem for problem in problems)
        file.write_bytes(original)
    assert verify(store_path).intact


def test_every_truncation_is_found_by_verify_and_by_open(store_path: Path) -> None:
    for file in (store_path / "store.json", store_path / "shard-00002.rows"):
        original = file.read_bytes()
        for length in {0, 1, 40, len(original) // 2, len(original) - 33, len(original) - 9, len(original) - 1}:
            file.write_bytes(original[:length])
            assert any(str(file) in problem for problem in verify(store_path).problems)
            with pytest.raises(StoreError, match=file.name):
                SignalStore.open(store_path)
        file.unlink()
        with pytest.raises(StoreError, match=r"shard-00002.rows is missing|not a signal store"):
            SignalStore.open(store_path)
        file.write_bytes(original)


def test_a_flipped_byte_names_the_document(store_path: Path) -> None:
    file = store_path / "shard-00000.rows"
    changed = bytearray(file.read_bytes())
    changed[-1 - len(changed[changed.index(b'{"') :])] ^= 4  # the payload's last byte belongs to its second document
    file.write_bytes(changed)
    problems = verify(store_path).problems
    assert any("shard-00000.rows is damaged (the checksum of its rows does not hold)" in problem for problem in problems)
    named = [name for name, _ in make_documents()[:3] if any(f"document {name}" in problem for problem in problems)]
    assert named == [make_documents()[1][0]]
    store = SignalStore.open(store_path)
    (first, first_tokens), (second, second_tokens) = make_documents()[:2]
    store.rows(first, 0, len(first_tokens) - 1, tokens=first_tokens)
    with pytest.raises(StoreError, match=rf"shard-00000\.rows: the rows of document {second} changed"):
        store.rows(second, 0, 1, tokens=second_tokens[:2])


def test_a_shard_of_another_store_is_found(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a", TopKSignal(k=6))
    other = write_store(tmp_path / "b", TopKSignal(k=6, temperature=2.0))
    (path / "shard-00000.rows").write_bytes((other / "shard-00000.rows").read_bytes())
    assert any("shard-00000.rows is not the shard" in problem for problem in verify(path).problems)
    with pytest.raises(StoreError, match="is not the shard"):
        SignalStore.open(path)


def test_verify_tells_its_progress(store_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(store_path, progress=lambda done, total: calls.append((done, total)))
    shards = sum(file.stat().st_size for file in store_path.glob("*.rows"))
    assert calls[-1] == (shards, shards)
    assert (report.bytes, report.shards) == (shards, 3)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a signal store"):
        SignalStore.open(tmp_path)


def test_a_format_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        for module in ("writer", "manifest"):
            patched.setattr(f"limbeck.signals.{module}.FORMAT", 4)
        write_store(tmp_path, HardSignal())
    with pytest.raises(StoreError, match="has format 4 but this Limbeck reads 3"):
        SignalStore.open(tmp_path)


SERVED = [
    (TopKSignal(k=6), TopKSignal(k=6), None),
    (TopKSignal(k=6), TopKSignal(k=2), None),
    (TopKSignal(k=6), HardSignal(), None),
    (TopKSignal(k=6), TopKSignal(k=7), "signal.k=7 exceeds the 6 stored in"),
    (TopKSignal(k=6), TopKSignal(k=6, temperature=2.0), "signal.temperature=2.0 is not the 1.0 stored in"),
    (TopKSignal(k=6), SampledSignal(), "signal.kind=sampled is not what .* holds .topk."),
    (TopKSignal(k=6), DenseSignal(), "signal.kind=dense is not what .* holds .topk."),
    (HardSignal(), HardSignal(), None),
    (HardSignal(), TopKSignal(k=1), "signal.kind=topk"),
    (SampledSignal(draws=20), SampledSignal(draws=20), None),
    (SampledSignal(draws=20), HardSignal(), "signal.kind=hard"),
    (SampledSignal(draws=20), SampledSignal(draws=10), "signal.draws=10 is not the 20 stored in"),
    (SampledSignal(draws=20), SampledSignal(draws=20, seed=1), "signal.seed=1 is not the 0 stored in"),
]


@pytest.mark.parametrize(("held", "asked", "message"), SERVED)
def test_what_a_store_can_serve(tmp_path: Path, held: StoredSignal, asked: StoredSignal, message: str | None) -> None:
    store = SignalStore.open(write_store(tmp_path, held))
    if message is not None:
        with pytest.raises(StoreError, match=message):
            store.check_can_serve(asked, tokenizer="tok1", vocab_size=VOCAB)
        return
    store.check_can_serve(asked, tokenizer="tok1", vocab_size=VOCAB, context={"window": 2048, "overlap": 512})
    name, tokens = make_documents()[0]
    served = store.rows(name, 0, 39, tokens=tokens, signal=asked)
    direct = narrow(rows_of(name, tokens, held), asked)
    assert torch.equal(ids_of(served), ids_of(direct))
    if isinstance(served, TopKRows):
        mass = served.log_probs_TK.exp().sum(-1) + served.tail_T
        torch.testing.assert_close(mass, torch.ones(39), rtol=0, atol=2e-3)  # seven terms, each within 1.8e-4


def test_other_tokenizer_vocabulary_and_context_are_refused(tmp_path: Path) -> None:
    store = SignalStore.open(write_store(tmp_path, HardSignal()))
    with pytest.raises(StoreError, match="tokenizer tok1, not of tok2"):
        store.check_can_serve(HardSignal(), tokenizer="tok2", vocab_size=VOCAB)
    with pytest.raises(StoreError, match=r"vocabulary of 700 but 701"):
        store.check_can_serve(HardSignal(), tokenizer="tok1", vocab_size=701)
    with pytest.raises(StoreError, match="context"):
        store.check_can_serve(HardSignal(), tokenizer="tok1", vocab_size=VOCAB, context={"window": 1024, "overlap": 512})


def test_info_is_what_lies_on_the_disk(store_path: Path, signal: StoredSignal) -> None:
    facts = json.loads(json.dumps(info(store_path)))
    on_disk = sum(file.stat().st_size for file in store_path.iterdir())
    written = [rows_of(name, tokens, signal) for name, tokens in make_documents()]
    tokens = sum(length - 1 for length in LENGTHS)
    match signal:
        case SampledSignal():
            distinct = sum(int((rows.counts_TK > 0).sum()) for rows in written)
            entropy = sum(float(rows.entropy_T.sum()) for rows in written) / tokens
            assert facts["entropy_nats"] == pytest.approx(entropy, rel=1e-5)
        case TopKSignal(k=k):
            distinct = tokens * k
            tail = sum(float(rows.tail_T.sum()) for rows in written) / tokens
            assert facts["tail_mass"] == pytest.approx(tail, rel=1e-5)
        case HardSignal():
            distinct = tokens
    assert facts["kind"] == signal.kind
    assert (facts["tokens"], facts["documents"], facts["shards"]) == (tokens, len(LENGTHS), 3)
    assert facts["bytes"] == on_disk
    assert facts["bytes_per_token"] == on_disk / tokens
    assert facts["distinct_ids_per_token"] == distinct / tokens
    assert facts["bytes_per_distinct_id"] == on_disk / distinct
    assert facts["scoring_seconds"] == 4.5
    assert facts["identity"]["tokenizer"] == "tok1"


def test_at_most_three_bytes_for_each_distinct_id(tmp_path: Path) -> None:
    """50 draws of a Zipf-like teacher that leave about 19 distinct ids of 49,152, in documents of 200 tokens; all files."""
    vocab, signal = 49_152, SampledSignal(draws=50)
    rng = np.random.default_rng(0)
    logits = -1.45 * torch.arange(1, vocab + 1).log()
    documents = make_documents([200] * 10, vocab=vocab)
    identity = identity_of(signal, vocab_size=vocab)
    lengths = [(name, len(tokens)) for name, tokens in documents]
    writer = StoreWriter(tmp_path, identity=identity, documents=lengths, shard_tokens=100_000)
    content = []
    for name, tokens in documents:
        ranked = select(logits.expand(199, -1), signal, document_id=name, positions_T=torch.arange(199))
        assert isinstance(ranked, SampledRows)
        stored = ranked.counts_TK > 0
        shuffled = torch.from_numpy(rng.permutation(vocab))[ranked.ids_TK] * stored
        content.append((name, tokens, dataclasses.replace(ranked, ids_TK=shuffled)))
    writer.write_shard(0, content)
    writer.publish()
    facts = info(tmp_path)
    assert 17 <= facts["distinct_ids_per_token"] <= 21
    assert facts["bytes_per_distinct_id"] <= 3.0
