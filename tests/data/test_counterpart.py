"""A store's documents in another tokenizer's tokens: the same texts, what is lost counted, kept in the cache."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_chats import THINKING, chat_tokenizer, write_chats
from tiny_tokenizers import GROUPS_OF_THREE, byte_fallback, byte_level
from tokenizers import normalizers

from limbeck.data.alignment import align
from limbeck.data.counterpart import Counterpart, counterpart
from limbeck.data.prepare import prepare_texts, prepare_training
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts, FileTexts, MixedTexts

TEXTS = ["the law of the people", "12345 é 🎉\r\n  the", "<s> literal </s><eos>", "  led by spaces\t", "漢字e\u0301"]
DECOMPOSED = "cafe\u0301 of the people"


@pytest.fixture
def student(tmp_path: Path) -> Tokenizer:
    return byte_level(tmp_path / "student", vocab_size=320, pattern=GROUPS_OF_THREE)


@pytest.fixture
def teacher(tmp_path: Path) -> Tokenizer:
    return byte_fallback(tmp_path / "teacher")


def stored(folder: Path, texts: list[str], tokenizer: Tokenizer) -> tuple[FileTexts, TokenStore]:
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:02d}.txt").write_bytes(text.encode())
    found = FileTexts(paths=(f"{folder}/*.txt",))
    return found, prepare_texts(found, tokenizer, title="training")


def test_it_holds_the_same_documents_as_the_teacher_writes_them(
    tmp_path: Path, student: Tokenizer, teacher: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, store = stored(tmp_path / "texts", TEXTS, student)
    found = counterpart(store, texts=texts, student=student, teacher=teacher)
    assert found.tokens.ids == store.ids
    assert found.lost == 0
    assert "lost" not in capsys.readouterr().err
    # Files are read with universal newlines, so `\r\n` has become `\n` in the store and its counterpart alike.
    for index, text in enumerate(TEXTS):
        expected = teacher.encode([text.replace("\r\n", "\n")])[0]
        assert np.array_equal(found.tokens.document(index), expected)
        direct = align(store.document(index), expected, student=found.student, teacher=found.teacher)
        assert np.array_equal(found.alignment(index).student_ends_C, direct.student_ends_C)
        assert len(direct) > 1


def test_documents_that_a_tokenizer_changes_are_counted_and_have_no_chunks(
    tmp_path: Path, student: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    composing = byte_level(tmp_path / "nfc", vocab_size=300, normalizer=normalizers.NFC())
    many = [f"the law {index}" for index in range(12)]
    texts, store = stored(tmp_path / "texts", [DECOMPOSED, *many], student)
    for own, other in ((student, composing), (composing, student)):
        _, store = stored(tmp_path / f"texts-{own.size}", [DECOMPOSED, *many], own)
        found = counterpart(store, texts=texts, student=own, teacher=other)
        assert found.lost == 1
        assert np.flatnonzero(found.lost_N).tolist() == [0]
        assert len(found.alignment(0)) == 0
        assert len(found.alignment(1)) > 1
        told = capsys.readouterr().err
        assert f"1 of 13 documents (first: {store.ids[0]}) are changed by the tokenizer of" in told
        again = counterpart(store, texts=texts, student=own, teacher=other)  # from the cache
        assert again.tokens.path == found.tokens.path
        assert again.lost == 1


def test_a_pair_that_loses_more_than_a_tenth_is_refused(tmp_path: Path, student: Tokenizer) -> None:
    composing = byte_level(tmp_path / "nfc", vocab_size=300, normalizer=normalizers.NFC())
    texts, store = stored(tmp_path / "texts", [DECOMPOSED, "the law", "the people"], student)
    with pytest.raises(DataError, match=rf"1 of 3 documents \(first: {store.ids[0]}\).*normalise the texts first"):
        counterpart(store, texts=texts, student=student, teacher=composing)


def test_a_literal_space_mark_is_lost_to_a_tokenizer_that_writes_spaces_so(
    tmp_path: Path, student: Tokenizer, teacher: Tokenizer
) -> None:
    many = [f"the law {index}" for index in range(12)]
    texts, store = stored(tmp_path / "texts", ["a▁b", *many], student)
    assert counterpart(store, texts=texts, student=student, teacher=teacher).lost == 1


def test_a_pair_has_a_counterpart_of_its_own(tmp_path: Path, student: Tokenizer, teacher: Tokenizer) -> None:
    texts, store = stored(tmp_path / "texts", TEXTS, student)
    found = counterpart(store, texts=texts, student=student, teacher=teacher)
    own = counterpart(store, texts=texts, student=student, teacher=student)
    assert own.tokens.path != found.tokens.path
    assert np.array_equal(own.tokens.tokens, store.tokens)


def test_a_text_of_which_nothing_is_left_on_either_side_is_lost(tmp_path: Path) -> None:
    dropping = [
        byte_level(tmp_path / name, vocab_size=size, normalizer=normalizers.Replace("\u200b", ""))
        for name, size in (("student", 300), ("teacher", 310))
    ]
    texts, store = stored(tmp_path / "texts", ["\u200b\u200b", *(f"the law {index}" for index in range(12))], dropping[0])
    assert counterpart(store, texts=texts, student=dropping[0], teacher=dropping[1]).lost_N.tolist() == [True] + [False] * 12


TRIMMING = (
    "{% for message in messages %}{{ '<|s|>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    "{% if message.thinking %}{{ '<think>\\n' + message.thinking + '\\n</think>\\n' }}{% endif %}"
    "{{ message.content | trim + '<|t|>\\n' }}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "\n the law of 12345?  "},
    {"role": "assistant", "content": "peace é 🎉", "thinking": "of the people."},
    {"role": "user", "content": "and the state"},
    {"role": "assistant", "content": " 99 "},
]


def chatting(tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    """A student that begins documents with <|im_start|> and ends them with <|im_end|>, and a teacher that trims."""
    byte_level(tmp_path / "plain", vocab_size=330, pattern=GROUPS_OF_THREE)
    student = chat_tokenizer(tmp_path / "plain", tmp_path / "student", template=THINKING)
    byte_level(tmp_path / "other", vocab_size=420)
    special = ("<|b|>", "<|e|>", "<|s|>", "<|t|>")
    return student, chat_tokenizer(tmp_path / "other", tmp_path / "teacher", special=special, template=TRIMMING)


def chunk_texts(found: Counterpart, store: TokenStore, index: int) -> list[tuple[bytes, bytes]]:
    """What each chunk's tokens spell on the student's side and on the teacher's."""
    own, other, chunks = store.document(index), found.tokens.document(index), found.alignment(index)
    spans = zip(*(column.tolist() for column in vars(chunks).values()), strict=True)
    return [(found.student.text_bytes(own[a:b]), found.teacher.text_bytes(other[c:d])) for a, b, c, d in spans]


