"""Samples of RULER's tasks, each as long as asked for, and their score.

A haystack grows unit by unit (a noise line, a sentence, a needle, a word, a paragraph), and each sample has the most units with
which prompt and answer fit the length. The first units stay as others are added, so that there is such a number. Everything of
a sample follows from (seed, task, length, index).
"""

import random
from collections.abc import Callable, Sequence

from limbeck.evals.ruler_prompts import (
    COMMON_WORDS,
    NEEDLES,
    WORDS_OF_EXAMPLE,
    Material,
    Prompt,
    common_words_prompt,
    frequent_words_prompt,
    needles_prompt,
    paragraphs_prompt,
    variables_prompt,
)
from limbeck.evals.ruler_words import ADJECTIVES, NOUNS
from limbeck.spec.evals.long_context import RulerTask

SHORT = 4096
"""Below this length RULER repeats the words to count less often."""
FEWEST_CODED_WORDS = 53
"""From here on rank 4 is more frequent than rank 5: floor(53/(16 zeta(2))) = 2 and floor(53/(25 zeta(2))) = 1."""


def tokens_to_generate(task: RulerTask) -> int:
    """Room for the answer, part of the length."""
    return {"vt": 30, "cwe": 120, "fwe": 50, "qa": 32}.get(task, 128)


def make(
    task: RulerTask, length: int, index: int, *, seed: int, material: Material, count: Callable[[str], int], guess: int = 0
) -> tuple[Prompt, int] | None:
    """The longest prompt of a sample that fits the length, and its units; None where not even the smallest does.

    `count` gives the tokens of a whole prompt (its `text` with its `prefix`); `guess` is a size near which to begin.
    """
    room = length - tokens_to_generate(task)

    def of(size: int) -> Prompt:
        return _prompt(task, size, length=length, name=f"{seed} {task} {length} {index}", material=material)

    def fits(size: int) -> bool:
        prompt = of(size)
        return count(prompt.text + prompt.prefix) <= room

    least, most = (FEWEST_CODED_WORDS if task == "fwe" else 0), _most(task, material)
    size = _largest(fits, least=least, most=most, guess=guess)
    return None if size is None else (of(size), size)


def runs_out(task: RulerTask, size: int | None, material: Material) -> bool:
    """Whether a prompt is as small as it is, or is none, because the material has no more."""
    most = _most(task, material)
    return most < 0 or (size is not None and size >= most)


def _most(task: RulerTask, material: Material) -> int:
    match task:
        case "niah_multikey_2":
            return len(ADJECTIVES) * len(NOUNS) // 2  # of which distinct ones are still drawn quickly
        case "cwe":
            return len(material.words) - COMMON_WORDS if len(material.words) >= WORDS_OF_EXAMPLE else -1
        case "qa":
            return len(material.paragraphs) - 1
        case _:
            return 10**9


def _largest(fits: Callable[[int], bool], *, least: int, most: int, guess: int) -> int | None:
    """The largest size in [least, most] that fits, by doubling steps from a guess and then by halves; None if none does."""
    if most < least or not fits(least):
        return None
    low, high, step = least, most + 1, 1
    at = min(max(guess, least + 1), most)
    while low < at < high:
        if fits(at):
            low, at = at, min(at + step, most)
        else:
            high, at = at, max(at - step, least)
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _prompt(task: RulerTask, size: int, *, length: int, name: str, material: Material) -> Prompt:
    rng, haystack_rng = random.Random(name), random.Random(f"{name} haystack")
    match task:
        case "vt":
            return variables_prompt(size, rng)
        case "cwe":
            return common_words_prompt(size, rng, words=material.words, short=length < SHORT)
        case "fwe":
            return frequent_words_prompt(size, rng, room=length - tokens_to_generate(task))
        case "qa":
            return paragraphs_prompt(size, rng, material)
        case _:
            return needles_prompt(NEEDLES[task], size, rng, haystack_rng, sentences=material.sentences)


def score(output: str, *, answers: Sequence[str], any_answer: bool = False) -> float:
    """RULER's string_match_all, or string_match_part where one is enough: share of the answers in the output, percent."""
    found = [answer.casefold() in output.casefold() for answer in answers]
    return 100.0 * (any(found) if any_answer else sum(found) / len(found))
