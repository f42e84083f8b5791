"""`limbeck train`, `eval` and `report`: a run from recipe to page, and the same numbers on every road to them."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., Any]


@pytest.fixture
def trained(limbeck: Command, recipe_file: Path, tmp_path: Path) -> Path:
    """The run folder of the tiny recipe without a teacher's signal."""
    outcome = limbeck("train", recipe_file, "objective.kind=ce", "name=ce", "--json")
    assert outcome.code == 0
    return tmp_path / "out" / "runs" / "ce"


def test_train_prints_the_summary(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    assert limbeck("cache", "write", recipe_file).code == 0
    outcome = limbeck("train", recipe_file, "--json")
    printed = json.loads(outcome.out)
    assert printed["run"] == str(tmp_path / "out/runs/tiny")
    summary = json.loads((tmp_path / "out/runs/tiny/summary.json").read_text(encoding="utf-8"))
    assert {key: summary[key] for key in printed if key != "run"} == {key: printed[key] for key in printed if key != "run"}
    assert printed["tokens"] == 8 * 4 * 32
    assert 0 < printed["bits_per_byte"] < 8 * math.log2(300)
    again = limbeck("train", recipe_file, "--json")
    assert json.loads(again.out) == printed
    assert "training" not in again.err


@pytest.mark.parametrize("bfloat16_is_faster", [True, False])
def test_eval_of_a_run_agrees_with_its_summary(
    limbeck: Command, trained: Path, bfloat16_is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary is computed by our model during training, `eval` by transformers' from the saved folder."""
    monkeypatch.setattr("limbeck.compute._bfloat16_is_faster", lambda device: bfloat16_is_faster)
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    measured = json.loads(limbeck("eval", trained, "--json").out)
    assert measured["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], abs=1e-4)
    assert measured["kl_to_teacher_nats"] == pytest.approx(summary["kl_to_teacher_nats"], abs=1e-4)
    assert measured["bytes"] == summary["heldout_bytes"]
    assert measured["documents"] == 2


def test_eval_of_a_folder_on_named_texts_is_the_mean_negative_log2_likelihood(
    limbeck: Command, teacher_folder: Path, texts_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = texts_folder / "heldout" / "1.txt"
    monkeypatch.setattr("limbeck.compute._bfloat16_is_faster", lambda device: False)
    measured = json.loads(limbeck("eval", teacher_folder, "--texts", path, "--json").out)
    text = path.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(teacher_folder)("<s>" + text, add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)
    with torch.no_grad():
        log_probs_TV = model(ids).logits[0, :-1].log_softmax(-1)
    bits = -log_probs_TV.gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    assert measured["tokens"] == ids.shape[1] - 1
    assert measured["bytes"] == len(text.encode("utf-8"))
    assert measured["bits_per_byte"] == pytest.approx(bits / measured["bytes"], abs=1e-4)
    assert measured["kl_to_teacher_nats"] is None


def test_eval_needs_a_run_that_ended_or_texts(limbeck: Command, trained: Path, teacher_folder: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_bytes((trained / "recipe.yaml").read_bytes())
    (unfinished / "environment.json").write_bytes((trained / "environment.json").read_bytes())
    assert "unfinished is unfinished: `limbeck train" in limbeck("eval", unfinished).complaint
    for target in (teacher_folder, tmp_path / "absent"):
        outcome = limbeck("eval", target)
        assert outcome.code == 1
        assert f"{target} is no run" in outcome.complaint
    outcome = limbeck("eval", trained, "--window", 8, "--overlap", 8)
    assert outcome.code == 2
    assert "overlap=8 must be smaller than window=8" in outcome.complaint


def test_a_page_is_made_of_any_runs(limbeck: Command, trained: Path, recipe_file: Path, tmp_path: Path) -> None:
    live = limbeck("train", recipe_file, "name=live", "signal.live=true", "--json")
    other = Path(json.loads(live.out)["run"])
    made = limbeck("report", trained, other, "-o", tmp_path / "page", "--title", "Two roads", "--json")
    page = Path(json.loads(made.out)["report"])
    assert page.parent == tmp_path / "page"
    text = page.read_text(encoding="utf-8")
    assert "Two roads" in text
    for run in (trained, other):
        bits = json.loads((run / "summary.json").read_text(encoding="utf-8"))["bits_per_byte"]
        assert f"{bits:.4f}" in text
    again = limbeck("train", recipe_file, "name=again", "signal.live=true", "optimizer.lr=0.01", "--json")
    without = limbeck("report", other, Path(json.loads(again.out)["run"]))
    assert "none of these runs trains without a teacher" in without.complaint
    alone = limbeck("report", other, "-o", tmp_path / "alone", "--json")
    assert "nothing to compare it with" in Path(json.loads(alone.out)["report"]).read_text(encoding="utf-8")
    assert (
        "--control nobody is none of the runs (ce, live)" in limbeck("report", trained, other, "--control", "nobody").complaint
    )
    assert "it has no recipe.yaml" in limbeck("report", tmp_path).complaint


def test_paths_may_be_relative_and_hold_spaces(
    limbeck: Command, values: dict[str, Any], texts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("my texts")
    folder.mkdir()
    for name in ("0.txt", "2.txt"):
        (folder / name).write_bytes((texts_folder / "train" / name).read_bytes())
    Path("a recipe.yaml").write_text(yaml.safe_dump({**values, "output": "my runs"}), encoding="utf-8")
    texts = "data.train.paths=[my texts/0.txt, my texts/2.txt]"
    for verb in (("cache", "write"), ("train",)):
        assert limbeck(*verb, "a recipe.yaml", texts).code == 0
    assert (tmp_path / "my runs" / "runs" / "tiny" / "summary.json").is_file()
    assert limbeck("eval", "my runs/runs/tiny").code == 0


def test_ctrl_c_between_steps_keeps_them_and_the_same_command_goes_on(
    limbeck: Command, recipe_file: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.train import loop

    taken = 0
    step = loop.optimizer_step

    def interrupted(*arguments: Any, **keywords: Any) -> dict[str, float]:
        nonlocal taken
        taken += 1
        if taken == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments, **keywords)

    monkeypatch.setattr(loop, "optimizer_step", interrupted)
    command = ("train", recipe_file, "objective.kind=ce", "name=ce", f"output={tmp_path}/again")
    stopped = limbeck(*command)
    assert stopped.code == 130
    assert "stopped after step 3" in stopped.complaint
    assert limbeck("eval", tmp_path / "again/runs/ce").code == 1
    assert limbeck(*command).code == 0
    assert taken == 8
    finals = [json.loads((run / "summary.json").read_text("utf-8")) for run in (trained, tmp_path / "again/runs/ce")]
    assert finals[0]["bits_per_byte_by_document"] == finals[1]["bits_per_byte_by_document"]
