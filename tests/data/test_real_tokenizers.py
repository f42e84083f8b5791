"""The tokenizers of GPT-OSS (o200k_harmony), OLMo's family (cl100k_base) and SmolLM2, from packages: ids, special tokens,
digits, and how each aligns with the others.

The ranks of the encodings lie in the package litellm, of which nothing else is used; tiktoken itself says which ids are right.
"""

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.alignment import align
from limbeck.data.pair_statistics import digits_of, pair_statistics, sample_texts
from limbeck.data.token_bytes import token_bytes
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.gguf_folder import converted, smollm2_in_package
from limbeck.testing.tiktoken_tokenizer import in_oniguruma, save_tiktoken

pytestmark = pytest.mark.quickstart_inputs
HARMONY = {
    "<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003, "<|channel|>": 200005,
    "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
}  # fmt: skip
"""As the code of gpt-oss has them (gpt_oss/tokenizer.py)."""
RUNS = st.builds(
    lambda part, times: part * times, st.sampled_from([*"=-_ .\n\ta1é7漢🎉'", "\r\n", " the", "'s", "ab"]), st.integers(1, 20)
)
HARD = st.lists(RUNS | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8).map("".join)


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`encodings(name)`: the encoding of tiktoken, whose ranks are read from the package litellm."""
    package = importlib.util.find_spec("litellm")
    assert package is not None and package.submodule_search_locations, "pip install --no-deps litellm==1.109.1"
    ranks = Path(package.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    folder = tmp_path_factory.mktemp("ranks")
    for file in ranks.iterdir():
        (folder / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        import tiktoken

        yield cache(tiktoken.get_encoding)


@pytest.fixture(scope="module")
def cl100k(encodings: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return save_tiktoken(encodings("cl100k_base"), tmp_path_factory.mktemp("cl100k"))


@pytest.fixture(scope="module")
def o200k(encodings: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("o200k")
    return save_tiktoken(encodings("o200k_harmony"), folder, end="<|return|>", start="<|startoftext|>")


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    packaged = smollm2_in_package()
    assert packaged is not None
    return load_tokenizer(str(converted(packaged).folder))


def require_equal_ids(tokenizer: Tokenizer, encoding: Any, text: str) -> None:
    ids = tokenizer.encode([text])[0][1:-1].tolist()
    assert ids == encoding.encode(text, allowed_special="all")
    assert token_bytes(tokenizer).text_bytes(ids) == text.encode()


def require_tiktokens_ids(tokenizer: Tokenizer, encoding: Any) -> None:
    """On prose, code, mathematics and hard texts; every token's bytes, every special token's id."""
    for texts in sample_texts().values():
        for text in texts:
            require_equal_ids(tokenizer, encoding, text)
            assert tokenizer.backend.decode(tokenizer.encode([text])[0][1:-1].tolist()) == text

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(text=HARD)
    def on_hard_texts(text: str) -> None:
        require_equal_ids(tokenizer, encoding, text)

    on_hard_texts()
    found = token_bytes(tokenizer)
    special = {name: index for name, index in encoding._special_tokens.items() if "reserved" not in name}
    assert {name: tokenizer.backend.convert_tokens_to_ids(name) for name in special} == special
    of_text = np.flatnonzero(~found.special_V).tolist()
    assert len(of_text) == len(encoding._mergeable_ranks)
    assert all(found.content[index] == encoding.decode_single_token_bytes(index) for index in of_text)
    assert len(found.content) == tokenizer.size == encoding.n_vocab


def require_groups_of_three(tokenizer: Tokenizer) -> None:
    assert digits_of(tokenizer).manner == "groups of up to 3, from the left"
    ids = tokenizer.encode(["x = 1234567890, 42"])[0][1:-1].tolist()
    spelled = [token_bytes(tokenizer).spelled[index] for index in ids]
    assert spelled == [b"x", b" =", b" ", b"123", b"456", b"789", b"0", b",", b" ", b"42"]


def require_alignment(student: Tokenizer, teacher: Tokenizer) -> None:
    of_student, of_teacher = token_bytes(student), token_bytes(teacher)
    for text in (text for texts in sample_texts().values() for text in texts):
        own, other = student.encode([text])[0], teacher.encode([text])[0]
        chunks = align(own, other, student=of_student, teacher=of_teacher)
        spans = np.stack(list(vars(chunks).values()), axis=1).tolist()
        spelled = [of_student.text_bytes(own[a:b].tolist()) for a, b, _, _ in spans[:-1]]
        assert spelled == [of_teacher.text_bytes(other[c:d].tolist()) for _, _, c, d in spans[:-1]]
        assert b"".join(spelled) == text.encode()
        assert all(before[1::2] == after[0::2] for before, after in pairwise(spans))


def test_a_possessive_repetition_is_an_atomic_group_to_oniguruma() -> None:
    assert in_oniguruma(r"\p{N}{1,3}+|[^\s\p{L}]++[\r\n]*+") == r"(?>\p{N}{1,3})|[^\s\p{L}]++[\r\n]*+"
    assert in_oniguruma(r"\p{N}{1,3}| ?x{2,}+") == r"\p{N}{1,3}| ?(?>x{2,})"


def test_cl100k_is_tiktokens(cl100k: Tokenizer, encodings: Any) -> None:
    require_tiktokens_ids(cl100k, encodings("cl100k_base"))
    require_groups_of_three(cl100k)


@pytest.mark.slow
def test_o200k_harmony_is_tiktokens_and_has_gpt_osss_special_tokens(o200k: Tokenizer, encodings: Any) -> None:
    require_tiktokens_ids(o200k, encodings("o200k_harmony"))
    require_groups_of_three(o200k)
    assert {name: o200k.backend.convert_tokens_to_ids(name) for name in HARMONY} == HARMONY
    assert (o200k.start_id, o200k.end_id, token_bytes(o200k).end_of_turn_id) == (199998, 200002, 200007)
    assert o200k.size == 201088
    text = "<|start|>assistant<|channel|>final<|message|>The answer is 42.<|return|>"
    ids = o200k.encode([text])[0][1:-1].tolist()
    assert [ids[0], ids[2], ids[4], ids[-1]] == [200006, 200005, 200008, 200002]


@pytest.mark.slow
def test_the_three_align_with_each_other(cl100k: Tokenizer, o200k: Tokenizer, smollm2: Tokenizer) -> None:
    for student, teacher in ((cl100k, o200k), (o200k, smollm2), (smollm2, cl100k)):
        require_alignment(student, teacher)
    alike = pair_statistics({}, student=cl100k, teacher=o200k)
    assert alike.numerals_alike == 1
    assert "gold compares equal tokens safely" in alike.verdict
    unlike = pair_statistics({}, student=smollm2, teacher=o200k)
    assert unlike.numerals_alike == 0
    assert unlike.student_digits.manner == "one by one"
    assert "projected_kl rather than gold" in unlike.verdict
