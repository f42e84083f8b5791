"""Pretrained students in shards and with blocks that are computed again: two processes train as one does."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import Group, several
from test_train_sharded import BASE, CE, SHARDED, World, logged, require_same_training, slug, tiny_values, write
from tiny_world import make_teacher, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.errors import SpecError
from limbeck.runs import open_run
from limbeck.spec.adapter import LoRA
from limbeck.spec.base import parse
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.students.pretrained import PretrainedStudent, load_pretrained
from limbeck.train.sharded_checkpoint import MANIFEST
from limbeck.train.train import train

LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "dropout": 0.3, "also": ["norm"]}
DORA: dict[str, Any] = {"kind": "dora", "rank": 4, "targets": ["q_proj", "down_proj"]}
CASES: dict[str, dict[str, Any]] = {
    "tied, adamw, ema": {
        **CE,
        "averaging": {"kind": "ema", "decay": 0.5},
        "batch": {"sequences": 4, "micro_sequences": 1},
        "activation_checkpointing": True,
    },
    "plain, muon, live teacher and projection": {
        "optimizer": {"kind": "muon", "lr": 0.01},
        "signal": {"kind": "dense"},
        "objective": {
            "kind": "mixture",
            "terms": [{"weight": 0.5, "term": {"kind": "forward_kl"}}, {"weight": 0.5, "term": {"kind": "hidden"}}],
        },
    },
    "lora, dropout": {
        **CE,
        "adapter": LORA,
        "batch": {"sequences": 4, "micro_sequences": 1},  # what is dropped depends on the tokens of a micro-batch
        "activation_checkpointing": True,
    },
    "dora": {**CE, "adapter": DORA, "averaging": {"kind": "ema", "decay": 0.5}},
}
STOPPED = ("stop-alone", "stop-pair")
"""The adapter of "lora" in runs that stop after step 3: one process continues the first, two the second."""
# Notes how many numbers this process holds of each student; tells the second process to stop in step 3 of some.
COUNTING = """
import json, os, signal
from torch.distributed.tensor import DTensor
from limbeck.train import loop, train
run, step, held = train.run, loop.optimizer_step, {{}}

def counted(setup, **named):
    name, steps = setup.recipe.name, []
    local = [each.to_local() if isinstance(each, DTensor) else each for each in setup.trained.parameters()]
    held[name] = [sum(each.numel() for each in tensors) for tensors in (local, setup.trained.parameters())]
    with open("{folder}/held." + os.environ["RANK"], "w") as file:
        json.dump(held, file)

    def watched(*arguments, **named):
        steps.append(1)
        if len(steps) == 3 and name.startswith("stop") and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **named)

    loop.optimizer_step = watched
    return run(setup, **named)

train.run = counted
"""

COMPILED: dict[str, Any] = {
    "name": "compiled",
    "data": {"train": {"kind": "files", "paths": ["a"]}, "heldout": {"kind": "files", "paths": ["b"]}, "sequence_length": 8},
    "objective": {"kind": "ce"},
    "budget": {"kind": "steps", "amount": 1},
    "compile": True,
}


def make_tied(folder: Path) -> Path:
    """A random two-layer Llama whose embedding is its head, 24 wide."""
    make_tokenizer(folder)
    torch.manual_seed(7)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, **sizes, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def changes(title: str, folder: Path) -> dict[str, Any]:
    asked = {key: value for key, value in CASES[title].items() if key != "adapter"}
    model = folder / ("tied" if title.startswith("tied") else "other")
    return {**asked, "student": {"kind": "huggingface", "model": str(model), "adapter": CASES[title].get("adapter")}}


@pytest.fixture(scope="module")
def world(teacher_folder: Path, texts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    """Made when first asked for."""
    folder = tmp_path_factory.mktemp("sharded-pretrained")
    values = {**tiny_values(teacher_folder, texts_folder, folder), **BASE}
    made: list[World] = []

    def make() -> World:
        if not made:
            make_tied(folder / "tied")
            make_teacher(folder / "other", seed=5)
            files = [
                write(values, folder, **changes(title, folder), **SHARDED, name=f"two-{slug(title)}")[0] for title in CASES
            ]
            alone, pair = (
                write(values, folder, **changes("lora, dropout", folder), **SHARDED, name=each)[0] for each in STOPPED
            )
            files += [alone, pair, pair]
            (ended,) = several(folder, Group(2, files, COUNTING.format(folder=folder)))
            held = [json.loads((folder / f"held.{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
            made.append(World(values, folder, tuple(known | each["errors"] for known, each in zip(held, ended, strict=True))))
        return made[0]

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_one_process(case: str, world: Callable[[], World], tmp_path: Path) -> None:
    """Losses, gradients, weights in the saved folder, and what is measured on the way and at the end."""
    found, name = world(), f"two-{slug(case)}"
    numbers = [said[name] for said in found.said]
    assert sum(held for held, _ in numbers) == numbers[0][1]
    assert max(held for held, _ in numbers) < 0.6 * numbers[0][1]
    plain = {**changes(case, found.folder), "activation_checkpointing": False}
    _, recipe = write(found.values, tmp_path, **plain, name="one", output=str(tmp_path))
    expected = train(recipe)
    require_same_training(found.run(name), expected)
    assert len(logged(found.run(name), "loss_nats")) == 6


@pytest.mark.slow
def test_the_saved_folder_is_what_was_measured(world: Callable[[], World]) -> None:
    """transformers alone, on the held-out tokens, against the run's summary; the tied matrix is one, the adapter is merged."""
    found = world()
    for case in CASES:
        run = found.run(f"two-{slug(case)}")
        model = AutoModelForCausalLM.from_pretrained(run / "student")
        tied = case.startswith("tied")
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        assert (run / "student" / "adapter").is_dir() == ("adapter" in CASES[case])
        summary = open_run(run).summary
        assert summary is not None
        assert summary["bits_per_byte"] == pytest.approx(bits_per_byte(model, found.values), rel=1e-5)


