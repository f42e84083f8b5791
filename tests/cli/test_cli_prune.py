"""`limbeck prune` and `limbeck show PRUNED` from end to end, on a random model of five layers of which one does nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

Command = Callable[..., Any]
IDLE = 2


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parents") / "five"
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers[IDLE].self_attn.o_proj.weight.zero_()
    model.model.layers[IDLE].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def calibrated(texts_folder: Path) -> tuple[str, ...]:
    small = ("calibration.samples=8", "calibration.sequence_length=24")
    return (*small, "--texts", f"{texts_folder}/train/*.txt")


def parameters(folder: Path) -> int:
    return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(folder).parameters())


def test_a_model_is_pruned_to_sizes_and_shown(
    limbeck: Command, parent: Path, calibrated: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = limbeck("prune", parent, "num_layers=4", "intermediate_size=16", *calibrated, "-o", out)
    assert outcome.code == 0, outcome.err
    assert parameters(parent) - parameters(out) == (32 * 8 * 12 + 3 * 32 * 64 + 64) + 4 * 3 * 32 * 48
    lines = outcome.out.splitlines()
    assert lines[0].endswith(f"{parameters(parent):,} parameters, pruned to {parameters(out):,}")
    assert "num_layers: 5 → 4 (80%)" in lines and "intermediate_size: 64 → 16 (25%)" in lines
    rows = {int(line.split()[0]): line for line in lines if line[:5].strip().isdecimal()}
    assert [rows[layer].split()[1] for layer in range(5)] == ["stays", "stays", "goes", "stays", "stays"]
    assert f"written: {out}" in lines
    (following,) = [line for line in lines if line.startswith("heal it: ")]
    assert f"limbeck train RECIPE student.kind=huggingface student.model={out}" in following
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(parent).get_vocab()

    shown = limbeck("show", out, "-o", tmp_path / "picture.png")
    assert shown.code == 0 and [line for line in shown.out.splitlines() if line in lines]
    assert {path.name for path in tmp_path.glob("picture*")} == {"picture.svg", "picture.png"}
    values = json.loads(limbeck("show", out, "--json").out)
    assert [layer["stays"] for layer in values["layers"]] == [True, True, False, True, True]
    assert values["layers"][0]["shares"] == {"neurons": 0.25, "heads": 1.0, "groups": 1.0}
    assert values["layers"][IDLE]["influence"] == pytest.approx(0, abs=1e-6)


def test_another_size_reads_nothing_again(limbeck: Command, parent: Path, calibrated: tuple[str, ...], tmp_path: Path) -> None:
    first = limbeck("prune", parent, "hidden_size=16", *calibrated, "-o", tmp_path / "one")
    second = limbeck("prune", parent, "hidden_size=24", *calibrated, "-o", tmp_path / "two")
    assert "importance: 100%" in first.err and "importance: 100%" not in second.err
    assert "importance was measured before" in second.err
    again = limbeck("prune", parent, "hidden_size=24", *calibrated, "-o", tmp_path / "two", "--json")
    assert again.code == 0 and json.loads(again.out)["after"]["hidden_size"] == 24


def test_depth_by_loss_is_in_the_picture(limbeck: Command, parent: Path, calibrated: tuple[str, ...], tmp_path: Path) -> None:
    loss = ("depth.kind=loss", "depth.rows=2", "contiguous=true")
    outcome = limbeck("prune", parent, "num_layers=3", *loss, *calibrated, "-o", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    stays = [layer["stays"] for layer in json.loads(outcome.out)["layers"]]
    assert stays in ([True, False, False, True, True], [True, True, False, False, True])
    found = json.loads((tmp_path / "out" / "pruning.json").read_text(encoding="utf-8"))["depth"]
    assert [layers for layers, _ in found["costs"]] == [[1, 2], [2, 3]]


def test_a_target_is_searched_for(limbeck: Command, parent: Path, calibrated: tuple[str, ...], tmp_path: Path) -> None:
    asked = ("--target", "parameters=0.6", "--top", 3, "--heal-steps", 1, "-o", tmp_path / "out")
    outcome = limbeck("prune", parent, *asked, *calibrated)
    assert outcome.code == 0, outcome.err
    table = json.loads((tmp_path / "out" / "search.json").read_text(encoding="utf-8"))
    shapes = table["shapes"]
    assert len(shapes) == 3 and {shape["kind"] for shape in shapes} >= {"width", "mixed"}
    assert [shape["loss_healed_nats"] for shape in shapes] == sorted(shape["loss_healed_nats"] for shape in shapes)
    assert parameters(tmp_path / "out") == shapes[0]["parameters"] == pytest.approx(0.6 * parameters(parent), rel=0.05)
    rows = outcome.out.splitlines()
    assert "healed (1 steps)" in rows[2] and rows[4].startswith("before") and rows[5].startswith(next(iter(shapes[0]["sizes"])))
    same = limbeck("prune", parent, *asked, *calibrated, "--json")
    assert same.code == 0 and json.loads(same.out)["search"] == table
    other = limbeck("prune", parent, "--target", "parameters=0.5", "-o", tmp_path / "out", *calibrated)
    assert (other.code, "exists and holds something else" in other.complaint) == (2, True)
    (tmp_path / "out" / "search.json").unlink()  # as where it is killed between the two
    goes_on = limbeck("prune", parent, *asked, *calibrated, "--json")
    assert goes_on.code == 0, goes_on.err
    assert json.loads((tmp_path / "out" / "search.json").read_text(encoding="utf-8")) == table
    (tmp_path / "out" / "search.json").unlink()
    (tmp_path / "out" / "pruning.json").unlink()
    foreign = limbeck("prune", parent, *asked, *calibrated)
    assert (foreign.code, "exists and holds something else" in foreign.complaint) == (2, True)


def test_the_student_of_a_run_is_pruned_on_its_own_texts(
    limbeck: Command, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run whose student was pruned first shows what went."""
    monkeypatch.chdir(tmp_path)
    labels = "objective={kind: ce}"
    assert limbeck("train", recipe_file, labels, "budget.amount=2").code == 0
    small = ("calibration.samples=4", "calibration.sequence_length=24", "keep_last=0")
    outcome = limbeck("prune", "out/runs/tiny", "num_layers=1", "hidden_size=8", *small)
    assert outcome.code == 0, outcome.err
    (written,) = Path("pruned").iterdir()
    assert written.name.startswith("tiny-") and f"written: {written}" in outcome.out
    student = (f"student={{kind: huggingface, model: {written}}}", "name=healed", "budget.amount=1", labels)
    assert limbeck("train", recipe_file, *student).code == 0
    shown = limbeck("show", "out/runs/healed")
    assert shown.code == 0 and "num_layers: 2 → 1 (50%)" in shown.out


