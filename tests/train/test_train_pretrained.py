"""Runs whose student is a pretrained model: what learns, what does not, what a run leaves, and what is refused before it."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train_resume import Killed, at_step, kill, only_checkpoint_after, require_same
from tiny_world import make_teacher
from torch import Tensor
from transformers import AutoModelForCausalLM

from limbeck.errors import SpecError
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.train.loop import run
from limbeck.train.setup import open_setup
from limbeck.train.train import train

LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "also": ["norm"]}
DORA: dict[str, Any] = {"kind": "dora", "rank": 4, "targets": ["q_proj", "down_proj"]}
DROPPING: dict[str, Any] = {"kind": "lora", "rank": 4, "dropout": 0.3}
ADAPTERS = {"full": None, "lora": LORA, "dora": DORA}


@pytest.fixture
def pretrained(values: dict[str, Any], teacher_folder: Path) -> dict[str, Any]:
    """The tiny teacher is trained further on the texts, with nobody to teach it."""
    own = {"student": {"kind": "huggingface", "model": str(teacher_folder)}, "objective": {"kind": "ce"}}
    slow = {"optimizer": {"kind": "adamw", "lr": 0.01}, "budget": {"kind": "steps", "amount": 12}}
    return {**values, **own, **slow, "teacher": None, "signal": None}


def recipe_of(values: dict[str, Any], *, adapter: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    return parse(Recipe, {**values, "student": {**values["student"], "adapter": adapter}, **changes}, source="test")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(torch.arange(24)[None] % 300).logits


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft itself
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_run_leaves_the_trained_model(name: str, pretrained: dict[str, Any], teacher_folder: Path) -> None:
    path = train(recipe_of(pretrained, adapter=ADAPTERS[name]))
    losses = [record["loss_nats"] for record in open_run(path).events("train")]
    measured = [record["bits_per_byte"] for record in open_run(path).events("eval")]
    assert losses[-1] < losses[0] - 0.3
    assert measured[-1] < measured[0]
    model, base = (AutoModelForCausalLM.from_pretrained(each) for each in (path / "student", teacher_folder))
    assert float((logits(model) - logits(base)).abs().max()) > 0.1
    if name == "full":
        assert not (path / "student" / "adapter").exists()
        return
    before, after = (load_file(each / "model.safetensors") for each in (teacher_folder, path / "student"))
    learnt = ("norm.weight", "_proj.weight") if name == "lora" else ("q_proj.weight", "down_proj.weight")
    assert {each for each in before if not torch.equal(before[each], after[each])} == {
        each for each in before if each.endswith(learnt)
    }
    beside = peft.PeftModel.from_pretrained(base, path / "student" / "adapter")
    torch.testing.assert_close(logits(beside), logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("average", [{"kind": "none"}, {"kind": "ema", "decay": 0.5}], ids=["none", "ema"])
@pytest.mark.parametrize(
    "optimizer", [{"kind": "adamw", "weight_decay": 0.5, "lr": 0.01}, {"kind": "muon"}], ids=["adamw", "muon"]
)
def test_frozen_weights_stay_bit_for_bit(
    average: dict[str, Any], optimizer: dict[str, Any], pretrained: dict[str, Any], tmp_path: Path
) -> None:
    setup = open_setup(recipe_of(pretrained, adapter=DORA, averaging=average, optimizer=optimizer))
    parameters = dict(setup.student.named_parameters())
    learning = {name for name, parameter in parameters.items() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    run(setup, path=tmp_path, writer=None)
    changed = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    assert changed == learning
    assert len(learning) == 2 * 2 * 3  # layers, matrices, (A, B, length)


@pytest.mark.parametrize("adapter", [None, LORA, DROPPING], ids=["full", "lora", "dropout"])
def test_a_killed_run_continues_bit_for_bit(
    adapter: dict[str, Any] | None, pretrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint": {"seconds": 1e-9}, "averaging": {"kind": "ema", "decay": 0.5}, "batch": {"micro_sequences": 2}}
    calm, hurt = (recipe_of(pretrained, adapter=adapter, name=name, **changes) for name in ("calm", "hurt"))
    undisturbed = train(calm)
    with at_step(7, kill, monkeypatch).context() as patched:
        only_checkpoint_after(5, patched)
        with pytest.raises(Killed):
            train(hurt)
    monkeypatch.undo()
    state = torch.load(Path(hurt.run_path) / "checkpoint.pt", weights_only=True)
    if adapter is not None:
        assert all("lora_" in name or "modules_to_save" in name for name in state["model"])
        assert state["average"]["average"].keys() == state["model"].keys()
        assert len(state["optimizer"]["state"]) == len(state["model"])
    require_same(train(hurt), undisturbed)


def test_the_summary_says_what_learns_and_what_it_cost(pretrained: dict[str, Any], teacher_folder: Path) -> None:
    """Rank 4 on four matrices [out, in] and lengths of their outputs; 4 FLOPs a weight and 6 for each of the adapter's."""
    path = train(recipe_of(pretrained, adapter=DORA, data={**pretrained["data"], "packing": "plain"}))
    weights = load_file(teacher_folder / "model.safetensors")
    total = sum(tensor.numel() for tensor in weights.values())
    adapter = 2 * (4 * (32 + 32) + 32 + 4 * (64 + 32) + 32)
    multiplied = total - 300 * 32
    attention = 2 * 32 * 2 * 32  # keys of a row of 32 seen on average, two layers, 32 channels
    summary = open_run(path).summary
    assert summary is not None
    assert summary["parameters"] == {
        "total": total,
        "embedding": 2 * 300 * 32,
        "non_embedding": total - 2 * 300 * 32,
        "trained": adapter,
    }
    assert summary["student_flops_per_token"] == pytest.approx(2 * multiplied + attention, rel=1e-12)
    expected = 4 * multiplied + 3 * attention + 6 * adapter
    assert summary["student_flops"] == pytest.approx(expected * 12 * 4 * 32, rel=1e-12)


