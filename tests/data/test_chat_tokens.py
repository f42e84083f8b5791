"""Chats in tokens: which are whose, which are learnt, how long traces are, what is left out; by hand and by decoding."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_chats import HARMONY_TOKENS, THINKING, chat_tokenizer, messages, write_chats

from limbeck.data.chat_template import with_chat_template
from limbeck.data.chat_tokens import ChatTokens, Left, read_tokens
from limbeck.data.chats import chat
from limbeck.data.prepare import prepare, prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts, Data, FileTexts

TALK = messages(
    ("user", "the état 🙂?"), ("assistant", "péace 漢字", "the wörld"), ("user", "and?"), ("assistant", "war", "hm 🙂")
)


@pytest.fixture(scope="module")
def chatml(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return chat_tokenizer(teacher_folder, tmp_path_factory.mktemp("chatml"), template=THINKING)


@pytest.fixture(scope="module")
def harmony(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    bare = chat_tokenizer(teacher_folder, tmp_path_factory.mktemp("harmony"), special=HARMONY_TOKENS, template=None)
    return with_chat_template(bare, "harmony")


def encoded(tokenizer: Tokenizer, *loss_on: str) -> ChatTokens:
    (found,) = read_tokens([chat(TALK)], tokenizer, texts=None, loss_on=loss_on or None, left=Left())
    return found


def text_of(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    text: str = tokenizer.backend.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


@pytest.mark.parametrize("family", ["chatml", "harmony"])
def test_the_tokens_of_a_body_decode_to_it(family: str, request: pytest.FixtureRequest) -> None:
    """The characters beyond ASCII are several tokens each, whose offsets say little."""
    tokenizer: Tokenizer = request.getfixturevalue(family)
    found = encoded(tokenizer)
    assert found.tokens_T[0] == tokenizer.start_id
    assert found.tokens_T[-1] == tokenizer.end_id
    shown = {body.number for body in found.chat.bodies} - (
        {1} if family == "harmony" else set()
    )  # the earlier trace is dropped
    for body in found.chat.bodies:
        if body.number in shown:
            assert text_of(tokenizer, found.tokens_T[found.bodies_T == body.number]) == body.text
    assert set(found.bodies_T.tolist()) == shown | {-1}
    assert found.num_bytes == sum(len(body.text.encode()) for body in found.chat.bodies if body.number in shown)


@pytest.mark.parametrize(
    ("family", "loss_on", "expected"),
    [
        ("chatml", ("user",), "the état 🙂?<|im_end|>and?<|im_end|>"),
        ("chatml", ("assistant.final",), "\n</think>\n\npéace 漢字<|im_end|>\n</think>\n\nwar<|im_end|>"),
        ("chatml", ("assistant.analysis",), "<think>\nthe wörld<think>\nhm 🙂"),
        ("harmony", ("user",), "the état 🙂?<|end|>and?<|end|>"),
        (
            "harmony",
            ("assistant",),
            "<|channel|>final<|message|>péace 漢字<|end|><|channel|>analysis<|message|>hm 🙂<|end|>"
            "<|start|>assistant<|channel|>final<|message|>war<|return|>",
        ),
        (
            "harmony",
            ("assistant.final",),
            "<|channel|>final<|message|>péace 漢字<|end|><|start|>assistant<|channel|>final<|message|>war<|return|>",
        ),
        ("harmony", ("assistant.analysis",), "<|channel|>analysis<|message|>hm 🙂<|end|>"),
    ],
)
def test_what_counts_is_what_is_named_and_what_opens_and_ends_it(
    family: str, loss_on: tuple[str, ...], expected: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(family)
    found = encoded(tokenizer, *loss_on)
    assert text_of(tokenizer, found.tokens_T[found.counted_T]) == expected
    asked = [b for b in found.chat.bodies if {b.role, f"{b.role}.{b.channel}"} & set(loss_on) and b.number in found.bodies_T]
    assert found.num_bytes == sum(len(body.text.encode()) for body in asked)


def test_all_but_the_first_token_count_where_nothing_is_named(chatml: Tokenizer) -> None:
    found = encoded(chatml)
    assert found.counted_T.tolist() == [False] + [True] * (len(found.tokens_T) - 1)
    assert text_of(chatml, found.tokens_T).startswith("<|im_start|>user\nthe état")  # the template's own start, once
    assert text_of(chatml, found.tokens_T).endswith("war<|im_end|>")  # and its end, without the line feed after it


@pytest.mark.parametrize("trims", [False, True])
def test_tokens_of_spaces_are_of_the_body_that_they_are_in(trims: bool, teacher_folder: Path, tmp_path: Path) -> None:
    """Tokenizers such as SmolLM2's leave spaces out of the characters of a token; what is indented with them is learnt too."""
    from tokenizers import processors

    tokenizer = chat_tokenizer(teacher_folder, tmp_path)
    tokenizer.backend.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims, add_prefix_space=False)
    code = "if x:\n        pass   # y  "
    (found,) = read_tokens(
        [chat(messages(("user", "  q "), ("assistant", code)))], tokenizer, texts=None, loss_on=("assistant",), left=Left()
    )
    for body in found.chat.bodies:
        assert text_of(tokenizer, found.tokens_T[found.bodies_T == body.number]) == body.text
    assert text_of(tokenizer, found.tokens_T[found.counted_T]) == f"{code}<|im_end|>"


