"""What is told where a store is damaged, and that it helps; nothing that lies on a disk makes a traceback."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from small_stores import fill, make_documents, open_writer, write_store

from limbeck.errors import StoreError
from limbeck.paths import cache_folder
from limbeck.signals.manifest import read_manifest
from limbeck.signals.merge import documents_digest, merge
from limbeck.signals.remote import is_published_as, local_folder, outgoing_folder, publish, upload
from limbeck.signals.shards import read_index
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.signal import HardSignal, TopKSignal

SIGNAL = TopKSignal(k=6)
ONE, TWO = make_documents([40, 25, 30, 60]), make_documents([33, 20], first=0xCC00)


def flip(file: Path) -> None:
    """One bit of a small file, or of a shard's last row."""
    data = bytearray(file.read_bytes())
    data[read_index(file).payload_bytes - 1 if file.suffix == ".rows" else 60] ^= 1
    file.write_bytes(data)


def read_all(path: Path | str) -> int:
    store = SignalStore.open(path)
    return sum(len(store.rows(name, 0, len(tokens) - 1, tokens=tokens).ids_TK) for name, tokens in make_documents())


def lose(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, lose, empty, cut])
def test_a_damaged_shard_alone_is_scored_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_store(tmp_path / "store", SIGNAL)
    damage(path / "shard-00001.rows")
    told = "shard-00001.rows.*; restore it, or delete what is left of it and run `limbeck cache write` with its recipe"
    assert all(re.search(told, problem) for problem in verify(path).problems)
    assert verify(path).problems
    with pytest.raises(StoreError, match=told):
        read_all(path)
    (path / "shard-00001.rows").unlink(missing_ok=True)
    writer = open_writer(path, SIGNAL)
    assert [shard.index for shard in writer.pending_shards()] == [1]
    fill(writer)
    writer.publish()
    assert verify(path).intact
    assert read_all(path) == SignalStore.open(path).tokens


def test_of_a_union_no_part_is_said_to_be_written_again(tmp_path: Path) -> None:
    """Its shards are of other plans: a writer would score all of it."""
    sources = []
    for name, documents in {"a": ONE, "b": TWO}.items():
        digest = documents_digest(document for document, _ in documents)
        sources.append(write_store(tmp_path / name, SIGNAL, documents=documents, documents_id=digest))
    path = tmp_path / "c"
    merge(sources, path)
    flip(path / "shard-00001.rows")
    (problem, *_) = verify(path).problems
    assert f"restore it, or delete {path} and write all of it again" in problem
    shutil.rmtree(path)
    merge(sources, path)
    assert verify(path).intact


@pytest.mark.parametrize("name", ["plan.json", "store.json"])
@pytest.mark.parametrize("damage", [flip, empty, cut])
def test_a_damaged_small_file_can_be_deleted(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    """No shard is scored again: each says which plan it is of."""
    writer = open_writer(tmp_path, SIGNAL)
    fill(writer, at_most=2)
    if name == "store.json":
        fill(writer)
        writer.publish()
    damage(tmp_path / name)
    told = rf"{name} is damaged .*; restore it, or delete it and run .*`limbeck cache write`"
    for use in (lambda: open_writer(tmp_path, SIGNAL), lambda: SignalStore.open(tmp_path)):
        with pytest.raises(StoreError, match=told):
            use()
    (tmp_path / name).unlink()
    writer = open_writer(tmp_path, SIGNAL)
    assert [shard.index for shard in writer.pending_shards()] == ([2] if name == "plan.json" else [])
    fill(writer)
    writer.publish()
    assert verify(tmp_path).intact


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/published"


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, url: str) -> None:
    upload(write_store(tmp_path / "store", SIGNAL), url)
    flip(local_folder(url) / "shard-00001.rows")
    stores, shards = (cache_folder() / "signals" / name for name in ("stores", "shards"))
    with pytest.raises(StoreError, match=f"delete {stores} and {shards}, and it is fetched again"):
        read_all(url)
    for folder in (stores, shards):
        shutil.rmtree(folder)
    assert read_all(url) == SignalStore.open(url).tokens


