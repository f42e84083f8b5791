"""Near duplicates and passages against plain comparisons of all with all, on sets and lists of words themselves."""

from hypothesis import given
from hypothesis import strategies as st

from limbeck.teach.overlap import NearDuplicates, Passages, words_of

texts = st.lists(st.sampled_from("abcd"), max_size=14).map(" ".join)


def plain_grams(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


@given(st.lists(texts, max_size=12), st.integers(1, 3), st.sampled_from([0.3, 0.5, 2 / 3, 0.8, 1.0]))
def test_near_duplicates_are_those_of_comparing_all_with_all(many: list[str], size: int, similarity: float) -> None:
    near = NearDuplicates(similarity=similarity, words=size)
    kept: list[tuple[str, set[tuple[str, ...]]]] = []
    for index, text in enumerate(many):
        own = plain_grams(text, size)
        alike = [name for name, other in kept if own and len(own & other) >= similarity * len(own | other) - 1e-9]
        assert near.like(str(index), text) == (alike[0] if alike else None)
        if own and not alike:
            kept.append((str(index), own))


@given(st.lists(texts, max_size=6), texts, st.integers(8, 10))
def test_passages_are_found_wherever_they_are(held: list[str], text: str, words: int) -> None:
    found = Passages([(str(index), each) for index, each in enumerate(held)], words=words).found_in(text)
    shared = {
        str(index)
        for index, each in enumerate(held)
        if len(each.split()) >= 8
        and plain_grams(each, min(words, len(each.split()))) & plain_grams(text, min(words, len(each.split())))
    }
    assert (found is None) == (not shared)
    assert found is None or found in shared


def test_words_are_alike_whatever_their_case_and_what_is_between_them() -> None:
    assert words_of("The  STATE\nof: the_union, 3.5!") == ["the", "state", "of", "the_union", "3", "5"]
    assert words_of("東京は big。") == ["東", "京", "は", "big"]


def test_short_texts_count_whole_or_not_at_all() -> None:
    passages = Passages([("nine", "a b c d e f g h i"), ("seven", "one two three four five six seven")], words=13)
    assert (passages.texts, passages.too_short) == (2, 1)
    assert passages.found_in("x A b, c d e f g h i y") == "nine"
    assert passages.found_in("a b c d e f g h x i") is None
    assert passages.found_in("one two three four five six seven") is None
