"""An on-policy run of two processes: each writes its share, and the step is divided by what both of them drew."""

import json
from pathlib import Path
from typing import Any

import pytest
from on_policy_world import make_student, on_policy
from several_processes import Group, several
from test_train_processes import write_recipe

from limbeck.runs import open_run

pytestmark = pytest.mark.slow


def test_two_processes_share_out_a_step(values: dict[str, Any], tmp_path: Path) -> None:
    student = make_student(tmp_path / "student")
    file, recipe = write_recipe(on_policy(values, student, budget={"kind": "steps", "amount": 3}), tmp_path)
    assert several(tmp_path, Group(2, [file])) == [[{"code": 0, "errors": {}}] * 2]
    path = Path(recipe.run_path)
    names = ("rollouts.jsonl", "rollouts-1.jsonl")
    by_process = [[json.loads(line) for line in (path / name).read_text(encoding="utf-8").splitlines()] for name in names]
    assert [len(each) for each in by_process] == [12, 12]
    tokens = 0
    for record in open_run(path).events("train"):
        drawn = [each for found in by_process for each in found if each["step"] == record["step"]]
        assert len({tuple(each["tokens"]) for each in drawn}) == 8  # nobody writes what another does
        surprise = [value for each in drawn for value in each["log_probs"]]
        tokens += len(surprise)
        assert record["tokens"] == tokens
        assert record["stopped_share"] == pytest.approx(sum(each["outcome"] == "stopped" for each in drawn) / 8)
        assert record["student_entropy_nats"] == pytest.approx(-sum(surprise) / len(surprise))
        # The student's cross-entropy on what both drew is their surprise at it: the mean is over all of it.
        assert record["ce"] == pytest.approx(-sum(surprise) / len(surprise), abs=1e-4)
