"""Chats: messages with roles, channels and traces, read from JSONL and told apart in what a template makes of them.

What a message says is a **body**; so is what an assistant thinks before it speaks, its **trace**. All else that a template
writes (turn markers, role names, a system line) is template. Losses, held-out measures and alignment ask which is which, and a
template does not say. So a chat is rendered a second time with a made-up string of private-use characters in place of each body
(the skeleton); putting the bodies back must give the rendering of the chat itself. Templates that trim white space around
bodies are followed; where a rendering depends on a body in another way, the chat is refused (`UnreadableChat`).

Bodies are numbered within the chat, whatever a template leaves out of them, so that they agree between two templates.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.data.chat_template import render_messages
from limbeck.data.texts import matching_files
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts

TRACE = "analysis"
"""The channel of what an assistant thinks, as GPT-OSS names it."""
ANSWER = "final"
"""The channel of what an assistant says, where the chat names none."""
ASSISTANT = "assistant"
NO_EFFORT = "none"
"""What specs and statistics call the effort of chats that name none."""
_USUAL_EFFORTS = ("low", "medium", "high", NO_EFFORT)


class UnreadableChat(DataError):
    """A chat of which a template makes something whose bodies cannot be told from it."""


@dataclass(frozen=True)
class Message:
    """One message; `thinking` is what its assistant thought before it."""

    role: str
    content: str
    thinking: str | None = None
    channel: str | None = None


@dataclass(frozen=True)
class Body:
    """What a message says or its assistant thinks. `channel` is None for all but assistants, unless the chat names one."""

    number: int
    message: int
    role: str
    channel: str | None
    text: str

    @property
    def name(self) -> str:
        """`role`, or `role.channel`."""
        return self.role if self.channel is None else f"{self.role}.{self.channel}"


@dataclass(frozen=True)
class Chat:
    """A chat. `id` is 32 hexadecimal digits, BLAKE2b-128 of the canonical JSON of messages and effort: of no tokenizer."""

    id: str
    messages: tuple[Message, ...]
    effort: str | None
    source: str
    """The file and line that it is from."""

    @cached_property
    def bodies(self) -> tuple[Body, ...]:
        """What is thought and said, in order."""
        found: list[tuple[int, str, str | None, str]] = []
        for place, message in enumerate(self.messages):
            if message.thinking is not None:
                found.append((place, message.role, TRACE, message.thinking))
            spoken = message.channel or (ANSWER if message.role == ASSISTANT else None)
            found.append((place, message.role, spoken, message.content))
        return tuple(Body(number, *each) for number, each in enumerate(found))


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of a rendered chat that are a body's, as far as the template keeps it."""

    body: Body
    start: int
    stop: int


@dataclass(frozen=True)
class RenderedChat:
    """A chat as a template writes it. `spans` ascend; bodies that the template leaves out have none."""

    chat: Chat
    text: str
    spans: tuple[Span, ...]


