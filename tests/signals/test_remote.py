"""Stores at URLs: through fsspec's memory, through one that breaks down, and, where moto and s3fs are installed, through S3."""

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small_stores import make_documents, write_store

from limbeck.errors import StoreError
from limbeck.paths import cache_folder, is_remote
from limbeck.signals.manifest import info
from limbeck.signals.merge import absorb
from limbeck.signals.places import is_published, manifest_folder
from limbeck.signals.remote import is_published_as, local_folder, outgoing_folder, publish, upload
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.signal import TopKSignal

SIGNAL = TopKSignal(k=6)


class Flaky(MemoryFileSystem):
    """Memory that can be told to break down, to cut what it gives, and that counts what passes."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    taken: ClassVar[list[str]] = []
    sent: ClassVar[list[str]] = []
    breaks_at: str | None = None
    cut: int | None = None

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.taken, cls.sent, cls.breaks_at, cls.cut = [], [], None, None

    def get_file(self, rpath: str, lpath: str, **named: Any) -> None:
        self.taken.append(Path(rpath).name)
        if self.breaks_at == Path(rpath).name:
            Path(lpath).write_bytes(b"half of a sh")
            raise ConnectionResetError("the line is dead")
        super().get_file(rpath, lpath, **named)
        if self.cut is not None:
            data = Path(lpath).read_bytes()
            Path(lpath).write_bytes(data[: self.cut] + bytes([data[self.cut] ^ 1]) + data[self.cut + 1 :])

    def put_file(self, lpath: str, rpath: str, **named: Any) -> None:
        self.sent.append(Path(rpath).name)
        if self.breaks_at == Path(rpath).name:
            raise ConnectionResetError("the line is dead")
        super().put_file(lpath, rpath, **named)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(params=["memory", "flaky", "s3"])
def root(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty place."""
    if request.param == "s3":
        yield request.getfixturevalue("bucket")
        return
    if request.param == "flaky":
        Flaky.reset()
    else:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
    yield f"{request.param}://place"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A real S3 server on this machine."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a new bucket; whatever reads it finds server and key in the environment, as a user's does."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"bucket-{tmp_path_factory.mktemp('b').name}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def names_at(url: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    return sorted(Path(name).name for name in filesystem.find(path))


def read_everything(store: SignalStore) -> int:
    return sum(len(store.rows(name, 0, len(tokens) - 1, tokens=tokens).ids_TK) for name, tokens in make_documents())


