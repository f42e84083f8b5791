"""`limbeck quantise` as a user runs it."""

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import TeacherError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_one_command_gives_the_table_as_text_json_and_figure(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe["teacher"]["quantisation"] = {"kind": "integer", "bits": 3, "group": 32}
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    asked = ["--scheme", "bfloat16", "--scheme", "int8-g32", "--figure", tmp_path / "table.png"]
    found = limbeck("quantise", recipe_file, *asked, "--json")
    assert found.code == 0, found.err
    values = json.loads(found.out)
    rows = {row["name"]: row for row in values["rows"]}
    assert list(rows) == ["reference", "bfloat16", "int8-g32", "int3-g32"]  # the recipe's own comes last
    assert (rows["bfloat16"]["dtype"], rows["bfloat16"]["quantisation"]) == ("bfloat16", "none")
    assert rows["int8-g32"]["kl_nats"]["value"] < rows["int3-g32"]["kl_nats"]["value"]
    assert not math.isnan(rows["int3-g32"]["end_log_change_nats"])
    assert values["ends"] == values["documents"] == 2
    assert [Path(path).suffix for path in values["figures"]] == [".svg", ".png"]
    assert all(Path(path).stat().st_size > 1000 for path in values["figures"])
    lines = limbeck("quantise", recipe_file, "--scheme", "int8-g32").out.splitlines()
    assert lines[0].split()[:3] == ["scheme", "dtype", "BPB"]
    assert [line.split()[0] for line in lines[2:5]] == ["reference", "int8-g32~", "int3-g32~"]
    assert not any(line.startswith("note:") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheme", "int5"], "'int5' names no quantisation"),
        (["--reference", "float8"], "--reference=float8 is not one of auto, float32"),
        (["--scheme", "absent.gguf"], "absent.gguf does not exist"),
        (["teacher=null", "signal=null", "objective.kind=ce", "data.tokenizer=x"], "there is no teacher to quantise"),
    ],
)
def test_what_is_wrong_is_one_line(limbeck: Callable[..., Any], recipe_file: Path, arguments: list[str], sentence: str) -> None:
    found = limbeck("quantise", recipe_file, *arguments)
    assert found.code in (1, 2)
    assert sentence in found.complaint


def quick(monkeypatch: pytest.MonkeyPatch, *, failing: str | None = None) -> None:
    """Without a process of its own; one scheme may fail when its turn comes."""
    from limbeck.evals import quantisation

    original = quantisation.load_teacher

    def load(spec: Any, **named: Any) -> Any:
        if spec.quantisation is not None and spec.quantisation.slug == failing:
            raise TeacherError("a matrix too large for its scales")
        return original(spec, **named)

    monkeypatch.setattr(quantisation, "load_teacher", load)


def test_a_scheme_that_fails_is_a_line_of_its_own_and_an_exit_code(
    limbeck: Callable[..., Any], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, failing="int4-g32")
    asked = ["quantise", recipe_file, "--scheme", "int4-g32", "--scheme", "int8-g32"]
    found = limbeck(*asked)
    assert found.code == 1
    lines = found.out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["reference", "int8-g32~", "int4-g32:"]
    assert lines[4] == "int4-g32: not measured: a matrix too large for its scales"
    assert found.err.splitlines()[-1] == "limbeck: 1 of 2 schemes could not be measured: int4-g32"
    values = json.loads(limbeck(*asked, "--json").out)
    assert [row["name"] for row in values["rows"]] == ["reference", "int8-g32"]
    assert values["failed"] == [{"name": "int4-g32", "why": "a matrix too large for its scales"}]


def test_the_share_that_was_quantised_is_in_the_table(limbeck: Callable[..., Any], recipe_file: Path) -> None:
    """Of the tiny Llama, all but the embedding, the head and five norms."""
    lines = limbeck("quantise", recipe_file, "--scheme", "int8-g32").out.splitlines()
    kept = 2 * 300 * 32 + 5 * 32
    inside = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert lines[0].split()[-1] == "quantised"
    assert [line.split()[-1] for line in lines[2:4]] == ["0.0%", f"{inside / (inside + kept):.1%}"]


@pytest.mark.parametrize(
    ("asked", "stem"),
    [("llama-3.2", "llama-3.2"), ("table.png", "table"), ("table.svg", "table"), ("v1.0/t.json", "v1.0/t.json")],
)
def test_only_a_figures_ending_is_taken_off(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path, asked: str, stem: str
) -> None:
    found = limbeck("quantise", recipe_file, "--scheme", "int8-g32", "--figure", tmp_path / asked)
    expected = [tmp_path / f"{stem}.svg", tmp_path / f"{stem}.png"]
    assert found.out.splitlines()[-2:] == [f"figure: {path}" for path in expected]
    assert all(path.stat().st_size > 1000 for path in expected)


def test_a_figure_that_cannot_be_written_is_said_before_anything_is_measured(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.cli.quantise._measure", None)
    (tmp_path / "file").touch()
    found = limbeck("quantise", recipe_file, "--figure", tmp_path / "file" / "table")
    assert (found.code, found.out) == (1, "")
    assert "table.svg can't be written" in found.err.splitlines()[-1]


def test_the_table_is_there_before_the_figure_is_drawn(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "table.svg")

    monkeypatch.setattr("limbeck.drawing.write_figure", full)
    found = limbeck("quantise", recipe_file, "--scheme", "int8-g32", "--figure", tmp_path / "table")
    assert found.code == 1
    assert found.out.splitlines()[3].startswith("int8-g32~")
    assert "No space left on device" in found.err.splitlines()[-1]


def test_no_scheme_left_is_a_figure_without_lines(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, failing="int4-g32")
    found = limbeck("quantise", recipe_file, "--scheme", "int4-g32", "--figure", tmp_path / "table")
    assert found.code == 1
    assert "1 of 1 schemes could not be measured" in found.err.splitlines()[-1]


def test_every_verb_is_registered_once() -> None:
    from limbeck.cli.main import app

    names = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert len(names) == len(set(names))
