"""How RULER's tasks read (Hsieh et al. 2024, arXiv:2404.06654; https://github.com/NVIDIA/RULER): a prompt of a given size.

Wording, counts and needle depths follow RULER. What differs: essays and counted words are the user's texts, split into
sentences; keys are of our own word list; and answer prefixes end without a blank, which would be a token of its own that no
text has there.
"""

import math
import random
import string
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from limbeck.evals.ruler_words import ADJECTIVES, NOISE, NOUNS
from limbeck.spec.evals.long_context import RulerTask

DEPTHS = tuple(round(100 * place / 39) for place in range(40))
"""Percent of the haystack before a needle: one of 40 even steps."""
HOPS = 4
COMMON_WORDS = 10
WORDS_OF_EXAMPLE = 40
"""Of the longer worked example of `cwe`, the common ones among them."""


@dataclass(frozen=True)
class Question:
    """Of a paragraph, for the task `qa`."""

    text: str
    answers: tuple[str, ...]
    paragraph: int


@dataclass(frozen=True)
class Material:
    """What prompts are made of."""

    sentences: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    paragraphs: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A question over a haystack. `relevant` are the places of the `lines` that the answer is in."""

    before: str
    lines: tuple[str, ...]
    joint: str
    after: str
    prefix: str
    """What the answer begins with; not part of the answer."""
    answers: tuple[str, ...]
    gold: str
    """The whole answer as it would follow the prefix."""
    relevant: frozenset[int]
    any_answer: bool = False
    """One of the answers is enough."""

    @property
    def text(self) -> str:
        """Everything before the prefix."""
        return f"{self.before}{self.joint.join(self.lines)}{self.after}"

    @property
    def without(self) -> str:
        """The same without the lines that hold the answer."""
        kept = (line for place, line in enumerate(self.lines) if place not in self.relevant)
        return f"{self.before}{self.joint.join(kept)}{self.after}"

    @property
    def depths(self) -> tuple[float, ...]:
        """Share of the lines before each relevant one, 0 to 1."""
        return tuple(place / max(1, len(self.lines) - 1) for place in sorted(self.relevant))


@dataclass(frozen=True)
class Needles:
    """A needle-in-a-haystack task: what it hides in what, and what it asks."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NEEDLES: dict[RulerTask, Needles] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", values="uuids"),
    "niah_multikey_1": Needles("essay", num_keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("essay", num_values=4),
    "niah_multiquery": Needles("essay", num_keys=4, num_queries=4),
}
ESSAY_TASKS = frozenset({*(task for task, needles in NEEDLES.items() if needles.haystack == "essay"), "cwe"})
"""Tasks that need texts."""
ONE_NEEDLE = frozenset(task for task, needles in NEEDLES.items() if needles.num_values * needles.num_queries == 1)


def needles_prompt(
    task: Needles, size: int, rng: random.Random, haystack_rng: random.Random, *, sentences: Sequence[str]
) -> Prompt:
    """Needles at random depths of a haystack of `size` units."""
    keys = list(islice(_distinct(task.keys, rng), task.num_keys))
    values = list(islice(_distinct(task.values, rng), task.num_keys * task.num_values))
    of_key = {key: values[place :: task.num_keys] for place, key in enumerate(keys)}
    needles = [(key, _needle(task, key, value)) for key in keys for value in of_key[key]]
    rng.shuffle(needles)
    queried = rng.sample(keys, task.num_queries)
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    hay = _hay(task, size, haystack_rng, sentences=sentences, taken=set(keys))
    lines, relevant = _hidden(hay, [needle for _, needle in needles], depths)
    asked = frozenset(place for place, (key, _) in zip(relevant, needles, strict=True) if key in queried)
    answers = tuple(value for key in queried for value in of_key[key])
    query = queried[0] if len(queried) == 1 else f"{', '.join(queried[:-1])}, and {queried[-1]}"
    one = len(answers) == 1
    kind, some, are = (task.values[:-1], "A", "is") if one else (task.values, "Some", "are")
    return Prompt(
        before=f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n",
        lines=lines,
        joint=" " if task.haystack == "essay" else "\n",
        after=f"\nWhat {are if one else 'are all'} the special magic {kind} for {query} mentioned in the provided text?",
        prefix=f" The special magic {kind} for {query} mentioned in the provided text {are}",
        answers=answers,
        gold=f" {', '.join(answers)}",
        relevant=asked,
    )


def _needle(task: Needles, key: str, value: str) -> str:
    return f"One of the special magic {task.values} for {key} is: {value}."


def _hay(task: Needles, size: int, rng: random.Random, *, sentences: Sequence[str], taken: set[str]) -> list[str]:
    match task.haystack:
        case "noise":
            return [NOISE] * size
        case "essay":
            begin = rng.randrange(len(sentences))
            return [sentences[(begin + place) % len(sentences)] for place in range(size)]
        case _:
            keys = (key for key in _distinct(task.keys, rng) if key not in taken)
            return [_needle(task, key, _value(task.values, rng)) for key in islice(keys, size)]


