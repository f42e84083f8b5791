"""What models wrote, from the details of `generation` evaluations, with the part that repeats marked."""

from collections.abc import Mapping
from typing import Any

from limbeck.eval_results import EvalResult
from limbeck.report import formats
from limbeck.report.arms import Arms
from limbeck.report.blocks import Sample
from limbeck.report.eval_tables import Teachers

MOST = 3
"""Samples of one model on the page: loops first."""


def samples(name: str, arms: Arms, teachers: Teachers) -> list[Sample]:
    """A few samples of one run of every arm, and of the teachers."""
    shown = [(f"{arm.name} ({member.name})", member.cell.evals[name]) for arm, member in _first_members(name, arms)]
    shown += [(f"teacher {teacher}", found[name]) for teacher, found in teachers.items() if name in found]
    return [_sample(owner, sample) for owner, result in shown for sample in _chosen(result)]


def _first_members(name: str, arms: Arms) -> list[tuple[Any, Any]]:
    found = [(arm, next((each for each in [*arm.finished, *arm.members] if name in each.cell.evals), None)) for arm in arms]
    return [(arm, member) for arm, member in found if member is not None]


def _chosen(result: EvalResult) -> list[Mapping[str, Any]]:
    given = result.details.get("samples")
    all_samples = [sample for sample in given if isinstance(sample, Mapping)] if isinstance(given, list) else []
    return sorted(all_samples, key=lambda sample: not sample.get("loop"))[:MOST]


def _sample(owner: str, sample: Mapping[str, Any]) -> Sample:
    completion, loop = str(sample.get("completion", "")), sample.get("loop")
    outcome = sample.get("outcome")
    title = f"{owner}: {outcome}" if outcome else owner
    if not isinstance(loop, Mapping):
        return Sample(title, str(sample.get("prompt", "")), completion, None)
    note = (
        f"Loop: period {formats.pairs(loop.get('period'))}, from {formats.pairs(loop.get('start'))}, "
        f"{formats.pairs(loop.get('repeats'))} times “{formats.short(str(loop.get('text', '')), 200)}”."
    )
    return Sample(title, str(sample.get("prompt", "")), completion, loop_span(completion, str(loop.get("text", ""))), note)


def loop_span(completion: str, text: str) -> tuple[int, int] | None:
    """Characters [start, stop) of the longest run in which `text` repeats, cut-off repeats at both ends included.

    Loops are found among tokens; where characters begin is found here, in what the tokens decode to. None where the text does
    not come twice in a row.
    """
    period, best = len(text), (0, 0)
    if not text.strip():
        return None
    at = completion.find(text + text)
    while at != -1:
        start, stop = at, at + 2 * period
        while stop < len(completion) and completion[stop] == completion[stop - period]:
            stop += 1
        while start > 0 and completion[start - 1] == completion[start - 1 + period]:
            start -= 1
        if stop - start > best[1] - best[0]:
            best = (start, stop)
        at = completion.find(text + text, stop - 2 * period + 1)
    return best if best[1] else None
