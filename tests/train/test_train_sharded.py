"""Two processes that hold shards train as one that holds all, also in stages; their checkpoints; recomputed blocks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_students import golf, ladder, moe, olmo3
from torch import Tensor
from torch._dynamo.utils import counters

from limbeck.compute import autocast
from limbeck.errors import LimbeckError
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import Student
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.study.stores import write_recipe_stores
from limbeck.train import loop
from limbeck.train.interrupt import Interrupted
from limbeck.train.sharded_checkpoint import MANIFEST
from limbeck.train.train import train

LIMIT = 300
"""Seconds after which processes that do not end are a failure, also on a busy machine."""
SHARDED = {"parallel": {"kind": "sharded"}}
CE: dict[str, Any] = {"objective": {"kind": "ce"}, "teacher": None, "signal": None}


UPCYCLED = UpcycledStudent(dense=ladder(), num_experts=3, experts_per_token=2, router_warmup=0.4)


def student(spec: Student) -> dict[str, Any]:
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
        "student": student(UPCYCLED),
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

HALTED: dict[str, Any] = {**CASES["moe, muon"], "averaging": {"kind": "ema", "decay": 0.5}}
"""The recipe of runs that stop after step 3; its third expert layer's state is whole matrices, its average shards."""

YARN = {"factor": 2.0, "original_length": 48}


def in_stages(yarn: str) -> dict[str, Any]:
    """Eight steps: two with a store, four with a live teacher and longer, two of the text alone with stretched positions."""
    longer = {"data.sequence_length": 48, "signal": {"kind": "dense"}, "batch.micro_sequences": 1}
    last = {"objective": {"kind": "ce"}, "data.sequence_length": 64, "batch.sequences": 2, "activation_checkpointing": True}
    return {
        "signal": {"kind": "topk", "k": 20},
        "objective": {"kind": "forward_kl"},
        "budget": {"kind": "steps", "amount": 8},
        "averaging": {"kind": "ema", "decay": 0.5},
        "milestones": [1, 4, 6],
        "curriculum": [
            {"name": "short", "share": 0.25},
            {"name": "live", "share": 0.5, "changes": longer},
            {"name": "long", "share": 0.25, "changes": {**last, yarn: YARN}},
        ],
    }


IN_STAGES: dict[str, dict[str, Any]] = {
    "olmo3": {
        **in_stages("student.yarn"),
        "student": student(olmo3(num_layers=2, full_attention_every=2)),
        "optimizer": {"kind": "adamw", "lr": 3e-3, "clip_norm": 0.5},
    },
    "moe": {
        **in_stages("student.positions.yarn"),
        "student": student(moe(num_layers=2)),
        "optimizer": {"kind": "muon", "lr": 0.05},
    },
}
KEPT = ("milestones/1", "milestones/4", "milestones/6", "stages/short", "stages/live", "student")

# Trains recipes one after another in one group of processes, and notes how many numbers this process holds of each student.
# Of "stop" the second process is told to stop in step 3 (of a stage); of "full" its disk is full at the third checkpoint.
# Under "slow" the first process takes its time to remove shards.
# Ends by os._exit: torch's threads sometimes abort an interpreter that leaves in the ordinary way.
SEVERAL = """
import errno, json, os, signal, sys, time
from pathlib import Path
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
import limbeck.train.train as entry
from limbeck.errors import LimbeckError
from limbeck.spec.load import load_recipe
from limbeck.train import loop, resume
from limbeck.train.parallel import leave

run, step, write, held, last = entry.run, loop.optimizer_step, HuggingFaceStorageWriter.write_data, {}, []
forget = resume.forget

def forgotten(path):
    if "slow" in path.parts:
        for manifest in path.glob("checkpoint-*/checkpoint.json"):
            manifest.unlink()
            time.sleep(0.5)
    forget(path)

def counted(setup, **named):
    local = [each.to_local() if isinstance(each, DTensor) else each for each in setup.trained.parameters()]
    held[setup.recipe.name] = sum(each.numel() for each in local), sum(each.numel() for each in setup.trained.parameters())
    last.append(setup.processes)
    steps = []

    def watched(*arguments, **named):
        steps.append(1)
        if len(steps) == 3 and setup.recipe.name.startswith("stop") and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **named)

    def full(*arguments):
        if len(steps) == 3 and setup.recipe.name.startswith("full") and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    loop.optimizer_step, HuggingFaceStorageWriter.write_data = watched, full
    return run(setup, **named)

entry.run, entry.leave, resume.forget = counted, lambda processes: None, forgotten
for file in sys.argv[2:]:
    try:
        entry.train(load_recipe(file))
    except LimbeckError as error:
        held[Path(file).stem] = str(error)
with open(f"{sys.argv[1]}.{os.environ['RANK']}", "w") as file:
    json.dump(held, file)
leave(last[0])
os._exit(0)
"""


