"""Writers that know nothing of each other: whoever is first wins, and what is published can be opened."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_stores import fill, identity_of, make_documents, open_writer, write_store

from limbeck.errors import StoreError
from limbeck.signals import writer as writing
from limbeck.signals.manifest import PLAN_FILE
from limbeck.signals.shards import plan_shards, read_index
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import HardSignal, SampledSignal

SIGNAL = SampledSignal(draws=9)


def no_links(source: Any, target: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture(params=["links", "no links"])
def folder(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a file system with hard links, and of one without."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    return tmp_path / "store"


def once(monkeypatch: pytest.MonkeyPatch, name: str, first: Any) -> None:
    """Let `first` happen when the writer is about to call a function, the first time."""
    original = getattr(writing, name)

    def late(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(writing, name, original)
        first()
        original(*arguments, **named)

    monkeypatch.setattr(writing, name, late)


def test_of_two_that_write_a_shard_the_first_ones_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is still encoding its first shard when the first publishes: the manifest speaks of the first one's."""
    one, two = open_writer(folder, SIGNAL), open_writer(folder, SIGNAL)

    def quicker() -> None:
        fill(one)
        one.publish()

    once(monkeypatch, "write_shard", quicker)
    fill(two)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    two.publish()
    assert verify(folder).intact
    assert set(SignalStore.open(folder).document_ids) == {name for name, _ in make_documents()}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not list(folder.glob("*.tmp"))


def test_a_shard_that_is_no_shard_is_replaced(folder: Path) -> None:
    """Whoever is first wins only with a whole shard of the same plan."""
    other = write_store(folder.with_name("other"), SIGNAL, tokenizer="tok2")
    writer = open_writer(folder, SIGNAL)
    (folder / "shard-00000.rows").write_bytes(b"half a shard")
    shutil.copy(other / "shard-00001.rows", folder)
    fill(writer)
    writer.publish()
    assert verify(folder).intact


def test_publishing_again_makes_a_manifest_that_speaks_of_other_shards_anew(tmp_path: Path) -> None:
    path, twin = write_store(tmp_path / "a", SIGNAL), write_store(tmp_path / "b", SIGNAL)
    shutil.copy(twin / "shard-00001.rows", path)
    assert read_index(path / "shard-00001.rows").plan_checksum == read_index(path / "shard-00000.rows").plan_checksum
    with pytest.raises(StoreError, match="is not the shard"):
        SignalStore.open(path)
    writer = open_writer(path, SIGNAL)
    assert writer.pending_shards() == []
    writer.publish()
    assert verify(path).intact


def test_a_manifest_speaks_of_what_lies_there_when_it_is_made(tmp_path: Path) -> None:
    """And not of what the writer remembers to have written."""
    twin, writer = write_store(tmp_path / "b", SIGNAL), open_writer(tmp_path / "a", SIGNAL)
    fill(writer)
    assert writer.pending_shards() == []
    shutil.copy(twin / "shard-00001.rows", tmp_path / "a")
    writer.publish()
    assert verify(tmp_path / "a").intact


def test_of_two_identities_that_begin_together_one_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SampledSignal(draws=9, seed=2)
    once(monkeypatch, "write_json", lambda: open_writer(folder, other))
    with pytest.raises(StoreError, match=r"identity\.signal\.seed: 2 in the store, 0 asked for"):
        open_writer(folder, SIGNAL)
    writer = open_writer(folder, other)
    fill(writer)
    writer.publish()
    assert SignalStore.open(folder).signal == other


@pytest.mark.parametrize("seed", [0, 2])
def test_who_begins_while_another_publishes_finds_its_store(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    asked = SampledSignal(draws=9, seed=seed)
    once(monkeypatch, "write_json", lambda: write_store(folder, SIGNAL))
    if seed == 0:
        assert open_writer(folder, asked).pending_shards() == []
    else:
        with pytest.raises(StoreError, match=r"identity\.signal\.seed: 0 in the store, 2 asked for"):
            open_writer(folder, asked)
    assert not (folder / PLAN_FILE).exists()
    assert verify(folder).intact


def test_nobody_publishes_what_another_identity_published(tmp_path: Path) -> None:
    """A folder that was emptied under a writer's hands."""
    writer = open_writer(tmp_path, SIGNAL)
    (tmp_path / PLAN_FILE).unlink()
    write_store(tmp_path, SampledSignal(draws=9, seed=2))
    with pytest.raises(StoreError, match="holds another store"):
        writer.publish()


def test_a_store_can_be_cut_as_another_one_was(tmp_path: Path) -> None:
    documents = [(name, len(tokens)) for name, tokens in make_documents()]
    names = [name for name, _ in documents]
    shards = plan_shards(documents, shard_tokens=10_000, begins={names[2], names[3]})
    assert [shard.document_ids for shard in shards] == [tuple(names[:2]), (names[2],), tuple(names[3:])]
    identity = identity_of(HardSignal())
    StoreWriter(tmp_path, identity=identity, documents=documents, shard_tokens=10_000, begins={names[2]})
    with pytest.raises(StoreError, match="holds another store"):  # the same documents, cut otherwise, are another plan
        StoreWriter(tmp_path, identity=identity, documents=documents, shard_tokens=10_000, begins={names[3]})
