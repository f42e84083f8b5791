"""Studies in which arms teach arms: in what order they run, who learns from whom, and what is left where one fails."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import prose

from limbeck.errors import SpecError
from limbeck.runs import open_run
from limbeck.spec.load import load_study
from limbeck.spec.study import Study
from limbeck.spec.teacher import HuggingFaceTeacher
from limbeck.study.expand import expand, recipes_of, teacher_cells, waves
from limbeck.study.run import StudyResult, run_study

CONTEXT = {"teacher.context.window": 32, "teacher.context.overlap": 8}
ALONE = {"objective.kind": "ce", "evaluation.kl_to_teacher": False}
ARMS: dict[str, dict[str, Any]] = {  # those who learn come first: the order of training is not that of the file
    "from-big": {"teacher.arm": "big", **CONTEXT},
    "from-small": {"teacher.arm": "small", **CONTEXT},
    "small": {**ALONE, "student.hidden_size": 32, "budget.amount": 12},
    "control": ALONE,
    "big": {**ALONE, "student.num_layers": 3, "seed": 1, "optimizer.lr": 1e-2},
}


_finished: list[StudyResult] = []


def described(recipe_file: Path, **changes: Any) -> dict[str, Any]:
    return {"name": "family", "recipe": str(recipe_file), "control": "control", "arms": ARMS, **changes}


def study_of(recipe_file: Path, **changes: Any) -> Study:
    path = recipe_file.with_name("study.yaml")
    path.write_text(yaml.safe_dump(described(recipe_file, **changes), sort_keys=False), encoding="utf-8")
    return load_study(str(path))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reports' figures take longer than the study."""
    monkeypatch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the arms that are trained from here on; a name in front of which stands a minus is killed instead."""
    from limbeck.train import train as module

    names: list[str] = []
    original = module.train

    def spy(recipe: Any) -> Path:
        if f"-{recipe.name}" in names:
            raise KeyboardInterrupt
        names.append(recipe.name)
        return original(recipe)

    monkeypatch.setattr(module, "train", spy)
    return names


@pytest.fixture
def result(recipe_file: Path) -> StudyResult:
    """The study, run once for all tests that only look at it."""
    if not _finished:
        heldout = recipe_file.with_name("short.txt")
        heldout.write_text(prose(7, 8), encoding="utf-8")  # read whole by all, so that no window has to be known
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")
            overrides = {"data.heldout.paths": [str(heldout)]}
            _finished.append(run_study(study_of(recipe_file), output=str(recipe_file.with_name("out")), overrides=overrides))
    return _finished[0]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def kl_nats(teacher: Path, student: Path, text: str) -> float:
    """Mean KL(teacher || student) over the positions of a text that have a next token, by transformers in float64."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(student)(f"<s>{text}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.shape[1] < 32
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in (teacher, student)]
    with torch.no_grad():
        theirs, ours = (model(ids).logits[0].log_softmax(-1) for model in models)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_teachers_are_trained_before_their_students(recipe_file: Path, trained: list[str], no_figures: None) -> None:
    study = study_of(recipe_file)
    output = str(recipe_file.with_name("out"))
    run_study(study, output=output, overrides={"budget.amount": 1})
    assert trained == ["small", "control", "big", "from-big", "from-small"]
    recipes = recipes_of(expand(study, output=output, overrides={}))
    assert teacher_cells(recipes) == {"from-big": "big", "from-small": "small"}
    assert waves(recipes) == [["small", "control", "big"], ["from-big", "from-small"]]


def test_every_student_learns_from_its_own_teacher(result: StudyResult) -> None:
    text = _finished[0].runs["control"].parent.parent.with_name("short.txt").read_text(encoding="utf-8")
    for name, other in (("big", "small"), ("small", "big")):
        teacher, student = result.runs[name] / "student", result.runs[f"from-{name}"]
        run = open_run(student)
        identity = json.loads((Path(run.recipe.store_path) / "store.json").read_text("utf-8"))["plan"]["identity"]
        assert identity["teacher"]["weights"] == weights(teacher) != weights(result.runs[other] / "student")
        assert run.summary is not None
        measured = run.summary["kl_to_teacher_nats"]
        assert measured == pytest.approx(kl_nats(teacher, student / "student", text), rel=1e-3)
        assert measured != pytest.approx(kl_nats(result.runs[other] / "student", student / "student", text), rel=1e-2)
    assert len(result.stores) == 2


