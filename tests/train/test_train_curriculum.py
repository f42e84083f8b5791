"""Stages of one run: what is killed anywhere continues as if it had not been; stages without changes are no stages at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_resume import Killed, at_step, kill, recipe_of, records, require_same

from limbeck.errors import LimbeckError
from limbeck.runs import open_run
from limbeck.signals.store import SignalStore
from limbeck.study import stores
from limbeck.study.stores import write_recipe_stores
from limbeck.train import loop, on_the_way, resume
from limbeck.train import train as entry
from limbeck.train.setup import open_setup
from limbeck.train.train import train

CE = {"objective": {"kind": "ce"}}
YARN = {"factor": 2.0, "original_length": 32}


def student_of(values: dict[str, Any]) -> dict[str, Any]:
    """With a layer that has YaRN: the full ones have it."""
    return {**values["student"], "full_attention_every": 2}


def full_rope(folder: Path) -> str:
    """Of what kind the positions of the full layers are, by transformers' own name."""
    config = json.loads((folder / "config.json").read_text())
    found: str = config["rope_parameters"]["full_attention"]["rope_type"]
    return found


@pytest.fixture
def three(values: dict[str, Any]) -> dict[str, Any]:
    """Stored signals, then a live teacher over longer sequences, then longer positions and what the student writes."""
    writes = {"max_new_tokens": 6, "prompts": {"kind": "documents", "tokens": 4}, "sources": {"student": 0.5, "data": 0.5}}
    stages = [
        {"name": "short", "share": 0.375},
        {"name": "live", "share": 0.25, "changes": {"signal": {"kind": "dense"}, "data.sequence_length": 48}},
        {
            "name": "long",
            "share": 0.375,
            "changes": {
                "signal": {"kind": "dense"},
                "data.sequence_length": 64,
                "student.yarn": YARN,
                "on_policy": writes,
                "batch.sequences": 2,
            },
        },
    ]
    return {
        **values,
        "student": student_of(values),
        "curriculum": stages,
        "milestones": [2, 4],
        "averaging": {"kind": "ema", "decay": 0.5},
    }


