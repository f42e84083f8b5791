"""Every text of an evaluation set is found, whatever it is written in."""

import json
from pathlib import Path

import pytest
import yaml

from limbeck.errors import DataError
from limbeck.spec.teach_text import Decontamination
from limbeck.teach.eval_texts import eval_texts


def texts(**changes: object) -> list[str]:
    """Without Limbeck's own examples, which come first."""
    found = [text for _, text in eval_texts(Decontamination.model_validate(changes))]
    own = [text for _, text in eval_texts(Decontamination())]
    assert len(own) == 8 and found[:8] == own
    return found[8:]


def test_strings_of_all_formats_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "gsm"
    folder.mkdir()
    (folder / "a.toml").write_text('question = "how many"\nanswer = "#### 3"\nvalues = ["x", 4]\n', encoding="utf-8")
    (folder / "b.jsonl").write_text('{"question": "who", "choices": ["he", "she"], "label": 1}\n', encoding="utf-8")
    (folder / "c.bin").write_bytes(b"\xff")
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"examples": [{"input": "is it", "target_scores": {"yes it is": 1}}]}), encoding="utf-8")
    (tmp_path / "t.txt").write_text("all of this", encoding="utf-8")
    found = set(texts(files=(str(folder), str(task), str(tmp_path / "t.txt"))))
    assert found >= {"how many", "#### 3", "x", "who", "he", "she", "is it", "yes it is", "all of this"}


def test_a_study_names_its_evaluations_and_held_out_texts(recipe_file: Path, texts_folder: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "how many", "answer": "#### 3"}\n', encoding="utf-8")
    study = tmp_path / "study.yaml"
    evals = [{"kind": "gsm", "path": str(problems)}]
    study.write_text(yaml.safe_dump({"name": "s", "recipe": str(recipe_file), "evals": evals}), encoding="utf-8")
    heldout = [path.read_text(encoding="utf-8") for path in sorted((texts_folder / "heldout").glob("*.txt"))]
    assert texts(recipe=str(recipe_file)) == heldout
    assert texts(study=str(study)) == [*heldout, "question", "answer", "how many", "#### 3"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", "{", "cannot be read as an evaluation set"),
        ("a.toml", "x", "cannot be read as an evaluation set"),
        ("a.jsonl", "x", "line 1: not JSON"),
        ("a.csv", "x", "is no evaluation set that can be read"),
        ("missing.json", None, "cannot be read as an evaluation set"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str | None, complaint: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        texts(files=(str(tmp_path / name),))


def test_a_folder_without_any_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation set"):
        texts(files=(str(tmp_path),))