def test_runs_say_what_a_fit_of_the_laws_needs(result: StudyResult) -> None:
    """N, D and loss of student and teacher, and which teacher it was."""
    run = open_run(result.runs["from-small"])
    assert isinstance(run.recipe.teacher, HuggingFaceTeacher)
    teacher = open_run(Path(run.recipe.teacher.model).parent)
    assert teacher.path == result.runs["small"]
    widths = {"from-small": 16, "small": 32}
    for each, steps in ((run, 8), (teacher, 12)):
        summary = each.summary
        assert summary is not None
        d, inner, d_kv, mlp = widths[each.path.name], 2 * 8, 8, 32
        layer = 2 * d * inner + 2 * d * d_kv + inner + d_kv + 3 * d * mlp + 2 * d
        assert summary["parameters"]["non_embedding"] == 2 * layer + d
        assert summary["tokens"] == steps * 4 * 32
        nats = summary["bits_per_byte"] * math.log(2) * summary["heldout_bytes"] / summary["heldout_tokens"]
        assert 0 < nats < 2 * math.log(300)


@pytest.mark.usefixtures("no_figures")
def test_a_killed_study_goes_on_where_it_was(result: StudyResult, recipe_file: Path, trained: list[str]) -> None:
    study = study_of(recipe_file)
    overrides = {"data.heldout.paths": [str(result.runs["control"].parent.parent.with_name("short.txt"))]}

    def run() -> StudyResult:
        return run_study(study, output=str(recipe_file.with_name("out")), overrides=overrides)

    for killed, before in (("-control", ["small"]), ("-from-small", ["control", "big", "from-big"])):
        trained.append(killed)
        with pytest.raises(KeyboardInterrupt):
            run()
        assert trained == [killed, *before]
        trained.clear()
    again = run()
    assert trained == ["from-small"]
    for arm in ARMS:
        first, second = (open_run(each.runs[arm]).summary for each in (result, again))
        assert first is not None and second is not None
        assert first["bits_per_byte_by_document"] == second["bits_per_byte_by_document"]
        assert first["kl_to_teacher_nats"] == second["kl_to_teacher_nats"]


@pytest.mark.usefixtures("no_figures")
def test_students_of_a_diverged_teacher_are_left_out_and_the_others_go_on(
    recipe_file: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {**ARMS["small"], "optimizer.lr": 1e30, "optimizer.clip_norm": None}
    grandchild = {"teacher.arm": "from-small", **CONTEXT}
    study = study_of(recipe_file, arms={**ARMS, "small": wild, "grandchild": grandchild})
    found = run_study(study, output=str(recipe_file.with_name("out")), overrides={"budget.amount": 4})
    assert trained == ["small", "control", "big", "from-big"]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in said] == ["from-small", "grandchild"]
    assert "small, which it needs, has no finished student" in said[0]
    bits = {cell["cell"]: cell["bits_per_byte"] for cell in found.as_json()["cells"]}
    assert [arm for arm, value in bits.items() if value is None] == ["from-small", "small", "grandchild"]
    assert not found.runs["from-small"].exists()
    store = Path(found.stores[1])
    assert store.name == "from-small-topk-20" and not store.exists()


