"""What models wrote, from the details of `generation` and `gsm` evaluations, with the part that repeats marked.

details["samples"] = [{"prompt": …, "text": …, "outcome": …, "loop": LOOP or None}, …]
details["problems"] = the same with "question" for "prompt", and "gold", "answer_strict", "answer_flexible": numbers or None
LOOP = {"period", "start" (in tokens), "repeats", "text" (what repeats), "start_character", "stop_character" (of `text`)}
"""

from collections.abc import Mapping
from typing import Any

from limbeck.eval_results import EvalResult
from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Member, finite
from limbeck.report.blocks import Sample
from limbeck.report.eval_tables import Teachers

MOST = 3
"""Samples of one model on the page: loops first."""


def samples(name: str, arms: Arms, teachers: Teachers) -> list[Sample]:
    """A few samples of one run of every arm, and of the teachers."""
    shown = [(f"{arm.name} ({member.name})", member.cell.evals[name]) for arm, member in _first_members(name, arms)]
    shown += [(f"teacher {teacher}", found[name]) for teacher, found in teachers.items() if name in found]
    return [_sample(owner, sample) for owner, result in shown for sample in _chosen(result)]


def _first_members(name: str, arms: Arms) -> list[tuple[Arm, Member]]:
    found = [(arm, [each for each in [*arm.finished, *arm.members] if name in each.cell.evals]) for arm in arms]
    return [(arm, measured[0]) for arm, measured in found if measured]


def _chosen(result: EvalResult) -> list[Mapping[str, Any]]:
    given = result.details.get("samples", result.details.get("problems"))
    all_samples = [sample for sample in given if isinstance(sample, Mapping)] if isinstance(given, list) else []
    return sorted(all_samples, key=lambda sample: not sample.get("loop"))[:MOST]


def _sample(owner: str, sample: Mapping[str, Any]) -> Sample:
    text, loop = str(sample.get("text", "")), sample.get("loop")
    title = ", ".join([f"{owner}: {outcome}" if (outcome := sample.get("outcome")) else owner, *_answers(sample)])
    prompt = str(sample.get("prompt", "")) if "question" not in sample else f"{sample['question']}\n"
    if not isinstance(loop, Mapping):
        return Sample(title, prompt, text, None)
    note = (
        f"Loop: {formats.pairs(loop.get('period'))} tokens over and over from token {formats.pairs(loop.get('start'))}, "
        f"{formats.significant(finite(loop.get('repeats')), 3)} times “{formats.short(str(loop.get('text', '')), 200)}”."
    )
    return Sample(title, prompt, text, _span(loop, len(text)), note)


def _answers(sample: Mapping[str, Any]) -> list[str]:
    """Of a word problem: what was said and what is right."""
    if "gold" not in sample:
        return []
    strict, flexible = sample.get("answer_strict"), sample.get("answer_flexible")
    last = f"last number {flexible}" if flexible is not None else "no number"
    return [f"answers {strict}" if strict is not None else last, f"right is {sample['gold']}"]


def _span(loop: Mapping[str, Any], length: int) -> tuple[int, int] | None:
    """Characters [start, stop) of the loop, as far as the text goes; None where they are not told."""
    start, stop = loop.get("start_character"), loop.get("stop_character", length)
    if not isinstance(start, int) or not isinstance(stop, int) or not 0 <= start < min(stop, length):
        return None
    return start, min(stop, length)
