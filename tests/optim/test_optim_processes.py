"""Two processes that hold shards (FSDP2) step as one that holds all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LIMIT = 300
"""Seconds after which processes that do not end are a failure, also on a busy machine."""

# Ends by os._exit: torch's threads sometimes abort an interpreter that leaves in the ordinary way.
SCRIPT = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

from limbeck.optim.averaging import WeightAverage
from limbeck.optim.build import build_optimizer
from limbeck.spec.optim import AdamW, ExponentialAverage, Muon, NorMuon


class Toy(nn.Module):
    # Sizes that two processes cannot share evenly; the third expert never gets a gradient.
    def __init__(self):
        super().__init__()
        self.embed, self.map, self.norm = nn.Embedding(11, 6), nn.Linear(6, 7, bias=False), nn.Parameter(torch.ones(7))
        self.experts = nn.Parameter(torch.randn(3, 7, 5))
        self.lm_head = nn.Linear(5, 11, bias=False)

    def forward(self, tokens):
        hidden = torch.tanh(self.map(self.embed(tokens))) * self.norm
        return self.lm_head(torch.einsum("bi,eio->bo", hidden, self.experts[:2]))


def make(spec, sharded):
    torch.manual_seed(0)
    model = Toy()
    if sharded:
        fully_shard(model)
    return model, build_optimizer(spec, model), WeightAverage(ExponentialAverage(decay=0.5), model)


def train(model, optimizer, average, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens, targets = torch.randint(11, (2, 8), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), targets).backward()
        optimizer.step()
        average.update(model, lr_factor=1.0, fraction=0.5)


def whole(model):
    named = model.named_parameters()
    return {name: getattr(each, "full_tensor", lambda each=each: each)().detach().clone() for name, each in named}


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


dist.init_process_group("gloo")
found = {}
for spec in (AdamW(lr=0.01), Muon(lr=0.05), NorMuon(lr=0.05)):
    alone, sharded = make(spec, False), make(spec, True)
    start = whole(alone[0])
    train(*alone, range(5))
    train(*sharded, range(3))
    # What a distributed checkpoint holds, into a fresh optimizer.
    model, optimizer, average = sharded
    state = get_optimizer_state_dict(model, optimizer)
    optimizer = build_optimizer(spec, model)
    set_optimizer_state_dict(model, optimizer, state)
    train(model, optimizer, average, range(3, 5))
    kept = whole(model)
    with alone[2].swapped(alone[0]), average.swapped(model):
        averages = distance(whole(alone[0]), whole(model))
    found[spec.kind] = {
        "sharded": str(type(model.map.weight).__name__),
        "moved": distance(start, kept),
        "weights": distance(whole(alone[0]), kept),
        "averages": averages,
        "idle expert": float((start["experts"][2] - kept["experts"][2]).abs().max()),
    }
if dist.get_rank() == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(found, file)
dist.barrier()
os._exit(0)
"""


def test_shards_step_as_one(tmp_path: Path) -> None:
    script, result = tmp_path / "sharded.py", tmp_path / "found.json"
    script.write_text(SCRIPT, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(script), str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    assert set(found) == {"adamw", "muon", "normuon"}
    for kind, numbers in found.items():
        assert numbers["sharded"] == "DTensor"
        assert numbers["moved"] > 0.03
        assert numbers["weights"] < 1e-6, kind
        assert numbers["averages"] < 1e-6, kind
        assert (numbers["idle expert"] == 0) == (kind != "adamw")
