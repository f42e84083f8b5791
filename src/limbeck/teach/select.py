"""Which of a teacher's completions become training data, and why the others do not.

Nothing is drawn here: this reads what was drawn and writes `completions.jsonl` and `dropped.jsonl` anew, so that it can be
repeated with other settings.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.data.chats import chat
from limbeck.data.tokenizers import Tokenizer
from limbeck.evals.chat import plain_tokens
from limbeck.evals.repetition import terminal_loop
from limbeck.spec.teach_text import TeachText
from limbeck.teach.answers import Answer, answer_of
from limbeck.teach.asks import Ask, asked_messages
from limbeck.teach.overlap import NearDuplicates, Passages
from limbeck.train.rollouts import Continuation

REASONS = ("loop", "truncated", "empty", "special", "not_text", "contaminated", "duplicate", "near_duplicate")
"""In the order in which they are looked for: `special` is a special token in the middle, `not_text` bytes that are no UTF-8."""


@dataclass(frozen=True)
class Chosen:
    """A completion as a line of a file."""

    record: dict[str, Any]
    reason: str | None
    """Why it is left out; None: it is kept."""


class Selection:
    """Looks at completions one after another; what was kept before is what later ones are compared with."""

    def __init__(self, spec: TeachText, tokenizer: Tokenizer, passages: Passages) -> None:
        self.spec, self.tokenizer, self.passages = spec, tokenizer, passages
        self.template = str(getattr(tokenizer.backend, "chat_template", None) or "")
        self.specials = [str(each) for each in tokenizer.backend.added_tokens_decoder.values() if each.special]
        self._seen: dict[str, str] = {}
        self._near: dict[str | None, NearDuplicates] = {}

    def choose(self, ask: Ask, drawn: Continuation, *, place: tuple[int, int]) -> Chosen:
        """What becomes of one completion, which is at a place (group, row) of what was drawn."""
        text = self._decoded(drawn)
        plain = ask.asked.messages is None
        answer = Answer(text) if plain else answer_of(text, template=self.template, prompt=ask.prompt.text)
        record = self._record(ask, drawn, answer) | {"drawn": list(place)}
        reason, about = self._reason(ask, drawn, answer, record)
        return Chosen(record if reason is None else {**record, "reason": reason, "about": about, "written": text}, reason)

    def _reason(
        self, ask: Ask, drawn: Continuation, answer: Answer, record: Mapping[str, Any]
    ) -> tuple[str | None, str | None]:
        """Why it is left out, and the name of what it is like or was found in."""
        both = f"{answer.thinking}\n{answer.content}" if answer.thinking is not None else answer.content
        if not drawn.stopped and terminal_loop(drawn.tokens) is not None:
            return "loop", None
        if not drawn.stopped and self.spec.truncated == "drop":
            return "truncated", None
        if not answer.content.strip():
            return "empty", None
        if any(special in both for special in self.specials):
            return "special", None
        if "\ufffd" in both:
            return "not_text", None
        source = self._contaminated(ask, both)
        if source is not None:
            return "contaminated", source
        return self._alike(ask, both, name=record["id"])

    def _contaminated(self, ask: Ask, answer: str) -> str | None:
        if ask.asked.messages is None:  # one text: what is looked for may begin in the prompt
            return self.passages.found_in(ask.asked.text + answer)
        asked = [message["content"] for message in ask.asked.messages if message["role"] != "system"]
        for text in [*asked, answer]:
            source = self.passages.found_in(text)
            if source is not None:
                return source
        return None

    def _alike(self, ask: Ask, answer: str, *, name: str) -> tuple[str | None, str | None]:
        spec = self.spec.duplicates
        if spec is None:
            return None, None
        asked = [message["content"] for message in ask.asked.messages or ()] or [ask.asked.text]
        same = json.dumps([ask.effort, *(" ".join(each.casefold().split()) for each in [*asked, answer])])
        key = hashlib.blake2b(same.encode(), digest_size=16).hexdigest()
        if key in self._seen:
            return "duplicate", self._seen[key]
        near = self._near.setdefault(ask.effort, NearDuplicates(similarity=spec.similarity, words=spec.words))
        like = near.like(name, answer)
        if like is not None:
            return "near_duplicate", like
        self._seen[key] = name
        return None, None

    def _record(self, ask: Ask, drawn: Continuation, answer: Answer) -> dict[str, Any]:
        record: dict[str, Any] = {"id": ""}
        if ask.asked.messages is None:
            whole = ask.asked.text + answer.content
            record |= {"id": _text_id(whole), "text": whole, "prompt": ask.asked.text}
        else:
            thought = {"thinking": answer.thinking} if answer.thinking is not None else {}
            said = {"role": "assistant", "content": answer.content, **thought}
            asked = asked_messages(self.spec, ask.asked, ask.effort) if self.spec.keep_system else list(ask.asked.messages)
            messages = [*map(dict, asked), said]
            record |= {"id": chat(messages, effort=ask.effort, source=ask.asked.source).id, "messages": messages}
            if ask.effort is not None:
                record["reasoning_effort"] = ask.effort
        return record | {
            "name": ask.name,
            "sample": ask.sample,
            "seed": self.spec.seed,
            "outcome": _outcome(drawn),
            "tokens": len(drawn.tokens),
            "trace_tokens": len(plain_tokens(self.tokenizer, answer.thinking)) if answer.thinking else 0,
            "log_prob_nats": float(f"{sum(drawn.log_probs):.9g}"),
        }

    def _decoded(self, drawn: Continuation) -> str:
        tokens = drawn.tokens[:-1] if drawn.stopped else drawn.tokens
        backend = self.tokenizer.backend
        text: str = backend.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _outcome(drawn: Continuation) -> str:
    if drawn.stopped:
        return "stopped"
    return "truncated" if terminal_loop(drawn.tokens) is None else "loop"


def _text_id(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=16).hexdigest()
