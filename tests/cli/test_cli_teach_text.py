"""`limbeck teach-text` as it is typed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Limbeck = Callable[..., Any]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ask.jsonl"
    path.write_text('{"prompt": "the state"}\n{"prompt": "of people"}\n', encoding="utf-8")
    return path


def test_a_teacher_writes_and_says_where(limbeck: Limbeck, teacher_folder: Path, prompts: Path) -> None:
    settings = ("teacher.dtype=float32", "max_new_tokens=4", "truncated=keep", "samples=3", "engine.batch_size=4")
    asked = ("teach-text", prompts, *settings, "--teacher", teacher_folder)
    done = limbeck(*asked, "--json")
    summary = json.loads(done.out)
    assert (done.code, summary["drawn"], summary["output"]) == (0, 6, "taught/ask")
    assert summary["kept"] + sum(summary["dropped"].values()) == 6
    assert 6 <= summary["tokens_drawn"] <= 24
    again = limbeck(*asked)
    assert f"kept {summary['kept']} of 6 completions" in again.out
    assert "train on it: data.train.kind=files data.train.paths=[taught/ask/completions.jsonl]" in again.out
    refused = limbeck(*asked, "seed=1")
    assert refused.code == 2 and "was drawn with seed=0, not with seed=1" in refused.complaint


def test_a_file_says_everything(limbeck: Limbeck, teacher_folder: Path, prompts: Path, tmp_path: Path) -> None:
    told = {"prompts": str(prompts), "output": "there", "max_new_tokens": 2, "truncated": "keep"}
    teacher = {"kind": "huggingface", "model": str(teacher_folder), "dtype": "float32"}
    (tmp_path / "all.yaml").write_text(json.dumps({**told, "teacher": teacher}), encoding="utf-8")
    assert json.loads(limbeck("teach-text", "all.yaml", "samples=2", "--json").out)["drawn"] == 4
    assert (tmp_path / "there" / "completions.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "teach-text: teacher is missing"),
        (("--teacher", "smollm2", "sample=2"), 2, "sample is not a key; did you mean 'samples'?"),
        (("--teacher", "smollm2", "temperature=0", "samples=2"), 2, "samples=2 means nothing at temperature=0"),
        (("--teacher", "smollm2", "efforts.low.tokens=2"), 2, "efforts.low.tokens is not a key"),
        (("--teacher", "nowhere/at-all.gguf"), 1, "nowhere/at-all.gguf"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: tuple[str, ...], code: int, complaint: str, limbeck: Limbeck, prompts: Path
) -> None:
    done = limbeck("teach-text", prompts, *arguments)
    assert done.code == code
    assert complaint in done.complaint
