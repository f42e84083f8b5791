"""`limbeck train --dry-run --time-phases`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIVE = ["signal.live=true", "--dry-run", "--time-phases"]


def test_a_dry_run_times_phases_and_leaves_nothing(limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    """The seconds are this machine's; what follows from them is worked out again here."""
    found = json.loads(limbeck("train", recipe_file, *LIVE, "--devices", 2, "--json").out)
    seconds = found["phases"]
    assert seconds["generate"] == 0 < min(seconds["teach"], seconds["train"])
    steps = {each["kind"]: each["step_seconds"] for each in found["placements"]}
    assert steps["same"] == pytest.approx((seconds["teach"] + seconds["train"]) / 2)
    assert steps["split"] == steps["pool"] == pytest.approx(max(seconds["teach"], seconds["train"]))
    assert all(each["tokens_per_second"] * each["step_seconds"] == pytest.approx(4 * 32) for each in found["placements"])
    assert found["placements"][0]["step_seconds"] == min(steps.values())
    assert found["devices"] == 2
    assert not (tmp_path / "out").exists()


def test_people_read_what_to_set(limbeck: Callable[..., Any], recipe_file: Path) -> None:
    lines = limbeck("train", recipe_file, *LIVE, "--devices", 5).out.splitlines()
    assert lines[0].split() == ["phase", "device-seconds", "%"]
    assert "of a step of 128 tokens" in lines
    assert any(line.startswith("on 5 devices") for line in lines)
    assert any(line.startswith("fastest: placement.kind=") for line in lines)


def test_options_belong_together(limbeck: Callable[..., Any], recipe_file: Path) -> None:
    for options in (["--time-phases"], ["--devices", "2"], ["--dry-run", "--devices", "2"]):
        found = limbeck("train", recipe_file, *options)
        assert found.code == 2
        assert "--time-phases belongs to --dry-run" in found.complaint
    found = limbeck("train", recipe_file, "--dry-run", "--time-phases")
    assert found.code == 2
    assert "set signal.live=true" in found.complaint
