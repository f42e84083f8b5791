"""RULER's prompts, read back from their text alone: what is hidden, how often, how deep, and how long the prompt is."""

import json
import random
import re
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.special import zeta
from tiny_world import prose

from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import DataError
from limbeck.evals.ruler import make, score, tokens_to_generate
from limbeck.evals.ruler_material import read_material
from limbeck.evals.ruler_prompts import Material, Prompt
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.long_context import SYNTHETIC, RulerTask

SENTENCES = tuple(re.split(r"(?<=\.) ", prose(1, 2000)))
WORDS = tuple(sorted({"".join(random.Random(seed).choices("abcdefgh", k=6)) for seed in range(2000)}))
MATERIAL = Material(sentences=SENTENCES, words=WORDS)
NIAH = [task for task in SYNTHETIC if task.startswith("niah")]
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NEEDLE = re.compile(rf"One of the special magic (?:numbers|uuids) for ({UUID}|[a-z]+-[a-z]+) is: ({UUID}|\d{{7}})\.")


@pytest.fixture(scope="module")
def count(teacher_folder: Path) -> Callable[[str], int]:
    tokenizer = load_tokenizer(str(teacher_folder)).backend
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def of_words(text: str) -> int:
    return len(text.split())


def made(task: RulerTask, length: int, index: int = 0, *, seed: int = 0) -> tuple[Prompt, int]:
    """With words for tokens."""
    found = make(task, length, index, seed=seed, material=MATERIAL, count=of_words)
    assert found is not None
    return found


@pytest.mark.parametrize("task", NIAH)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_needle_is_there_once_and_answers_the_question(task: RulerTask, index: int) -> None:
    prompt, _ = made(task, 800, index)
    needles = NEEDLE.findall(prompt.text)
    assert len(set(needles)) == len(needles)
    (asked,) = re.findall(r"\nWhat (?:is|are all) the special magic (?:\w+) for (.*) mentioned", prompt.text)
    keys = re.split(r", and |, ", asked)
    assert len(keys) == (4 if task == "niah_multiquery" else 1)
    found = [value for key in keys for there, value in needles if there == key]
    assert sorted(found) == sorted(prompt.answers)
    assert len(found) == (4 if task in {"niah_multiquery", "niah_multivalue"} else 1)
    others = len(needles) - len(found)
    assert (
        others == 3
        if task == "niah_multikey_1"
        else others > 10
        if task in {"niah_multikey_2", "niah_multikey_3"}
        else others == 0
    )
    left = NEEDLE.findall(prompt.without)
    assert sorted(left) == sorted(set(needles) - {(key, value) for key, value in needles if key in keys})
    is_uuid = re.fullmatch(UUID, prompt.answers[0]) is not None
    assert is_uuid == (task in {"niah_single_3", "niah_multikey_3"})


@pytest.mark.parametrize("task", NIAH)
def test_keys_and_values_never_repeat(task: RulerTask) -> None:
    needles = [needle for index in range(20) for needle in [NEEDLE.findall(made(task, 2000, index)[0].text)]]
    for found in needles:
        keys = [key for key, _ in found]
        assert max(Counter(keys).values()) == (4 if task == "niah_multivalue" else 1)


def test_needles_lie_at_all_depths() -> None:
    depths = [made("niah_single_2", 600, index)[0].depths[0] for index in range(100)]
    assert min(depths) < 0.1
    assert max(depths) > 0.9
    assert sum(depths) / 100 == pytest.approx(0.5, abs=5 * 0.29 / 10)  # five standard errors of a uniform mean
    prompt, _ = made("niah_single_2", 600)
    before = prompt.text.index(f"is: {prompt.answers[0]}.") / len(prompt.text)
    assert before == pytest.approx(prompt.depths[0], abs=0.15)


UNIT = {
    "noise": "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n",
    "essay": max(SENTENCES, key=len) + " ",
    "needle": "One of the special magic numbers for wwwwwwwwww-wwwwwwwwww is: 4444444.\n",
    "uuid": f"One of the special magic uuids for {uuid.UUID(int=0)} is: {uuid.UUID(int=1)}.\n",
    "words": 3 * " 1000. abcdef",
    "coded": 3 * " abcdef",
}
UNIT_OF = dict.fromkeys(SYNTHETIC, "essay") | {
    "niah_single_1": "noise",
    "vt": "noise",
    "niah_multikey_2": "needle",
    "niah_multikey_3": "uuid",
    "cwe": "words",
    "fwe": "coded",
}


@pytest.mark.parametrize("length", [2500, 8192])
@pytest.mark.parametrize("task", SYNTHETIC)
def test_prompts_are_as_long_as_they_may_be(task: RulerTask, length: int, count: Callable[[str], int]) -> None:
    """Prompt and answer fit the length, and what is free is less than a unit of haystack (at most: tokens that join it too)."""
    for index in range(2):
        found = make(task, length, index, seed=3, material=MATERIAL, count=count, guess=40 * index)
        assert found is not None
        free = length - tokens_to_generate(task) - count(found[0].text + found[0].prefix)
        assert 0 <= free <= count(UNIT[UNIT_OF[task]]) + 2


def test_a_length_that_holds_nothing_makes_nothing() -> None:
    assert make("niah_single_1", 150, 0, seed=0, material=MATERIAL, count=of_words) is None


@pytest.mark.parametrize("task", SYNTHETIC)
def test_a_sample_follows_from_its_name(task: RulerTask) -> None:
    assert made(task, 700, 1, seed=5) == made(task, 700, 1, seed=5)
    again = make(task, 700, 1, seed=5, material=MATERIAL, count=of_words, guess=17)
    assert again == made(task, 700, 1, seed=5)
    assert len({made(task, 700, index, seed=seed)[0].text for index in (0, 1) for seed in (5, 6)}) == 4


