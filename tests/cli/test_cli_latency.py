"""`limbeck eval RECIPE --eval latency`: a recipe's student before it is trained, as it is and in shapes of equal size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., Any]
FAST = (
    "latency.prompt_tokens=[4, 9]",
    "latency.batch_sizes=[1, 3]",
    "latency.context_tokens=4",
    "latency.decode_tokens=2",
    "latency.warmups=0",
    "latency.repeats=2",
)


@pytest.fixture
def wide(values: dict[str, Any], recipe_file: Path) -> Path:
    """The tiny recipe with a student that has other shapes of its size."""
    values["student"] |= {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 128}
    recipe_file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return recipe_file


def test_shapes_of_equal_size_are_a_table_and_a_figure(limbeck: Command, wide: Path, tmp_path: Path) -> None:
    layers = ("--layers", 4, "--layers", 1, "--layers", 4)
    outcome = limbeck("eval", wide, "--eval", "latency", *layers, *FAST, "-o", tmp_path / "shapes", "--json")
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    written = {path.name: path for path in (tmp_path / "shapes").iterdir()}
    assert set(written) == {"latency-by-shape.json", "latency-by-shape.svg", "latency-by-shape.png"}
    assert json.loads(written["latency-by-shape.json"].read_text(encoding="utf-8")) == printed
    shapes = printed["shapes"]
    assert [name.split("x")[0] for name in shapes] == ["1", "4"]
    sizes = [shape["details"]["parameters"] for shape in shapes.values()]
    assert abs(sizes[0] / sizes[1] - 1) < 0.04
    for shape in shapes.values():
        assert [timing["tokens"] for timing in shape["details"]["prefill"]] == [4, 9]
        assert [timing["batch_size"] for timing in shape["details"]["decode"]] == [1, 3]
    lines = limbeck("eval", wide, "--eval", "latency", "--layers", 2, *FAST, "-o", tmp_path / "one").out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("2x64 ")]
    kv_bytes = 2 * 2 * 4 * 8 * 4  # layers, keys and values, heads, channels, bytes
    assert row[-1] == f"{kv_bytes:,}"
    assert any("prefill 4" in line and "decode x3" in line for line in lines)


def test_a_recipes_student_is_timed_as_it_is(limbeck: Command, wide: Path, tmp_path: Path) -> None:
    outcome = limbeck("eval", wide, "--eval", "latency", *FAST, "-o", tmp_path / "here", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)["evals"]["latency"]
    assert json.loads((tmp_path / "here" / "evals" / "latency.json").read_text(encoding="utf-8")) == result
    assert result["metrics"]["decode_batch_3_ms"]["value"] > 0


def test_a_models_architecture_has_shapes_too(limbeck: Command, teacher_folder: Path, tmp_path: Path) -> None:
    layers = ("--layers", 1, "--layers", 2)
    outcome = limbeck("eval", teacher_folder, "--eval", "latency", *layers, *FAST, "-o", tmp_path / "shapes", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["model"] == str(teacher_folder) and "2x32" in found["shapes"]
    assert (tmp_path / "shapes" / "latency-by-shape.png").is_file()


def test_mistakes_are_one_line(limbeck: Command, wide: Path, teacher_folder: Path) -> None:
    for arguments, reason in (
        ((wide,), "is a recipe: `limbeck train"),
        (("quickstart",), "quickstart is a recipe: `limbeck train quickstart`"),
        ((wide, "--eval", "copying"), "only --eval latency can be measured"),
        ((wide, "--eval", "latency", "--eval", "copying"), "only --eval latency can be measured"),
        ((wide, "--layers", 2), "is a recipe: `limbeck train"),
        ((teacher_folder, "--eval", "calibration", "--layers", 2), "name one, and --eval latency"),
        ((teacher_folder, "--eval", "latency", "--layers", 500), "no width gives 500 layers"),
        ((wide, "--eval", "latency", "latency.repeats=1"), "latency: repeats=1"),
        ((wide, "--eval", "latency", "--layers", 500), "500 layers"),
    ):
        outcome = limbeck("eval", *arguments)
        assert (outcome.code, reason in outcome.complaint) == (2, True), (arguments, outcome.complaint)
