"""A store's documents in another tokenizer's tokens: the same texts, what is lost counted, kept in the cache."""

from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import GROUPS_OF_THREE, byte_fallback, byte_level
from tokenizers import normalizers

from limbeck.data.alignment import align
from limbeck.data.counterpart import counterpart
from limbeck.data.token_store import TokenStore, prepare_texts
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import FileTexts

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
