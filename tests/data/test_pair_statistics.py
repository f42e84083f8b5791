"""Statistics of a pair of tokenizers: shares by hand, digits by tokenizers made to group them so, the verdict."""

from pathlib import Path

import pytest
from tiny_tokenizers import GROUPS_OF_THREE, ONE_BY_ONE, byte_fallback, byte_level
from tokenizers import normalizers

from limbeck.data.counterpart import counterpart
from limbeck.data.pair_statistics import (
    PairStatistics,
    counterpart_statistics,
    digits_of,
    pair_statistics,
    sample_texts,
    text_statistics,
)
from limbeck.data.prepare import prepare_texts
from limbeck.data.tokenizers import Tokenizer
from limbeck.spec.data import FileTexts

FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    thousands = tuple(f"{place:03d}" for place in range(1000)) + tuple(f"{place:02d}" for place in range(100))
    return {
        "learnt": byte_level(folder / "learnt", vocab_size=500),
        "digits": byte_level(folder / "digits", vocab_size=340, pattern=ONE_BY_ONE),
        "threes": with_groups(folder / "threes", GROUPS_OF_THREE, thousands),
        "right": with_groups(folder / "right", FROM_RIGHT, thousands),
        "fallback": byte_fallback(folder / "fallback"),
    }


def with_groups(folder: Path, pattern: str, groups: tuple[str, ...]) -> Tokenizer:
    """Of merges for all groups of two and three digits."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    from limbeck.data.tokenizers import load_tokenizer

    tokens = [
        "<s>",
        "</s>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *sorted(groups, key=lambda group: (len(group), group)),
    ]
    of_two = [tuple(group) for group in groups if len(group) == 2]
    of_three = [parts for group in groups if len(group) == 3 for parts in ((group[:2], group[2]), (group[0], group[1:]))]
    merges = [*of_two, *of_three]
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), words])
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return load_tokenizer(str(folder))


def test_digits_are_described_as_the_tokenizers_were_made(tokenizers: dict[str, Tokenizer]) -> None:
    assert digits_of(tokenizers["digits"]).manner == "one by one"
    assert digits_of(tokenizers["threes"]).manner == "groups of up to 3, from the left"
    assert digits_of(tokenizers["right"]).manner == "groups of up to 3, from the right"
    learnt = digits_of(tokenizers["learnt"])
    assert learnt.manner == f"groups of up to {learnt.longest}, as learnt"
    assert learnt.longest > 1


def test_shares_are_those_of_a_text_counted_by_hand(tokenizers: dict[str, Tokenizer]) -> None:
    # One by one: "," "1" "2" "3" "4" "5" "," "6". Threes: "," "123" "45" "," "6". Common ends after bytes 1, 4, 6, 7, 8.
    found = text_statistics([",12345,6"], student=tokenizers["digits"], teacher=tokenizers["threes"])
    assert (found.documents, found.bytes, found.student_tokens, found.teacher_tokens, found.chunks) == (1, 8, 8, 5, 5)
    assert found.one_to_one == 3 / 5
    assert found.one_to_one_bytes == 3 / 8
    assert set(found.shapes) == {(1, 1, 3 / 5), (3, 1, 1 / 5), (2, 1, 1 / 5)}
    assert (found.numerals, found.numerals_alike) == (1, 0.0)
    again = text_statistics([",12345,6"], student=tokenizers["threes"], teacher=tokenizers["threes"])
    assert (again.one_to_one, again.numerals_alike) == (1.0, 1.0)
    turned = text_statistics([",12345,6"], student=tokenizers["threes"], teacher=tokenizers["digits"])
    assert (turned.one_to_one, turned.one_to_one_bytes, turned.numerals_alike) == (3 / 5, 3 / 8, 0.0)


def test_the_verdict_follows_the_digits(tokenizers: dict[str, Tokenizer]) -> None:
    def of(student: str, teacher: str) -> PairStatistics:
        return pair_statistics({}, student=tokenizers[student], teacher=tokenizers[teacher])

    assert of("digits", "threes").numerals_alike == 0
    assert "projected_kl rather than gold" in of("digits", "threes").verdict
    # From the left and from the right agree on three, six and nine digits, and on two: four of the eight lengths.
    assert of("right", "threes").numerals_alike == 4 / 8
    assert "split 50% of the numerals differently" in of("right", "threes").verdict
    assert "gold compares equal tokens safely" in of("digits", "fallback").verdict
    same = of("threes", "threes")
    assert same.same and same.overlap == 1
    assert "forward_kl" in same.verdict


def test_the_vocabularies_overlap_is_over_the_smaller(tokenizers: dict[str, Tokenizer]) -> None:
    found = pair_statistics({}, student=tokenizers["threes"], teacher=tokenizers["digits"])
    assert (found.student_tokens, found.teacher_tokens) == (256 + 1100, 338)
    numbers = {str(group) for group in tokenizers["digits"].backend.get_vocab()} & {f"{place:02d}" for place in range(100)}
    assert found.equal_tokens == 256 + len(numbers)
    assert found.overlap == found.equal_tokens / 338
    assert found.roles == (("end", "</s>", "</s>"), ("start", "<s>", "<s>"))


def test_a_text_that_one_changes_is_counted_as_lost(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    composing = byte_level(tmp_path / "nfc", vocab_size=300, normalizer=normalizers.NFC())
    found = text_statistics(["cafe\u0301", "the law"], student=tokenizers["digits"], teacher=composing)
    assert (found.documents, found.lost, found.bytes) == (1, 1, 7)


def test_a_stores_statistics_are_those_of_its_texts(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    texts = ["the law 12345", "é 🎉 99 peace"]
    for index, text in enumerate(texts):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    source = FileTexts(paths=(f"{tmp_path}/*.txt",))
    student, teacher = tokenizers["digits"], tokenizers["fallback"]
    store = prepare_texts(source, student, title="training")
    found = counterpart_statistics(counterpart(store, texts=source, student=student, teacher=teacher))
    assert found == text_statistics(texts, student=student, teacher=teacher)


def test_there_are_samples_of_prose_code_and_mathematics() -> None:
    samples = sample_texts()
    assert list(samples) == ["prose", "code", "numbers"]
    assert all(len(text) > 1000 for texts in samples.values() for text in texts)
    assert "def wrap(" in samples["code"][0]
