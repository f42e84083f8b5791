"""`limbeck quantise` as a user runs it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def limbeck(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


@pytest.mark.slow
def test_one_command_gives_the_table_as_text_json_and_figure(recipe_file: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe["teacher"]["quantisation"] = {"kind": "integer", "bits": 3, "group": 32}
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    asked = ["--scheme", "bfloat16", "--scheme", "int8-g32", "--figure", tmp_path / "table.png"]
    found = limbeck("quantise", recipe_file, *asked, "--json")
    assert found.returncode == 0, found.stderr
    values = json.loads(found.stdout)
    rows = {row["name"]: row for row in values["rows"]}
    assert list(rows) == ["reference", "bfloat16", "int8-g32", "int3-g32"]  # the recipe's own comes last
    assert (rows["bfloat16"]["dtype"], rows["bfloat16"]["quantisation"]) == ("bfloat16", "none")
    assert rows["int8-g32"]["kl_nats"]["value"] < rows["int3-g32"]["kl_nats"]["value"]
    assert not math.isnan(rows["int3-g32"]["end_log_change_nats"])
    assert values["ends"] == values["documents"] == 2
    assert [Path(path).suffix for path in values["figures"]] == [".svg", ".png"]
    assert all(Path(path).stat().st_size > 1000 for path in values["figures"])
    lines = limbeck("quantise", recipe_file, "--scheme", "int8-g32").stdout.splitlines()
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
def test_what_is_wrong_is_one_line(recipe_file: Path, arguments: list[str], sentence: str) -> None:
    found = limbeck("quantise", recipe_file, *arguments)
    assert found.returncode in (1, 2)
    assert sentence in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
