"""Several processes under torchrun write one store: the bytes of one process, and a killed one takes its shard alone along."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import StoreError
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores

pytestmark = pytest.mark.slow
LIMIT = 300
"""Seconds after which a process that does not end is a failure, also on a busy machine."""

SMALL_SHARDS = """
from limbeck.teachers import cache
cache.SHARD_TOKENS = 300
"""
MAIN = """
from limbeck.cli.main import main
main()
"""
KILLED = """
import os, signal, time
from pathlib import Path
from limbeck.train import interrupt
original, calls, told = cache.score_documents, [], Path(__file__).with_name("told")

def score_documents(*arguments, **named):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if len(calls) == 2:  # has a shard in hand when torchrun tells it to stop
        limit = time.monotonic() + 120
        while not told.exists() and time.monotonic() < limit:
            time.sleep(0.05)
    return original(*arguments, **named)

cache.score_documents = score_documents
interrupt.say = lambda text: told.write_text(text)
"""


def torchrun(folder: Path, script: str, *arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(SMALL_SHARDS + script + MAIN, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.fixture
def recipes(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A recipe's file, where it writes its store, and the same store written by one process."""
    texts = tmp_path / "texts"
    texts.mkdir()
    words = [f"word{number} of the law;" for number in range(400)]
    for number in range(12):
        (texts / f"{number}.txt").write_text(" ".join(words[(number * step) % 400] for step in range(1, 20)), encoding="utf-8")
    values["data"]["train"]["paths"] = [f"{texts}/*.txt"]
    values["signal"] = {"kind": "sampled", "draws": 12}
    monkeypatch.setattr("limbeck.teachers.cache.SHARD_TOKENS", 300)
    alone = {**values, "store": str(tmp_path / "alone")}
    write_recipe_stores([parse(Recipe, alone, source="test")])
    assert len(list((tmp_path / "alone").glob("*.rows"))) >= 7
    file = tmp_path / "together.yaml"
    file.write_text(yaml.safe_dump({**values, "store": str(tmp_path / "together")}), encoding="utf-8")
    return file, tmp_path / "together", tmp_path / "alone"


def payloads(store: Path) -> dict[str, bytes]:
    """The rows of every shard: all of a file but its index, which tells how long scoring took."""
    found = {}
    for file in sorted(store.glob("*.rows")):
        data = file.read_bytes()
        index = int.from_bytes(data[-32:-24], "little")
        found[file.name] = data[: -32 - index]
    return found


def test_two_processes_write_the_store_of_one(recipes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, together, alone = recipes
    script = "import os\noriginal = cache.score_documents\n"
    script += "def score_documents(*arguments, **named):\n"
    script += f'    open(f"{tmp_path}/scored-{{os.environ[\'RANK\']}}", "a").write(" ".join(named["ids"]) + " ")\n'
    script += "    return original(*arguments, **named)\ncache.score_documents = score_documents\n"
    done = torchrun(tmp_path, script, "cache", "write", str(file), "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 12
    assert payloads(together) == payloads(alone)
    assert verify(together).intact
    ours, theirs = SignalStore.open(together), SignalStore.open(alone)
    assert (ours.identity, ours.document_ids, ours.tokens) == (theirs.identity, theirs.document_ids, theirs.tokens)
    shares = [(tmp_path / f"scored-{rank}").read_text(encoding="utf-8").split() for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(ours.document_ids)  # every document once
    assert min(map(len, shares)) >= 4
    again = torchrun(tmp_path, "cache.score_documents = None", "cache", "write", str(file), processes=2)
    assert again.returncode == 0, again.stderr


def test_a_killed_process_takes_its_shard_alone_with_it(recipes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The second of two dies in its second shard, while the first is in its own; three go on."""
    file, together, alone = recipes
    done = torchrun(tmp_path, KILLED, "cache", "write", str(file), processes=2)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    with pytest.raises(StoreError, match="incomplete"):
        SignalStore.open(together)
    kept = {path.name: path.read_bytes() for path in together.glob("*.rows")}
    # Two of the first one's, and the first of the second's.
    assert sorted(kept) == ["shard-00000.rows", "shard-00001.rows", "shard-00002.rows"]
    done = torchrun(tmp_path, "", "cache", "write", str(file), processes=3)
    assert done.returncode == 0, done.stderr
    assert {name: (together / name).read_bytes() for name in kept} == kept
    assert payloads(together) == payloads(alone)
    assert verify(together).intact


def test_processes_extend_a_store_together(recipes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, together, _ = recipes
    fewer = f"data.train.paths=['{tmp_path}/texts/[0-4].txt']"
    done = torchrun(tmp_path, "", "cache", "write", str(file), fewer, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(SignalStore.open(together).document_ids) == 5
    done = torchrun(tmp_path, "", "cache", "extend", str(together), str(file), "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 12
    assert len(SignalStore.open(together).document_ids) == 12
    assert verify(together).intact
