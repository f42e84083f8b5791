"""`limbeck eval` and `limbeck show` of curricula: what a run kept on its way measures as it did there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.runs import open_run


@pytest.fixture
def staged(values: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny recipe without a teacher, in three stages, the last one with YaRN."""
    yarn = {"factor": 2.0, "original_length": 48}
    stages = [
        {"name": "short", "share": 0.25},
        {"name": "longer", "share": 0.25, "changes": {"data.sequence_length": 48}},
        {"name": "long", "share": 0.5, "changes": {"data.sequence_length": 64, "student.yarn": yarn}},
    ]
    student = {**values["student"], "full_attention_every": 2}
    tokenizer = {"tokenizer": values["teacher"]["model"]}
    alone = {"teacher": None, "signal": None, "objective": {"kind": "ce"}, "data": {**values["data"], **tokenizer}}
    asked = {**values, **alone, "student": student, "curriculum": stages, "milestones": [2, 5, 8]}
    path = tmp_path / "staged.yaml"
    path.write_text(yaml.safe_dump({**asked, "evaluation": {"every": 1.0}}), encoding="utf-8")
    return path


def test_what_a_run_kept_measures_as_it_did(limbeck: Callable[..., Any], staged: Path, tmp_path: Path) -> None:
    """By transformers, from the folders; and the student before YaRN beside the one after it, by position."""
    assert limbeck("train", staged).code == 0
    path = tmp_path / "out" / "runs" / "tiny"
    run = open_run(path)
    measured = dict(zip(("milestones/2", "milestones/5", "milestones/8"), run.events("milestone"), strict=True))
    measured |= dict(zip(("stages/short", "stages/longer", ""), run.events("eval"), strict=True))
    assert [record["sequence_length"] for record in measured.values()] == [32, 64, 64, 32, 48, 64]
    for folder, record in measured.items():
        found = json.loads(limbeck("eval", path / folder, "--json").out)
        assert found["bits_per_byte"] == pytest.approx(record["bits_per_byte"], abs=1e-4), folder
    named = ("--by-position", "--window", "96", "-o", tmp_path / "positions", "--json")
    found = json.loads(limbeck("eval", path, path / "stages" / "longer", *named).out)
    assert list(found["models"]) == ["tiny", "longer"]


def test_show_lists_the_stages(limbeck: Callable[..., Any], staged: Path) -> None:
    """Two steps of 4 x 32 tokens, two of 4 x 48, four of 4 x 64."""
    found = json.loads(limbeck("show", staged, "student.vocab_size=300", "--json").out)
    assert [stage["tokens"] for stage in found["stages"]] == [256, 384, 1024]
    assert found["tokens"] == 256 + 384 + 1024
    assert found["student_flops"] == pytest.approx(sum(stage["student_flops"] for stage in found["stages"]))
    assert any(line.startswith("longer ") for line in limbeck("show", staged, "student.vocab_size=300").out.splitlines())