def test_chats_are_written_by_the_teachers_template_and_aligned_by_messages(tmp_path: Path) -> None:
    student, teacher = chatting(tmp_path)
    many = [[{"role": "user", "content": f"law {index}"}] for index in range(10)]
    file = write_chats(tmp_path / "chats.jsonl", {"messages": TALK}, *({"messages": each} for each in many))
    texts = ChatTexts(paths=(str(file),))
    store = prepare_texts(texts, student, title="training", loss_on=["assistant"])
    found = counterpart(store, texts=texts, student=student, teacher=teacher)
    assert found.lost == 0
    assert found.tokens.ids == store.ids
    written = teacher.backend.decode(found.tokens.document(0)[1:-1].tolist())
    assert written.startswith(
        "<|s|>user\nthe law of 12345?<|t|>\n<|s|>model\n<think>\nof the people.\n</think>\npeace é 🎉<|t|>"
    )
    chunks = chunk_texts(found, store, 0)
    ends = [place for place, chunk in enumerate(chunks) if chunk == (b"<|im_end|>", b"<|t|>")]
    assert len(ends) == 4  # one each message, the last of which ends the student's document, too
    assert ends[-1] == len(chunks) - 1
    said = [b"".join(own for own, _ in chunks[first:last]) for first, last in pairwise([0, *ends])]
    assert said[0].strip() == b"the law of 12345?" or said[0].endswith(b"law of 12345?")
    assert b"peace \xc3\xa9 \xf0\x9f\x8e\x89" in said[1]
    assert [b"think" in one for one in said] == [False] * 4  # the template's words are in no chunk
    for own, other in chunks:
        assert own == other or (own, other) == (b"<|im_end|>", b"<|t|>")


def test_a_chat_that_the_teachers_template_has_no_form_for_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = chatting(tmp_path)
    spelling = [{"role": "user", "content": "what is <|t|>?"}]  # a special token of the teacher's alone
    many = [[{"role": "user", "content": f"law {index}"}] for index in range(10)]
    file = write_chats(tmp_path / "chats.jsonl", *({"messages": each} for each in (many[0], spelling, *many[1:])))
    texts = ChatTexts(paths=(str(file),))
    store = prepare_texts(texts, student, title="training")
    found = counterpart(store, texts=texts, student=student, teacher=teacher)
    assert np.flatnonzero(found.lost_N).tolist() == [1]
    assert len(found.alignment(1)) == 0
    assert "1 of 11 documents" in capsys.readouterr().err


def test_a_mixture_has_the_counterparts_of_its_parts(tmp_path: Path) -> None:
    student, teacher = chatting(tmp_path)
    file = write_chats(tmp_path / "chats.jsonl", {"messages": TALK})
    plain, _ = stored(tmp_path / "texts", TEXTS, student)
    texts = MixedTexts.model_validate(
        {
            "parts": {
                "books": {"share": 0.5, "texts": plain.model_dump()},
                "chats": {"share": 0.5, "texts": ChatTexts(paths=(str(file),)).model_dump()},
            }
        }
    )
    store = prepare_training(texts, student, exclude=None, loss_on=None)
    found = counterpart(store, texts=texts, student=student, teacher=teacher)
    assert found.tokens.ids == store.ids
    assert found.lost == 0
    assert len(store) == len(TEXTS) + 1
    assert (b"<|im_end|>", b"<|t|>") in chunk_texts(found, store, len(TEXTS))
    assert b"".join(own for own, _ in chunk_texts(found, store, 0)[:-1]) == TEXTS[0].encode()
