"""The texts of evaluation sets, from whatever files they come in: all strings count, so that no format need be known."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.data.texts import matching_files, read_documents
from limbeck.errors import DataError
from limbeck.evals.gsm_problems import EXAMPLES
from limbeck.evals.prompts import read_lines
from limbeck.spec.data import ChatTexts, Texts
from limbeck.spec.load import load_recipe, load_study
from limbeck.spec.teach_text import Decontamination

SUFFIXES = {".jsonl", ".ndjson", ".json", ".toml", ".txt", ".md"}
PATH_KEYS = {"path", "files", "shots_path", "prompts", "chats", "qa_file"}
"""By which evaluations name the files that they read."""


def eval_texts(spec: Decontamination) -> Iterator[tuple[str, str]]:
    """(source, text) of all evaluation sets of a spec, and of Limbeck's own examples; `DataError` names what is not one."""
    for example in EXAMPLES:
        yield f"gsm, {example.name}", example.question
    for name in spec.files:
        yield from _of_path(Path(name))
    if spec.recipe is not None:
        yield from _heldout(load_recipe(spec.recipe).data.heldout)
    if spec.study is not None:
        yield from _of_study(spec.study)


def _of_study(name: str) -> Iterator[tuple[str, str]]:
    study = load_study(name)
    yield from _heldout(load_recipe(study.recipe, study.settings).data.heldout)
    for each in study.evals.values():
        for key, value in each.model_dump().items():
            if key in PATH_KEYS and value is not None:
                for path in [value] if isinstance(value, str) else value:
                    yield from _of_path(Path(path))


def _heldout(texts: Texts) -> Iterator[tuple[str, str]]:
    if isinstance(texts, ChatTexts):
        for path in matching_files(texts.paths):
            yield from _of_path(Path(path))
        return
    for document in read_documents(texts):
        yield f"held-out document {document.id}", document.text


def _of_path(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{path} holds no evaluation set ({', '.join(sorted(SUFFIXES))})")
        for each in found:
            yield from _of_file(each)
    else:
        yield from _of_file(path)


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is no evaluation set that can be read: name one of {', '.join(sorted(SUFFIXES))}, or a folder")
    if suffix in {".jsonl", ".ndjson"}:
        for name, record in read_lines(path):
            yield from ((name, text) for text in _strings(record))
        return
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if suffix == ".json" else tomllib.loads(text) if suffix == ".toml" else text
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an evaluation set ({error}): repair it, or do not name it") from error
    yield from ((path.name, each) for each in _strings(values))


def _strings(values: Any) -> Iterator[str]:
    """Every string, those that are keys among them: BIG-bench keeps choices there."""
    match values:
        case str():
            yield values
        case dict():
            yield from (key for key in values if isinstance(key, str))
            for each in values.values():
                yield from _strings(each)
        case list():
            for each in values:
                yield from _strings(each)