@torch.no_grad()
def bits_per_byte(model: Any, values: dict[str, Any]) -> float:
    """Windows of 32 rows that do not overlap."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(values["teacher"]["model"])
    bits, num_bytes = 0.0, 0
    for file in sorted(Path(values["data"]["heldout"]["paths"][0]).parent.glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]])
        for start in range(0, len(ids) - 1, 32):
            window = ids[start : start + 33]
            log_probs = model(window[None, :-1]).logits[0].log_softmax(-1)
            bits -= float(log_probs.gather(1, window[1:, None]).sum()) / math.log(2)
        num_bytes += len(text.encode("utf-8"))
    return bits / num_bytes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_one_process_and_two_continue_what_two_stopped(world: Callable[[], World], tmp_path: Path) -> None:
    """With an adapter, of which alone a checkpoint is."""
    found, (alone, pair) = world(), STOPPED
    run = found.run(alone)
    assert "stopped after step 3" in found.said[0][alone] == found.said[1][alone]
    manifest = json.loads((run / "checkpoint-3" / MANIFEST).read_text(encoding="utf-8"))
    assert all("lora_" in name or "modules_to_save" in name for name in manifest["tensors"] if name.startswith("model."))
    train(write(found.values, tmp_path, **changes("lora, dropout", found.folder), name=alone)[1])
    for name in (alone, pair):
        assert not list(found.run(name).glob("checkpoint*"))
        require_same_training(found.run(name), found.run("two-lora"))


def test_computing_blocks_again_changes_no_bit(tmp_path: Path) -> None:
    """Gradients of a tied model through an adapter that drops out; every block runs twice, the last first."""
    folder, calls = make_tied(tmp_path), []
    spec = HuggingFaceStudent(model=str(folder), adapter=LoRA(rank=4, dropout=0.5))
    token_BT = torch.arange(24).view(2, 12)

    def gradients(student: PretrainedStudent) -> dict[str, Tensor]:
        student.logits(student(token_BT).hidden_BTD).logsumexp(-1).mean().backward()
        return {name: each.grad for name, each in student.named_parameters() if each.grad is not None}

    plain, again = load_pretrained(spec, seed=0), load_pretrained(spec, seed=0)
    for student in (plain, again):
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
    again.recompute_activations()
    for index, block in enumerate(again.blocks()):
        block.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    expected, found = gradients(plain), gradients(again)
    assert calls == [0, 1, 2, 2, 1, 0]
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 3 * 7
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_blocks_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes)).save_pretrained(tmp_path)
    student = load_pretrained(HuggingFaceStudent(model=str(tmp_path)), seed=0)
    assert student.blocks() == list(student.causal_lm.transformer.h)
    student.causal_lm.config.n_layer = 4
    with pytest.raises(SpecError, match=r"GPT2LMHeadModel keeps no list of its 4 layers.* remove them"):
        student.blocks()
    with pytest.raises(SpecError, match="compile is for students of Limbeck's own kinds"):
        parse(Recipe, {**COMPILED, "student": {"kind": "huggingface", "model": str(tmp_path)}}, source="test")