def test_a_type_that_cannot_be_counted_is_trained_all_the_same(pretrained: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = make_teacher(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    values = {**pretrained, "student": {"kind": "huggingface", "model": str(folder)}}
    summary = open_run(train(recipe_of(values, budget={"kind": "steps", "amount": 2}))).summary
    assert summary is not None
    assert summary["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["parameters"]["embedding"] == 300 * 32
    assert summary["student_flops_per_token"] == 2 * summary["parameters"]["total"]


def test_a_teacher_teaches_a_pretrained_student(values: dict[str, Any], teacher_folder: Path, tmp_path: Path) -> None:
    """The teacher is another model of the same tokenizer; the KL to it falls."""
    other = make_teacher(tmp_path / "other", seed=5)
    student = {"kind": "huggingface", "model": str(other)}
    taught = {"signal": {"kind": "dense"}, "optimizer": {"kind": "adamw", "lr": 0.01}}
    path = train(recipe_of({**values, "student": student}, adapter={"kind": "lora", "rank": 8}, **taught))
    losses = [record["loss_nats"] for record in open_run(path).events("train")]
    assert losses[-1] < losses[0] - 0.2
    assert open_run(path).recipe.student.vocab_size == 300


def test_another_vocabulary_is_refused(values: dict[str, Any], pretrained: dict[str, Any], tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other", vocab_size=280)
    student = {"kind": "huggingface", "model": str(other)}
    with pytest.raises(
        SpecError, match=r"reads other tokens \(a vocabulary of 280\) than .* writes \(300\): a signal is"
    ) as no:
        open_setup(recipe_of({**values, "student": student}, signal={"kind": "dense"}))
    assert "data.tokenizer" not in str(no.value)
    for file in other.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SpecError, match="has 280 logits and the teacher 300: they share no vocabulary"):
        open_setup(recipe_of({**values, "student": student}, signal={"kind": "dense"}))
    tokenizer = {**pretrained["data"], "tokenizer": values["teacher"]["model"]}
    with pytest.raises(SpecError, match="280 is smaller than the tokenizer's 300"):
        open_setup(recipe_of({**pretrained, "student": student}, data=tokenizer))
    with pytest.raises(SpecError, match=r"student\.vocab_size=301, but .* has 300 logits"):
        open_setup(recipe_of({**pretrained, "student": {**pretrained["student"], "vocab_size": 301}}))


def test_rounded_weights_and_an_adapter_do_not_go_together(pretrained: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"quantisation_aware rounds .* remove one"):
        recipe_of(pretrained, adapter=LORA, quantisation_aware={"from_lr_factor": 0.5})
    assert recipe_of(pretrained, quantisation_aware={"from_lr_factor": 0.5}).quantisation_aware is not None


DENSE = {"kind": "ladder", "num_layers": 1, "hidden_size": 32, "num_heads": 2}


@pytest.mark.parametrize(
    "student",
    [{"kind": "upcycled", "dense": DENSE, "num_experts": 2, "experts_per_token": 1}, DENSE],
    ids=["upcycled", "ladder"],
)
def test_a_vocabulary_is_filled_in_whatever_the_family(values: dict[str, Any], student: dict[str, Any]) -> None:
    """An upcycled student has it from the dense one; the run's own recipe and the one that was asked for are the same."""
    recipe = parse(Recipe, {**values, "student": student, "objective": {"kind": "ce"}}, source="test")
    setup = open_setup(recipe)
    assert setup.recipe.student.vocab_size == 300
    assert len(setup.student.head_VD) == 300
    path = train(recipe)
    (path / "summary.json").unlink()
    assert train(recipe) == path
    resolved = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
    assert train(parse(Recipe, resolved, source="test")) == path
