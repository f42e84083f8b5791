"""What a template makes of a chat, and which of its characters are bodies: against strings written by hand."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chats import CHATML, HARMONY_TOKENS, THINKING, chat_tokenizer, messages, write_chats

from limbeck.data.chat_template import invitation, with_chat_template
from limbeck.data.chats import UnreadableChat, chat, read_chats, render
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts

TALK = messages(
    ("system", "Be brief."),
    ("user", "What is 2+2?"),
    ("assistant", "4", "easy"),
    ("user", "And 3+3?\n"),
    ("assistant", "6 ", "also easy"),
)


@pytest.fixture(scope="module")
def chatml(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return chat_tokenizer(teacher_folder, tmp_path_factory.mktemp("chatml"))


@pytest.fixture(scope="module")
def harmony(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    bare = chat_tokenizer(teacher_folder, tmp_path_factory.mktemp("harmony"), special=HARMONY_TOKENS, template=None)
    return with_chat_template(bare, "harmony")


def templated(tokenizer: Tokenizer, template: str, tmp_path: Path) -> Tokenizer:
    path = tmp_path / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return with_chat_template(tokenizer, str(path))


def said(tokenizer: Tokenizer, talk: list[dict[str, str]], **more: Any) -> list[tuple[int, str, str | None, str]]:
    """Of each span: number, role, channel, and what its characters are."""
    found = render(chat(talk, **more), tokenizer)
    return [(s.body.number, s.body.role, s.body.channel, found.text[s.start : s.stop]) for s in found.spans]


def test_chatml_by_hand(chatml: Tokenizer) -> None:
    found = render(chat(TALK), chatml)
    assert found.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nAnd 3+3?\n<|im_end|>\n<|im_start|>assistant\n6 <|im_end|>\n"
    )
    # The template knows no traces: bodies 2 and 5 are left out, and the others keep their numbers.
    assert said(chatml, TALK) == [
        (0, "system", None, "Be brief."),
        (1, "user", None, "What is 2+2?"),
        (3, "assistant", "final", "4"),
        (4, "user", None, "And 3+3?\n"),
        (6, "assistant", "final", "6 "),
    ]


def test_harmony_by_hand(harmony: Tokenizer) -> None:
    """The tokens of this text are those that openai_harmony 0.0.8 renders for training of the same conversation."""
    assert render(chat(TALK, effort="high"), harmony).text == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\n"
        "Reasoning: high\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>What is 2+2?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|end|><|start|>user<|message|>And 3+3?\n<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>also easy<|end|>"
        "<|start|>assistant<|channel|>final<|message|>6 <|return|>"
    )
    assert [number for number, *_ in said(harmony, TALK)] == [0, 1, 3, 4, 5, 6]
    assert "Reasoning: medium\n" in render(chat(TALK), harmony).text
    assert invitation(harmony) == "<|start|>assistant"


def test_harmony_refuses_what_it_has_no_form_for(harmony: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"chats\.jsonl, line 3: the chat template of .* refuses it \(user, tool\): role tool"):
        render(chat(messages(("user", "a"), ("tool", "b")), source="chats.jsonl, line 3"), harmony)
    with pytest.raises(DataError, match="reasoning effort must be low, medium or high, not huge"):
        render(chat(TALK, effort="huge"), harmony)


def test_a_template_that_trims_is_followed(chatml: Tokenizer, tmp_path: Path) -> None:
    trimming = templated(chatml, CHATML.replace("message.content", "message.content | trim"), tmp_path)
    talk = messages(("user", " \n a (b)* \\ \t"), ("assistant", "\n\n"), ("user", "c"))
    assert [text for *_, text in said(trimming, talk)] == ["a (b)* \\", "", "c"]


def test_a_template_that_looks_into_messages_is_refused(chatml: Tokenizer, tmp_path: Path) -> None:
    shouting = templated(chatml, CHATML.replace("message.content", "message.content | upper"), tmp_path)
    assert [text for *_, text in said(shouting, messages(("user", "ABC")))] == ["ABC"]
    with pytest.raises(UnreadableChat, match="depends on what its messages say"):
        render(chat(messages(("user", "Abc"))), shouting)
    twice = templated(chatml, CHATML.replace("message.content", "message.content + message.content"), tmp_path)
    with pytest.raises(UnreadableChat, match="writes a message twice"):
        render(chat(messages(("user", "Abc"))), twice)


_MESSAGE = st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=12), st.text(max_size=5))


@given(st.lists(_MESSAGE, min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_bodies_are_found_whatever_they_say(chatml: Tokenizer, said_by: list[tuple[str, str, str]]) -> None:
    """In a template that writes messages as they are, spans are the texts of the chat, and what is between is the template."""
    thinking = replace(chatml, backend=copy(chatml.backend))
    thinking.backend.chat_template = THINKING
    found = render(chat(messages(*said_by)), thinking)
    assert [found.text[s.start : s.stop] for s in found.spans] == [body.text for body in found.chat.bodies if body.text]
    between, at = "", 0
    for span in found.spans:
        between, at = between + found.text[at : span.start], span.stop
    thought = "<think>\n\n</think>\n\n"
    expected = "".join(f"<|im_start|>{role}\n{thought if trace else ''}<|im_end|>\n" for role, _, trace in said_by)
    assert between + found.text[at:] == expected


def test_a_trace_of_its_own_message_is_the_same_chat() -> None:
    apart = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "channel": "analysis", "content": "hm"},
        {"role": "assistant", "content": "a"},
    ]
    one, other = chat(apart), chat(messages(("user", "q"), ("assistant", "a", "hm")))
    assert (one.id, one.messages) == (other.id, other.messages)
    assert [(b.role, b.channel, b.text) for b in one.bodies] == [
        ("user", None, "q"),
        ("assistant", "analysis", "hm"),
        ("assistant", "final", "a"),
    ]
    names = {one.id, chat(apart, effort="low").id, chat(apart[:1]).id, chat(messages(("user", "q"), ("assistant", "a"))).id}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"messages": [{"content": "a"}]}', "message 1: no `role`"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "message 1: `content` is no text"),
        ('{"messages": [{"role": "user"}]}', "message 1: `content` is no text"),
        ('{"messages": [{"role": "user", "content": "a", "thinking": 3}]}', "message 1: `thinking` is no text"),
        ('{"messages": ["a"]}', "message 1: not an object"),
        ('{"messages": []}', "no list of messages"),
        ('{"message": []}', "no field 'messages'; set data.…field"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid Unicode"),
        ('{"messages": [{"role": "user", "content": "a"}], "reasoning_effort": 2}', "no text in 'reasoning_effort'"),
        ('{"messages": [{"role": "assistant", "channel": "analysis", "content": "a"}]}', "has no message of its assistant"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
        (b'{"messages": "\xff"}', "not UTF-8"),
    ],
)
def test_a_malformed_chat_is_named_by_file_and_line(tmp_path: Path, line: str | bytes, why: str) -> None:
    path = write_chats(tmp_path / "a.jsonl", {"messages": messages(("user", "fine"))})
    path.write_bytes(path.read_bytes() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 3") as caught:
        list(read_chats(ChatTexts(paths=(str(path),))))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chats_are_read_once_and_by_effort(tmp_path: Path) -> None:
    said_low = {"messages": messages(("user", "a")), "reasoning_effort": "low"}
    path = write_chats(tmp_path / "a.jsonl", said_low, said_low, {"messages": messages(("user", "a"))})
    efforts = [found.effort for found in read_chats(ChatTexts(paths=(str(path),)))]
    assert efforts == ["low", None]
    assert [found.effort for found in read_chats(ChatTexts(paths=(str(path),), efforts=("low", "high")))] == ["low"]
    assert [found.effort for found in read_chats(ChatTexts(paths=(str(path),), efforts=("none",)))] == [None]
    other = write_chats(tmp_path / "a.txt", said_low)
    with pytest.raises(DataError, match=r"a\.txt: chats are read from \.jsonl alone"):
        list(read_chats(ChatTexts(paths=(str(other),))))


@pytest.mark.parametrize("key", ["efforts", "trace_caps"])
def test_an_effort_that_is_misspelt_is_named(key: str, tmp_path: Path) -> None:
    """Those that chats often have may be missing here: caps are written once for several files."""
    said = [{"messages": messages(("user", "a")), "reasoning_effort": effort} for effort in ("low", "utmost")]
    path = write_chats(tmp_path / "a.jsonl", *said)

    def read(*names: str) -> list[str | None]:
        values = dict.fromkeys(names, 8) if key == "trace_caps" else names
        return [each.effort for each in read_chats(ChatTexts.model_validate({"paths": (str(path),), key: values}))]

    assert read("low", "high", "none", "utmost") == ["low", "utmost"]
    with pytest.raises(
        DataError, match=rf"^{key} names the effort 'hihg', which no chat of .*a\.jsonl has: they have low, utmost"
    ):
        read("low", "hihg")


def test_a_missing_template_is_one_sentence(teacher_folder: Path, tmp_path: Path, chatml: Tokenizer) -> None:
    bare = chat_tokenizer(teacher_folder, tmp_path / "bare", template=None)
    with pytest.raises(DataError, match=r"has no chat template: set data\.chat_template to a Jinja file, or to harmony"):
        render(chat(TALK), bare)
    with pytest.raises(DataError, match=r"data\.chat_template=harmony: .* has no token <\|start\|>"):
        with_chat_template(chatml, "harmony")
    with pytest.raises(DataError, match=r"data\.chat_template=.*nowhere\.jinja cannot be read"):
        with_chat_template(chatml, str(tmp_path / "nowhere.jinja"))
