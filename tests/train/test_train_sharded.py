"""Two processes that hold shards train as one that holds all; checkpoints of shards; recomputed and compiled blocks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_students import golf, ladder, moe, olmo3
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.runs import open_run
from limbeck.spec.base import Spec, parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import UpcycledStudent
from limbeck.train.train import train

LIMIT = 300
"""Seconds after which processes that do not end are a failure, also on a busy machine."""
SHARDED = {"parallel": {"kind": "sharded"}}
CE: dict[str, Any] = {"objective": {"kind": "ce"}, "teacher": None, "signal": None}


def student(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


CASES: dict[str, dict[str, Any]] = {
    "olmo3, adamw, ema, micro-batches": {
        **CE,
        "student": student(olmo3(num_layers=2)),
        "optimizer": {"kind": "adamw", "lr": 3e-3, "clip_norm": 0.5},
        "averaging": {"kind": "ema", "decay": 0.5},
        "batch": {"sequences": 4, "micro_sequences": 1},
        "activation_checkpointing": True,
    },
    "ladder, tied, live teacher and projection": {
        "student": student(ladder()),
        "signal": {"kind": "dense"},
        "objective": {
            "kind": "mixture",
            "terms": [{"weight": 0.5, "term": {"kind": "forward_kl"}}, {"weight": 0.5, "term": {"kind": "hidden"}}],
        },
    },
    "moe, muon": {
        **CE,
        "student": student(moe(num_layers=2, shared_expert={"size": 24, "schedule": "anneal"})),
        "optimizer": {"kind": "muon", "lr": 0.01},
        "averaging": {"kind": "swa", "below": 0.6, "every": 0.2},
    },
    "upcycled, normuon, routers first": {
        **CE,
        "student": student(UpcycledStudent(dense=ladder(), num_experts=3, experts_per_token=2, router_warmup=0.4)),
        "optimizer": {"kind": "normuon", "lr": 0.01},
    },
    "golf, muon, rounded": {
        **CE,
        "student": student(golf(num_layers=3, exclusive_layers=1)),
        "optimizer": {"kind": "muon", "lr": 0.01},
        "quantisation_aware": {"small_elements": 0, "from_lr_factor": 0.7},
        "activation_checkpointing": True,
    },
}
STEPS = 6
BASE: dict[str, Any] = {"budget": {"kind": "steps", "amount": STEPS}, "evaluation": {"every": 0.5}}

# Trains recipes one after another in one group of processes, and notes how many numbers this process holds of each student.
SEVERAL = """
import json, os, sys
from torch.distributed.tensor import DTensor
import limbeck.train.train as entry
from limbeck.spec.load import load_recipe

leave, run, held = entry.leave, entry.run, {}

def counted(setup, **named):
    local = [each.to_local() if isinstance(each, DTensor) else each for each in setup.trained.parameters()]
    held[setup.recipe.name] = sum(each.numel() for each in local), sum(each.numel() for each in setup.trained.parameters())
    last.append(setup.processes)
    return run(setup, **named)

last = []
entry.run, entry.leave = counted, lambda processes: None
for file in sys.argv[2:]:
    entry.train(load_recipe(file))
with open(f"{sys.argv[1]}.{os.environ['RANK']}", "w") as file:
    json.dump(held, file)
leave(last[0])
"""


def write(values: dict[str, Any], folder: Path, **changes: Any) -> tuple[Path, Recipe]:
    merged = {key: value for key, value in {**values, **changes}.items() if value is not None}
    path = folder / f"{merged['name']}.yaml"
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return path, parse(Recipe, merged, source="test")


def torchrun(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=LIMIT, check=False)


def logged(run: Path, name: str) -> list[float]:
    return [record[name] for record in open_run(run).events("train")]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "student" / "model.safetensors")


def require_same_training(found: Path, expected: Path, *, rel: float = 1e-5, atol: float = 1e-5) -> None:
    for name in ("loss_nats", "grad_norm", "lr", "tokens"):
        assert logged(found, name) == pytest.approx(logged(expected, name), rel=10 * rel if name == "grad_norm" else rel), name
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    measured = [[record["bits_per_byte"] for record in open_run(run).events("eval")] for run in (found, expected)]
    assert measured[0] == pytest.approx(measured[1], rel=10 * rel)
    assert len(measured[0]) == 2


@pytest.fixture(scope="module")
def pairs(
    teacher_folder: Path, texts_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, tuple[int, int]]]:
    """Of every case the run of two processes, that of one, and how many numbers each of the two held, of how many."""
    folder = tmp_path_factory.mktemp("sharded")
    values = tiny_values(teacher_folder, texts_folder, folder)
    files, alone = {}, {}
    for number, (title, case) in enumerate(CASES.items()):
        files[title], _ = write(values, folder, **BASE, **case, **SHARDED, name=f"two-{number}")
        alone[title] = write(values, folder, **BASE, **case, name=f"one-{number}")[1]
    script = folder / "several.py"
    script.write_text(SEVERAL, encoding="utf-8")
    cache = {"LIMBECK_CACHE": str(folder / "cache")}
    done = torchrun(str(script), str(folder / "held"), *map(str, files.values()), environment=cache)
    assert done.returncode == 0, done.stderr
    held = [json.loads((folder / f"held.{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LIMBECK_CACHE", str(folder / "cache"))
        for number, (title, recipe) in enumerate(alone.items()):
            name = f"two-{number}"
            assert held[0][name][1] == held[1][name][1]
            found[title] = (folder / "out" / "runs" / name, train(recipe), (held[0][name][0], held[1][name][0]))
            assert sum(found[title][2]) == held[0][name][1]
    return found


def tiny_values(teacher: Path, texts: Path, folder: Path) -> dict[str, Any]:
    return {
        "teacher": {"kind": "huggingface", "model": str(teacher), "dtype": "float32", "context": {"window": 48, "overlap": 16}},
        "data": {
            "train": {"kind": "files", "paths": [f"{texts}/train/*.txt"]},
            "heldout": {"kind": "files", "paths": [f"{texts}/heldout/*.txt"]},
            "sequence_length": 32,
            "tokenizer": str(teacher),
        },
        "batch": {"sequences": 4},
        "precision": "float32",
        "device": "cpu",
        "output": str(folder / "out"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_one_process(case: str, pairs: dict[str, tuple[Path, Path, tuple[int, int]]]) -> None:
    """Sums over tokens and processes in another order: 1e-7 a step, which Adam and Muon may multiply."""
    two, one, held = pairs[case]
    assert len(logged(two, "loss_nats")) == STEPS
    assert max(held) < 0.6 * sum(held)
    require_same_training(two, one)
    assert not list(two.glob("checkpoint*"))
