"""`limbeck lab kernel` and `limbeck lab mapping`: what they print, write and refuse."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = "--seeds 2 --teacher-steps 4 --student-steps 3 --batch 16 --heldout 64 --student-width 3".split()
WIDTHS = "--teacher-width 6 --teacher-width 4".split()


def check_figure(folder: Path, name: str, *, words: list[str]) -> None:
    """A PNG, and an SVG of it."""
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    drawing = ElementTree.parse(folder / f"{name}.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    written = (folder / f"{name}.svg").read_text()
    for word in words:  # matplotlib draws letters as paths and leaves the text as a comment
        assert word in written


def test_kernel_prints_what_it_writes(limbeck: Callable[..., Any], tmp_path: Path):
    outcome = limbeck("lab", "kernel", "-o", tmp_path / "labs", "--json")
    assert outcome.code == 0 and outcome.err == ""
    values = json.loads(outcome.out)
    assert [Path(file).name for file in values.pop("files")] == ["kernel.json", "kernel.svg", "kernel.png"]
    assert values == json.loads((tmp_path / "labs" / "kernel.json").read_text())
    for student in values["students"]:
        assert len(student["errors"]) == len(values["teacher_errors"]) == len(values["teacher_sizes"]) == 256
        assert student["errors"][-1] > 1.02 * min(student["errors"])
    check_figure(tmp_path / "labs", "kernel", words=["size of the teacher (functions)", "student of 16 functions"])


def test_kernel_says_for_each_student_whether_there_is_a_gap(limbeck: Callable[..., Any], tmp_path: Path):
    sizes = ("--functions", 32, "--student-size", 2, "--student-size", 8)
    text = limbeck("lab", "kernel", "-o", tmp_path, *sizes).out
    assert [line.split(":")[0] for line in text.splitlines()] == ["student of 2 functions", "student of 8 functions", "written"]
    assert text.count("above: the capacity gap") == 2
    free = limbeck("lab", "kernel", "-o", tmp_path, *sizes, "--teacher-norm", 1).out
    assert free.count("no capacity gap") == 2


def test_kernel_draws_the_same_bytes_twice(limbeck: Callable[..., Any], tmp_path: Path):
    for folder in ("a", "b"):
        limbeck("lab", "kernel", "-o", tmp_path / folder, "--functions", 16, "--student-size", 4)
    for name in ("kernel.json", "kernel.svg", "kernel.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_mapping_prints_what_it_writes_and_goes_on_from_it(limbeck: Callable[..., Any], tmp_path: Path):
    command = ("lab", "mapping", "-o", tmp_path, *TINY, *WIDTHS)
    outcome = limbeck(*command, "--json")
    assert outcome.code == 0
    values = json.loads(outcome.out)
    assert [Path(file).name for file in values.pop("files")] == ["mapping.json", "mapping.svg", "mapping.png"]
    assert values == json.loads((tmp_path / "mapping.json").read_text())
    assert [point["teacher_width"] for point in values["points"]] == [4, 6]
    assert values["settings"]["student_steps"] == 3
    check_figure(tmp_path, "mapping", words=["nats per example", "student without a teacher"])
    text = limbeck(*command).out
    assert ("U-shape: " if values["verdict"]["u_shape"] else "no U-shape told at these settings: ") in text
    assert f"{sum(values['control']['losses']) / 2:.4f} ± " in text


def test_mapping_keeps_results_of_other_settings(limbeck: Callable[..., Any], tmp_path: Path):
    limbeck("lab", "mapping", "-o", tmp_path, *TINY, *WIDTHS)
    outcome = limbeck("lab", "mapping", "-o", tmp_path, *TINY, *WIDTHS, "--seed", 1)
    assert outcome.code == 1
    assert "mapping.json holds results of other settings" in outcome.complaint


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("kernel", "--functions", 1), "functions=1"),
        (("kernel", "--student-size", 300), "student sizes [300]"),
        (("kernel", "--teacher-norm", 0), "teacher_norm=0.0"),
        (("mapping", "--seeds", 1), "seeds=1"),
        (("mapping", "--teacher-width", 8, "--teacher-width", 8), "teacher widths [8, 8]"),
        (("mapping", "--learning-rate", 0), "learning_rate=0.0"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(limbeck: Callable[..., Any], tmp_path: Path, arguments, named: str):
    outcome = limbeck("lab", *arguments, "-o", tmp_path / "labs")
    assert outcome.code == 1
    assert named in outcome.complaint
    assert not (tmp_path / "labs").exists()


def test_a_word_for_a_number_is_a_usage_error(limbeck: Callable[..., Any]):
    outcome = limbeck("lab", "mapping", "--seeds", "many")
    assert outcome.code == 2
    assert "--seeds" in outcome.err