def test_starts_and_ends_are_added_where_the_template_has_none(teacher_folder: Path, tmp_path: Path) -> None:
    other = chat_tokenizer(
        teacher_folder, tmp_path, special=("<|a|>", "<|b|>", "<|im_start|>", "<|im_end|>"), template=THINKING
    )
    (found,) = read_tokens([chat(TALK)], other, texts=None, loss_on=("assistant",), left=Left())
    text = text_of(other, found.tokens_T)
    assert (text[:17], text[-17:]) == ("<|a|><|im_start|>", "r<|im_end|>\n<|b|>")
    assert text_of(other, found.tokens_T[found.counted_T]).endswith("war<|im_end|>")


def record(trace: str, effort: str | None, question: str = "q") -> dict[str, object]:
    named = {} if effort is None else {"reasoning_effort": effort}
    return {"messages": messages(("user", question), ("assistant", "a", trace)), **named}


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, list[int]]:
    """A file with traces of 1 to 10 letters q that are no words, a token each: low; and one of high, one without effort."""
    path = write_chats(
        tmp_path / "traces.jsonl", *(record("q" * n, "low") for n in range(1, 11)), record("q" * 50, "high"), record("qq", None)
    )
    return path, list(range(1, 11))


def opened(path: Path, tokenizer: Tokenizer, **more: object) -> TokenStore:
    return prepare_texts(ChatTexts(paths=(str(path),), **more), tokenizer, title="training", loss_on=("assistant",))


