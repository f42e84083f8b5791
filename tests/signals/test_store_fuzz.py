"""Damage of every sort to a store of every kind: what is read is what was written, or there is an error. Nothing in between."""

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_stores import fill, make_documents, open_writer, write_store

from limbeck.errors import StoreError
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import SparseRows
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

SIGNALS: dict[str, StoredSignal] = {
    "topk": TopKSignal(k=6),
    "topk-uint8": TopKSignal(k=6, values="uint8"),
    "topp": TopPSignal(p=0.6, cap=20),
    "sampled": SampledSignal(draws=20, seed=5),
    "sampled-adaptive": SampledSignal(draws=20, min_draws=4, keep_top1=True),
    "sampled-proposal": SampledSignal(draws=12, proposal_temperature=1.5),
    "hybrid": HybridSignal(k=4, draws=6),
    "hard": HardSignal(),
}
TRIALS = 30
Damage = Callable[[Path, np.random.Generator], None]


@pytest.fixture(params=list(SIGNALS.values()), ids=list(SIGNALS))
def signal(request: pytest.FixtureRequest) -> StoredSignal:
    return request.param


def any_file(store: Path, rng: np.random.Generator) -> Path:
    return sorted(store.iterdir())[rng.integers(len(list(store.iterdir())))]


def flip_bits(store: Path, rng: np.random.Generator) -> None:
    path = any_file(store, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def truncate(store: Path, rng: np.random.Generator) -> None:
    path = any_file(store, rng)
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def lengthen(store: Path, rng: np.random.Generator) -> None:
    path = any_file(store, rng)
    data = path.read_bytes()
    place = int(rng.integers(len(data) + 1))
    path.write_bytes(data[:place] + rng.bytes(int(rng.integers(1, 30))) + data[place:])


def zero_a_stretch(store: Path, rng: np.random.Generator) -> None:
    """As a lost page is."""
    path = any_file(store, rng)
    data = bytearray(path.read_bytes())
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 300))
    data[place : place + length] = bytes(len(data[place : place + length]))
    path.write_bytes(data)


def repeat_a_stretch(store: Path, rng: np.random.Generator) -> None:
    """As a write at the wrong place does: the length stays."""
    path = any_file(store, rng)
    data = bytearray(path.read_bytes())
    here, there, length = (int(rng.integers(1, len(data) // 2)) for _ in range(3))
    data[here : here + length] = data[there : there + length][: len(data[here : here + length])]
    path.write_bytes(data)


def exchange_shards(store: Path, rng: np.random.Generator) -> None:
    one, two = (store / f"shard-0000{number}.rows" for number in rng.choice(3, 2, replace=False))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def put_one_shard_for_another(store: Path, rng: np.random.Generator) -> None:
    one, two = (store / f"shard-0000{number}.rows" for number in rng.choice(3, 2, replace=False))
    shutil.copyfile(one, two)


def lose_a_file(store: Path, rng: np.random.Generator) -> None:
    any_file(store, rng).unlink()


def put_a_shard_of_another_store(store: Path, rng: np.random.Generator) -> None:
    """Of the same documents, teacher and signal, but of shards cut otherwise, or of other rows."""
    other = store.with_name("other")
    shutil.copyfile(other / "shard-00000.rows", store / "shard-00000.rows")


DAMAGES: list[Damage] = [
    flip_bits,
    truncate,
    lengthen,
    zero_a_stretch,
    repeat_a_stretch,
    exchange_shards,
    put_one_shard_for_another,
    lose_a_file,
    put_a_shard_of_another_store,
]


def everything(path: Path) -> list[SparseRows]:
    store = SignalStore.open(path)
    return [store.rows(name, 0, len(tokens) - 1, tokens=tokens) for name, tokens in make_documents()]


def same(one: SparseRows, two: SparseRows) -> bool:
    return type(one) is type(two) and all(
        value is getattr(two, name) is None or torch.equal(value, getattr(two, name)) for name, value in vars(one).items()
    )


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_damage_is_silent(tmp_path: Path, signal: StoredSignal, damage: Damage) -> None:
    """`verify` finds every change of any byte; reading may miss it only where what is read is untouched by it."""
    whole = write_store(tmp_path / "whole", signal)
    write_store(tmp_path / "other", signal, shard_tokens=50)
    expected = everything(whole)
    path = tmp_path / "store"
    seen = [{file.name: file.read_bytes() for file in whole.iterdir()}]
    for trial in range(TRIALS):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        damage(path, np.random.default_rng(trial))
        damaged = {file.name: file.read_bytes() for file in path.iterdir()}
        if damaged in seen:
            continue  # as it was, or as before
        seen.append(damaged)
        try:
            problems = verify(path).problems
        except StoreError as error:
            problems = (str(error),)
        assert problems, f"trial {trial}"
        try:
            found = everything(path)
        except StoreError:
            continue
        assert all(same(one, two) for one, two in zip(found, expected, strict=True)), f"trial {trial}"


def write_and_publish(folder: Path, ready: Any, problems: Any) -> None:
    """A whole writer in a process of its own, for a store of every kind after the other."""
    for name, signal in SIGNALS.items():
        ready.wait(120)  # all at once
        try:
            writer = open_writer(folder / name, signal, shard_tokens=20)
            fill(writer)
            writer.publish()
        except Exception as error:  # to be seen by the test, whatever it is
            problems.put(f"{name}: {error!r}")


@pytest.mark.slow
def test_writers_that_race_leave_one_whole_store(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, problems = spawn.Barrier(3), spawn.Queue()
    racers = [spawn.Process(target=write_and_publish, args=(tmp_path / "raced", ready, problems)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(300)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert problems.empty(), problems.get()
    for name, signal in SIGNALS.items():
        path = tmp_path / "raced" / name
        assert verify(path).intact
        assert not list(path.glob("*.tmp"))
        expected = everything(write_store(tmp_path / "alone" / name, signal, shard_tokens=20))
        assert all(same(one, two) for one, two in zip(everything(path), expected, strict=True))
