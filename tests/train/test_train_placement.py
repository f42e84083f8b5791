"""A teacher on another device, and teachers in processes of their own: the same training as with the teacher beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from several_processes import Group, several
from test_train_sharded import tiny_values
from tiny_students import olmo3

from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.train.train import train

STEPS = 5
PROJECTED = {
    "kind": "mixture",
    "terms": [{"weight": 0.5, "term": {"kind": "forward_kl"}}, {"weight": 0.5, "term": {"kind": "hidden"}}],
}
SIGNALS: dict[str, dict[str, Any]] = {
    "dense": {"signal": {"kind": "dense", "temperature": 1.5}, "objective": PROJECTED},
    "topk": {"signal": {"kind": "topk", "k": 20, "live": True}, "objective": {"kind": "forward_kl"}},
    "hybrid": {"signal": {"kind": "hybrid", "k": 4, "draws": 6, "live": True}, "objective": {"kind": "forward_kl"}},
}
BASE: dict[str, Any] = {
    "student": olmo3(num_layers=2).model_dump(mode="json"),
    "budget": {"kind": "steps", "amount": STEPS},
    "evaluation": {"every": 0.5},
    "batch": {"sequences": 4, "micro_sequences": 2},
}
SHARDED = {"parallel": {"kind": "sharded"}, "checkpoint": {"seconds": 1e-9}}


def pool(teachers: int) -> dict[str, Any]:
    return {"placement": {"kind": "pool", "teachers": teachers}}


@dataclass(frozen=True)
class World:
    """Texts and teacher as values of a recipe, and a folder in which groups of processes have trained."""

    folder: Path
    values: dict[str, Any]
    ended: list[list[dict[str, Any]]]

    def run(self, name: str) -> Path:
        return self.folder / "out" / "runs" / name


def write(values: dict[str, Any], folder: Path, **changes: Any) -> tuple[Path, Recipe]:
    merged = {**values, **changes}
    path = folder / f"{merged['name']}.yaml"
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return path, parse(Recipe, merged, source="test")


@pytest.fixture(scope="module")
def world(teacher_folder: Path, texts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    """Made when first asked for."""
    folder = tmp_path_factory.mktemp("placement")
    values = {**tiny_values(teacher_folder, texts_folder, folder), **BASE}
    made: list[World] = []

    def make() -> World:
        if not made:
            one_one = [write(values, folder, **each, **pool(1), name=f"one-one-{name}")[0] for name, each in SIGNALS.items()]
            plain = write(values, folder, **SIGNALS["dense"], name="two")[0]
            two_one = write(values, folder, **SIGNALS["dense"], **pool(1), name="two-one")[0]
            shards = write(values, folder, **SIGNALS["topk"], **pool(1), **SHARDED, name="shards-one")[0]
            one_two = [
                write(values, folder, **SIGNALS[name], **pool(2), name=f"one-two-{name}")[0] for name in ("dense", "topk")
            ]
            groups = [Group(2, [*one_one, plain]), Group(3, [two_one, shards, *one_two])]
            made.append(World(folder, values, several(folder, *groups)))
        return made[0]

    return make


def logged(run: Path, *but: str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in each.items() if key not in ("seconds", *but)} for each in open_run(run).events("train")
    ]


def require_equal(found: Path, expected: Path) -> None:
    """Bit for bit: what is logged, what is measured, the student."""
    assert len(logged(expected)) == STEPS
    assert logged(found) == logged(expected)
    keys = ("bits_per_byte", "kl_to_teacher_nats")
    measured = [[[record[key] for key in keys] for record in open_run(run).events("eval")] for run in (found, expected)]
    assert measured[0] == measured[1]
    assert measured[0][-1][1] is not None
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_one_student_and_one_teacher_are_one_process(name: str, world: Callable[[], World], tmp_path: Path) -> None:
    """Rows, with draws that depend on documents, and the teacher's reading of held-out texts."""
    found = world()
    assert found.ended[0] == [{"code": 0, "errors": {}}] * 2
    _, recipe = write(found.values, tmp_path, **SIGNALS[name], name="alone", output=str(tmp_path))
    require_equal(found.run(f"one-one-{name}"), train(recipe))
    assert logged(found.run(f"one-one-{name}"))[-1]["teacher_flops"] > 0


@pytest.mark.slow
def test_two_students_and_one_teacher_are_two_processes(world: Callable[[], World]) -> None:
    found = world()
    assert found.ended[1] == [{"code": 0, "errors": {}}] * 3
    require_equal(found.run("two-one"), found.run("two"))
