"""Students that are pruned first: the run, its costs, its folder, and what a recipe says of them beforehand."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_train_resume import Killed, at_step, kill
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.errors import SpecError
from limbeck.paths import cache_folder
from limbeck.plan.accounting import student_parameters, teacher_flops_per_token
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.students.pretrained import load_empty
from limbeck.surgery.folder import prune_folder, read_record
from limbeck.train.setup import open_setup
from limbeck.train.train import train

PRUNE = {"hidden_size": 24, "intermediate_size": 40, "calibration": {"samples": 8, "sequence_length": 32}}


@pytest.fixture
def pruned_values(values, teacher_folder):
    values["student"] = {"kind": "huggingface", "model": str(teacher_folder), "prune": PRUNE}
    values["signal"] = {"kind": "dense"}
    values["budget"]["amount"] = 2
    return values


def test_a_pruned_student_learns_from_its_parent(pruned_values, teacher_folder):
    """What is trained begins as what pruning leaves; the run says what it was asked, and its folder what went."""
    recipe = parse(Recipe, pruned_values, source="test")
    setup = open_setup(recipe)
    assert setup.recipe.student.prune == recipe.student.prune and setup.recipe.student.model == str(teacher_folder)
    folder = prune_folder(recipe.student, data=recipe.data, device=setup.device)
    began = AutoModelForCausalLM.from_pretrained(folder)
    assert setup.student.head_VD.equal(began.lm_head.weight) and setup.student.head_VD.shape == (300, 24)
    config = json.loads((folder / "config.json").read_text())
    path = train(recipe)
    run = open_run(path)
    assert run.recipe.student.prune == recipe.student.prune
    trained = AutoModelForCausalLM.from_pretrained(path / "student")
    assert trained.config.hidden_size == 24 and not trained.lm_head.weight.equal(began.lm_head.weight)
    assert read_record(path / "student") == read_record(folder)
    assert run.summary["parameters"]["total"] == sum(p.numel() for p in trained.parameters())
    assert run.summary["student_flops_per_token"] == pytest.approx(
        teacher_flops_per_token(config, context=setup.recipe.data.sequence_length), rel=0.02
    )
    assert "pruned (pruning.json says what went)" in (path / "student" / "README.md").read_text()


def test_beside_an_adapter_too(pruned_values):
    pruned_values["student"]["adapter"] = {"kind": "lora", "rank": 2, "alpha": 4}
    path = train(parse(Recipe, pruned_values, source="test"))
    assert (path / "student" / "pruning.json").is_file() and (path / "student" / "adapter").is_dir()


def test_a_killed_run_goes_on_as_the_same_pruned_model_or_not_at_all(pruned_values, tmp_path, monkeypatch):
    """Half-way through, a calibration text changes: what would be cut now is another model."""
    text = tmp_path / "calibration.txt"
    text.write_text("the state of the people " * 99)
    prune = pruned_values["student"]["prune"]
    prune = {**prune, "calibration": {**prune["calibration"], "texts": {"kind": "files", "paths": [str(text)]}}}
    recipe = parse(Recipe, {**pruned_values, "student": {**pruned_values["student"], "prune": prune}}, source="test")
    with monkeypatch.context() as patched:
        at_step(2, kill, patched)
        with pytest.raises(Killed):
            train(recipe)
    text.write_text("war and peace and the order of the world " * 99)
    with pytest.raises(SpecError, match=r"student\.prune gives another model than .* began as"):
        train(recipe)
    text.write_text("the state of the people " * 99)
    assert train(recipe).is_dir()


def test_the_cache_may_be_emptied_while_it_trains_and_who_goes_on_says_what_went(pruned_values, monkeypatch):
    prunings = cache_folder() / "pruned"
    with monkeypatch.context() as patched:
        at_step(1, lambda: shutil.rmtree(prunings), patched)
        first = train(parse(Recipe, pruned_values, source="test"))
    record = read_record(first / "student")
    assert not prunings.exists() and record is not None and record["after"]["hidden_size"] == 24
    student = {"kind": "huggingface", "model": str(first / "student")}
    second = train(parse(Recipe, {**pruned_values, "student": student, "name": "second"}, source="test"))
    assert read_record(second / "student") == record


def test_what_cannot_be_pruned_is_said_before_training(pruned_values):
    pruned_values["student"]["prune"] = {**PRUNE, "hidden_size": 64}
    with pytest.raises(SpecError, match="hidden_size=64 is more than the model's 32"):
        train(parse(Recipe, pruned_values, source="test"))
    assert not list(Path(pruned_values["output"]).rglob("recipe.yaml"))


def test_a_recipe_is_counted_without_pruning(pruned_values, tmp_path):
    recipe = parse(Recipe, pruned_values, source="test")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(pruned_values))
    total = student_parameters(recipe.student, vocab_size=300).total
    assert total == sum(p.numel() for p in load_empty(recipe.student).parameters())
    for command in (["show", str(tmp_path / "r.yaml")], ["train", str(tmp_path / "r.yaml"), "--dry-run"]):
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 0 and f"parameters: {total:,}" in shown.output
