"""A study from its file to its last control: shared controls, cells that are run alone or again, evaluations, its state."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import LimbeckError, SpecError
from limbeck.eval_results import read_results
from limbeck.evals.model import evaluate_model
from limbeck.runs import open_run
from limbeck.spec.load import load_study
from limbeck.spec.study import Study
from limbeck.spec.teacher import Context
from limbeck.study.report import view_of
from limbeck.study.run import StudyResult, only_one, open_cells, run_study
from limbeck.study.status import is_running, status_of

_kept: list[Path] = []


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")


def study_of(recipe_file: Path, **changes: Any) -> Study:
    values = {
        "name": "flow",
        "recipe": str(recipe_file),
        "axes": {"signal.k": [8, 16]},
        "seeds": [0, 1],
        "equal": ["tokens", "flops"],
        "evals": ["bits_per_byte"],
        "hardware": {"device": "1e9", "utilisation": 1.0},
        **changes,
    }
    path = recipe_file.with_name("flow.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_study(str(path))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def run(recipe_file: Path, output: Path) -> Callable[..., StudyResult]:
    return lambda **keywords: run_study(study_of(recipe_file), output=str(output), overrides={}, **keywords)


@pytest.fixture
def finished(run: Callable[..., StudyResult], output: Path) -> StudyResult:
    """The study, run once and copied for every test that asks."""
    if not _kept:
        run()
        _kept.append(output.parent / "kept")
        shutil.copytree(output, _kept[0])
    elif not output.exists():
        shutil.copytree(_kept[0], output)
    return run()


def amount(result: StudyResult, name: str, key: str) -> float:
    summary = open_run(result.runs[name]).summary
    assert summary is not None
    return float(summary[key])


def test_controls_have_what_their_arms_had_and_are_shared(finished: StudyResult, recipe_file: Path, output: Path) -> None:
    cells = open_cells(study_of(recipe_file), output=str(output), overrides={})
    assert len(cells) == 4 + 2 + 2  # the FLOPs of both arms are the same: the teacher read the same rows
    for name in ("student-k8-seed0", "student-k16-seed0"):
        assert cells[name].controls["tokens"] == "control-tokens-seed0"
        assert amount(finished, "control-tokens-seed0", "tokens") == amount(finished, name, "tokens")
        control = cells[name].controls["flops"]
        spent = amount(finished, name, "student_flops") + amount(finished, name, "teacher_flops")
        step = amount(finished, control, "student_flops") / amount(finished, control, "step")
        assert spent <= amount(finished, control, "student_flops") < spent + step
        assert amount(finished, control, "teacher_flops") == 0
    assert finished.failed == {}


def test_every_cell_is_measured_and_so_is_the_teacher(finished: StudyResult, output: Path) -> None:
    for name, path in finished.runs.items():
        measured = read_results(path)["bits_per_byte"].metrics["bits_per_byte"].value
        assert measured == pytest.approx(amount(finished, name, "bits_per_byte"), rel=1e-5)
    (teacher,) = (output / "teachers").iterdir()
    recipe = open_run(finished.runs["student-k8-seed0"]).recipe
    assert recipe.teacher is not None
    alone = {"context": Context(window=32, overlap=0), "teacher": None}  # as its students are measured
    expected = evaluate_model(recipe.teacher.model, texts=recipe.data.heldout, **alone).bits_per_byte  # type: ignore[union-attr]
    found = read_results(teacher)["bits_per_byte"].metrics["bits_per_byte"].value
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_cell_can_be_run_alone_and_again(
    run: Callable[..., StudyResult], finished: StudyResult, recipe_file: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.train import train as module

    trained: list[str] = []
    original = module.train
    monkeypatch.setattr(module, "train", lambda recipe: (trained.append(recipe.name), original(recipe))[1])
    before = amount(finished, "student-k8-seed1", "bits_per_byte")
    run(only=["student-k8-seed1"])
    assert trained == []
    run(only=["student-k8-seed1"], again=True)
    assert trained == ["student-k8-seed1"]
    assert amount(finished, "student-k8-seed1", "bits_per_byte") == before
    assert open_run(output / "put-aside" / "student-k8-seed1-1").summary is not None
    shutil.rmtree(output / "runs")
    run(only=["student-k8"])
    assert trained[1:] == ["student-k8-seed0", "student-k8-seed1"]
    with pytest.raises(SpecError, match="student-k9 is not a cell of this study; did you mean 'student-k8"):
        run(only=["student-k9"])


def test_two_processes_do_not_run_one_study(run: Callable[..., StudyResult], output: Path) -> None:
    with only_one(output):
        assert is_running(output)
        with pytest.raises(LimbeckError, match="is being run by another process"):
            run()
    assert not is_running(output)


def test_status_says_how_far_every_cell_is(finished: StudyResult, recipe_file: Path, output: Path) -> None:
    study = study_of(recipe_file)
    (finished.runs["student-k8-seed0"] / "summary.json").unlink()
    metrics = finished.runs["student-k8-seed0"] / "metrics.jsonl"
    half = [line for line in metrics.read_text("utf-8").splitlines() if json.loads(line)["step"] <= 4]
    metrics.write_text("\n".join(half) + "\n", "utf-8")
    shutil.rmtree(finished.runs["student-k16-seed1"])
    cells = open_cells(study, output=str(output), overrides={})
    found = status_of(study, cells, output=output)
    assert (found["student-k8-seed0"].status, found["student-k8-seed0"].done) == ("stopped", 0.5)
    assert (found["student-k16-seed1"].status, found["student-k16-seed1"].done) == ("waiting", 0.0)
    assert found["control-tokens-seed0"].status == "finished"
    with only_one(output):
        assert status_of(study, cells, output=output)["student-k8-seed0"].status == "running"


def test_a_run_folder_that_is_half_written_stops_the_study_before_it_begins(
    run: Callable[..., StudyResult], finished: StudyResult
) -> None:
    (finished.runs["student-k8-seed0"] / "environment.json").unlink()
    with pytest.raises(LimbeckError, match=r"student-k8-seed0 is damaged .*remove the folder and train again"):
        run()


def test_the_view_has_what_was_predicted_beside_what_was_measured(
    finished: StudyResult, recipe_file: Path, output: Path
) -> None:
    study = study_of(recipe_file, compare={"student-k8": "student-k16"})
    view = view_of(study, open_cells(study, output=str(output), overrides={}), output=output)
    shown = {cell.name: cell for cell in view.cells}
    assert {cell.arm for cell in view.cells} >= {"student-k8", "student-k16", "control-tokens"}
    taught = shown["student-k8-seed0"]
    assert taught.predicted is not None
    assert taught.predicted.tokens == amount(finished, taught.name, "tokens")
    assert taught.predicted.student_flops == pytest.approx(amount(finished, taught.name, "student_flops"), rel=0.1)
    assert taught.predicted.seconds == pytest.approx(taught.predicted.student_flops / 1e9)
    assert (taught.compared_with, shown["student-k16-seed0"].compared_with) == ("student-k16", None)
    assert taught.settings == {"signal.k": 8}
    assert len(view.stores) == 2
    names = [sorted(Path(path).name for path in paths) for paths in (view.fidelity, (store["path"] for store in view.stores))]
    assert names[0] == names[1]  # the study was copied here: its files name where it was run
    assert all(found["total_nats"] > 0 for found in view.fidelity.values())
    assert len(view.teachers) == 1


def test_a_teacher_is_not_shown_more_than_it_was_trained_to_read(recipe_file: Path, output: Path) -> None:
    arms = {
        "teacher": {"objective.kind": "ce"},
        "kd": {"teacher.arm": "teacher", "teacher.context": {"window": 64, "overlap": 8}},
    }
    study = study_of(recipe_file, arms=arms, axes={}, seeds=[])
    with pytest.raises(
        SpecError, match=r"kd: teacher\.context\.window=64, but its teacher teacher is trained on sequences of 32"
    ):
        run_study(study, output=str(output), overrides={})
    assert not output.exists()


@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ({"maths": {"kind": "gsm", "path": "nowhere.jsonl"}}, r"evals\.maths\.path=nowhere\.jsonl does not exist"),
        ({"loops": {"kind": "generation", "prompts": "none.txt"}}, r"evals\.loops\.prompts=none\.txt does not exist"),
        ({"tasks": {"kind": "harness", "tasks": ["piqa"]}}, r"evals\.tasks needs the package lm-eval"),
    ],
)
def test_what_an_evaluation_lacks_is_told_before_anything_is_trained(
    recipe_file: Path, output: Path, evals: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.study.needs.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=said):
        run_study(study_of(recipe_file, evals=evals), output=str(output), overrides={})
    assert not output.exists()