def write(values: dict[str, Any], folder: Path, **changes: Any) -> tuple[Path, Recipe]:
    merged = {key: value for key, value in {**values, **changes}.items() if value is not None}
    path = folder / f"{merged['name']}.yaml"
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return path, parse(Recipe, merged, source="test")


def logged(run: Path, name: str) -> list[float]:
    return [record[name] for record in open_run(run).events("train")]


def require_same_weights(found: Path, expected: Path, *, atol: float = 1e-5) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def require_same_training(found: Path, expected: Path, *, rel: float = 1e-5, atol: float = 1e-5) -> None:
    for name in ("loss_nats", "grad_norm", "lr", "tokens"):
        assert logged(found, name) == pytest.approx(logged(expected, name), rel=10 * rel if name == "grad_norm" else rel), name
    require_same_weights(found / "student", expected / "student", atol=atol)
    measured = [[record["bits_per_byte"] for record in open_run(run).events("eval")] for run in (found, expected)]
    assert measured[0] == pytest.approx(measured[1], rel=10 * rel)
    assert len(measured[0]) == 2


def places(records: list[dict[str, Any]]) -> list[tuple[int, str, int]]:
    return [(record["step"], record["stage"], record["sequence_length"]) for record in records]


def require_same_stages(found: Path, expected: Path) -> None:
    """What was logged, measured, watched and kept in all of them; of 639 choices of experts, ten may be others."""
    numbers = {
        "train": ("loss_nats", "lr", "tokens", "student_flops", "teacher_flops"),
        "eval": ("bits_per_byte",),
        "milestone": ("amount", "bits_per_byte"),
        "experts": (),
    }
    for event, keys in numbers.items():
        ours, theirs = (open_run(run).events(event) for run in (found, expected))
        assert places(ours) == places(theirs)
        for key in keys:
            assert [each[key] for each in ours] == pytest.approx([each[key] for each in theirs], rel=1e-5), (event, key)
    for one, other in zip(ours, theirs, strict=True):
        for layer, same in zip(one["layers"], other["layers"], strict=True):
            assert layer == {name: value if value is None else pytest.approx(value, abs=0.02) for name, value in same.items()}
    for kept in KEPT:
        require_same_weights(found / kept, expected / kept)
        assert (found / kept / "config.json").read_text() == (expected / kept / "config.json").read_text()


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


@dataclass(frozen=True)
class World:
    """Texts and teacher as values of a recipe, and a folder in which two processes have trained all that tests ask about."""

    values: dict[str, Any]
    folder: Path
    said: tuple[dict[str, Any], ...]
    """Of each process by the recipe's name: how many numbers it held, and how many there are; or why it stopped."""

    def run(self, name: str, *, output: str = "out") -> Path:
        return self.folder / output / "runs" / name

    def copy(self, name: str, output: str) -> Path:
        """The run as it was left, under another output."""
        return Path(shutil.copytree(self.run(name), self.run(name, output=output)))


def several(folder: Path, *files: Path) -> tuple[dict[str, Any], ...]:
    """Train recipes in two processes; what each of them says."""
    script = folder / "several.py"
    script.write_text(SEVERAL, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, str(folder / "said"), *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads((folder / f"said.{rank}").read_text(encoding="utf-8")) for rank in (0, 1))