def chat(messages: Any, *, effort: str | None = None, source: str = "chat") -> Chat:
    """The chat of a list of mappings with `role`, `content` and perhaps `thinking` and `channel`; `DataError` names `source`.

    A message of channel `analysis` becomes the `thinking` of the assistant's message after it, which is the same chat.
    """
    found = tuple(_folded(_messages(messages, source=source), source=source))
    described = [
        {key: value for key, value in vars(message).items() if value is not None or key == "content"} for message in found
    ]
    canonical = json.dumps({"messages": described, "effort": effort}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    try:
        name = hashlib.blake2b(canonical.encode("utf-8"), digest_size=16).hexdigest()
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: not valid Unicode (half a surrogate pair); repair or drop this chat") from error
    return Chat(name, found, effort, source)


def read_chats(texts: ChatTexts) -> Iterator[Chat]:
    """The chats of the files that have one of the asked efforts, in order, without repeats.

    `DataError` names the line that is no chat; at the end, an effort that `texts` names and no chat has,
    unless it is a usual one.
    """
    seen: set[str] = set()
    efforts: set[str] = set()
    for path in matching_files(texts.paths):
        for source, record in _read_lines(Path(path)):
            effort = record.get(texts.effort_field)
            if effort is not None and not isinstance(effort, str):
                raise DataError(f"{source}: no text in {texts.effort_field!r}; write low, medium or high there")
            if texts.field not in record:
                raise DataError(f"{source}: no field {texts.field!r}; set data.…field to the name of the messages' field")
            found = chat(record[texts.field], effort=effort, source=source)
            efforts.add(effort or NO_EFFORT)
            if found.id not in seen and (texts.efforts is None or (effort or NO_EFFORT) in texts.efforts):
                seen.add(found.id)
                yield found
    _check_efforts(texts, efforts)


def _check_efforts(texts: ChatTexts, found: set[str]) -> None:
    """Refuse a name that has no effect because it is misspelt; the usual ones may stand for what other files hold."""
    for key, names in (("efforts", texts.efforts or ()), ("trace_caps", tuple(texts.trace_caps))):
        unknown = next((name for name in names if name not in found and name not in _USUAL_EFFORTS), None)
        if unknown is not None:
            raise DataError(
                f"{key} names the effort {unknown!r}, which no chat of {', '.join(texts.paths)} has: they have "
                f"{', '.join(sorted(found)) or 'none at all'} in {texts.effort_field!r}; write one of these"
            )


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise DataError(f"{path}: chats are read from .jsonl alone, one a line; write them so, or use kind: files")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            source = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{source}: not UTF-8; convert the file, for example with iconv") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{source}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise DataError(f"{source}: not an object with fields")
            yield source, record


def _messages(messages: Any, *, source: str) -> Iterator[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{source}: no list of messages; each needs `role` and `content`")
    for place, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise DataError(f"{source}, message {place}: not an object with `role` and `content`")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise DataError(f"{source}, message {place}: no `role`; name one (user, assistant, system, …)")
        more = {key: message.get(key) for key in ("thinking", "channel")}
        wrong = [key for key, value in {"content": content or "", **more}.items() if not isinstance(value, str | None)]
        if wrong or (content is None and more["thinking"] is None):
            raise DataError(f"{source}, message {place}: `{(wrong or ['content'])[0]}` is no text; write it as one string")
        yield Message(role, content or "", **more)


def _folded(messages: Iterator[Message], *, source: str) -> Iterator[Message]:
    waiting: Message | None = None
    for message in messages:
        is_trace = message.role == ASSISTANT and message.channel == TRACE
        if waiting is not None:
            if is_trace or message.role != ASSISTANT or message.thinking is not None:
                break
            yield Message(message.role, message.content, waiting.content, message.channel)
            waiting = None
        elif is_trace:
            waiting = message
        else:
            yield message
    if waiting is not None:
        raise DataError(f"{source}: a message of channel {TRACE} has no message of its assistant after it, the answer")


def render(chat: Chat, tokenizer: Tokenizer) -> RenderedChat:
    """The chat by the tokenizer's template, and which of its characters are bodies.

    `UnreadableChat` where bodies cannot be told; `DataError` where there is no template, or it refuses the chat.
    """
    text = render_messages(tokenizer, _given(chat, [body.text for body in chat.bodies]), effort=chat.effort, source=chat.source)
    marks = [_mark(body.number) if body.text else "" for body in chat.bodies]
    skeleton = render_messages(tokenizer, _given(chat, marks), effort=chat.effort, source=chat.source)
    if any(skeleton.count(mark) > 1 for mark in marks if mark):
        raise UnreadableChat(f"{chat.source}: the chat template of {tokenizer.folder} writes a message twice")
    pieces = _MARK.split(skeleton)
    bodies = [chat.bodies[int(digits.translate(_FROM_PRIVATE))] for digits in pieces[1::2]]
    spans = _substituted(pieces[::2], bodies, text=text) or _trimmed(pieces[::2], bodies, text=text)
    if spans is None:
        raise UnreadableChat(
            f"{chat.source}: what the chat template of {tokenizer.folder} makes of this chat depends on what its messages say"
        )
    return RenderedChat(chat, text, spans)


_FIRST_PRIVATE = 0xE000
_TO_PRIVATE = {ord(str(digit)): _FIRST_PRIVATE + digit for digit in range(10)}
_FROM_PRIVATE = {private: digit for digit, private in _TO_PRIVATE.items()}
_OPEN, _CLOSE = chr(_FIRST_PRIVATE + 16), chr(_FIRST_PRIVATE + 17)
_MARK = re.compile(f"{_OPEN}([{chr(_FIRST_PRIVATE)}-{chr(_FIRST_PRIVATE + 9)}]+){_CLOSE}")


def _mark(number: int) -> str:
    """What stands for a body in a skeleton; letters and digits would be at the mercy of templates."""
    return f"{_OPEN}{str(number).translate(_TO_PRIVATE)}{_CLOSE}"


def _given(chat: Chat, bodies: list[str]) -> list[dict[str, str]]:
    """The messages as templates take them, with these bodies. `reasoning_content` is Qwen's name for `thinking`."""
    ready = iter(bodies)
    found = []
    for message in chat.messages:
        given = {"role": message.role}
        if message.thinking is not None:
            given["thinking"] = given["reasoning_content"] = next(ready)
        given["content"] = next(ready)
        if message.channel is not None:
            given["channel"] = message.channel
        found.append(given)
    return found


def _substituted(template: list[str], bodies: list[Body], *, text: str) -> tuple[Span, ...] | None:
    """The spans if the template writes every body as it is."""
    spans, at = [], len(template[0])
    for body, after in zip(bodies, template[1:], strict=True):
        spans.append(Span(body, at, at + len(body.text)))
        at += len(body.text) + len(after)
    found = template[0] + "".join(body.text + after for body, after in zip(bodies, template[1:], strict=True))
    return tuple(spans) if found == text else None


def _trimmed(template: list[str], bodies: list[Body], *, text: str) -> tuple[Span, ...] | None:
    """The spans if the template takes away white space around bodies, and no more."""
    parts = [re.escape(template[0])]
    for body, after in zip(bodies, template[1:], strict=True):
        core = body.text.strip()
        before, behind = body.text[: len(body.text) - len(body.text.lstrip())], body.text[len(body.text.rstrip()) :]
        parts.append(f"({_suffixes(before)}{re.escape(core)}{_prefixes(behind)})" if core else "()")
        parts.append(re.escape(after))
    found = re.fullmatch("".join(parts), text)
    return None if found is None else tuple(Span(body, *found.span(place + 1)) for place, body in enumerate(bodies))


def _suffixes(space: str) -> str:
    """A pattern for what is left of white space that is trimmed from its left."""
    return f"(?:{'|'.join(re.escape(space[start:]) for start in range(len(space) + 1))})"


def _prefixes(space: str) -> str:
    return f"(?:{'|'.join(re.escape(space[:stop]) for stop in range(len(space), -1, -1))})"
