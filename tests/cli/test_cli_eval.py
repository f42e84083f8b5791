"""`limbeck eval … --eval KIND`: what is printed is what is kept, and mistakes are one line before anything is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli.eval_kinds import default_folder

Command = Callable[..., Any]
FAST = ("copying.sequences=3", "copying.lags=[4, 8]", "calibration.bins=15")


@pytest.fixture
def trained(limbeck: Command, recipe_file: Path, tmp_path: Path) -> Path:
    assert limbeck("train", recipe_file, "objective.kind=ce", "name=ce").code == 0
    return tmp_path / "out" / "runs" / "ce"


def test_a_runs_evaluations_are_kept_beside_it(limbeck: Command, trained: Path) -> None:
    kinds = ("--eval", "bits_per_byte", "--eval", "calibration", "--eval", "copying")
    printed = json.loads(limbeck("eval", trained, *kinds, *FAST, "--json").out)
    assert printed["folder"] == str(trained) and list(printed["evals"]) == ["bits_per_byte", "calibration", "copying"]
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    for name, result in printed["evals"].items():
        assert json.loads((trained / "evals" / f"{name}.json").read_text(encoding="utf-8")) == result
    metrics = {name: result["metrics"] for name, result in printed["evals"].items()}
    assert metrics["bits_per_byte"]["bits_per_byte"]["value"] == pytest.approx(summary["bits_per_byte"], rel=1e-5)
    assert metrics["calibration"]["kl_to_teacher_nats"]["value"] == pytest.approx(summary["kl_to_teacher_nats"], rel=1e-4)
    assert printed["evals"]["calibration"]["spec"]["bins"] == 15
    assert len(printed["evals"]["calibration"]["details"]["reliability"]["data"]["count"]) == 15
    table = limbeck("eval", trained, "--eval", "calibration", "calibration.bins=15")
    assert "calibration:" not in table.err  # it is there already
    kl = metrics["calibration"]["kl_to_teacher_nats"]
    (line,) = [line.split() for line in table.out.splitlines() if line.startswith("kl_to_teacher_nats")]
    assert line == ["kl_to_teacher_nats", f"{kl['value']:.4g}", f"[{kl['low']:.4g},", f"{kl['high']:.4g}]", "2"]
    assert "calibration: 100%" in limbeck("eval", trained, "--eval", "calibration", "calibration.bins=15", "--again").err


def test_a_models_are_kept_where_it_is_said_or_under_its_name(
    limbeck: Command, teacher_folder: Path, texts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = (teacher_folder, "--eval", "bits_per_byte", "--texts", f"{texts_folder}/heldout/*.txt")
    assert limbeck("eval", *common, "-o", "there").code == 0
    assert limbeck("eval", *common).code == 0
    there, named = (
        tmp_path / each / "evals" / "bits_per_byte.json"
        for each in ("there", f"evals/{teacher_folder.parent.name}--{teacher_folder.name}")
    )
    assert json.loads(there.read_text())["metrics"] == json.loads(named.read_text())["metrics"]
    domain = f"bits_per_byte.domains.some={{kind: files, paths: ['{texts_folder}/heldout/0.txt']}}"
    printed = json.loads(limbeck("eval", teacher_folder, "--eval", "bits_per_byte", domain, "--json").out)
    assert printed["evals"]["bits_per_byte"]["metrics"]["bits_per_byte_some"]["n"] == 1


@pytest.mark.parametrize(
    ("target", "folder"), [("a/model", "a--model"), ("b/c/model", "c--model"), ("model", "model"), ("../model", "model")]
)
def test_two_models_of_one_last_name_have_a_folder_each(target: str, folder: str) -> None:
    assert default_folder(target) == Path("evals") / folder


def test_mistakes_are_one_line(limbeck: Command, trained: Path, teacher_folder: Path, tmp_path: Path) -> None:
    for arguments, code, reason in (
        (("--eval", "calibratoin"), 2, "did you mean 'calibration'? (valid: artifact, bits_per_byte, calibration"),
        (("--eval", "calibration", "calibration.bin=3"), 2, "calibration: bin is not a key; did you mean 'bins'?"),
        (("--eval", "calibration", "calibration.bins=0"), 2, "calibration: bins=0: Input should be greater than 0"),
        (("--eval", "calibration", "copying.seed=0"), 2, "copying.seed sets nothing of what is evaluated"),
        (("--eval", "calibration", "bins=3"), 2, "bins sets nothing of what is evaluated (valid: calibration.KEY)"),
        (("calibration.bins=3",), 2, "calibration.bins=3 is for --eval: name what to measure with it"),
        (("--again",), 2, "--again is for --eval"),
        (("-o", tmp_path / "x"), 2, "-o is for --eval and --by-position"),
        (("--eval", "calibration", "--window", 8), 2, "write calibration.window="),
        (("--eval", "calibration", "--by-position"), 2, "are two commands"),
        (("--eval", "calibration", teacher_folder), 2, "2 models are named"),
        (("--eval", "bits_per_byte", "--eval", "copying", "copying.window=33"), 2, "copying.window=33 is more than"),
    ):
        outcome = limbeck("eval", trained, *arguments)
        assert outcome.code == code and reason in outcome.complaint, (arguments, outcome.complaint)
    assert not (trained / "evals" / "bits_per_byte.json").exists()
    assert "reads held-out texts" in limbeck("eval", teacher_folder, "--eval", "calibration", "-o", tmp_path / "x").complaint
    (trained / "summary.json").unlink()  # the student was written, and then it was killed
    for more in ((), ("--eval", "copying")):
        assert "is unfinished: `limbeck train" in limbeck("eval", trained, *more).complaint


def test_a_recipe_that_asks_for_no_teacher_gets_none(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    settings = ("objective.kind=ce", "name=alone", "evaluation.kl_to_teacher=false")
    assert limbeck("train", recipe_file, *settings).code == 0
    command = ("eval", tmp_path / "out" / "runs" / "alone", "--eval", "calibration", "--json")
    assert "kl_to_teacher_nats" not in json.loads(limbeck(*command).out)["evals"]["calibration"]["metrics"]
    asked = json.loads(limbeck(*command, "calibration.to_teacher=true").out)["evals"]["calibration"]
    assert asked["metrics"]["kl_to_teacher_nats"]["value"] > 0


def test_list_names_the_kinds(limbeck: Command) -> None:
    assert {"bits_per_byte", "calibration", "copying"} <= set(json.loads(limbeck("list", "--json").out)["kinds"]["eval"])
    assert "eval.kind: artifact, bits_per_byte, calibration" in limbeck("list").out