def test_a_model_that_is_not_recognised_is_refused_by_its_first_block(
    limbeck: Command, calibrated: tuple[str, ...], tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "neox")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "neox")
    for size in ("num_layers=1", "--target=parameters=0.5"):
        outcome = limbeck("prune", tmp_path / "neox", size, *calibrated)
        assert outcome.code == 2 and "gpt_neox.layers.0 (GPTNeoXLayer) is not recognised" in outcome.complaint


def test_mistakes_are_one_line(limbeck: Command, parent: Path, calibrated: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.txt").write_text("")
    chosen = ("num_layers=4", *calibrated)
    for arguments, code, reason in (
        ((parent, *calibrated), 2, "--target parameters=0.5"),
        ((parent, "num_layers=6", *calibrated), 2, "num_layers=6 is more than the model's 5"),
        ((parent, "num_heads=3", *calibrated), 2, "num_heads=3 is not a multiple"),
        ((parent, "num_layer=4", *calibrated), 2, "did you mean 'num_layers'?"),
        ((parent, "num_layers=4"), 2, "add --texts, --recipe or --chats"),
        ((parent, "num_layers=4", "--texts", f"{tmp_path}/no/*.txt"), 1, "matches no file: correct --texts"),
        ((parent, "num_layers=4", "--texts", tmp_path / "empty.txt"), 1, "no calibration documents: --texts hold no text"),
        ((parent, "num_layers=4", "--texts", "a.txt", "--recipe", "quickstart"), 2, "give one of them"),
        ((parent, *chosen, "depth.kind=task", "depth.file=none.jsonl"), 1, "none.jsonl cannot be read"),
        ((parent, *chosen, "--heal-steps", 3, "--width-cap", 0.5), 2, "--heal-steps, --width-cap would do nothing"),
        ((parent, *chosen, "--context", 64), 2, "--context would do nothing: no shapes are searched; add --target"),
        ((parent, "--target", "size=0.5", *calibrated), 2, "is not QUANTITY=AMOUNT"),
        ((parent, "--target", "parameters=0.6", "drop_types=full", *calibrated), 2, "are of one kind"),
        ((parent, "--target", "parameters=7B", *calibrated), 2, "is no less than the"),
        ((parent, "--target", "parameters=0.001", *calibrated), 2, "no shape on the grid"),
        ((tmp_path / "nothing", *chosen), 2, "nothing"),
        ((parent, *chosen, "-o", tmp_path / "file" / "within"), 1, "can't be written"),
    ):
        outcome = limbeck("prune", *arguments, *(("-o", out) if "-o" not in arguments else ()))
        assert (outcome.code, reason in outcome.complaint) == (code, True), (arguments, outcome.complaint)
        assert not out.exists()
    for arguments, reason in (
        ((parent, "-o", tmp_path / "picture"), "it has no pruning.json"),
        (("quickstart", "-o", tmp_path / "picture"), "it has no pruning.json"),
    ):
        assert reason in limbeck("show", *arguments).complaint