def test_traces_longer_than_their_cap_are_left_out_or_alone_taken(
    traces: tuple[Path, list[int]], chatml: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lengths = traces
    dropped = opened(path, chatml, trace_caps={"low": 7, "high": 49})
    about = dropped.about["chats"]
    assert about["left_out"] == {
        "their traces are longer than trace_caps.low=7": 3,
        "their traces are longer than trace_caps.high=49": 1,
    }
    assert "3 left out, since their traces are longer than trace_caps.low=7 (8 kept)" in capsys.readouterr().err
    low = {"chats": 7, "mean": 4.0, "p50": 4.0, "p90": float(np.quantile(lengths[:7], 0.9)), "max": 7}
    assert about["traces"] == {"low": low, "none": {"chats": 1, "mean": 2.0, "p50": 2.0, "p90": 2.0, "max": 2}}
    bucket = opened(path, chatml, trace_caps={"low": 7, "high": 49}, longer="only")
    assert {effort: found["chats"] for effort, found in bucket.about["chats"]["traces"].items()} == {"low": 3, "high": 1}
    whole = opened(path, chatml)
    assert not set(dropped.ids) & set(bucket.ids)
    assert set(dropped.ids) | set(bucket.ids) == set(whole.ids)


def test_what_cannot_be_learnt_is_left_out_and_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    path = write_chats(
        tmp_path / "odd.jsonl",
        record("fine", "low"),
        record("a <|im_end|> of its own", "low"),
        {"messages": messages(("user", "nobody answers"))},
    )
    assert opened(path, chatml).about["chats"]["left_out"] == {
        "they spell out special tokens of the tokenizer": 1,
        "nothing in them is learnt (data.loss_on)": 1,
    }
    with pytest.raises(DataError, match=r"data\.train holds no chat that is kept \(.*1 left out, since they spell"):
        opened(path, chatml, longer="only")


def test_a_trace_that_the_template_leaves_out_is_said_aloud(
    tmp_path: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_chats(tmp_path / "a.jsonl", record("thought", "low"))
    store = opened(path, chat_tokenizer(teacher_folder, tmp_path / "plain"))
    assert store.about["chats"]["traces_unsaid"] == 1
    assert "the chat template leaves out the traces of 1 of 1" in capsys.readouterr().err


def test_a_store_of_chats_holds_what_was_read(traces: tuple[Path, list[int]], chatml: Tokenizer) -> None:
    store = opened(traces[0], chatml)
    chats = [chat(messages(("user", "q"), ("assistant", "a", "q" * n)), effort="low") for n in traces[1]]
    every = {each.chat.id: each for each in read_tokens(chats, chatml, texts=None, loss_on=("assistant",), left=Left())}
    for index, name in enumerate(store.ids):
        if name in every:
            each = every[name]
            assert np.array_equal(store.document(index), each.tokens_T)
            assert np.array_equal(store.bodies(index), each.bodies_T)
            assert np.array_equal(store.counted(index), each.counted_T)
            assert store.bytes_per_document[index] == each.num_bytes
            assert np.array_equal(store.measured(index), each.counted_T & (each.bodies_T >= 0))
    assert store.targets_per_document.tolist() == [int(store.counted(index).sum()) for index in range(len(store))]
    assert store.measured_per_document.tolist() == [int(store.measured(index).sum()) for index in range(len(store))]
    other = prepare_texts(ChatTexts(paths=(str(traces[0]),)), chatml, title="training")
    assert other.path != store.path  # another loss_on


@pytest.mark.parametrize("name", ["asistant.final", "assistant.finale", "usre"])
def test_what_is_learnt_is_no_name_that_nobody_has(
    name: str, traces: tuple[Path, list[int]], tmp_path: Path, chatml: Tokenizer
) -> None:
    """`ipython` is in the training chats alone, and no chat calls a tool."""
    more, kept = tmp_path / "more.jsonl", tmp_path / "kept.jsonl"
    write_chats(more, {"messages": messages(("user", "compute"), ("ipython", "4"), ("assistant", "It is 4."))})
    write_chats(kept, record("q", "low"))
    texts = {"kind": "chats", "paths": [str(traces[0]), str(more)]}
    values = {"train": texts, "heldout": {"kind": "chats", "paths": [str(kept)]}}
    usual = ("assistant.final", "assistant.analysis", "tool", "ipython")
    train, _ = prepare(Data.model_validate({**values, "loss_on": usual}), chatml)
    assert train.chats[0]["bodies"] == {"assistant.analysis": 11, "assistant.final": 12, "ipython": 1, "user": 12}
    with pytest.raises(DataError, match=rf"data\.loss_on names '{name}', which no chat has: they have assistant\.analysis,"):
        prepare(Data.model_validate({**values, "loss_on": (*usual, name)}), chatml)


def test_a_mixture_is_one_store_of_its_parts(traces: tuple[Path, list[int]], tmp_path: Path, chatml: Tokenizer) -> None:
    """A document of two parts is one; a held-out chat is in none."""
    plain, more, kept = tmp_path / "plain.txt", tmp_path / "more.jsonl", tmp_path / "kept.jsonl"
    plain.write_text("the people of the union", encoding="utf-8")
    write_chats(more, record("qq", "low"), record("new", "low"))
    write_chats(kept, record("q", "low"))
    parts = {
        "plain": {"share": 0.25, "texts": {"kind": "files", "paths": [str(plain)]}},
        "chats": {"share": 0.5, "texts": {"kind": "chats", "paths": [str(traces[0])]}},
        "more": {"share": 0.25, "texts": {"kind": "chats", "paths": [str(more)]}},
    }
    values = {"train": {"kind": "mixture", "parts": parts}, "heldout": {"kind": "chats", "paths": [str(kept)]}}
    train, heldout = prepare(Data.model_validate({**values, "loss_on": ["assistant"]}), chatml)
    alone = prepare_texts(FileTexts(paths=(str(plain),)), chatml, title="training", exclude=heldout)
    assert len(train) == 1 + 11 + 1
    assert not set(train.ids) & set(heldout.ids)
    assert Counter(np.concatenate(train.documents_of_parts).tolist()).most_common(2)[0][1] == 2
    assert train.lengths.tolist() == [len(train.document(index)) for index in range(len(train))]
    assert np.array_equal(train.document(0), alone.document(0))
    assert (train.counted(0), train.bodies(0), train.has_masks) == (None, None, True)
    for part, numbers in zip(train.parts, train.documents_of_parts, strict=True):
        for place, number in enumerate(numbers.tolist()):
            assert train.ids[number] == part.ids[place]
            assert np.array_equal(train.document(number), part.document(place))
            assert train.bytes_per_document[number] == part.bytes_per_document[place]
            if part.body_numbers is not None:
                assert np.array_equal(train.counted(number), part.counted(place))
                assert np.array_equal(train.bodies(number), part.bodies(place))
