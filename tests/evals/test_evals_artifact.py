"""The evaluation of a student as an artifact says what `limbeck artifact write` and `limbeck artifact eval` say of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_students import golf
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.errors import LimbeckError
from limbeck.eval_results import read_results
from limbeck.evals.of_runs import evaluate_run, evaluate_teacher
from limbeck.evals.run import run_evals
from limbeck.spec.base import parse
from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.evals.copying import Copying
from limbeck.spec.recipe import Recipe
from limbeck.students import hf
from limbeck.students.build import build

COARSE = {"matrix_bits": 3, "small_elements": 100, "compression": "zlib"}
"""So that rounding is seen."""
COPYING = Copying(lags=(4,), sequences=2, text=False)


def said(*arguments: object) -> dict[str, Any]:
    """What a command prints for machines."""
    outcome = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.fixture
def run(values: dict[str, Any], recipe_file: Path, teacher_folder: Path) -> Path:
    """The folder of a run that ended, as far as evaluations look at it."""
    spec = golf(vocab_size=300)
    values |= {"student": spec.model_dump(mode="json"), "objective": {"kind": "ce"}}
    recipe_file.write_text(yaml.safe_dump(values), encoding="utf-8")
    student = build(spec, vocab_size=300, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    path = Path(values["output"]) / "runs" / "tiny"
    hf.save(student, spec=spec, folder=path / "student", max_positions=32, tokenizer_folder=teacher_folder)
    (path / "recipe.yaml").write_bytes(recipe_file.read_bytes())
    for name in ("environment.json", "summary.json"):
        (path / name).write_text("{}", encoding="utf-8")
    (path / "metrics.jsonl").touch()
    return path


def test_it_is_what_the_artifact_commands_say(run: Path, recipe_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.limbeck"
    result = evaluate_run(run, {"small": Artifact(**COARSE)})["small"]
    written = said("artifact", "write", run, "-o", file, *(f"{key}={value}" for key, value in COARSE.items()))
    measured = said("artifact", "eval", file, "--recipe", recipe_file)
    metrics, details = result.metrics, result.details
    assert metrics["artifact_weights_bytes"].value == written["weights_bytes"] == file.stat().st_size
    assert metrics["artifact_bytes"].value == written["total_bytes"] == file.stat().st_size + details["code_bytes"]
    assert (list(details["code"]), details["code_bytes"]) == (written["code"], written["code_bytes"])
    # Read from a folder that transformers opens, where the evaluation asks the student itself: the same but for float32 sums.
    assert metrics["artifact_bits_per_byte"].value == pytest.approx(measured["bits_per_byte_after"], rel=1e-6)
    change, difference = metrics["artifact_bits_per_byte_change"], measured["difference"]
    assert abs(difference["value"]) > 1e-3
    for end in ("value", "low", "high"):
        assert getattr(change, end) == pytest.approx(difference[end], rel=1e-3)
    assert change.n == metrics["artifact_bits_per_byte"].n == measured["documents"] == 2
    assert json.loads((run / "evals" / "small.json").read_text(encoding="utf-8"))["spec"]["matrix_bits"] == 3


def test_a_run_trained_to_be_rounded_is_rounded_so_unless_it_is_said(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["quantisation_aware"] = {"matrix_bits": 3, "small_elements": 100}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for more, bits in (((), 3), (("artifact.matrix_bits=4",), 4)):
        found = said("eval", run, "--eval", "artifact", "artifact.compression=zlib", *more)["evals"]["artifact"]
        assert (found["spec"]["matrix_bits"], found["spec"]["small_elements"]) == (bits, 100)


def test_a_model_of_others_is_refused_before_anything_is_measured(tiny, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="that Limbeck did not save"):
        run_evals(tiny, {"copying": COPYING, "artifact": Artifact()}, folder=tmp_path)
    assert read_results(tmp_path) == {}


def test_of_a_teacher_the_rest_is_measured(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse(Recipe, values, source="test")
    assert list(evaluate_teacher(recipe, {"artifact": Artifact(), "copying": COPYING}, folder=tmp_path)) == ["copying"]
    assert evaluate_teacher(recipe, {"artifact": Artifact()}, folder=tmp_path / "none") == {}
