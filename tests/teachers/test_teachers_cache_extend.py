"""Extending a store: only what is missing is scored, readers see the old store until the new one is whole."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import StoreError
from limbeck.signals.diff import diff
from limbeck.signals.manifest import is_published, read_manifest
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import SampledRows
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers import cache
from limbeck.teachers.cache import extend_store, write_stores
from limbeck.teachers.huggingface import Teacher, load_teacher

CONTEXT = Context(window=48, overlap=16)
TOPK = TopKSignal(k=20)
Tokens = Callable[[str], TokenStore]


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=CONTEXT)
    return load_teacher(spec, device=torch.device("cpu"))


@pytest.fixture
def tokens(values: dict[str, Any], texts_folder: Path) -> Tokens:
    """The token store of the training texts that a pattern names."""

    def of(pattern: str) -> TokenStore:
        values["data"]["train"]["paths"] = [f"{texts_folder}/train/{pattern}"]
        return prepare(parse(Recipe, values, source="test").data, load_tokenizer(values["teacher"]["model"]))[0]

    return of


class Scored:
    """`score_documents` that remembers which documents it was given, and is interrupted at one of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, interrupted_at: int | None = None) -> None:
        self.calls, self.ids, self.interrupted_at = 0, list[str](), interrupted_at
        self.original = cache.score_documents
        monkeypatch.setattr(cache, "score_documents", self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        self.ids += named["ids"]
        return self.original(*arguments, **named)


@pytest.mark.parametrize("signal", [TOPK, SampledSignal(draws=12, keep_top1=True), HardSignal()], ids=lambda s: s.kind)
def test_only_what_is_missing_is_scored(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, signal: StoredSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are those of a store written in one go, but for the last bits: other documents shared their batches."""
    few, every = tokens("[0-3].txt"), tokens("*.txt")
    write_stores(teacher, few, {tmp_path / "store": signal}, context=CONTEXT, shard_tokens=100)
    write_stores(teacher, every, {tmp_path / "whole": signal}, context=CONTEXT)
    scored = Scored(monkeypatch)
    merged = extend_store(teacher, every, tmp_path / "store", signal=signal, context=CONTEXT, shard_tokens=100)
    assert sorted(scored.ids) == sorted(set(every.ids) - set(few.ids))
    assert merged is not None
    assert merged.documents == len(every)
    store, whole = SignalStore.open(tmp_path / "store"), SignalStore.open(tmp_path / "whole")
    assert store.identity == whole.identity
    assert (store.tokens, set(store.document_ids)) == (whole.tokens, set(whole.document_ids))
    found = diff(whole, store)
    assert found.top1_flips is not None
    assert found.top1_flips.value == 0
    assert found.kl is None or abs(found.kl.value) < 1e-6
    assert verify(tmp_path / "store").intact
    assert not (tmp_path / "store" / cache.EXTENSION).exists()
    calls = scored.calls
    assert extend_store(teacher, every, tmp_path / "store", signal=signal, context=CONTEXT) is None
    assert extend_store(teacher, few, tmp_path / "store", signal=signal, context=CONTEXT) is None
    write_stores(teacher, every, {tmp_path / "store": signal}, context=CONTEXT)  # it is what these documents need
    assert scored.calls == calls


def test_an_interrupted_extension_goes_on_and_is_not_seen(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, every, path = tokens("[0-3].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, few, {path: TOPK}, context=CONTEXT, shard_tokens=100)
    reader = SignalStore.open(path)
    before = (path / "store.json").read_bytes()
    with monkeypatch.context() as patched:
        first = Scored(patched, interrupted_at=3)
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, every, path, signal=TOPK, context=CONTEXT, shard_tokens=100)
    assert (path / "store.json").read_bytes() == before
    assert set(SignalStore.open(path).document_ids) == set(few.ids)
    assert verify(path).intact
    with monkeypatch.context() as patched:
        rest = Scored(patched)
        # Dies with everything scored and linked, before the manifest is replaced.
        patched.setattr("limbeck.signals.merge.write_json", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, every, path, signal=TOPK, context=CONTEXT, shard_tokens=100)
    assert sorted([*first.ids, *rest.ids]) == sorted(set(every.ids) - set(few.ids))
    assert set(SignalStore.open(path).document_ids) == set(few.ids)
    assert is_published(path / cache.EXTENSION)
    scored = Scored(monkeypatch)
    extend_store(teacher, every, path, signal=TOPK, context=CONTEXT, shard_tokens=100)
    assert scored.ids == []
    assert set(SignalStore.open(path).document_ids) == set(every.ids)
    assert verify(path).intact
    for index, name in enumerate(few.ids):
        document = few.document(index)
        reader.rows(name, 0, len(document) - 1, tokens=document)


SAMPLED, MORE = SampledSignal(draws=12, keep_top1=True), SampledSignal(draws=40, keep_top1=True)


def counts(path: Path, tokens: TokenStore) -> dict[tuple[str, int], Counter[int]]:
    """How often each id was drawn, of every position."""
    store, found = SignalStore.open(path), {}
    for index, name in enumerate(tokens.ids):
        document = tokens.document(index)
        rows = store.rows(name, 0, len(document) - 1, tokens=document)
        assert isinstance(rows, SampledRows)
        for position, (ids, drawn) in enumerate(zip(rows.ids_TK.tolist(), rows.counts_TK.tolist(), strict=True)):
            found[name, position] = Counter({ident: count for ident, count in zip(ids, drawn, strict=True) if count})
    return found


def test_more_draws_begin_with_those_that_are_held(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that was extended by documents before; new documents and draws may come together."""
    some, most, every, path = tokens("[0-1].txt"), tokens("[0-4].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, some, {path: SAMPLED}, context=CONTEXT, shard_tokens=100)
    extend_store(teacher, most, path, signal=SAMPLED, context=CONTEXT, shard_tokens=100)
    before, shards = counts(path, most), SignalStore.open(path).shard_documents()
    scored = Scored(monkeypatch)
    merged = extend_store(teacher, every, path, signal=MORE, context=CONTEXT)
    assert merged is not None
    assert merged.documents == len(every)
    assert sorted(scored.ids) == sorted(every.ids)
    assert SignalStore.open(path).shard_documents()[: len(shards)] == shards
    after = counts(path, every)
    assert {drawn.total() for drawn in before.values()} == {12}
    assert {drawn.total() for drawn in after.values()} == {40}
    assert all(before[position] <= after[position] for position in before)
    write_stores(teacher, every, {tmp_path / "whole": MORE}, context=CONTEXT)
    assert SignalStore.open(path).identity == SignalStore.open(tmp_path / "whole").identity
    assert after == counts(tmp_path / "whole", every)
    assert verify(path).intact
    assert not (path / cache.EXTENSION).exists()
    assert extend_store(teacher, every, path, signal=MORE, context=CONTEXT) is None


def test_interrupted_draws_go_on_and_are_not_seen(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, every, path = tokens("[0-4].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, few, {path: SAMPLED}, context=CONTEXT, shard_tokens=100)
    before = (path / "store.json").read_bytes()
    with monkeypatch.context() as patched:
        first = Scored(patched, interrupted_at=3)
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, few, path, signal=MORE, context=CONTEXT)
    assert (path / "store.json").read_bytes() == before
    assert SignalStore.open(path).signal == SAMPLED
    with pytest.raises(StoreError, match=r"extension holds an extension that was begun for other .* or delete that folder"):
        extend_store(teacher, every, path, signal=SAMPLED, context=CONTEXT)
    rest = Scored(monkeypatch)
    extend_store(teacher, few, path, signal=MORE, context=CONTEXT)
    assert sorted([*first.ids, *rest.ids]) == sorted(few.ids)
    assert SignalStore.open(path).signal == MORE


def killed(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("dies_at", ["absorb", "supersede", "remove_superseded", "discard"])
def test_an_extension_that_is_scored_never_stands_in_the_way(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    """Killed before, in or after it is made part of the store, the next one brings it in first, whatever it is for."""
    few, most, every, path = tokens("[0-1].txt"), tokens("[0-3].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, few, {path: SAMPLED}, context=CONTEXT, shard_tokens=100)
    signal = MORE if dies_at == "supersede" else SAMPLED
    with monkeypatch.context() as patched:
        patched.setattr(cache, dies_at, killed)
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, few if signal == MORE else most, path, signal=signal, context=CONTEXT)
    assert is_published(path / cache.EXTENSION)
    assert verify(path).intact
    scored = Scored(monkeypatch)
    extend_store(teacher, every, path, signal=signal, context=CONTEXT)
    assert sorted(scored.ids) == sorted(set(every.ids) - set((few if signal == MORE else most).ids))
    assert set(SignalStore.open(path).document_ids) == set(every.ids)
    assert SignalStore.open(path).signal == signal
    assert verify(path).intact
    assert sorted(file.name for file in path.iterdir()) == sorted(
        ["store.json", *(entry["file"] for entry in read_manifest(path)["shards"])]
    )


@pytest.mark.parametrize("removed", ["store.json", "shard-00000.rows"])
def test_an_extension_half_removed_is_no_obstacle(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    few, most, every, path = tokens("[0-1].txt"), tokens("[0-3].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, few, {path: SAMPLED}, context=CONTEXT)

    def half(folder: Path, **named: Any) -> None:
        (folder / removed).unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.signals.manifest.shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, most, path, signal=SAMPLED, context=CONTEXT)
    extend_store(teacher, every, path, signal=SAMPLED, context=CONTEXT)
    assert set(SignalStore.open(path).document_ids) == set(every.ids)
    assert verify(path).intact
    assert not (path / cache.EXTENSION).exists()


def test_an_extension_begun_for_other_documents_is_named(
    tmp_path: Path, teacher: Teacher, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, most, every, path = tokens("[0-1].txt"), tokens("[0-3].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, few, {path: TOPK}, context=CONTEXT)
    with monkeypatch.context() as patched:
        Scored(patched, interrupted_at=1)
        with pytest.raises(KeyboardInterrupt):
            extend_store(teacher, most, path, signal=TOPK, context=CONTEXT)
    told = r"extension holds an extension that was begun for other documents .* or delete that folder"
    with pytest.raises(StoreError, match=told):
        extend_store(teacher, every, path, signal=TOPK, context=CONTEXT)
    extend_store(teacher, most, path, signal=TOPK, context=CONTEXT)
    extend_store(teacher, every, path, signal=TOPK, context=CONTEXT)
    assert verify(path).intact


def test_another_teacher_or_signal_cannot_extend(tmp_path: Path, teacher: Teacher, tokens: Tokens) -> None:
    few, every, path = tokens("[0-3].txt"), tokens("*.txt"), tmp_path / "store"
    write_stores(teacher, every, {path: SampledSignal(draws=5)}, context=CONTEXT)
    with pytest.raises(StoreError, match=r"signal\.draws: 5 in the store, 4 asked for.*`limbeck cache write` and store=PATH"):
        extend_store(teacher, every, path, signal=SampledSignal(draws=4), context=CONTEXT)
    with pytest.raises(StoreError, match=r"signal\.seed: 0 in the store, 1 asked for"):
        extend_store(teacher, every, path, signal=SampledSignal(draws=9, seed=1), context=CONTEXT)
    with pytest.raises(StoreError, match=r"context\.window: 48 in the store, 40 asked for"):
        extend_store(teacher, every, path, signal=SampledSignal(draws=5), context=Context(window=40, overlap=16))
    with pytest.raises(StoreError, match=r"holds 4 documents that the recipe has not .* need the texts of all"):
        extend_store(teacher, few, path, signal=SampledSignal(draws=9), context=CONTEXT)
    with pytest.raises(StoreError, match="is not a signal store"):
        extend_store(teacher, every, tmp_path / "none", signal=TOPK, context=CONTEXT)
