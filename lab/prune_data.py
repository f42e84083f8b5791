r"""The texts of the prune studies: chat prompts, prose, and a teacher's answers as chats and as documents.

    python lab/prune_data.py prompts -o out/prune
    limbeck eval TEACHER --eval generation generation.prompts=out/prune/prompts.jsonl …   # it answers: lab/prune.yaml
    python lab/prune_data.py chats GENERATIONS --prompts out/prune/prompts.jsonl --prose out/prune/prose.jsonl \
      --tokenizer TEACHER -o out/prune/chats

`prompts` writes prompts, prose and easy sums in words, each for training and held out. Prompts are made of a few patterns and
of sentences from State of the Union addresses; problems with numbers are drawn anew, from patterns that are none of
GSM-symbolic's. `chats` writes, of the answers that ended by themselves, chats.jsonl (messages), chats-text.jsonl (texts: the
chat as the template renders it, without the start and end tokens that every document gets), and mixture.jsonl: these documents
and as many bytes of prose.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from limbeck.data.texts import read_documents
from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.chat import chat_text
from limbeck.evals.generate import read_samples
from limbeck.spec.data import SotuTexts

NAMES = "Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()
THINGS = "apples books pencils marbles stickers coins cards shells stamps flowers cookies balloons".split()
NOUNS = (
    "a river, a bridge, gravity, a telescope, the moon, rain, a battery, bread, a library, democracy, a bee, oxygen, a "
    "volcano, a glacier, money, a shadow, an echo, a vaccine, a map, a compass, paper, glass, a train, a harbor, a desert, "
    "a lighthouse, an orchestra, a garden, a clock, a kite, salt, honey, silk, a novel, a poem, a budget, an election, a "
    "museum, a farm, a mill"
).split(", ")
ADJECTIVES = (
    "hot happy big fast dark early strong quiet cheap rich empty soft brave clean sharp wide young bright deep easy"
).split()
COUNTRIES = (
    "France, Japan, Brazil, Egypt, Canada, Kenya, Norway, India, Peru, Poland, Greece, Mexico, China, Spain, Italy, Cuba, "
    "Chile, Ireland, Turkey, Sweden, Portugal, Austria, Germany, Argentina, Morocco, Vietnam, Thailand, Finland, Denmark, "
    "Hungary"
).split(", ")
TOPICS = (
    "the sea, autumn, a lost key, an old dog, the first snow, a long journey, music, friendship, a city at night, hope"
).split(", ")


def problem(draw: random.Random) -> str:
    """A sum in words."""
    one, two = draw.sample(NAMES, 2)
    thing, a, b, c = draw.choice(THINGS), draw.randint(2, 20), draw.randint(2, 20), draw.randint(2, 9)
    patterns = (
        f"{one} has {a + b} {thing}. {one} gives {b} of them to {two}. How many {thing} does {one} have left?",
        f"{one} has {a} {thing} and {two} has {b} {thing}. How many {thing} do they have together?",
        f"A box holds {c} {thing}. How many {thing} are there in {a} boxes?",
        f"{one} buys {c} bags with {a} {thing} each and finds {b} more. How many {thing} does {one} have?",
        f"{one} reads {a} pages on Monday, {b} on Tuesday and {c} on Wednesday. How many pages is that in all?",
        f"What is {a} + {b}?",
        f"What is {a + b} - {a}?",
        f"What is {a} times {c}?",
    )
    return draw.choice(patterns)


def sum_of(draw: random.Random) -> dict[str, str]:
    """A sum in words with its answer, as GSM8K writes it."""
    one, two = draw.sample(NAMES, 2)
    thing, a, b, c = draw.choice(THINGS), draw.randint(2, 12), draw.randint(2, 12), draw.randint(2, 6)
    found = (
        (f"{one} has {a + b} {thing}. {one} gives {b} of them to {two}. How many {thing} does {one} have left?", a),
        (f"{one} has {a} {thing} and {two} has {b} {thing}. How many {thing} do they have together?", a + b),
        (f"A box holds {c} {thing}. How many {thing} are there in {a} boxes?", a * c),
        (f"{one} had {a} {thing} and finds {b} more. How many {thing} does {one} have now?", a + b),
    )
    question, answer = draw.choice(found)
    return {"question": question, "answer": f"#### {answer}"}


def request(draw: random.Random, sentences: list[str]) -> str:
    """A short request of some other kind."""
    sentence = draw.choice(sentences)
    patterns = (
        f"Explain in one or two sentences what {draw.choice(NOUNS)} is.",
        f"What is the capital of {draw.choice(COUNTRIES)}?",
        f"Give me a word that means the opposite of {draw.choice(ADJECTIVES)}.",
        f"Write one sentence with the words {' and '.join(draw.sample(ADJECTIVES, 2))}.",
        f"Name three things that have to do with {draw.choice(NOUNS)}.",
        f"Write a very short story about {draw.choice(TOPICS)}.",
        f"Say this in simpler words: {sentence}",
        f"In one sentence, what is this about? {sentence}",
        f"Is this sentence about war, money or law? {sentence}",
    )
    return draw.choice(patterns)


def prompts(sentences: list[str], *, count: int, seed: int) -> Iterator[str]:
    """Different ones, half of them problems."""
    draw, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        text = problem(draw) if len(seen) % 2 else request(draw, sentences)
        if text not in seen:
            seen.add(text)
            yield text


def _different_sums(count: int, *, seed: int) -> list[dict[str, str]]:
    draw, found = random.Random(seed), {}
    while len(found) < count:
        one = sum_of(draw)
        found[one["question"]] = one
    return list(found.values())


def _sentences(first: int, last: int) -> list[str]:
    texts = [document.text for document in read_documents(SotuTexts(first_year=first, last_year=last))]
    found = [part.strip() for text in texts for part in text.replace("\n", " ").split(". ")]
    return sorted({f"{part}." for part in found if 40 <= len(part) <= 160})


def _write(path: Path, values: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    print(path, len(values))


def write_prompts(output: Path) -> None:
    """Prompts as chats, and prose."""
    for name, years, count, seed in (("prompts", (1950, 1989), 1600, 0), ("heldout-prompts", (1991, 2100), 64, 1)):
        texts = prompts(_sentences(*years), count=count, seed=seed)
        asked = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        _write(output / f"{name}.jsonl", asked)
    _write(output / "heldout-sums.jsonl", _different_sums(64, seed=2))
    for name, years in (("prose", (1950, 1989)), ("heldout-prose", (1991, 2100))):
        prose = read_documents(SotuTexts(first_year=years[0], last_year=years[1], split_bytes=1500))
        _write(output / f"{name}.jsonl", [{"text": document.text} for document in prose])


def write_chats(generations: Path, prompts_file: Path, prose_file: Path, tokenizer_folder: str, output: Path) -> None:
    """The answers that ended by themselves, as chats and as documents; and these with as much prose."""
    tokenizer = load_tokenizer(tokenizer_folder)
    start, end = (tokenizer.backend.convert_ids_to_tokens(each) for each in (tokenizer.start_id, tokenizer.end_id))
    asked = [json.loads(line)["messages"] for line in prompts_file.read_text(encoding="utf-8").splitlines()]
    chats, texts = [], []
    for sample in read_samples(generations):
        messages = asked[int(sample.name.rsplit(" ", 1)[-1]) - 1]  # "prompts.jsonl, line 3"
        if not sample.stopped or not sample.text.strip():
            continue
        whole = [*messages, {"role": "assistant", "content": sample.text}]
        rendered = chat_text(tokenizer, whole, answers=False).rstrip("\n").removeprefix(start).removesuffix(end)
        chats.append({"messages": whole})
        texts.append({"text": rendered})
    _write(output / "chats.jsonl", chats)
    _write(output / "chats-text.jsonl", texts)
    _write(output / "mixture.jsonl", [*texts, *_as_much(prose_file, sum(len(text["text"].encode()) for text in texts))])


def _as_much(path: Path, size: int) -> Iterator[dict[str, str]]:
    """Texts of a file in a drawn order, of that many bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    for line in lines:
        if size <= 0:
            return
        text = json.loads(line)["text"]
        size -= len(text.encode())
        yield {"text": text}


def main() -> None:
    """Write what the verb says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prompts")
    second = verbs.add_parser("chats")
    second.add_argument("generations", type=Path)
    second.add_argument("--prompts", type=Path, required=True)
    second.add_argument("--prose", type=Path, required=True)
    second.add_argument("--tokenizer", required=True)
    for verb in (first, second):
        verb.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "prompts":
        write_prompts(given.output)
    else:
        write_chats(given.generations, given.prompts, given.prose, given.tokenizer, given.output)


if __name__ == "__main__":
    main()
