"""Prompts to continue, and complete chats, from held-out documents and from files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.prepare import prepare_texts
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.evals.chat import chat_text, document_tokens, plain_tokens, require_template
from limbeck.evals.generate import Prompt, decoded
from limbeck.evals.subject import EvalModel
from limbeck.spec.evals.generation import Generation


def prompts_of(model: EvalModel, spec: Generation) -> list[Prompt]:
    """The first `num_prompts` of the file, or of held-out documents in the order of their ids; `DataError` where none is."""
    found = _of_documents(model, spec) if spec.prompts is None else prompts_in(Path(spec.prompts), model.tokenizer)
    if not found:
        raise DataError(
            f"{spec.prompts} holds no prompt"
            if spec.prompts is not None
            else f"no held-out document has more than prompt_tokens={spec.prompt_tokens} tokens: lower it"
        )
    return found[: spec.num_prompts]


def read_chats(path: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Name and messages of every line; `DataError` names the line that has none."""
    for name, record in read_lines(path):
        yield name, messages_of(record, name)


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`line 3` and its record, of a JSONL file; `DataError` says which line is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): name a UTF-8 file with one JSON object a line") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not an object with fields")
        yield f"{path.name}, line {number}", record


def chat_tokens(model: EvalModel, messages: list[dict[str, str]], *, answers: bool) -> NDArray[np.int64]:
    """The ids of a chat by the model's own template."""
    return plain_tokens(model.tokenizer, chat_text(model.tokenizer, messages, answers=answers))


def _of_documents(model: EvalModel, spec: Generation) -> list[Prompt]:
    store = prepare_texts(model.require_heldout(spec.kind), model.tokenizer, title="held-out", loss_on=model.loss_on)
    length = 1 + spec.prompt_tokens
    found = []
    for index in sorted(range(len(store)), key=lambda index: store.ids[index]):
        if store.lengths[index] > length + 1:  # something is left to continue
            tokens = store.document(index)[:length].astype(np.int64)
            found.append(Prompt(store.ids[index], decoded(model, tokens[1:].tolist()), tokens))
    return found


def prompts_in(path: Path, tokenizer: Tokenizer) -> list[Prompt]:
    """Every prompt of a file; `DataError` names the line that holds none."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): name a UTF-8 file with one prompt a line") from error
        texts = {f"{path.name}, line {number}": line for number, line in enumerate(lines, 1) if line.strip()}
        return [Prompt(name, line, document_tokens(tokenizer, line)) for name, line in texts.items()]
    return [_of_record(tokenizer, record, name) for name, record in read_lines(path)]


def _of_record(tokenizer: Tokenizer, record: dict[str, Any], name: str) -> Prompt:
    if isinstance(record.get("prompt"), str):
        return Prompt(name, record["prompt"], document_tokens(tokenizer, record["prompt"]))
    messages = messages_of(record, name)
    require_template(tokenizer, remedy="give it prompts with `prompt` in place of `messages`")
    return Prompt(name, messages[-1]["content"], plain_tokens(tokenizer, chat_text(tokenizer, messages, answers=True)))


def messages_of(record: dict[str, Any], name: str) -> list[dict[str, str]]:
    """Of a line of a file; `DataError` where it has none."""
    messages = record.get("messages")
    right = isinstance(messages, list) and messages and all(_is_message(each) for each in messages)
    if not right:
        raise DataError(f"{name}: neither a `prompt` (text) nor `messages` (each with `role` and `content`)")
    return list(messages or [])


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
