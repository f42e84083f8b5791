"""`limbeck study run`: the same study as from Python, in order and priced before it is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., Any]
VOCABULARY = 300
ARMS: dict[str, dict[str, Any]] = {
    "kd": {"teacher.arm": "teacher", "teacher.context.window": 32, "teacher.context.overlap": 8},
    "wider": {"teacher.arm": "teacher", "teacher.context.window": 32, "teacher.context.overlap": 8, "signal.k": 5},
    "teacher": {"objective.kind": "ce", "student.num_layers": 3},
    "control": {"objective.kind": "ce"},
    "outside": {},
}


@pytest.fixture
def study_file(recipe_file: Path) -> Path:
    path = recipe_file.with_name("study.yaml")
    study = {"name": "family", "recipe": str(recipe_file), "control": "control", "arms": ARMS}
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")


def forward_flops(layers: int, *, context: int = 32) -> float:
    """2 N + 2 context layers (H h) + 2 V d of the tiny student."""
    d, inner, d_kv, mlp = 16, 2 * 8, 8, 32
    layer = 2 * d * inner + 2 * d * d_kv + inner + d_kv + 3 * d * mlp + 2 * d
    return 2 * (layers * layer + d) + 2 * context * layers * inner + 2 * VOCABULARY * d


def test_a_dry_run_says_what_would_run_in_which_order_and_what_it_costs(
    limbeck: Command, study_file: Path, tmp_path: Path
) -> None:
    texts = ("data.train.sample_tokens=500", "-o", tmp_path / "out")
    found = json.loads(limbeck("study", "run", study_file, *texts, "--dry-run", "--json").out)
    assert not (tmp_path / "out").exists()
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert list(arms) == ["teacher", "control", "outside", "kd", "wider"]
    tokens = 8 * 4 * 32
    assert {arm["tokens"] for arm in arms.values()} == {tokens}
    for arm, layers in (("teacher", 3), ("control", 2), ("kd", 2)):
        assert arms[arm]["student_flops"] == pytest.approx(3 * forward_flops(layers) * tokens, rel=1e-12)
    assert arms["kd"]["teacher"] == "teacher"
    assert arms["control"]["teacher"] is None
    from_arm = [store for store in found["stores"] if store["teacher"] == "teacher"]
    assert [store["tokens"] for store in from_arm] == [500, 500]
    assert sum(store["flops"] for store in from_arm) == pytest.approx(forward_flops(3) * 500, rel=1e-12)  # one pass, not two
    assert arms["kd"]["teacher_flops"] == pytest.approx(forward_flops(3) * 500, rel=1e-12)
    assert found["finished"] == []
    assert found["total_flops"] == pytest.approx(found["training_flops"] + found["scoring_flops"])


def test_a_study_is_run_and_what_is_finished_is_not_priced_again(limbeck: Command, study_file: Path, tmp_path: Path) -> None:
    command = ("study", "run", study_file, "budget.amount=2", "-o", tmp_path / "out")
    outcome = limbeck(*command, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert [cell["cell"] for cell in found["cells"]] == list(ARMS)
    assert all(0 < cell["bits_per_byte"] < 20 for cell in found["cells"])
    assert found["report"] == str(tmp_path / "out" / "report.html")
    left = json.loads(limbeck(*command, "--dry-run", "--json").out)
    assert (left["arms"], left["stores"], left["total_flops"]) == ([], [], 0)
    assert left["finished"] == ["teacher", "control", "outside", "kd", "wider"]
    (tmp_path / "out" / "runs" / "kd" / "summary.json").unlink()
    left = json.loads(limbeck(*command, "--dry-run", "--json").out)
    assert [arm["arm"] for arm in left["arms"]] == ["kd"]
    assert left["stores"] == []
    text = limbeck(*command).out
    for arm in found["cells"]:
        assert f"{arm['cell']:>7}: {arm['bits_per_byte']:.4f} bits per byte" in text
    assert text.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"


def test_what_was_left_out_is_told_from_what_diverged(limbeck: Command, study_file: Path, tmp_path: Path) -> None:
    study = yaml.safe_load(study_file.read_text("utf-8"))
    study["arms"]["teacher"] |= {"optimizer.lr": 1e30, "optimizer.clip_norm": None}
    study["controls"] = {"outside": "control", "kd": "teacher"}
    study_file.write_text(yaml.safe_dump(study), "utf-8")
    outcome = limbeck("study", "run", study_file, "-o", tmp_path / "out")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert "     kd: left out, whom it needs has no finished student" in lines
    assert "teacher: diverged" in lines
    assert lines[-1] == f"report: {tmp_path}/out/report.html"


def test_a_dry_run_for_people_has_a_line_an_arm(limbeck: Command, study_file: Path, tmp_path: Path) -> None:
    lines = limbeck("study", "run", study_file, "-o", tmp_path / "out", "--dry-run").out.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == ["teacher", "control", "outside", "kd", "wider"]
    assert lines[5].split()[1] == "teacher"
    assert lines[-1].startswith("to run: 5 cells; ")
    assert lines[-1].endswith(" bytes")
    last = limbeck("study", "run", "moe", "-o", tmp_path / "moe", "--dry-run").out.splitlines()[-1]
    assert last.endswith("bytes; without what it takes to write the rollouts and the tokens that have no loss (data.loss_on)")


def test_output_is_named_after_the_study(
    limbeck: Command, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(limbeck("study", "run", study_file, "--dry-run", "--json").out)
    assert {Path(store["path"]).parent for store in found["stores"]} == {Path("out/family/stores")}


def test_mistakes_are_one_line(limbeck: Command, study_file: Path, tmp_path: Path) -> None:
    assert "nothing is neither a file nor one of the studies" in limbeck("study", "run", "nothing").complaint
    assert "objectiv is not a key" in limbeck("study", "run", study_file, "objectiv.kind=ce", "--dry-run").complaint
    study = yaml.safe_load(study_file.read_text("utf-8"))
    study["arms"]["teacher"]["teacher.arm"] = "kd"
    study_file.write_text(yaml.safe_dump(study), "utf-8")
    for extra in ((), ("--dry-run",)):
        outcome = limbeck("study", "run", study_file, "-o", tmp_path / "out", *extra)
        assert outcome.code == 2
        assert "need one another in a circle" in outcome.complaint


def test_the_command_line_runs_a_cell_and_tells_the_state(limbeck: Command, study_file: Path, tmp_path: Path) -> None:
    file, output = study_file.with_name("flow.yaml"), tmp_path / "out"
    recipe = yaml.safe_load(study_file.read_text("utf-8"))["recipe"]
    described = {"name": "flow", "recipe": recipe, "axes": {"signal.k": [8, 16]}, "equal": ["tokens", "flops"]}
    file.write_text(yaml.safe_dump(described), "utf-8")
    assert limbeck("study", "run", file, "-o", output, "budget.amount=2", "--only", "student-k8").code == 0
    state = json.loads(limbeck("study", "status", file, "-o", output, "budget.amount=2", "--json").out)
    assert {cell["cell"]: cell["status"] for cell in state["cells"]} == {
        "student-k8": "finished",
        "student-k16": "waiting",
        "control-tokens": "waiting",
        "control-flops-student-k8": "waiting",
    }
    assert state["to_run"] == ["student-k16", "control-tokens", "control-flops-student-k8"]
    assert "--again makes finished runs anew" in limbeck("study", "run", file, "-o", output, "--again").complaint
    assert "quickstart" in limbeck("study", "list").out
    bad = limbeck("study", "run", file, "-o", tmp_path / "other", "hardware.device=abacus", "--dry-run")
    assert "abacus" in bad.complaint