@pytest.mark.parametrize("task", SYNTHETIC)
def test_the_gold_answer_scores_100_and_silence_0(task: RulerTask) -> None:
    prompt, _ = made(task, 700)
    assert score(prompt.gold, answers=prompt.answers) == 100
    assert score(prompt.gold.upper(), answers=prompt.answers) == 100
    assert score("", answers=prompt.answers) == 0


def test_scores_are_shares_of_the_answers() -> None:
    assert score("it is b, or d", answers=("aa", "b", "cc", "d")) == 50
    assert score("it is b", answers=("aa", "b"), any_answer=True) == 100
    assert score("neither", answers=("aa", "b"), any_answer=True) == 0


def test_variables_resolve_to_the_value() -> None:
    """The assignments, carried out in the order of the text as a program would."""
    for index in range(5):
        prompt, _ = made("vt", 700, index)
        example, text = prompt.text.split("\n\nMemorize", 1)
        (value,) = re.findall(r"assigned the value (\d{5}) in the text above\.$", text)
        memory: dict[str, str] = {}
        for name, other, number in re.findall(r"^VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5})|(\d{5}))$", text, re.MULTILINE):
            memory[name] = number or memory[other]
        assert [name for name, held in memory.items() if held == value] == list(prompt.answers)
        assert len(memory) == 5
        assert "VAR" not in prompt.without.split("\n\nMemorize", 1)[1]
        assert len(set(re.findall(r"VAR ([A-Z]{3}) =", example))) == 5


@pytest.mark.parametrize(("length", "common", "uncommon"), [(1000, 6, 1), (4096, 30, 3)])
def test_common_words_are_the_most_frequent(length: int, common: int, uncommon: int) -> None:
    prompt, size = made("cwe", length)
    listed = re.findall(r"(\d+)\. ([a-z]+)", prompt.text.rsplit("most often.\n", 1)[1].split("\nQuestion")[0])
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
    counts = Counter(word for _, word in listed)
    assert {word for word, _ in counts.most_common(10)} == set(prompt.answers)
    assert Counter(counts.values()) == {common: 10, uncommon: size}
    assert not set(prompt.answers) & set(re.findall(r"[a-z]+", prompt.without.rsplit("most often.\n", 1)[1]))


def test_coded_words_follow_the_zeta_law() -> None:
    prompt, size = made("fwe", 3000)
    text = prompt.text.removeprefix("Read the following coded text and track the frequency of each coded word. ")
    words = text.removeprefix("Find the three most frequently appeared coded words. ").split("\nQuestion")[0].split()
    counts = [number for _, number in Counter(words).most_common()]
    expected = [int(size * rank**-2.0 / zeta(2.0)) for rank in range(1, (3000 - 50) // 50 + 1)]
    assert counts == [number for number in expected if number]
    assert [word for word, _ in Counter(words).most_common(4)] == ["...", *prompt.answers]
    assert expected[3] > expected[4]


def test_short_coded_texts_have_no_tie_for_third_place() -> None:
    found = [make("fwe", length, 0, seed=0, material=MATERIAL, count=of_words) for length in range(120, 400, 3)]
    prompts = [each[0] for each in found if each is not None]
    assert 80 < len(prompts) < len(found)
    for prompt in prompts:
        counts = Counter(prompt.lines).most_common()
        assert counts[3][1] > counts[4][1]
        assert {word for word, _ in counts[1:4]} == set(prompt.answers)


def test_questions_are_asked_of_their_paragraph(tmp_path: Path) -> None:
    def article(place: int) -> dict[str, object]:
        asked = {"question": f"Who rules {place}?", "answers": [{"text": f"King {place}"}, {"text": f"Queen {place}"}]}
        impossible = {"question": "Why?", "answers": [], "is_impossible": True}
        return {"paragraphs": [{"context": f"In {place}, King {place} rules.", "qas": [asked, impossible]}]}

    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [article(place) for place in range(300)]}), encoding="utf-8")
    material = read_material(["qa"], longest=500, essays=None, qa_file=str(file))
    found = make("qa", 500, 0, seed=0, material=material, count=of_words)
    assert found is not None
    prompt = found[0]
    (place,) = re.findall(r"Question: Who rules (\d+)\?$", prompt.text)
    assert prompt.answers == (f"King {place}", f"Queen {place}")
    assert prompt.text.count(f"King {place} rules.") == 1
    assert f"King {place} rules." not in prompt.without
    assert score(f"Queen {place}", answers=prompt.answers, any_answer=prompt.any_answer) == 100
    shown = re.findall(r"^Document (\d+):\nIn (\d+),", prompt.text, re.MULTILINE)
    assert [int(number) for number, _ in shown] == list(range(1, len(shown) + 1))
    assert len({of for _, of in shown}) == len(shown) == found[1] + 1
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="is not SQuAD's JSON"):
        read_material(["qa"], longest=500, essays=None, qa_file=str(file))


def test_essays_become_sentences_and_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One day, we\nfound it! Was it  there? It was.\n\nNothing more", encoding="utf-8")
    material = read_material(["cwe"], longest=100, essays=FileTexts(paths=(f"{tmp_path}/*.txt",)), qa_file=None)
    assert material.sentences == ("One day, we found it!", "Was it there?", "It was.", "Nothing more")
    assert material.words == ("found", "more", "there")