@pytest.fixture(scope="module")
def world(teacher_folder: Path, texts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    """Made when first asked for."""
    folder = tmp_path_factory.mktemp("sharded")
    values = {**tiny_values(teacher_folder, texts_folder, folder), **BASE, "store": str(folder / "store")}
    made: list[World] = []

    def make() -> World:
        if not made:
            files = [write(values, folder, **CASES[title], **SHARDED, name=f"two-{slug(title)}")[0] for title in CASES]
            files += [write(values, folder, **HALTED, **SHARDED, name="stop")[0]]
            files += [write(values, folder, **HALTED, **SHARDED, name="full", checkpoint={"seconds": 1e-9})[0]]
            staged = [("two-stages-olmo3", "olmo3"), ("two-stages-moe", "moe"), ("stop-stages", "moe")]
            stages = [write(values, folder, **IN_STAGES[family], **SHARDED, name=name) for name, family in staged]
            write_recipe_stores([stages[0][1]])
            files += [file for file, _ in stages]
            made.append(World(values, folder, several(folder, *files)))
        return made[0]

    return make


def slug(title: str) -> str:
    return title.split(",")[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_one_process(case: str, world: Callable[[], World], tmp_path: Path) -> None:
    """Sums over tokens and processes in another order: 1e-7 a step, which Adam and Muon may multiply."""
    found, name = world(), f"two-{slug(case)}"
    numbers = [said[name] for said in found.said]
    assert sum(held for held, _ in numbers) == numbers[0][1]
    assert max(held for held, _ in numbers) < 0.7 * numbers[0][1]  # three experts are two and one
    plain = {**CASES[case], "activation_checkpointing": False}
    _, recipe = write(found.values, tmp_path, **plain, name="one", output=str(tmp_path))
    assert len(logged(found.run(name), "loss_nats")) == STEPS
    require_same_training(found.run(name), train(recipe))
    assert not list(found.run(name).glob("checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize("family", IN_STAGES)
def test_shards_go_through_stages_as_one_process(family: str, world: Callable[[], World], tmp_path: Path) -> None:
    found, name = world(), f"two-stages-{family}"
    run, (held, whole) = found.run(name), found.said[0][name]
    assert held < 0.7 * whole
    require_same_stages(run, train(write(found.values, tmp_path, **IN_STAGES[family], name="one", output=str(tmp_path))[1]))
    parts = [("short", 32)] * 2 + [("live", 48)] * 4 + [("long", 64)] * 2
    steps = {"train": range(1, 9), "eval": (2, 4, 6, 8), "milestone": (1, 4, 6), "experts": (1, 2, 4, 6, 8)}
    for event in ("train", "eval", "milestone", *(["experts"] if family == "moe" else [])):
        assert places(open_run(run).events(event)) == [(step, *parts[step - 1]) for step in steps[event]]
    configs = [(run / kept / "config.json").read_text(encoding="utf-8") for kept in KEPT]
    assert [json.loads(config)["max_position_embeddings"] for config in configs] == [32, 48, 48, 32, 48, 64]
    assert ['"factor": 2.0' in config for config in configs] == [False] * 5 + [True]
    assert not list(run.glob("checkpoint*"))


@pytest.mark.slow
def test_one_process_continues_the_stage_that_two_stopped(world: Callable[[], World], tmp_path: Path) -> None:
    found = world()
    assert "stopped after step 5" in found.said[0]["stop-stages"] == found.said[1]["stop-stages"]
    run = found.copy("stop-stages", "alone")
    assert [record["stage"] for record in open_run(run).events("train")] == ["short"] * 2 + ["live"] * 3
    output = str(found.folder / "alone")
    assert train(write(found.values, tmp_path, **IN_STAGES["moe"], name="stop-stages", output=output)[1]) == run
    require_same_stages(run, found.run("two-stages-moe"))


@pytest.mark.slow
def test_one_process_continues_what_two_stopped(world: Callable[[], World], tmp_path: Path) -> None:
    """A sharded run's checkpoint, read by a student that is whole; a write that was killed lies beside it."""
    found = world()
    assert "stopped after step 3" in found.said[0]["stop"] == found.said[1]["stop"]
    run = found.copy("stop", "alone")
    assert [each.name for each in run.glob("checkpoint*")] == ["checkpoint-3"]
    assert {each.suffix for each in (run / "checkpoint-3").iterdir()} == {".json", ".safetensors"}
    (run / "checkpoint.tmp").mkdir()
    (run / "checkpoint.tmp" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    _, recipe = write(found.values, tmp_path, **HALTED, **SHARDED, name="stop", output=str(found.folder / "alone"))
    _, calm = write(found.values, tmp_path, **HALTED, name="calm", output=str(tmp_path))
    assert train(recipe) == run
    assert len(logged(run, "loss_nats")) == STEPS
    require_same_training(run, train(calm))
    assert not list(run.glob("checkpoint*"))


@pytest.mark.slow
def test_two_processes_continue_what_two_or_one_stopped(
    world: Callable[[], World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From shards, and from the one file of a student that was whole; in the second of three stages, sharded again or not.

    In the last of these a process that goes on to the next stage does not read the shards that the first one still removes.
    """
    found = world()
    found.copy("stop", "pair")
    at_pair, _ = write(found.values, tmp_path, **HALTED, **SHARDED, name="stop", output=str(found.folder / "pair"))
    original, steps = loop.optimizer_step, [0]

    def halted(*arguments: Any, **named: Any) -> dict[str, float]:
        steps[0] += 1
        if steps[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    _, whole = write(found.values, tmp_path, **HALTED, name="whole", output=str(found.folder / "pair"))
    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", halted)
        with pytest.raises(Interrupted):
            train(whole)
    assert [each.name for each in found.run("whole", output="pair").glob("checkpoint*")] == ["checkpoint.pt"]
    at_whole, _ = write(found.values, tmp_path, **HALTED, **SHARDED, name="whole", output=str(found.folder / "pair"))
    files = [at_pair, at_whole]
    for output, parallel in (("pair", SHARDED), ("slow", {})):
        found.copy("stop-stages", output)
        (tmp_path / output).mkdir()
        named = {"name": "stop-stages", "output": str(found.folder / output)}
        files += [write(found.values, tmp_path / output, **IN_STAGES["moe"], **parallel, **named)[0]]
    said = several(tmp_path, *files)
    for output in ("pair", "slow"):
        require_same_stages(found.run("stop-stages", output=output), found.run("two-stages-moe"))
    calm = train(write(found.values, tmp_path, **HALTED, name="calm", output=str(tmp_path))[1])
    for name in ("stop", "whole"):
        assert said[0][name][0] < 0.6 * said[0][name][1]
        assert len(logged(found.run(name, output="pair"), "loss_nats")) == STEPS
        require_same_training(found.run(name, output="pair"), calm)


@pytest.mark.slow
def test_a_full_disk_in_one_process_keeps_the_last_checkpoint(world: Callable[[], World]) -> None:
    found = world()
    for said in found.said:
        assert "checkpoint-3 cannot be written" in said["full"]
        assert "No space left on device" in said["full"]
        assert "\n" not in said["full"]
    kept = [each.name for each in found.run("full").glob("checkpoint*") if each.suffix != ".tmp"]
    assert kept == ["checkpoint-2"]
    assert json.loads((found.run("full") / "checkpoint-2" / MANIFEST).read_text(encoding="utf-8"))["costs"]["step"] == 2


def shorten(folder: Path) -> None:
    shard = next(folder.glob("shard-00002*"))
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(folder: Path) -> None:
    """One bit of a weight: nothing but a checksum can see that."""
    shard = next(folder.glob("shard-00001*"))
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))


def swap(folder: Path) -> None:
    """A shard of the same student at another step."""
    shard = next(folder.glob("shard-00002*"))
    shutil.copy(folder.parents[3] / "out" / "runs" / "full" / "checkpoint-2" / shard.name, shard)


def lose(folder: Path) -> None:
    next(folder.glob("shard-00001*")).unlink()


def cut(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[: len(text) // 2], encoding="utf-8")


def rename(folder: Path) -> None:
    """As of a student with a parameter of another name."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text.replace("q_proj", "query_proj"), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [shorten, flip, swap, lose, cut, rename])
def test_a_damaged_piece_is_one_clear_error(damage: Callable[[Path], None], world: Callable[[], World], tmp_path: Path) -> None:
    found, output = world(), f"damaged-{damage.__name__}"
    run = found.copy("stop", output)
    damage(run / "checkpoint-3")
    _, recipe = write(found.values, tmp_path, **HALTED, **SHARDED, name="stop", output=str(found.folder / output))
    with pytest.raises(LimbeckError, match=r"checkpoint-3 is damaged or of another student \(.+\): remove it") as caught:
        train(recipe)
    assert "\n" not in str(caught.value)
    assert not (run / "summary.json").exists()


@pytest.mark.slow
def test_another_precision_is_refused(world: Callable[[], World], tmp_path: Path) -> None:
    found = world()
    found.copy("stop", "precision")
    recipe_yaml = found.run("stop", output="precision") / "recipe.yaml"
    recipe_yaml.write_text(recipe_yaml.read_text(encoding="utf-8").replace("float32", "bfloat16"), encoding="utf-8")
    output = str(found.folder / "precision")
    _, recipe = write({**found.values, "precision": "bfloat16"}, tmp_path, **HALTED, **SHARDED, name="stop", output=output)
    with pytest.raises(LimbeckError, match=r"computed in float32, this run would use torch\.bfloat16: add precision=float32"):
        train(recipe)


VOCABULARY = 97
PARTS = {"olmo3": olmo3(), "moe": moe(), "golf": golf(), "upcycled": UPCYCLED}


def passes(spec: Student, *, change: Callable[[Decoder], None], dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients, loss and loads of packed documents."""
    decoder, draw = build(spec, vocab_size=VOCABULARY, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    change(decoder)
    token_BT, pull_BTD = torch.randint(VOCABULARY, (2, 24), generator=draw), torch.randn(2, 24, 1, generator=draw)
    segments_BT = torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    with autocast(dtype, torch.device("cpu")):
        reading = decoder(token_BT, segments_BT=segments_BT)
        logits_BTV = decoder.logits(reading.hidden_BTD)
    loss = (logits_BTV.float().log_softmax(-1) * pull_BTD).mean()
    (loss if reading.balance is None else loss + reading.balance).backward()
    found = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    assert len(found) == len(list(decoder.parameters()))
    return {**found, "loss": loss.detach(), "loads": torch.zeros(1) if reading.load_ME is None else reading.load_ME}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", PARTS)
def test_computing_again_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    calls: list[int] = []

    def change(decoder: Decoder) -> None:
        decoder.recompute_activations()
        for index, block in enumerate(decoder.blocks()):
            block.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))

    plain = passes(PARTS[family], change=lambda decoder: None, dtype=dtype)
    again = passes(PARTS[family], change=change, dtype=dtype)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name
    layers = len(PARTS[family].layout.layers)
    assert calls == [*range(layers), *reversed(range(layers))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch looks at it itself
@pytest.mark.parametrize("family", PARTS)
def test_compiled_blocks_compute_the_same(family: str) -> None:
    """Fused sums round in another order: 1e-6 of the largest number of a tensor, ten times over for its way through layers."""

    def change(decoder: Decoder) -> None:
        names = [name for name, _ in decoder.named_parameters()]
        decoder.compile_blocks()
        assert [name for name, _ in decoder.named_parameters()] == names

    torch.compiler.reset()
    counters.clear()
    plain = passes(PARTS[family], change=lambda decoder: None, dtype=torch.float32)
    fast = passes(PARTS[family], change=change, dtype=torch.float32)
    assert counters["stats"]["unique_graphs"] > 0
    assert torch.equal(plain["loads"], fast["loads"])
    for name, value in plain.items():
        assert float((value - fast[name]).abs().max()) < 1e-5 * (1 + float(value.abs().max())), name
