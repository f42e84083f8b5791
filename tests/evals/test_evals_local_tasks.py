"""Local multiple-choice files as tasks: what is written is what the file says, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import DataError
from limbeck.evals.local_tasks import read_problems, task_name, write_task
from limbeck.evals.prompts import read_lines


def written(folder: Path, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    task = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
    return task, [json.loads(line) for line in lines]


def big_bench(tmp_path: Path, *examples: dict[str, Any], **more: Any) -> Path:
    file = tmp_path / "legs" / "task.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"name": "legs", "examples": examples, **more}), encoding="utf-8")
    return file


def test_a_big_bench_task(tmp_path: Path) -> None:
    file = big_bench(
        tmp_path,
        {"input": "How many legs has a {{horse}}?", "target_scores": {"two": 0, "four": 1, "fünf": 0}},
        {"input": "And a table?", "target_scores": {"four": 1.0, "three": 0.5}},
    )
    assert write_task(file, tmp_path / "made") == "legs"
    task, lines = written(tmp_path / "made", "legs")
    assert lines == [
        {"context": "Q: How many legs has a {{horse}}?\nA:", "choices": ["two", "four", "fünf"], "labels": 1},
        {"context": "Q: And a table?\nA:", "choices": ["four", "three"], "labels": 0},
    ]
    assert (task["task"], task["target_delimiter"], task["output_type"]) == ("legs", " ", "multiple_choice")


def test_its_own_prefixes_are_used(tmp_path: Path) -> None:
    file = big_bench(
        tmp_path,
        {"input": "A cat.", "target_scores": {"T": 1, "F": 0}},
        task_prefix="True or false?",
        example_input_prefix="\nSentence: ",
        example_output_prefix="\nVerdict: ",
    )
    write_task(file, tmp_path)
    assert written(tmp_path, "legs")[1][0]["context"] == "True or false?\nSentence: A cat.\nVerdict:"


def test_whole_sentences_are_compared_where_inputs_are_empty(tmp_path: Path) -> None:
    scores = {"It fell because it rained.": 0.0, "It rained because it fell.": 1.0}
    write_task(big_bench(tmp_path, {"input": "", "target_scores": scores}, task_prefix="Which?"), tmp_path)
    task, (line,) = written(tmp_path, "legs")
    assert (line["context"], line["choices"], line["labels"]) == ("", list(scores), 1)
    assert task["target_delimiter"] == ""


def test_several_right_choices_stay_right(tmp_path: Path) -> None:
    one = {"input": "x", "target_scores": {"a": 1, "b": 0, "c": 1}}
    write_task(big_bench(tmp_path, one, {"input": "y", "target_scores": {"a": 0, "b": 1}}), tmp_path)
    assert [line["labels"] for line in written(tmp_path, "legs")[1]] == [[0, 2], [1]]


def test_lines_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"question": "Sky?", "choices": ["green", "blue"], "label": 1}\n\n', encoding="utf-8")
    assert write_task(file, tmp_path / "made") == "facts" == task_name(file)
    assert written(tmp_path / "made", "facts")[1] == [
        {"context": "Question: Sky?\nAnswer:", "choices": ["green", "blue"], "labels": 1}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "?", "choices": ["a", "b"], "label": 2}', "line 1: expected question"),
        ("a.jsonl", '{"question": "?", "choices": ["a"], "label": 0}', "line 1: expected question"),
        ("a.jsonl", '{"question": "?", "choices": "ab", "label": 0}', "line 1: expected question"),
        ("a.jsonl", '{"question": "?", "choices": ["a", "b"], "label": true}', "line 1: expected question"),
        ("a.jsonl", "nonsense", "line 1 is not JSON"),
        ("a.jsonl", "", "holds no problem"),
        ("a.json", "[1]", "no list of examples"),
        ("a.json", '{"examples": [{"input": "x", "target": "y"}]}', "example 0: expected input and target_scores"),
        ("a.json", '{"examples": [{"input": "x", "target_scores": {"a": 1}}]}', "example 0: expected input and target_scores"),
        (
            "a.json",
            '{"examples": [{"input": "", "target_scores": {"a": 1, "b": 0}}, {"input": "x", "target_scores": {"a": 1, "b": 0}}]'
            "}",
            "some inputs are empty and others are not",
        ),
    ],
)
def test_what_is_no_task_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_task(tmp_path / name, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        write_task(tmp_path / "none.json", tmp_path)


def test_separators_within_a_text_end_no_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 may stand in JSON's strings as they are."""
    problem = {"question": "a\u2028b?", "choices": ["c\x85d", "e"], "label": 1}
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps(problem, ensure_ascii=False) + "\n", encoding="utf-8")
    (read,) = read_problems(file)
    assert (read.choices, read.labels) == (("c\x85d", "e"), (1,))
    ((_, record),) = read_lines(file)
    assert record == problem
