"""Tasks for lm-evaluation-harness made of local multiple-choice files, so that there is something to measure offline.

Read are BIG-bench's JSON (Srivastava et al. 2022, arXiv:2206.04615; https://github.com/google/BIG-bench): `examples` of `input`
and `target_scores`, and JSONL of {question, choices, label}. Each choice is scored by the log-likelihood of its text after the
question; the choices are not listed in the question, as BIG-bench's own prompt does, as small models read such lists badly.
Where a BIG-bench input is empty, choices are whole sentences and are scored on their own.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import DataError
from limbeck.paths import write_atomically


@dataclass(frozen=True)
class Problem:
    """One document of a task. `labels` are the places of the right choices; `context` is empty where sentences are compared."""

    context: str
    choices: tuple[str, ...]
    labels: tuple[int, ...]


def task_name(source: Path) -> str:
    """What the task made of a file is called: the file's name, or its folder's where that is `task.json`."""
    return source.parent.resolve().name if source.stem == "task" else source.stem


def write_task(source: Path, folder: Path) -> str:
    """Write `folder/NAME.yaml` and `folder/NAME.jsonl` of a local file, and return the task's name.

    `DataError` names what is wrong with the file.
    """
    problems, name = read_problems(source), task_name(source)
    sentences = {not problem.context for problem in problems}
    if len(sentences) > 1:
        raise DataError(f"{source}: some inputs are empty and others are not; split it into two files")
    several = any(len(problem.labels) > 1 for problem in problems)
    lines = [{**asdict(problem), "labels": problem.labels if several else problem.labels[0]} for problem in problems]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder.resolve() / f"{name}.jsonl"
    write_atomically(data, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",  # names of columns: nothing in the texts is read as a template
        "doc_to_choice": "choices",
        "doc_to_target": "labels",
        "target_delimiter": "" if True in sentences else " ",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }
    write_atomically(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
    return name


def read_problems(source: Path) -> list[Problem]:
    """The problems of a local file; `DataError` names the line or example that is not one."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read ({error}): name a BIG-bench task.json or a JSONL file") from error
    problems = _of_lines(text, source) if source.suffix.lower() in {".jsonl", ".ndjson"} else _of_big_bench(text, source)
    if not problems:
        raise DataError(f"{source} holds no problem: name another file")
    return problems


def _of_lines(text: str, source: Path) -> list[Problem]:
    return [
        _problem_of_line(_json(line, f"{source}, line {number}"), f"{source}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _problem_of_line(values: Any, where: str) -> Problem:
    given = values if isinstance(values, dict) else {}
    question, choices, label = given.get("question"), given.get("choices"), given.get("label")
    if (
        not isinstance(question, str)
        or not isinstance(choices, list)
        or not _are_texts(choices)
        or type(label) is not int
        or not 0 <= label < len(choices)
    ):
        raise DataError(
            f"{where}: expected question (text), choices (two texts or more) and label (the place of the right one)"
        )
    return Problem(f"Question: {question}\nAnswer:" if question else "", tuple(choices), (label,))


def _of_big_bench(text: str, source: Path) -> list[Problem]:
    task = _json(text, str(source))
    examples = task.get("examples") if isinstance(task, dict) else None
    if not isinstance(examples, list):
        raise DataError(f"{source} has no list of examples: it is not a BIG-bench JSON task")
    return [_problem_of_example(example, task, f"{source}, example {place}") for place, example in enumerate(examples)]


def _problem_of_example(example: Any, task: dict[str, Any], where: str) -> Problem:
    scores = example.get("target_scores") if isinstance(example, dict) else None
    if not isinstance(scores, dict) or not _are_texts(list(scores)) or not isinstance(example.get("input"), str):
        raise DataError(
            f"{where}: expected input and target_scores of two choices or more; generative tasks cannot be converted"
        )
    best = max(scores.values())
    labels = tuple(place for place, score in enumerate(scores.values()) if score == best)
    return Problem(_big_bench_context(example["input"], task), tuple(scores), labels)


def _big_bench_context(question: str, task: dict[str, Any]) -> str:
    """With the task's own prefixes; those that it lacks are BIG-bench's defaults."""
    if not question:
        return ""
    before, after = (task.get(key, default) for key, default in _BIG_BENCH_DEFAULTS.items())
    return f"{task.get('task_prefix', '')}{before}{question}{after}".strip()


_BIG_BENCH_DEFAULTS = {"example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: "}


def _are_texts(choices: list[Any]) -> bool:
    return len(choices) > 1 and all(isinstance(choice, str) and choice for choice in choices)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error}): repair it") from error
