"""A study from end to end: four arms that differ in nothing but what they learn from, made once and never twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import SpecError
from limbeck.runs import open_run
from limbeck.spec.load import load_study
from limbeck.spec.study import Study
from limbeck.study.run import StudyResult, run_study

ARMS: dict[str, dict[str, Any]] = {
    "ce": {"objective.kind": "ce"},
    "kl-sampled": {"signal.kind": "sampled", "signal.draws": 20},
    "kl-topk": {"signal.k": 16},
    "hard": {"objective.kind": "hard", "signal.k": 16},
}
_finished: list[Path] = []
COSTS_AND_RESULTS = {"tokens", "seconds", "student_flops", "teacher_flops", "bits_per_byte", "kl_to_teacher_nats"}


@pytest.fixture
def study(recipe_file: Path, tmp_path: Path) -> Study:
    path = tmp_path / "study.yaml"
    described = {"name": "four-ways", "recipe": str(recipe_file), "control": "ce", "arms": ARMS}
    path.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return load_study(str(path))


@pytest.fixture
def run(study: Study, tmp_path: Path) -> Callable[[], StudyResult]:
    return lambda: run_study(study, output=str(tmp_path / "results"), overrides={})


@pytest.fixture
def finished(run: Callable[[], StudyResult], tmp_path: Path) -> None:
    """The study has been run: by the first test that asks, copied for the others."""
    if _finished:
        shutil.copytree(_finished[0], tmp_path / "results")
        return
    run()
    _finished.append(tmp_path / "kept")
    shutil.copytree(tmp_path / "results", _finished[0])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report's figures take longer than the study."""
    monkeypatch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the arms that are trained from here on."""
    from limbeck.train import train as module

    names: list[str] = []
    original = module.train

    def spy(recipe: Any) -> Path:
        names.append(recipe.name)
        return original(recipe)

    monkeypatch.setattr(module, "train", spy)
    return names


@pytest.mark.usefixtures("finished")
def test_results_have_the_shape_that_scripts_read(run: Callable[[], StudyResult], tmp_path: Path) -> None:
    found = run().as_json()
    assert set(found) == {"cells", "stores", "failed", "report"}
    assert [arm["cell"] for arm in found["cells"]] == list(ARMS)
    for arm in found["cells"]:
        assert set(arm) == {"cell", "run"} | COSTS_AND_RESULTS
        assert Path(arm["run"]) == tmp_path / "results" / "runs" / arm["cell"]
        assert arm["tokens"] == 8 * 4 * 32
    assert len({arm["student_flops"] for arm in found["cells"]}) == 1
    paid = {arm["cell"]: arm["teacher_flops"] for arm in found["cells"]}
    assert paid["ce"] == 0
    assert paid["hard"] == paid["kl-topk"] == paid["kl-sampled"] > 0
    names = sorted(Path(store).name for store in found["stores"])
    assert [name.split("-", 1)[1] for name in names] == ["sampled-20", "topk-16"]
    assert Path(found["report"]).is_file()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.usefixtures("no_figures")
def test_arms_start_from_the_same_weights_and_see_the_same_tokens(
    run: Callable[[], StudyResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.train import loop

    seen: dict[str, list[list[int]]] = {}
    original = loop.batch_loss

    def spy(setup: Any, batch: Any, **named: Any) -> Any:
        seen.setdefault(setup.recipe.name, []).append(batch.tokens_BT.flatten().tolist())
        return original(setup, batch, **named)

    monkeypatch.setattr(loop, "batch_loss", spy)
    records = {arm: open_run(path).events("train") for arm, path in run().runs.items()}
    assert len({steps[0]["ce"] for steps in records.values()}) == 1
    assert len({steps[-1]["ce"] for steps in records.values()}) == 4  # and what they learn from differs
    assert all(len(steps) == 8 for steps in records.values())
    assert seen["ce"] == seen["kl-sampled"] == seen["kl-topk"] == seen["hard"]
    assert len({tuple(batch) for batch in seen["ce"]}) == 8


@pytest.mark.usefixtures("no_figures")
def test_the_second_time_nothing_runs_and_the_answer_is_the_same(run: Callable[[], StudyResult], trained: list[str]) -> None:
    first = run().as_json()
    assert trained == list(ARMS)
    assert run().as_json() == first
    assert trained == list(ARMS)


@pytest.mark.usefixtures("finished", "no_figures")
def test_a_run_that_is_removed_is_the_only_one_made_again(
    run: Callable[[], StudyResult], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run()
    assert trained == []
    shutil.rmtree(first.runs["kl-topk"])
    monkeypatch.setattr("limbeck.teachers.cache.score_documents", None)  # stores are there: nothing is scored
    again = run().as_json()
    assert trained == ["kl-topk"]
    timed = {"seconds"}
    for before, after in zip(first.as_json()["cells"], again["cells"], strict=True):
        assert {key: before[key] for key in before.keys() - timed} == {key: after[key] for key in after.keys() - timed}


@pytest.mark.usefixtures("no_figures")
def test_both_stores_cost_one_pass_of_the_teacher(run: Callable[[], StudyResult], monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.teachers import cache

    read: list[str] = []
    original = cache.score_documents

    def spy(teacher: Any, documents: Any, **keywords: Any) -> Any:
        read.extend(keywords["ids"])
        return original(teacher, documents, **keywords)

    monkeypatch.setattr(cache, "score_documents", spy)
    run()
    assert len(read) == len(set(read)) == 8


def test_the_command_line_keeps_stdout_for_the_result(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from limbeck.cli import main, quickstart

    monkeypatch.setattr(quickstart, "load_study", lambda name: study)
    monkeypatch.setattr(sys, "argv", ["limbeck", "quickstart", "-o", str(tmp_path / "quick"), "budget.amount=3", "--json"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert not stop.value.code
    printed = capsys.readouterr()
    assert [arm["tokens"] for arm in json.loads(printed.out)["cells"]] == [3 * 4 * 32] * 4
    assert "training kl-sampled: 100%" in printed.err
    monkeypatch.setattr(sys, "argv", ["limbeck", "quickstart", "-o", str(tmp_path / "quick"), "budget.amount=3"])
    with pytest.raises(SystemExit):
        main.main()
    text = capsys.readouterr().out
    assert all(
        f"{arm['cell']:>12}: {arm['bits_per_byte']:.4f} bits per byte" in text for arm in json.loads(printed.out)["cells"]
    )


@pytest.mark.usefixtures("finished", "no_figures")
def test_another_recipe_under_the_same_output_is_refused(study: Study, run: Callable[[], StudyResult], tmp_path: Path) -> None:
    first = run()
    with pytest.raises(SpecError, match="holds a run of another recipe"):
        run_study(study, output=str(tmp_path / "results"), overrides={"seed": 1})
    assert run().as_json() == first.as_json()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"control": "none"}, "control=none is not one of the arms"),
        ({"arm": {}}, "arm is not a key; did you mean 'arms'"),
        ({"recipe": "nan0"}, "did you mean 'nano'"),
        ({"arms": {"ce": {"objectiv.kind": "ce"}}}, "objectiv is not a key; did you mean 'objective'"),
    ],
)
def test_a_study_that_says_nonsense_runs_nothing(
    study: Study, change: dict[str, Any], expected: str, trained: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**study.model_dump(), **change}), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        run_study(load_study(str(path)), output=str(tmp_path / "results"), overrides={})
    assert expected in str(caught.value)
    assert trained == []
    assert not (tmp_path / "results").exists()
