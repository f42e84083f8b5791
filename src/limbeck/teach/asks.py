"""What a teacher is asked: every prompt at every effort as often as there are samples, in groups that never change.

A group is drawn at once, from a random state of its own. Groups follow from the prompts and the spec alone, so that a command
that was killed draws what was missing, as it would have been drawn.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, SpecError
from limbeck.evals.chat import chat_text, document_tokens, plain_tokens, require_template
from limbeck.evals.generate import Prompt, batches_of
from limbeck.evals.prompts import messages_of, read_lines
from limbeck.spec.on_policy import TransformersEngine
from limbeck.spec.teach_text import TeachText

SERVER_GROUP = 64
"""Prompts of one request: a server batches them as it likes."""
PLAIN_SUFFIX = ".txt"
Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Asked:
    """A line of the file of prompts."""

    source: str
    """`prompts.jsonl, line 3`."""
    number: int
    """Among the prompts, from 1."""
    messages: Messages | None
    """None of a text to go on with."""
    text: str
    """That text, or the last message."""


@dataclass(frozen=True)
class Ask:
    """One completion that is to be drawn."""

    asked: Asked
    effort: str | None
    sample: int
    """Of those of the same prompt and effort, from 0."""
    prompt: Prompt

    @property
    def name(self) -> str:
        """Of no other ask: `prompt 3, low, sample 0`."""
        parts = [f"prompt {self.asked.number}", self.effort, f"sample {self.sample}"]
        return ", ".join(part for part in parts if part is not None)


@dataclass(frozen=True)
class Group:
    """Asks of one effort that are drawn at once."""

    number: int
    effort: str | None
    asks: tuple[Ask, ...]


def read_prompts(path: Path) -> list[Asked]:
    """The prompts of a file: chats, or texts to go on with; `DataError` names the line that is neither, or not as the first."""
    if path.suffix == PLAIN_SUFFIX:
        raise DataError(f"{path}: name a .jsonl file with `messages` or `prompt` in every line")
    found = [_asked(record, name, number) for number, (name, record) in enumerate(read_lines(path), 1)]
    if not found:
        raise DataError(f"{path} holds no prompt")
    odd = next((each for each in found if (each.messages is None) != (found[0].messages is None)), None)
    if odd is not None:
        raise DataError(f"{odd.source}: some lines have `messages` and others `prompt`; split them into two files")
    return found


def _asked(record: dict[str, Any], source: str, number: int) -> Asked:
    if "messages" not in record and isinstance(record.get("prompt"), str):
        return Asked(source, number, None, record["prompt"])
    messages = messages_of(record, source)
    while messages and messages[-1]["role"] == "assistant":  # a trace may be a message of its own before the answer
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{source}: nothing is asked: there is no message before the assistant's")
    return Asked(source, number, tuple(messages), messages[-1]["content"])


def digest(prompts: Sequence[Asked]) -> str:
    """What tells these prompts from any others."""
    read = json.dumps([[each.messages, each.text] for each in prompts], sort_keys=True)
    return hashlib.sha256(read.encode()).hexdigest()[:32]


def groups_of(spec: TeachText, prompts: Sequence[Asked], tokenizer: Tokenizer, *, padded: bool) -> list[Group]:
    """Everything that is to be drawn; `padded`: whether prompts of different lengths can be read together."""
    size = spec.engine.batch_size if isinstance(spec.engine, TransformersEngine) else SERVER_GROUP
    found: list[Group] = []
    for effort in spec.efforts or [None]:
        asks = [
            Ask(asked, effort, sample, prompt)
            for asked in prompts
            for prompt in [_prompt(spec, asked, effort, tokenizer)]
            for sample in range(spec.samples)
        ]
        for rows in batches_of([ask.prompt for ask in asks], size=size, padded=padded):
            found.append(Group(len(found), effort, tuple(asks[row] for row in rows)))
    return found


def require_askable(spec: TeachText, prompts: Sequence[Asked], tokenizer: Tokenizer) -> None:
    """`DataError` where a chat has no template, `SpecError` where efforts are asked for that nothing tells apart."""
    if prompts[0].messages is None:
        if spec.efforts:
            raise SpecError(
                f"{prompts[0].source} is a text, of which no effort can be asked: remove efforts, or give `messages`"
            )
        return
    require_template(tokenizer, remedy="give it prompts with `prompt` in place of `messages`")
    rendered: dict[str, str] = {}
    for effort in spec.efforts:
        text = _rendered(spec, prompts[0], effort, tokenizer)
        if text in rendered:
            raise SpecError(
                f"the chat template of {tokenizer.folder} does not tell efforts {rendered[text]} and {effort} apart: set "
                f"efforts.{effort}.system, or efforts.{effort}.template as it knows them"
            )
        rendered[text] = effort


def asked_messages(spec: TeachText, asked: Asked, effort: str | None) -> list[Mapping[str, Any]]:
    """The messages of a chat that are shown to the teacher."""
    messages = list(asked.messages or ())
    system = spec.efforts[effort].system if effort is not None else None
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{system}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def _rendered(spec: TeachText, asked: Asked, effort: str | None, tokenizer: Tokenizer) -> str:
    told = {"reasoning_effort": effort, **spec.efforts[effort].template} if effort is not None else {}
    return chat_text(tokenizer, asked_messages(spec, asked, effort), answers=True, **told)


def _prompt(spec: TeachText, asked: Asked, effort: str | None, tokenizer: Tokenizer) -> Prompt:
    if asked.messages is None:
        return Prompt(asked.source, asked.text, document_tokens(tokenizer, asked.text))
    text = _rendered(spec, asked, effort, tokenizer)
    return Prompt(asked.source, text, np.asarray(plain_tokens(tokenizer, text)))