def _hidden(hay: Sequence[str], needles: Sequence[str], depths: Sequence[int]) -> tuple[tuple[str, ...], list[int]]:
    """The hay with needles at depths, and where they are then."""
    lines, places, begin = [], [], 0
    for needle, depth in zip(needles, depths, strict=True):
        end = len(hay) * depth // 100
        lines += [*hay[begin:end], needle]
        places.append(len(lines) - 1)
        begin = end
    return (*lines, *hay[begin:]), places


def _distinct(kind: str, rng: random.Random) -> Iterator[str]:
    seen = set()
    while True:
        value = _value(kind, rng)
        if value not in seen:
            seen.add(value)
            yield value


def _value(kind: str, rng: random.Random) -> str:
    match kind:
        case "words":
            return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        case "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        case _:
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def variables_prompt(size: int, rng: random.Random) -> Prompt:
    """One chain of assignments in noise, after a short worked example of another."""
    example, chain = _chain(5, rng, letters=3), _chain(size, rng, letters=5)
    return Prompt(
        before=f"{example.text}{example.prefix}{example.gold}\n\n{chain.before}",
        lines=chain.lines,
        joint="\n",
        after=chain.after,
        prefix=chain.prefix,
        answers=chain.answers,
        gold=chain.gold,
        relevant=chain.relevant,
    )


def _chain(size: int, rng: random.Random, *, letters: int) -> Prompt:
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        names += [] if name in names else [name]
    value = str(rng.randint(10_000, 99_999))
    assigned = [f"VAR {names[0]} = {value}", *(f"VAR {name} = VAR {of}" for of, name in zip(names, names[1:], strict=False))]
    lines, places = _hidden([NOISE] * size, assigned, sorted(rng.sample(DEPTHS, len(assigned))))
    return Prompt(
        before="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        lines=lines,
        joint="\n",
        after=f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        prefix=f" Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are "
        f"assigned the value {value}, they are:",
        answers=tuple(names),
        gold=f" {' '.join(names)}",
        relevant=frozenset(places),
    )


def common_words_prompt(size: int, rng: random.Random, *, words: Sequence[str], short: bool) -> Prompt:
    """`size` uncommon words among ten common ones, after a worked example."""
    example = _word_list(
        10 if short else WORDS_OF_EXAMPLE - COMMON_WORDS,
        rng,
        words=words,
        common=3 if short else 10,
        uncommon=1 if short else 3,
    )
    asked = _word_list(size, rng, words=words, common=6 if short else 30, uncommon=1 if short else 3)
    before = f"{example.text}{example.prefix}{example.gold}\n{asked.before}"
    return Prompt(before, asked.lines, " ", asked.after, asked.prefix, asked.answers, asked.gold, asked.relevant)


def _word_list(size: int, rng: random.Random, *, words: Sequence[str], common: int, uncommon: int) -> Prompt:
    drawn = rng.sample(words, COMMON_WORDS + size)
    asked = drawn[:COMMON_WORDS]
    listed = asked * common + drawn[COMMON_WORDS:] * uncommon
    rng.shuffle(listed)
    return Prompt(
        before="Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n",
        lines=_numbered(listed),
        joint=" ",
        after="\nQuestion: What are the 10 most common words in the above list?",
        prefix=" Answer: The top 10 words that appear most often in the list are:",
        answers=tuple(asked),
        gold=f" {' '.join(_numbered(asked))}",
        relevant=frozenset(place for place, word in enumerate(listed) if word in asked),
    )


def _numbered(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{place}. {word}" for place, word in enumerate(words, 1))


def frequent_words_prompt(size: int, rng: random.Random, *, room: int) -> Prompt:
    """Coded words, rank k of them floor(size k^-2 / zeta(2)) times; rank 1 is printed as dots, ranks 2 to 4 are asked for."""
    coded = ["...", *islice(_coded_words(rng), max(5, room // 50) - 1)]
    zeta_2 = math.pi**2 / 6
    lines = [word for rank, word in enumerate(coded, 1) for _ in range(int(size / (rank**2 * zeta_2)))]
    rng.shuffle(lines)
    answers = tuple(coded[1:4])
    return Prompt(
        before="Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. ",
        lines=tuple(lines),
        joint=" ",
        after="\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?",
        prefix=" Answer: According to the coded text above, the three most frequently appeared words are:",
        answers=answers,
        gold=f" {', '.join(answers)}",
        relevant=frozenset(place for place, word in enumerate(lines) if word in answers),
    )


def _coded_words(rng: random.Random) -> Iterator[str]:
    seen = set()
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in seen:
            seen.add(word)
            yield word


def paragraphs_prompt(size: int, rng: random.Random, material: Material) -> Prompt:
    """A question, its paragraph, and `size` others."""
    question = rng.choice(material.questions)
    others = [place for place in range(len(material.paragraphs)) if place != question.paragraph]
    rng.shuffle(others)
    shown = others[:size]
    shown.insert(round(rng.random() * size), question.paragraph)
    asks = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    return Prompt(
        before=f"{asks}\n\nThe following are given documents.\n\n",
        lines=tuple(f"Document {place}:\n{material.paragraphs[shown_]}" for place, shown_ in enumerate(shown, 1)),
        joint="\n\n",
        after=f"\n\n{asks}\n\nQuestion: {question.text}",
        prefix=" Answer:",
        answers=question.answers,
        gold=f" {question.answers[0]}",
        relevant=frozenset({shown.index(question.paragraph)}),
        any_answer=True,
    )