def test_a_store_comes_back_as_it_went(root: str, tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", SIGNAL)
    url = f"{root}/deep/store"
    upload(path, url)
    assert names_at(url) == sorted(file.name for file in path.iterdir())
    store = SignalStore.open(url)
    assert store.path.is_relative_to(cache_folder())
    assert {file.name: file.read_bytes() for file in store.path.iterdir()} == {
        file.name: file.read_bytes() for file in path.iterdir()
    }
    assert read_everything(store) == store.tokens
    assert verify(url).intact
    assert info(manifest_folder(url))["tokens"] == store.tokens
    assert [file.name for file in manifest_folder(url).iterdir()] == ["store.json"]


def test_what_is_not_there_is_said(root: str, tmp_path: Path) -> None:
    for use in (SignalStore.open, verify, manifest_folder):
        with pytest.raises(StoreError, match=f"{root}/nothing is not a signal store"):
            use(f"{root}/nothing")
    path = write_store(tmp_path / "store", SIGNAL)
    upload(path, f"{root}/store")
    filesystem, place = fsspec.core.url_to_fs(f"{root}/store/shard-00001.rows")
    filesystem.rm_file(place)
    with pytest.raises(StoreError, match=f"{root}/store lacks a file"):
        SignalStore.open(f"{root}/store")


def test_a_damaged_object_never_becomes_a_shard(root: str, tmp_path: Path) -> None:
    """One changed byte anywhere: rows, index, trailer; of a shard or of the manifest."""
    path = write_store(tmp_path / "store", SIGNAL)
    filesystem, place = fsspec.core.url_to_fs(f"{root}/store")
    for name in ("shard-00001.rows", "store.json"):
        good = (path / name).read_bytes()
        for byte in (0, 5, len(good) // 2, len(good) - 40, len(good) - 1):
            upload(path, f"{root}/store")
            filesystem.pipe_file(f"{place}/{name}", good[:byte] + bytes([good[byte] ^ 4]) + good[byte + 1 :])
            with pytest.raises(StoreError, match=f"{root}/store/{name} (did not arrive as it was written|is damaged)"):
                SignalStore.open(f"{root}/store")
            filesystem.pipe_file(f"{place}/{name}", good)
        filesystem.pipe_file(f"{place}/{name}", b"")
        with pytest.raises(StoreError, match=f"{root}/store/{name}"):
            SignalStore.open(f"{root}/store")
        filesystem.pipe_file(f"{place}/{name}", good)
    assert read_everything(SignalStore.open(f"{root}/store")) > 0


def test_another_store_is_never_overwritten(root: str, tmp_path: Path) -> None:
    url = f"{root}/store"
    upload(write_store(tmp_path / "a", SIGNAL), url)
    before = SignalStore.open(url).identity
    with pytest.raises(StoreError, match=f"{url} holds another store"):
        upload(write_store(tmp_path / "b", TopKSignal(k=3)), url)
    assert SignalStore.open(url).identity == before


def test_a_published_store_may_grow(root: str, tmp_path: Path) -> None:
    url, path = f"{root}/store", write_store(tmp_path / "a", SIGNAL)
    upload(path, url)
    reader = SignalStore.open(url)
    more = make_documents([30, 50], first=0xCC00)
    absorb(path, write_store(tmp_path / "b", SIGNAL, documents=more))
    upload(path, url)
    assert read_everything(reader) == reader.tokens
    grown = SignalStore.open(url)
    assert set(grown.document_ids) == {name for name, _ in [*make_documents(), *more]}
    assert verify(url).intact


def test_no_such_file_system_is_one_line() -> None:
    with pytest.raises(StoreError, match="nonsense://store cannot be opened: "):
        SignalStore.open("nonsense://store")
    assert is_remote("s3://bucket/store")
    assert not is_remote(Path("out/stores/a"))


@pytest.fixture
def flaky() -> type[Flaky]:
    Flaky.reset()
    return Flaky


URL = "flaky://place/store"


def test_a_broken_download_is_never_visible_and_goes_on(flaky: type[Flaky], tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", SIGNAL)
    upload(path, URL)
    flaky.breaks_at = "shard-00002.rows"
    with pytest.raises(StoreError, match=f"{URL} cannot be reached: ConnectionResetError: the line is dead"):
        SignalStore.open(URL)
    held = [file for file in cache_folder().rglob("*") if file.is_file()]
    assert all(file.suffix == ".rows" for file in held), "neither half a file nor store.json"
    assert {file.read_bytes() for file in held} <= {file.read_bytes() for file in path.glob("*.rows")}
    flaky.breaks_at, flaky.taken = None, []
    assert read_everything(SignalStore.open(URL)) > 0
    assert len(flaky.taken) < 3
    assert "shard-00002.rows" in flaky.taken


def test_what_is_fetched_wrong_is_refused(flaky: type[Flaky], tmp_path: Path) -> None:
    upload(write_store(tmp_path / "store", SIGNAL), URL)
    flaky.cut = 30
    with pytest.raises(StoreError, match=r"did not arrive as it was written; try again"):
        local_folder(URL)
    assert not list(cache_folder().rglob("*.rows"))
    flaky.cut = None
    assert verify(URL).intact


def test_a_shard_is_fetched_once(flaky: type[Flaky], tmp_path: Path) -> None:
    path = write_store(tmp_path / "a", SIGNAL)
    upload(path, URL)
    local_folder(URL)
    assert sorted(flaky.taken) == [f"shard-0000{number}.rows" for number in range(3)]
    local_folder(URL)
    upload(path, "flaky://elsewhere/the-same")
    local_folder("flaky://elsewhere/the-same")
    assert len(flaky.taken) == 3
    absorb(path, write_store(tmp_path / "b", SIGNAL, documents=make_documents([30], first=0xCC00)))
    upload(path, URL)
    local_folder(URL)
    assert flaky.taken[3:] == ["shard-00003.rows"]
    shutil.rmtree(cache_folder())  # everything in it can be made again
    assert verify(URL).intact


def test_an_interrupted_upload_is_no_store_and_goes_on(flaky: type[Flaky], tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", SIGNAL)
    flaky.breaks_at = "shard-00001.rows"
    with pytest.raises(StoreError, match="cannot be reached: ConnectionResetError"):
        upload(path, URL)
    assert "store.json" not in names_at(URL)
    with pytest.raises(StoreError, match="is not a signal store"):
        SignalStore.open(URL)
    arrived = names_at(URL)
    flaky.breaks_at, flaky.sent = None, []
    upload(path, URL)
    assert sorted([*flaky.sent, *arrived, "store.json"]) == names_at(URL)
    flaky.sent = []
    upload(path, URL)
    assert flaky.sent == []
    filesystem, place = fsspec.core.url_to_fs(f"{URL}/shard-00002.rows")
    filesystem.pipe_file(place, filesystem.cat_file(place) + b"more")
    upload(path, URL)
    assert flaky.sent == ["shard-00002.rows"]


def test_the_manifest_goes_last(flaky: type[Flaky], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    original = MemoryFileSystem.pipe_file

    def pipe_file(self: Any, path: str, value: bytes, **named: Any) -> None:
        seen.append(names_at(URL))
        original(self, path, value, **named)

    monkeypatch.setattr(Flaky, "pipe_file", pipe_file)
    upload(write_store(tmp_path / "store", SIGNAL), URL)
    assert seen == [[f"shard-0000{number}.rows" for number in range(3)]]


def test_a_shard_that_arrives_cut_is_not_published(flaky: type[Flaky], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "store", SIGNAL)
    original = MemoryFileSystem.put_file

    def put_file(self: Any, lpath: str, rpath: str, **named: Any) -> None:
        original(self, lpath, rpath, **named)
        if rpath.endswith("shard-00001.rows"):
            self.pipe_file(rpath, self.cat_file(rpath)[:-1])

    with monkeypatch.context() as patched:
        patched.setattr(Flaky, "put_file", put_file)
        with pytest.raises(StoreError, match=f"{URL}/shard-00001.rows did not arrive whole"):
            upload(path, URL)
    assert "store.json" not in names_at(URL)
    upload(path, URL)
    assert verify(URL).intact


def test_what_is_going_out_is_written_in_the_cache(flaky: type[Flaky], tmp_path: Path) -> None:
    """Until it has arrived. Where it is published already is told by its identity: nothing is scored again."""
    assert outgoing_folder(tmp_path) == tmp_path
    folder = outgoing_folder(URL)
    assert folder.is_relative_to(cache_folder())
    identity = SignalStore.open(write_store(folder, SIGNAL)).identity
    assert not is_published_as(URL, identity)
    flaky.breaks_at = "shard-00001.rows"
    with pytest.raises(StoreError, match="cannot be reached"):
        publish(URL)
    assert is_published(folder)
    flaky.breaks_at = None
    publish(URL)
    assert not folder.exists()
    shutil.rmtree(cache_folder())
    assert is_published_as(URL, identity)
    with pytest.raises(StoreError, match=r"signal\.k: 6 in the store, 5 asked for"):
        is_published_as(URL, dataclasses.replace(identity, signal={**identity.signal, "k": 5}))
    assert not is_published_as(tmp_path, identity)


def test_verify_reads_what_lies_at_the_url(root: str, tmp_path: Path) -> None:
    """And no copy of it, though one was fetched before."""
    path, url = write_store(tmp_path / "store", SIGNAL), f"{root}/store"
    upload(path, url)
    assert read_everything(SignalStore.open(url)) > 0
    report = verify(url)
    assert (report.shards, report.bytes) == (3, sum(file.stat().st_size for file in path.glob("*.rows")))
    filesystem, place = fsspec.core.url_to_fs(f"{url}/shard-00001.rows")
    good = filesystem.cat_file(place)
    for byte in (7, len(good) // 2, len(good) - 3):
        filesystem.pipe_file(place, good[:byte] + bytes([good[byte] ^ 4]) + good[byte + 1 :])
        problems = verify(url).problems
        assert problems
        assert all(problem.startswith(f"{url}/shard-00001.rows") for problem in problems)
    filesystem.rm_file(place)
    assert [problem.split(";")[0] for problem in verify(url).problems] == [f"{url}/shard-00001.rows is missing"]
    upload(path, url)
    assert verify(url).intact
    left = [file for file in (cache_folder() / "signals").iterdir() if file.name.startswith("verify")]
    assert left == []


def test_where_there_are_no_hard_links_shards_are_copied(
    flaky: type[Flaky], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    upload(write_store(tmp_path / "store", SIGNAL), URL)
    monkeypatch.setattr(os, "link", no_links)
    store = SignalStore.open(URL)
    assert read_everything(store) == store.tokens
