"""`limbeck transplant`, and what it writes as a student of a teacher of the new tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tiny_tokenizers import GROUPS_OF_THREE, byte_level
from tiny_world import make_teacher


def test_the_result_learns_from_the_donor_by_exact_kl(
    tmp_path: Path, values: dict[str, Any], limbeck: Callable[..., Any]
) -> None:
    base = make_teacher(tmp_path / "base", vocab_size=430, seed=3)
    byte_level(base, vocab_size=420, pattern=GROUPS_OF_THREE)
    teacher, out = values["teacher"]["model"], tmp_path / "out"
    told = json.loads(limbeck("transplant", base, teacher, out, "--donor", teacher, "--atoms", 4, "--json").out)
    assert told["asked"]["method"] == "omp"
    assert told["vocab_size"] == 300
    assert told["next"].endswith(f"student.model={out}")
    file = tmp_path / "recipe.yaml"
    student = {"kind": "huggingface", "model": str(out)}
    file.write_text(
        yaml.safe_dump({**values, "student": student, "signal": {"kind": "dense"}, "budget": {"kind": "steps", "amount": 1}}),
        encoding="utf-8",
    )
    trained = limbeck("train", file)
    assert trained.code == 0, trained.err


def test_what_cannot_be_asked_for_is_one_line(tmp_path: Path, limbeck: Callable[..., Any], teacher_folder: Path) -> None:
    given = ("transplant", teacher_folder, teacher_folder)
    assert "has no use for --donor" in limbeck(*given, tmp_path / "a", "--donor", "x", "--method", "mean").complaint
    assert "name one with --donor" in limbeck(*given, tmp_path / "b", "--method", "focus").complaint
    shown = limbeck(*given, tmp_path / "c")
    assert "298 copied, and 2 special ones; 0 made (mean); 0 rows unused" in shown.out
    assert "exists: name another folder" in limbeck(*given, tmp_path / "c").complaint
