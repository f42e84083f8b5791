"""Real processes: `kill -9` in the middle of work, and several processes under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from several_processes import Group, several

from limbeck.errors import StoreError
from limbeck.runs import open_run
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train.train import train

pytestmark = pytest.mark.slow
LIMIT = 300
"""Seconds after which a process that does not end is a failure, also on a busy machine."""
LIMBECK = [sys.executable, "-m", "limbeck.cli.main"]


def write_recipe(values: dict[str, Any], tmp_path: Path, **changes: Any) -> tuple[Path, Recipe]:
    values = {**values, **changes}
    path = tmp_path / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path, parse(Recipe, values, source="test")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill_when(arguments: Sequence[str], ready: Callable[[], bool]) -> None:
    """Start a process and `kill -9` it as soon as `ready`; it must not have ended by itself."""
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + LIMIT
    while not ready():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(LIMIT) == -signal.SIGKILL


def finish(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)


def losses(path: Path) -> list[float]:
    return [record["loss_nats"] for record in open_run(path).events("train")]


def test_a_killed_training_ends_as_if_undisturbed(values: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "objective": {"kind": "ce"},
        "budget": {"kind": "steps", "amount": 300},
        "checkpoint": {"seconds": 0.05},
        "evaluation": {"every": 0.1},
    }
    _, calm = write_recipe(values, tmp_path, **changes, name="calm")
    file, hurt = write_recipe(values, tmp_path, **changes, name="hurt")
    undisturbed = train(calm)
    path = Path(hurt.run_path)
    kill_when([*LIMBECK, "train", str(file)], (path / "checkpoint.pt").is_file)
    assert not (path / "summary.json").exists()
    done = finish([*LIMBECK, "train", str(file), "--json"])
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    assert json.loads(done.stdout)["step"] == 300
    assert losses(path) == losses(undisturbed)
    evaluated = [
        [(record["step"], record["bits_per_byte"]) for record in open_run(found).events("eval")]
        for found in (path, undisturbed)
    ]
    assert evaluated[0] == evaluated[1]
    one, other = load_file(path / "student" / "model.safetensors"), load_file(undisturbed / "student" / "model.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_killed_cache_write_resumes(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shards' worth of text; killed when the first shard is in place."""
    texts = tmp_path / "texts"
    texts.mkdir()
    words = [f"word{number} of the law;" for number in range(400)]
    for number in range(40):
        (texts / f"{number}.txt").write_text(" ".join(words[(number * step) % 400] for step in range(1, 240)), encoding="utf-8")
    values["data"]["train"]["paths"] = [f"{texts}/*.txt"]
    _, calm = write_recipe(values, tmp_path, store=str(tmp_path / "calm"))
    file, hurt = write_recipe(values, tmp_path, store=str(tmp_path / "hurt"))
    write_recipe_stores([calm])
    assert len(list(Path(calm.store_path).glob("shard-*.rows"))) >= 3
    store = Path(hurt.store_path)
    kill_when([*LIMBECK, "cache", "write", str(file)], (store / "shard-00000.rows").is_file)
    with pytest.raises(StoreError, match="incomplete"):
        SignalStore.open(store)
    kept = (store / "shard-00000.rows").read_bytes()
    for leftover in store.glob("*.tmp"):  # what a killed writer had begun is swept once no living one can be at it
        os.utime(leftover, (0, 0))
    done = finish([*LIMBECK, "cache", "write", str(file), "--json"])
    assert done.returncode == 0, done.stderr
    assert (store / "shard-00000.rows").read_bytes() == kept
    assert verify(store).intact
    assert not list(store.glob("*.tmp"))
    ours, theirs = SignalStore.open(store), SignalStore.open(Path(calm.store_path))
    assert (ours.tokens, ours.distinct_ids, ours.identity) == (theirs.tokens, theirs.distinct_ids, theirs.identity)
    changes = {"budget": {"kind": "steps", "amount": 3}}
    first = train(write_recipe(values, tmp_path, store=str(store), name="first", **changes)[1])
    second = train(write_recipe(values, tmp_path, store=calm.store_path, name="second", **changes)[1])
    assert losses(first) == losses(second)


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]


