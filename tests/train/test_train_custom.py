"""A run with a loss of one's own: its function is found before anything is opened; a run that never began leaves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train.setup import open_setup
from limbeck.train.train import train


def seconds(student: HeadStatistics, target: SparseTarget) -> Tensor:
    """Cross-entropy with the teacher on its ids, under a name that a run's metrics have."""
    return -(target.probs_TK * (student.gathered_TK - student.lse_T[:, None])).sum(-1)


def recipe_of(values: dict[str, Any], function: str, **changes: Any) -> Recipe:
    term = {"kind": "custom", "function": f"{__name__}:{function}"}
    objective = {"kind": "mixture", "terms": [{"weight": 0.5, "term": {"kind": "ce"}}, {"weight": 0.5, "term": term}]}
    return parse(Recipe, {**values, "objective": objective, **changes}, source="test")


def test_a_function_that_is_not_there_is_told_before_stores_and_teachers(values: dict[str, Any], tmp_path: Path) -> None:
    absent = {**values["teacher"], "model": str(tmp_path / "no-teacher")}
    for signal in ({"kind": "topk", "k": 20}, {"kind": "dense"}):
        with pytest.raises(SpecError, match=r"objective\.function=.*:missing cannot be loaded"):
            open_setup(recipe_of(values, "missing", signal=signal, teacher=absent, store=str(tmp_path / "no-store")))


def test_the_corrected_recipe_trains_under_the_same_name(values: dict[str, Any]) -> None:
    wrong, right = recipe_of(values, "missing"), recipe_of(values, "seconds")
    write_recipe_stores([wrong])
    with pytest.raises(SpecError, match="missing cannot be loaded"):
        train(wrong)
    assert not Path(wrong.run_path).exists()
    records = [json.loads(line) for line in (train(right) / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "train"]
    assert len(steps) == 8
    for record in steps:
        assert record["loss_nats"] == pytest.approx(0.5 * record["ce"] + 0.5 * record["custom_seconds"], rel=1e-5)
        assert record["seconds"] != record["custom_seconds"]