def test_stages_without_changes_are_one_run(values: dict[str, Any]) -> None:
    """A plain run of 8 steps is evaluated after 2, 4 and 6 of them, and so are stages that end there."""
    plain = recipe_of(values, **CE, name="plain")
    shares = [{"name": "one", "share": 0.25}, {"name": "two", "share": 0.5}, {"name": "three", "share": 0.25}]
    parts = recipe_of(values, **CE, name="parts", curriculum=shares)
    undisturbed, path = train(plain), train(parts)
    staged = records(path, without={"seconds", "stage", "sequence_length"})
    assert staged == records(undisturbed)
    assert [record["stage"] for record in open_run(path).events("train")] == ["one"] * 2 + ["two"] * 4 + ["three"] * 2
    one, other = load_file(path / "student" / "model.safetensors"), load_file(undisturbed / "student" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def _in_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(step, kill, monkeypatch)


def _between_stages(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the stage after the `at`-th is opened."""
    original, opened = entry.open_setup, [0]

    def opens(recipe: Any) -> Any:
        opened[0] += 1
        if opened[0] > at:
            raise Killed
        return original(recipe)

    monkeypatch.setattr(entry, "open_setup", opens)


def _before_the_checkpoint_of(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After everything else of the step."""
    original = resume.save_checkpoint

    def save(path: Path, **named: Any) -> None:
        if named["costs"].step == step:
            raise Killed
        original(path, **named)

    monkeypatch.setattr(resume, "save_checkpoint", save)


def _at_a_milestone(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the folder is about to be written."""

    def no(*arguments: Any, **named: Any) -> None:
        raise Killed

    monkeypatch.setattr(on_the_way, "save_student", no)


# Steps and openings are counted from where the run resumes: the last end of a stage.
KILLS = {
    "in the first stage": (_in_step, 3),
    "at a milestone": (_at_a_milestone, 2),
    "before the checkpoint at a border": (_before_the_checkpoint_of, 3),
    "at a border": (_between_stages, 1),
    "in the second": (_in_step, 2),
    "before the second's last checkpoint": (_before_the_checkpoint_of, 5),
    "at the last border": (_between_stages, 1),
    "in the last": (_in_step, 2),
}


def test_a_run_killed_anywhere_continues_bit_for_bit(three: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """8 steps: 3 with a store, 2 live and longer, 3 with YaRN where the student writes. Killed at each of eight places in turn.

    Checkpoints are those of stages' ends alone (their seconds never pass), so that every kill costs what came since.
    """
    calm, hurt = recipe_of(three, name="calm"), recipe_of(three, name="hurt")
    write_recipe_stores([calm])
    undisturbed, path = train(calm), Path(hurt.run_path)
    lengths = [record["sequence_length"] for record in open_run(undisturbed).events("train")]
    assert lengths == [32] * 3 + [48] * 2 + [64] * 3
    texts = [record["tokens"] for record in open_run(undisturbed).events("train")][:5]
    assert texts == [4 * 32, 8 * 32, 12 * 32, 12 * 32 + 4 * 48, 12 * 32 + 8 * 48]
    for how, at in KILLS.values():
        with monkeypatch.context() as patched:
            how(at, patched)
            with pytest.raises(Killed):
                train(hurt)
    assert train(hurt) == path
    require_same(path, undisturbed, without={"seconds", "generate_seconds", "teach_seconds", "train_seconds"})
    for kept in ("milestones/2", "milestones/4", "stages/short", "stages/live"):
        one, other = (load_file(run / kept / "model.safetensors") for run in (path, undisturbed))
        assert all(torch.equal(one[name], other[name]) for name in one)
    marks = [(record["step"], record["amount"], record["stage"]) for record in open_run(path).events("milestone")]
    assert marks == [(2, 2, "short"), (4, 4, "live")]
    configs = [json.loads((path / each / "config.json").read_text()) for each in ("stages/live", "student")]
    assert [config["max_position_embeddings"] for config in configs] == [48, 64]
    assert [full_rope(path / each) for each in ("stages/live", "student")] == ["default", "yarn"]


def test_a_stage_that_no_step_reaches_is_passed_over(values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Of four steps, 1/8 and 1/8 are one: the first takes it, the second has none."""
    shares = [{"name": name, "share": share} for name, share in (("one", 0.125), ("two", 0.125), ("three", 0.75))]
    path = train(recipe_of(values, **CE, curriculum=shares, budget={"kind": "steps", "amount": 4}))
    assert [record["stage"] for record in open_run(path).events("train")] == ["one", "three", "three", "three"]
    assert [line for line in capsys.readouterr().err.splitlines() if "has no step" in line] == [
        "tiny: stage two has no step: a step takes more of the budget than its share"
    ]


def test_the_last_stage_has_its_turn_even_without_a_step(values: dict[str, Any]) -> None:
    """One step is the whole budget, of which the last stage has a tenth: the student has that stage's positions."""
    shares = [{"name": "one", "share": 0.9}, {"name": "two", "share": 0.1, "changes": {"student.yarn": YARN}}]
    budget = {"kind": "steps", "amount": 1}
    path = train(recipe_of(values, **CE, curriculum=shares, budget=budget, student=student_of(values)))
    assert [full_rope(path / each) for each in ("stages/one", "student")] == ["default", "yarn"]
    assert len(open_run(path).events("train")) == 1


def test_what_a_later_stage_lacks_is_said_before_the_first_step(values: dict[str, Any], tmp_path: Path) -> None:
    later = {"objective": {"kind": "forward_kl"}, "store": str(tmp_path / "no-store")}
    shares = [{"name": "one", "share": 0.5}, {"name": "two", "share": 0.5, "changes": later}]
    recipe = recipe_of(values, **CE, curriculum=shares)
    with pytest.raises(LimbeckError, match=r"^stage two: .*no-store"):
        train(recipe)
    assert not Path(recipe.run_path).exists()


def test_a_store_holds_the_texts_of_all_stages(
    values: dict[str, Any], texts_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the texts, then five, two of them the same: six in the store, whether it was killed between the two or not."""
    parts = [[f"{texts_folder}/train/{number}.txt" for number in numbers] for numbers in ((1, 2, 4), (2, 4, 5, 6, 7))]
    texts = [{"data.train": {"kind": "files", "paths": paths}} for paths in parts]
    shares = [{"name": name, "share": 0.5, "changes": change} for name, change in zip(("one", "two"), texts, strict=True)]
    recipe = recipe_of(values, curriculum=shares)
    with monkeypatch.context() as patched:
        patched.setattr(stores, "extend_store", lambda *arguments, **named: kill())
        with pytest.raises(Killed):
            write_recipe_stores([recipe])
    assert write_recipe_stores([recipe]) == [recipe.store_path] == write_recipe_stores([recipe])
    assert len(SignalStore.open(recipe.store_path).document_ids) == 6
    assert len(open_run(train(recipe)).events("train")) == 8


def test_a_stage_reads_from_the_beginning_or_goes_on(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps each: the second stage changes the loss alone and reads the third step; the third reads its own first one."""
    shares = [
        {"name": "one", "share": 0.25},
        {"name": "two", "share": 0.25, "changes": {"objective.z_loss_weight": 0.1}},
        {"name": "three", "share": 0.5, "changes": {"data.sequence_length": 48}},
    ]
    recipe = recipe_of(values, **CE, curriculum=shares)
    read: list[torch.Tensor] = []
    step = loop.optimizer_step

    def watched(setup: Any, optimizer: Any, batches: Any, **named: Any) -> Any:
        read.append(torch.cat([batch.tokens_BT for batch in batches]))
        return step(setup, optimizer, batches, **named)

    monkeypatch.setattr(loop, "optimizer_step", watched)
    train(recipe)
    loaders = [open_setup(stage).loader for _, stage in recipe.stages]
    expected = [loaders[0].step(number) for number in range(4)] + [loaders[2].step(number) for number in range(4)]
    for found, batches in zip(read, expected, strict=True):
        assert torch.equal(found, torch.cat([batch.tokens_BT for batch in batches]))