@pytest.mark.parametrize("damage", [flip, lose, cut])
def test_a_damaged_url_is_published_again(tmp_path: Path, url: str, damage: Callable[[Path], None]) -> None:
    write_store(outgoing_folder(url), SIGNAL)
    publish(url)
    damage(tmp_path / "published" / "shard-00001.rows")
    told = f"delete {url}/store.json and publish the store there again"
    assert all(told in problem and f"{url}/shard-00001.rows" in problem for problem in verify(url).problems)
    assert verify(url).problems
    with pytest.raises(StoreError, match=told):
        SignalStore.open(url)
    (tmp_path / "published" / "store.json").unlink()
    writer = open_writer(outgoing_folder(url), SIGNAL)
    assert not is_published_as(url, writer.identity)
    fill(writer)
    writer.publish()
    publish(url)
    assert verify(url).intact


def test_a_store_of_an_old_format_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was released before had format 1."""
    with monkeypatch.context() as patched:
        for module in ("writer", "manifest"):
            patched.setattr(f"limbeck.signals.{module}.FORMAT", 1)
        path = write_store(tmp_path / "store", HardSignal())
    told = r"store\.json has format 1 but this Limbeck reads 3; use the Limbeck that wrote it, or delete the store and score it"
    for use in (SignalStore.open, read_manifest, lambda path: open_writer(path, HardSignal())):
        with pytest.raises(StoreError, match=told):
            use(path)
    assert "has format 1" in verify(path).problems[0]
    shutil.rmtree(path)
    assert verify(write_store(path, HardSignal())).intact


def test_a_manifest_nested_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        SignalStore.open(tmp_path)
    assert "store.json is damaged" in verify(tmp_path).problems[0]


def test_a_folder_for_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "store.json").mkdir()
    for use in (SignalStore.open, lambda path: open_writer(path, SIGNAL)):
        with pytest.raises(StoreError, match=r"store\.json cannot be read"):
            use(tmp_path)
    assert "store.json cannot be read" in verify(tmp_path).problems[0]


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for use in (SignalStore.open, verify):
        with pytest.raises(StoreError, match="is not a signal store"):
            use(tmp_path / "file")


@pytest.mark.parametrize("damage", [lose, empty])
def test_a_shard_that_goes_after_the_store_was_opened_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = SignalStore.open(write_store(tmp_path, SIGNAL))
    damage(tmp_path / "shard-00000.rows")
    name, tokens = make_documents()[0]
    with pytest.raises(StoreError, match=r"shard-00000\.rows cannot be read any more .* open it again"):
        store.rows(name, 0, 5, tokens=tokens[:6])


def test_a_full_disk_says_how_much_a_union_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "a", SIGNAL)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.signals.merge.shutil.copyfile", full)
        size = (path / "shard-00000.rows").stat().st_size
        with pytest.raises(StoreError, match=rf"the disk is full: .*shard-00000\.rows needs {size:,} bytes .* again to resume"):
            merge([path], tmp_path / "b")
    merge([path], tmp_path / "b")
    assert verify(tmp_path / "b").intact


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../../planted.rows"},
        {"file": "/tmp/planted.rows"},
        {"file": "shard-00000.rows\n"},
        {"file": "shard-0.rows"},
        {"file": None},
        {"checksum": "../../planted"},
        {"checksum": "0" * 31},
    ],
    ids=str,
)
def test_a_manifest_that_names_paths_is_refused(tmp_path: Path, change: dict[str, str | None]) -> None:
    """One that anybody can make, with its checksum, and serve from a URL: nothing is written outside the cache."""
    from limbeck.signals.manifest import write_json

    path = write_store(tmp_path / "store", SIGNAL)
    manifest = read_manifest(path)
    manifest["shards"][0] |= change
    write_json(path / "store.json", manifest)
    filesystem = fsspec.filesystem("memory")
    for file in path.iterdir():
        filesystem.pipe_file(f"/evil/{file.name}", file.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    for place in (path, "memory://evil"):
        with pytest.raises(StoreError, match="as no Limbeck does; do not use this store"):
            SignalStore.open(place)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(cache_folder().rglob("*.rows"))
