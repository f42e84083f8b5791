"""Bytes of tokens and chunks of two tokenizations, over any Unicode, by tokenizers of every kind."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import GROUPS_OF_THREE, ONE_BY_ONE, byte_fallback, byte_level, word_piece
from tokenizers import normalizers

from limbeck.data.alignment import Alignment, align
from limbeck.data.token_bytes import TokenBytes, byte_alphabet, token_bytes
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.data.vocabulary_pair import pieces, vocabulary_pair
from limbeck.errors import DataError

KINDS = ("plain", "threes", "digits", "fallback")
CHAT = ("<|im_start|>", "<|im_end|>")
TRICKY = [
    "🎉",
    "👩‍👩‍👧",
    "e\u0301",
    "é",
    "\r\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "12",
    "34567",
    " the",
    "the",
    " law",
    "<s>",
    "</s>",
    "<eos>",
]
TRICKY += ["<|im_end|>", "<0x41>", "A", "漢字", "\u200b", "\u202e", "\x00", "ﬁ", "\ufeff", "🇩🇪", "Ⅷ", "٣"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "plain": byte_level(folder / "plain", vocab_size=300),
        "threes": byte_level(folder / "threes", vocab_size=420, pattern=GROUPS_OF_THREE, special=CHAT, bos=None),
        "digits": byte_level(folder / "digits", vocab_size=340, pattern=ONE_BY_ONE, eos="<|endoftext|>", bos=None),
        "fallback": byte_fallback(folder / "fallback"),
    }


def texts() -> st.SearchStrategy[str]:
    # Of U+2581 no tokenizer with `▁` for spaces knows that it was none: such a text is lost, not aligned.
    anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=12)
    return st.lists(st.sampled_from(TRICKY) | anything, max_size=12).map("".join)


def aligned(text: str, student: Tokenizer, teacher: Tokenizer) -> tuple[np.ndarray, np.ndarray, Alignment]:
    own, other = student.encode([text])[0], teacher.encode([text])[0]
    return own, other, align(own, other, student=token_bytes(student), teacher=token_bytes(teacher))


def ends_in_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> list[int]:
    """Where the document's text tokens end, from 0, by adding the bytes of one after another."""
    spelled = token_bytes(tokenizer).spelled
    ends = [0]
    for token in tokens[1:-1].tolist():
        ends.append(ends[-1] + len(spelled[token]))
    return ends


