"""What RULER's prompts are made of, read from the user's texts: sentences, words to count, questions over paragraphs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.data.texts import read_documents
from limbeck.errors import DataError
from limbeck.evals.ruler_prompts import ESSAY_TASKS, Material, Question
from limbeck.spec.data import ChatTexts, Texts
from limbeck.spec.evals.long_context import RulerTask

CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer's mean on prose, so that this much text fills a prompt."""


def read_material(tasks: Sequence[RulerTask], *, longest: int, essays: Texts | None, qa_file: str | None) -> Material:
    """The material of these tasks, at prompts of up to `longest` tokens; `DataError` where a file is not what it should be."""
    sentences: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    if essays is not None and ESSAY_TASKS & set(tasks):
        text = _prose(essays, characters=longest * CHARACTERS_PER_TOKEN)
        sentences = tuple(sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence)
        words = tuple(sorted(set(re.findall(r"\b[a-z]{4,12}\b", text))))
    if qa_file is None or "qa" not in tasks:
        return Material(sentences, words)
    paragraphs, questions = _read_squad(Path(qa_file))
    return Material(sentences, words, paragraphs, questions)


def _prose(texts: Texts, *, characters: int) -> str:
    """At least so many characters where there are as many, with every run of white space as one blank."""
    if isinstance(texts, ChatTexts):
        raise DataError("long_context: chats are no essays; name prose with long_context.essays")
    found: list[str] = []
    size = 0
    for document in read_documents(texts):
        found.append(re.sub(r"\s+", " ", document.text).strip())
        size += len(found[-1])
        if size >= characters:
            break
    if not found:
        raise DataError("long_context: the essays are empty; name texts with prose")
    return " ".join(found)


def _read_squad(path: Path) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    """Paragraphs, and the questions that one of them answers; SQuAD 2's impossible questions are left out."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        found = [(paragraph["context"], _questions(paragraph)) for article in articles for paragraph in article["paragraphs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"long_context.qa_file={path} is not SQuAD's JSON ({type(error).__name__}: {error})") from error
    questions = tuple(Question(text, answers, place) for place, (_, asked) in enumerate(found) for text, answers in asked)
    if not questions:
        raise DataError(f"long_context.qa_file={path} holds no question with an answer")
    return tuple(context for context, _ in found), questions


def _questions(paragraph: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    asked = [(each["question"], tuple(answer["text"] for answer in each["answers"])) for each in paragraph["qas"]]
    return [(text, answers) for text, answers in asked if answers]