def test_arms_that_were_left_out_are_in_the_report(recipe_file: Path) -> None:
    wild = {**ARMS["small"], "optimizer.lr": 1e30, "optimizer.clip_norm": None}
    study = study_of(recipe_file, arms={**ARMS, "small": wild})
    found = run_study(study, output=str(recipe_file.with_name("out")), overrides={"budget.amount": 2})
    assert found.report == recipe_file.with_name("out") / "report.html"
    assert "from-small" in found.report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_store_of_a_teacher_that_was_trained_again_otherwise_is_refused(recipe_file: Path) -> None:
    import shutil

    output = recipe_file.with_name("out")
    arms = {arm: ARMS[arm] for arm in ("from-small", "small", "control")}
    first = run_study(study_of(recipe_file, arms=arms), output=str(output), overrides={"budget.amount": 2})
    for arm in ("from-small", "small"):
        shutil.rmtree(first.runs[arm])
    other = study_of(recipe_file, arms={**arms, "small": {**arms["small"], "seed": 3}})
    failed = run_study(other, output=str(output), overrides={"budget.amount": 2}).failed
    assert list(failed) == ["from-small"]
    assert re.search(
        r"small-topk-20 was scored by .*small/student \(weights .*but the recipe's teacher", failed["from-small"].error
    )


def test_arms_in_a_circle_are_refused_before_anything_runs(recipe_file: Path, trained: list[str]) -> None:
    circle = {"a": {"teacher.arm": "b", **CONTEXT}, "b": {"teacher.arm": "a", **CONTEXT}, "control": ALONE}
    alone = {**circle, "a": {"teacher.arm": "a", **CONTEXT}}
    for arms, said in ((circle, "a needs b, b needs a"), (alone, "a needs a, b needs a")):
        with pytest.raises(SpecError, match=rf"need one another in a circle \({said}\)"):
            run_study(study_of(recipe_file, arms=arms), output=str(recipe_file.with_name("out")), overrides={})
    assert trained == []
    assert not recipe_file.with_name("out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"controls": {"from-big": "none"}}, "controls.from-big=none: none is not one of the arms"),
        ({"controls": {"none": "control"}}, "controls.none=control: none is not one of the arms"),
        (
            {"controls": {"from-big": "small", "small": "control"}},
            "controls.from-big=small: small has control as a control itself",
        ),
        ({"arms": {"a": {"teacher.arm": "b"}}, "control": None}, "arms.a: teacher.arm=b is not one of the arms"),
    ],
)
def test_controls_and_teachers_must_be_arms(recipe_file: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(study_of(recipe_file, **change), output="out", overrides={})
    assert expected in str(caught.value)


def test_a_control_that_learns_from_a_teacher_is_refused_before_anything_runs(recipe_file: Path, trained: list[str]) -> None:
    study = study_of(recipe_file, controls={"from-small": "from-big"})
    with pytest.raises(SpecError, match="control=from-big learns from a teacher itself"):
        run_study(study, output=str(recipe_file.with_name("out")), overrides={})
    assert trained == []


def test_what_a_recipe_says_of_its_own_teacher_is_not_said_of_an_arm(recipe_file: Path) -> None:
    study = study_of(recipe_file)
    settings = {"teacher.revision": "main", "teacher.dtype": "bfloat16", "output": "elsewhere"}
    recipes = recipes_of(expand(study, output="results", overrides={key: settings[key] for key in ("teacher.dtype", "output")}))
    teacher = recipes["from-big"].teacher
    assert isinstance(teacher, HuggingFaceTeacher)
    assert (teacher.model, teacher.dtype) == ("results/runs/big/student", "auto")
    assert (teacher.context.window, teacher.context.overlap) == (32, 8)
    recipe_file.write_text(
        recipe_file.read_text(encoding="utf-8").replace("kind: huggingface", "kind: huggingface\n  revision: main"), "utf-8"
    )
    recipes = recipes_of(expand(study, output="results", overrides={}))
    assert [getattr(recipes[arm].teacher, "revision", "") for arm in ("control", "from-big")] == ["main", None]


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("out/runs/A/student", "a"),
        ("out/runs/b/student/", "b"),
        ("student", "student"),
        ("allenai/Olmo-3-1025-7B", "olmo-3-1025-7b"),
        ("someone/student-7b", "student-7b"),
    ],
)
def test_the_students_of_two_runs_have_stores_of_two_names(model: str, slug: str) -> None:
    assert HuggingFaceTeacher(model=model).slug == slug