@settings(max_examples=150, deadline=None)
@given(text=texts(), pair=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
@example(text="<s> 🎉12345\r\n</s> <|im_end|>", pair=("plain", "fallback"))
def test_chunks_partition_both_sides_and_spell_equal_bytes(
    tokenizers: dict[str, Tokenizer], text: str, pair: tuple[str, str]
) -> None:
    student, teacher = (tokenizers[kind] for kind in pair)
    own, other, found = aligned(text, student, teacher)
    own_ends, other_ends = ends_in_bytes(own, student), ends_in_bytes(other, teacher)
    assert own_ends[-1] == other_ends[-1] == len(text.encode())
    # The chunks are exactly the stretches between common boundaries: a partition of either side, none divisible.
    common = sorted(set(own_ends) & set(other_ends))
    assert len(found) == len(common) - 1 + 1  # and the end token's
    for chunk, (first, last) in enumerate(pairwise(common)):
        for starts, ends, tokens, bounds in (
            (found.student_starts_C, found.student_ends_C, own, own_ends),
            (found.teacher_starts_C, found.teacher_ends_C, other, other_ends),
        ):
            assert (bounds[starts[chunk] - 1], bounds[ends[chunk] - 1]) == (first, last)
            assert starts[chunk] == (1 if chunk == 0 else ends[chunk - 1])
            assert ends[-1] == len(tokens) == starts[-1] + 1
    spelled = [token_bytes(one) for one in (student, teacher)]
    for chunk in range(len(found) - 1):
        of_student = spelled[0].text_bytes(own[found.student_starts_C[chunk] : found.student_ends_C[chunk]].tolist())
        assert of_student == text.encode()[common[chunk] : common[chunk + 1]]
        of_teacher = spelled[1].text_bytes(other[found.teacher_starts_C[chunk] : found.teacher_ends_C[chunk]].tolist())
        assert of_student == of_teacher
    if pair[0] == pair[1]:
        assert np.array_equal(found.student_starts_C, np.arange(1, len(own)))
        assert np.array_equal(found.teacher_starts_C, np.arange(1, len(own)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_bytes_are_what_the_tokenizers_library_decodes_it_to(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    found = token_bytes(tokenizer)
    checked = 0
    for index, content in enumerate(found.content):
        decoded = tokenizer.backend.backend_tokenizer.decode([index], skip_special_tokens=True)
        try:
            assert decoded == content.decode(), index
        except UnicodeDecodeError:
            assert "�" in decoded
        checked += bool(content)
    assert checked > 250
    assert found.content[tokenizer.end_id] == b""
    assert found.special_V[[tokenizer.start_id, tokenizer.end_id]].all()
    assert np.array_equal(found.lengths_V == 0, found.special_V)


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert {character: byte for byte, character in bytes_to_unicode().items()} == byte_alphabet()


def test_a_hand_made_alignment(tokenizers: dict[str, Tokenizer]) -> None:
    own, other, found = aligned("12345", tokenizers["digits"], tokenizers["threes"])
    # One by one: start 1 2 3 4 5 end. Up to three: start 123 45 end, unless these are no tokens.
    assert len(own) == 7
    assert token_bytes(tokenizers["threes"]).text_bytes(other[1:2].tolist()) in (b"1", b"12", b"123")
    assert found.student_ends_C[-2] == 6
    boundary = 1 + len(token_bytes(tokenizers["threes"]).text_bytes(other[1:2].tolist()))
    assert found.student_ends_C[0] == boundary
    assert found.teacher_ends_C[0] == 2


def test_message_bodies_are_aligned_one_by_one_and_what_ends_them_by_role(tokenizers: dict[str, Tokenizer]) -> None:
    student, teacher = tokenizers["threes"], tokenizers["fallback"]
    im_start, im_end = (student.backend.convert_tokens_to_ids(name) for name in CHAT)

    def text(tokenizer: Tokenizer, written: str) -> list[int]:
        return tokenizer.encode([written])[0][1:-1].tolist()

    first, second = [text(student, written) for written in ("the law", "éé 12")]
    label = text(student, "user\n")
    own = np.array([student.start_id, im_start, *label, *first, im_end, *second, im_end, student.end_id])
    bodies = [-1, -1] + [-1] * len(label) + [0] * len(first) + [-1] + [1] * len(second) + [-1, -1]
    theirs = [text(teacher, written) for written in ("the law", "éé 12", "model: ")]
    other = np.array([teacher.start_id, *theirs[0], 1, *theirs[2], *theirs[1], teacher.end_id])
    their_bodies = [-1] + [0] * len(theirs[0]) + [-1] + [-1] * len(theirs[2]) + [1] * len(theirs[1]) + [-1]
    found = align(
        own,
        other,
        student=token_bytes(student),
        teacher=token_bytes(teacher),
        student_bodies=np.array(bodies, dtype=np.int32),
        teacher_bodies=np.array(their_bodies, dtype=np.int32),
    )
    after_first, after_second = 2 + len(label) + len(first), 3 + len(label) + len(first) + len(second)
    assert [after_first, after_second] == [place for place, token in enumerate(own.tolist()) if token == im_end]
    ones = {(s0, t0) for s0, t0 in zip(found.student_starts_C.tolist(), found.teacher_starts_C.tolist(), strict=True)}
    assert (after_first, 1 + len(theirs[0])) in ones
    assert (after_second, len(other) - 1) in ones
    covered = np.concatenate([np.arange(*span) for span in zip(found.student_starts_C, found.student_ends_C, strict=True)])
    expected = [place for place, body in enumerate(bodies) if body >= 0 or place in (after_first, after_second)]
    assert covered.tolist() == expected  # no template token, none twice, ascending


def test_texts_that_differ_are_one_error(tokenizers: dict[str, Tokenizer]) -> None:
    own = tokenizers["plain"].encode(["the law"])[0]
    other = tokenizers["fallback"].encode(["the lax"])[0]
    with pytest.raises(DataError, match=r"differ at byte 6 \('the law' and 'the lax'\)"):
        align(own, other, student=token_bytes(tokenizers["plain"]), teacher=token_bytes(tokenizers["fallback"]))


def test_tokenizers_that_lose_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"WordPiece.*both must be byte-level, or fall back on bytes"):
        token_bytes(word_piece(tmp_path / "wordpiece"))
    lowering = byte_level(tmp_path / "lower", vocab_size=300, normalizer=normalizers.Lowercase())
    with pytest.raises(DataError, match=r"lower do not join to the bytes of a text: it reads ' A  b.*' as ' a  b"):
        token_bytes(lowering)
    spaced = byte_level(tmp_path / "spaced", vocab_size=300, normalizer=normalizers.Prepend(" "))
    with pytest.raises(DataError, match=r"it reads ' A .*' as '  A "):
        token_bytes(spaced)
    byte_level(tmp_path / "led", vocab_size=300)
    path = tmp_path / "led" / "tokenizer.json"
    path.write_text(
        path.read_text(encoding="utf-8")
        .replace('"add_prefix_space":false', '"add_prefix_space": true')
        .replace('"add_prefix_space": false', '"add_prefix_space": true'),
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=r"it reads 'A b' as ' A b'"):
        token_bytes(load_tokenizer(str(tmp_path / "led")))


def test_equal_tokens_are_equal_in_bytes_or_role_and_none_is_taken_twice(tokenizers: dict[str, Tokenizer]) -> None:
    for student in tokenizers.values():
        for teacher in tokenizers.values():
            pair = vocabulary_pair(student, teacher)
            matched = np.flatnonzero(pair.equal_S >= 0)
            assert len(set(pair.equal_S[matched].tolist())) == len(matched)
            assert pair.equal_S[student.end_id] == teacher.end_id
            for index in matched.tolist():
                assert pair.student.content[index] == pair.teacher.content[pair.equal_S[index]]
            of_text = {one for one in pair.student.content if one} & {one for one in pair.teacher.content if one}
            assert len(matched) - len(of_text) == pair.student.special_V[matched].sum()
    same = vocabulary_pair(tokenizers["plain"], tokenizers["plain"]).equal_S
    assert np.array_equal(same, np.arange(300))


def test_a_byte_of_the_fallback_gives_way_to_the_character(tokenizers: dict[str, Tokenizer]) -> None:
    plain, fallback = tokenizers["plain"], tokenizers["fallback"]
    pair = vocabulary_pair(plain, fallback)
    letter, upper = plain.backend.convert_tokens_to_ids("a"), plain.backend.convert_tokens_to_ids("Z")
    assert pair.equal_S[letter] == fallback.backend.convert_tokens_to_ids("a")
    assert pair.equal_S[upper] == fallback.backend.convert_tokens_to_ids("<0x5A>")  # it has no Z


def test_pieces_are_the_teachers_own_writing_of_each_token(tokenizers: dict[str, Tokenizer]) -> None:
    student, teacher = tokenizers["threes"], tokenizers["fallback"]
    offsets, ids = pieces(token_bytes(student), teacher)
    found = token_bytes(student)
    assert offsets.shape == (len(found.content) + 1,)
    empty = 0
    for index, content in enumerate(found.content):
        own = ids[offsets[index] : offsets[index + 1]]
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = ""
        empty += not text
        expected = teacher.backend.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert own.tolist() == expected
    assert empty > 100  # the lone bytes above 0x7F, and the special tokens


def test_a_token_without_bytes_goes_with_the_one_before_it_or_the_first_chunk() -> None:
    """Ids without a token, in a document of ids 0 (start), 3 (nothing), 1 ("a"), 2 ("b"), 4 (end)."""
    content = (b"", b"a", b"b", b"", b"")
    of = TokenBytes(content, content, 0, 4, None, np.array([True, False, False, True, True]), np.zeros(5, dtype=bool))
    found = align(np.array([0, 3, 1, 3, 2, 4]), np.array([0, 3, 1, 2, 4]), student=of, teacher=of)
    assert found.student_starts_C.tolist() == [1, 4, 5]
    assert found.student_ends_C.tolist() == [4, 5, 6]
    assert found.teacher_starts_C.tolist() == [1, 3, 4]
    assert found.teacher_ends_C.tolist() == [3, 4, 5]


def test_of_a_message_white_space_may_differ_and_is_then_in_no_chunk() -> None:
    """Ids 0 (start), 1 "a", 2 " ", 3 newline, 4 (end), 5 "a" with a newline behind it, 6 "bb"."""
    content = (b"", b"a", b" ", b"\n", b"", b"a\n", b"bb")
    of = TokenBytes(content, content, 0, 4, None, np.array([one == b"" for one in content]), np.zeros(7, dtype=bool))

    def spans(own: list[int], other: list[int]) -> list[list[int]]:
        bodies = [np.array([-1, *[0] * (len(each) - 2), -1]) for each in (own, other)]
        arrays = [np.array(each) for each in (own, other)]
        found = align(*arrays, student=of, teacher=of, student_bodies=bodies[0], teacher_bodies=bodies[1])
        return np.stack(list(vars(found).values()), axis=1).tolist()

    # "bba" and a newline, beside "bba" and two spaces: what is behind is not compared, though both have a bound there.
    assert spans([0, 6, 1, 3, 4], [0, 6, 1, 2, 2, 4]) == [[1, 2, 1, 2], [2, 3, 2, 3], [4, 5, 5, 6]]
    # The last letter is in one token with the template's newline: "bb" is a chunk, the letter is in none.
    assert spans([0, 6, 5, 4], [0, 2, 6, 1, 4]) == [[1, 2, 2, 3], [3, 4, 4, 5]]
    with pytest.raises(DataError, match="differ at byte 1"):
        spans([0, 1, 6, 4], [0, 1, 1, 4])
    with pytest.raises(DataError, match="no message in common"):
        align(
            np.array([0, 1, 4]), np.array([0, 1, 4]), student=of, teacher=of,
            student_bodies=np.array([-1, 0, -1]), teacher_bodies=np.array([-1, 1, -1]),
        )  # fmt: skip