def test_two_processes_are_one(values: dict[str, Any], tmp_path: Path) -> None:
    """Twenty-five steps of 128 tokens are more than one epoch; every row that either process reads is checked.

    The mean over 128 tokens and the gradients are summed in another order: about 1e-7, relatively, in every step, and AdamW may
    multiply what it gets; 1e-5 leaves a factor of four for each step.
    """
    changes = {"budget": {"kind": "steps", "amount": 25}, "evaluation": {"every": 0.5}}
    _, one = write_recipe(values, tmp_path, **changes, name="one")
    file, two = write_recipe(values, tmp_path, **changes, name="two")
    write_recipe_stores([one])
    alone = train(one)
    done = finish(torchrun("-m", "limbeck.cli.main", "train", str(file)))
    assert done.returncode == 0, done.stderr
    path = Path(two.run_path)
    assert losses(path) == pytest.approx(losses(alone), rel=1e-5)
    assert len(losses(path)) == 25
    for name in ("grad_norm", "lr", "tokens", "student_flops", "teacher_flops", "ce"):
        found, expected = ([record[name] for record in open_run(run).events("train")] for run in (path, alone))
        assert found == pytest.approx(expected, rel=1e-4), name
    # Each sequence's rows are read by one of the two: together the bytes of one process.
    found, expected = (open_run(run).events("train")[-1]["bytes_read"] for run in (path, alone))
    assert found == pytest.approx(expected, rel=0.01)  # packed ids begin and end inside bytes
    first, second = open_run(path).summary, open_run(alone).summary
    assert first is not None
    assert second is not None
    assert first["bits_per_byte"] == pytest.approx(second["bits_per_byte"], rel=1e-4)
    assert "Traceback" not in done.stderr


OTHER_TOKENS_IN_ONE = """
import dataclasses, os
import numpy as np
from limbeck.data.store_rows import StoreRows

original = StoreRows.__init__

def init(self, signals, tokens, *, signal):
    if os.environ["RANK"] == "1":
        tokens = dataclasses.replace(tokens, tokens=np.roll(np.asarray(tokens.tokens), 1))
    original(self, signals, tokens, signal=signal)

StoreRows.__init__ = init
"""
STOPPED_IN_ONE = """
import os, signal
from limbeck.train import loop

original, steps = loop.optimizer_step, []

def step(*arguments, **named):
    steps.append(1)
    if len(steps) == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments, **named)

loop.optimizer_step = step
"""
TWELVE_STEPS = {"objective": {"kind": "ce"}, "budget": {"kind": "steps", "amount": 12}}


@dataclass(frozen=True)
class Pairs:
    """What two pairs of processes ended with: one where rows are of other tokens, one where the second is told to stop."""

    stopped: Recipe
    shifted: Recipe
    ended: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Pairs]:
    """Of a tiny recipe's values; made when first asked for, in one launch."""
    folder = tmp_path_factory.mktemp("pairs")
    made: list[Pairs] = []

    def make(values: dict[str, Any]) -> Pairs:
        if not made:
            tiny = {**values, "output": str(folder)}
            shifted = write_recipe(tiny, folder, name="shifted")
            stopped = write_recipe(tiny, folder, **TWELVE_STEPS, name="stopped")
            refused = write_recipe(tiny, folder, objective={"kind": "ce"}, batch={"sequences": 3}, name="refused")
            shares = [{"name": "one", "share": 0.5}, {"name": "two", "share": 0.5, "changes": {"batch.sequences": 5}}]
            later = write_recipe(tiny, folder, objective={"kind": "ce"}, curriculum=shares, name="later")
            write_recipe_stores([shifted[1]])
            whole = Group(2, [refused[0], later[0], stopped[0]], STOPPED_IN_ONE)
            groups = Group(2, [shifted[0]], OTHER_TOKENS_IN_ONE), whole
            made.append(Pairs(stopped[1], shifted[1], several(folder, *groups)))
        return made[0]

    return make


def test_the_second_process_checks_its_rows_too(values: dict[str, Any], pairs: Callable[..., Pairs]) -> None:
    found = pairs(values)
    _, second = found.ended[0]
    assert "the row belongs to other tokens" in second["errors"]["shifted"]
    assert not Path(found.shifted.run_path, "summary.json").exists()


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    values: dict[str, Any], pairs: Callable[..., Pairs], tmp_path: Path
) -> None:
    found = pairs(values)
    path = Path(found.stopped.run_path)
    assert torch.load(path / "checkpoint.pt", weights_only=True)["costs"]["step"] == 4
    assert all("stopped after step 4" in each["errors"]["stopped"] for each in found.ended[1])
    assert len(losses(path)) == 4
    undisturbed = train(write_recipe(values, tmp_path, **TWELVE_STEPS, name="calm")[1])
    assert train(found.stopped) == path  # one process continues what two began
    assert losses(path) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused(values: dict[str, Any], pairs: Callable[..., Pairs]) -> None:
    """A later stage's too, before the first step of the first."""
    found = pairs(values)
    for each in found.ended[1]:
        assert "batch.sequences=3 is not a multiple of the 2 processes: set it to 4, or start" in each["errors"]["refused"]
        said = "stage two: batch.sequences=5 is not a multiple of the 2 processes: set it to 6, or start a number of processes"
        assert said in each["errors"]["later"]
    assert not Path(found.stopped.run_path).with_name("later").exists()
