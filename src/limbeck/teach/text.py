"""`teach-text`: a teacher's completions of prompts as training data, sequence-level distillation's (arXiv 1606.07947).

First everything is drawn and kept as it was (`limbeck.teach.draws`), then it is chosen what becomes data
(`limbeck.teach.select`), which can be done again. `completions.jsonl` is what `data.train.kind=chats` reads, and for prompts
that are texts `kind=files`; `dropped.jsonl` has the others and why; `teach-text.json` sums up.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import SpecError
from limbeck.paths import write_atomically
from limbeck.progress import progress
from limbeck.spec.teach_text import TeachText
from limbeck.teach.asks import Group, digest, groups_of, read_prompts, require_askable
from limbeck.teach.draws import DRAWN, DrawFile, Drawn, read_draws
from limbeck.teach.eval_texts import eval_texts
from limbeck.teach.overlap import Passages
from limbeck.teach.select import Selection
from limbeck.teach.summary import Tally
from limbeck.teach.writer import TextTeacher, open_teacher
from limbeck.teachers.files import locate

COMPLETIONS, DROPPED, SUMMARY = "completions.jsonl", "dropped.jsonl", "teach-text.json"


def teach_text(spec: TeachText) -> dict[str, Any]:
    """Draw what is missing in `spec.output`, choose what is kept, and return the summary.

    Everything that can be wrong with the prompts, the teacher and the evaluation sets is said before the first token is drawn.
    """
    folder, files = Path(spec.output), locate(spec.teacher)
    prompts = read_prompts(Path(spec.prompts))
    tokenizer = load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)
    require_askable(spec, prompts, tokenizer)
    passages = Passages(eval_texts(spec.decontaminate), words=spec.decontaminate.words)
    teacher = open_teacher(spec, files, tokenizer)
    groups = groups_of(spec, prompts, tokenizer, padded=teacher.reads_padded)
    _require_room(spec, groups, teacher)
    file = DrawFile(folder, _asked(spec, teacher, prompts=digest(prompts), tokenizer=tokenizer))
    _draw(spec, groups, teacher, file)
    described = {"teacher": teacher.identity, "chats": prompts[0].messages is not None}
    summary = described | _choose(spec, groups, Selection(spec, tokenizer, passages), folder, passages)
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


@dataclass(frozen=True)
class TokenLogProbs:
    """What a teacher said of its own completion, in its own tokens."""

    tokens: tuple[int, ...]
    """The stop token included, where one was drawn."""
    log_probs: tuple[float, ...]
    """Nats, at temperature 1 over the whole vocabulary."""


def read_log_probs(folder: Path) -> Iterator[tuple[str, TokenLogProbs]]:
    """(document id, log-probs) of every completion that was kept in a folder, in the order of `completions.jsonl`."""
    with (folder / COMPLETIONS).open(encoding="utf-8") as lines:
        ids = {tuple(record["drawn"]): record["id"] for record in map(json.loads, lines)}
    for drawn in read_draws(folder / DRAWN):
        for row, continuation in enumerate(drawn.continuations):
            if (drawn.group, row) in ids:
                yield ids[drawn.group, row], TokenLogProbs(continuation.tokens, continuation.log_probs)


def _asked(spec: TeachText, teacher: TextTeacher, *, prompts: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """What makes draws these and no others."""
    return {
        "teacher": dict(teacher.identity),
        "tokenizer": tokenizer.fingerprint,
        "chat_template": getattr(tokenizer.backend, "chat_template", None),
        "prompts": prompts,
        "efforts": {name: effort.model_dump(mode="json") for name, effort in spec.efforts.items()},
        **{key: getattr(spec, key) for key in ("samples", "max_new_tokens", "temperature", "top_p", "seed")},
        "engine": teacher.engine,
    }


def _require_room(spec: TeachText, groups: Sequence[Group], teacher: TextTeacher) -> None:
    for group in groups:
        longest = max(group.asks, key=lambda ask: len(ask.prompt.tokens))
        needed = len(longest.prompt.tokens) + spec.limit(group.effort)
        if teacher.longest is not None and needed > teacher.longest:
            raise SpecError(
                f"{longest.asked.source} has {len(longest.prompt.tokens)} tokens, which with max_new_tokens="
                f"{spec.limit(group.effort)} are more than the {teacher.longest} that the teacher reads: lower it, or shorten "
                "the prompt"
            )


def _draw(spec: TeachText, groups: Sequence[Group], teacher: TextTeacher, file: DrawFile) -> None:
    """The groups that are not in the file."""
    there = file.groups
    missing = [group for group in groups if group.number not in there]
    total = sum(len(group.asks) for group in groups)
    done = total - sum(len(group.asks) for group in missing)
    tokens, begun = 0, time.perf_counter()
    with progress("the teacher writes", total=total, done=done) as advance:
        for group in missing:
            started = time.perf_counter()
            drawn = teacher.draw(group, key=f"{spec.seed} {group.number}")
            seconds = time.perf_counter() - started
            file.add(Drawn(group.number, seconds, tuple(drawn)), names=[ask.name for ask in group.asks])
            tokens += sum(len(each.tokens) for each in drawn)
            advance(len(drawn), f"{tokens / (time.perf_counter() - begun):,.0f} tokens/s")


def _choose(spec: TeachText, groups: Sequence[Group], selection: Selection, folder: Path, passages: Passages) -> dict[str, Any]:
    """Write what is kept and what is not, both from the beginning."""
    tally = Tally()
    total = sum(len(group.asks) for group in groups)
    with (
        _whole_or_not_at_all(folder / COMPLETIONS) as kept,
        _whole_or_not_at_all(folder / DROPPED) as dropped,
        progress("what is kept", total=total) as advance,
    ):
        for drawn in read_draws(folder / DRAWN):
            tally.took(drawn.seconds)
            for row, (ask, one) in enumerate(zip(groups[drawn.group].asks, drawn.continuations, strict=True)):
                chosen = selection.choose(ask, one, place=(drawn.group, row))
                tally.add(chosen)
                (kept if chosen.reason is None else dropped).write(json.dumps(chosen.record, ensure_ascii=False) + "\n")
            advance(len(drawn.continuations))
    texts = {"texts": passages.texts, "too_short": passages.too_short, "words": passages.words}
    return {"output": str(folder), "asked": total, **tally.summary(), "decontaminated_against": texts}


@contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of the old one once it is complete."""
    building = path.with_name(f"{path.name}.partial")
    with building.open("w", encoding="utf-8") as file:
        yield file
    building.replace(path)
