"""Which completions are kept, by hand: what is written is given, and what becomes of it is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teach_world import TEMPLATE, lines_of, spec_of, write_lines

from limbeck.data.chats import read_chats
from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.generate import Prompt
from limbeck.spec.data import ChatTexts
from limbeck.teach.asks import Ask, Asked
from limbeck.teach.overlap import Passages
from limbeck.teach.select import Chosen, Selection
from limbeck.train.rollouts import Continuation

HELD = "the law of the land is what people make of it year after year"


class Chooser:
    """Chooses among completions of one question, whose text is given; special tokens are written as they are shown."""

    def __init__(self, folder: Path, *, template: str = TEMPLATE, **changes: Any) -> None:
        self.tokenizer = load_tokenizer(str(folder))
        self.tokenizer.backend.chat_template = template
        self.spec = spec_of(folder, "p.jsonl", Path("out"), **changes)
        self.selection = Selection(self.spec, self.tokenizer, Passages([("gsm, line 1", HELD)], words=13))

    def __call__(self, text: str, *, stopped: bool = True, effort: str | None = None, question: str = "why") -> Chosen:
        ids = self.tokenizer.backend(text, add_special_tokens=False)["input_ids"]
        return self.of_tokens([*ids, 302] if stopped else ids, stopped=stopped, effort=effort, question=question)

    def of_tokens(self, ids: list[int], *, stopped: bool = True, effort: str | None = None, question: str = "why") -> Chosen:
        asked = Asked("p.jsonl, line 1", 1, ({"role": "user", "content": question},), question)
        drawn = Continuation(tuple(ids), tuple(-0.5 for _ in ids), stopped)
        ask = Ask(asked, effort, 0, Prompt("p", question, np.array([5])))
        return self.selection.choose(ask, drawn, place=(0, 0))


def test_every_reason_by_hand(chatty: Path) -> None:
    choose = Chooser(chatty)
    said = "because the nation and the union work for peace and for freedom"
    first = choose(said)
    assert first.reason is None
    for text, changes, reason, about in (
        ("of it " * 30, {"stopped": False}, "loop", None),
        ("the energy", {"stopped": False}, None, None),  # kept where truncated=keep
        (" \n", {}, "empty", None),
        ("the<s>energy", {}, "special", None),
        (f"I say: {HELD.upper()}!", {}, "contaminated", "gsm, line 1"),
        ("none", {"question": f"So {HELD}"}, "contaminated", "gsm, line 1"),
        (said.replace(" ", "  ").title(), {}, "duplicate", first.record["id"]),
        (said.replace("because ", ""), {}, "near_duplicate", first.record["id"]),
        (said, {"effort": "high"}, None, None),  # another document
        ("yes", {}, None, None),
        ("yes", {"question": "who"}, None, None),  # too short to be like another's answer
        ("Yes", {"question": "Who"}, "duplicate", None),
    ):
        found = choose(text, **changes)
        assert found.reason == reason, text
        assert reason is None or about is None or found.record["about"] == about
    strict = Chooser(chatty, truncated="drop", duplicates=None)
    assert strict("the energy", stopped=False).reason == "truncated"
    assert [strict(said).reason, strict(said).reason] == [None, None]


def test_a_passage_that_begins_in_a_text_and_ends_in_its_continuation_is_found(chatty: Path) -> None:
    choose = Chooser(chatty)
    words = HELD.split()
    begun, rest = " ".join(words[:7]), " " + " ".join(words[7:])
    ids = choose.tokenizer.backend(rest, add_special_tokens=False)["input_ids"]
    ask = Ask(Asked("p.jsonl, line 1", 1, None, begun), None, 0, Prompt("p", begun, np.array([5])))
    found = choose.selection.choose(ask, Continuation((*ids, 302), (-0.5,) * (len(ids) + 1), True), place=(0, 0))
    assert (found.record["text"], found.reason, found.record["about"]) == (HELD, "contaminated", "gsm, line 1")


def test_bytes_that_are_no_text_are_left_out(chatty: Path) -> None:
    choose = Chooser(chatty)
    half = choose.tokenizer.backend.convert_tokens_to_ids("Ã")  # the first byte of é
    assert choose.of_tokens([half, 302]).reason == "not_text"


THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}"
    "{{ m.content }}<|over|>{% endfor %}"
)


def test_chats_are_read_by_their_ids(chatty: Path, tmp_path: Path) -> None:
    """With trace and effort, by the reader of `data.kind=chats`; the trace is counted in the tokens of its text alone."""
    choose = Chooser(chatty, template=THINKING, efforts={"high": {"system": "Think."}, "low": {}})
    kept = [
        choose("<think>the law of work</think>peace", effort="high"),
        choose("peace", effort="low"),
        choose("war"),
    ]
    assert [each.reason for each in kept] == [None, None, None]
    thought, *others = [each.record for each in kept]
    asked = {"role": "user", "content": "why"}
    assert thought["messages"] == [asked, {"role": "assistant", "content": "peace", "thinking": "the law of work"}]
    assert thought["trace_tokens"] == len(choose.tokenizer.backend("the law of work", add_special_tokens=False)["input_ids"])
    assert [each["trace_tokens"] for each in others] == [0, 0]
    assert thought["log_prob_nats"] == pytest.approx(-0.5 * thought["tokens"])
    path = write_lines(tmp_path / "c.jsonl", [each.record for each in kept])
    found = list(read_chats(ChatTexts(paths=(path,))))
    assert [(each.id, each.effort) for each in found] == [
        (record["id"], record.get("reasoning_effort")) for record in lines_of(tmp_path / "c.jsonl")
    ]
    keeps = Chooser(chatty, keep_system=True, efforts={"high": {"system": "Think."}})
    assert keeps("peace", effort="high").record["messages"][0] == {"role": "system", "content": "Think."}
