"""Which results of one evaluation compare: those that were asked the same of the same, and for times on the same machine.

What was asked is the evaluation's settings and all that a result depends on but the model itself: its precision, tokenizer,
texts and teacher. A control often has no teacher, and what does not read one compares all the same.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.eval_results import EvalResult
from limbeck.report import formats
from limbeck.report.arms import Arm, Arms
from limbeck.report.comparisons import Pair, nearest_pairs

_TIME = re.compile(r"_ms$|^seconds(_|$)|_seconds")
_MACHINE = ("device", "processor")


@dataclass(frozen=True)
class EvalPairs:
    """What an arm is held against, the pairs whose results compare, and why others do not, each reason once."""

    against: str
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]


def eval_pairs(name: str, arm: Arm, arms: Arms) -> EvalPairs | None:
    """The pairs with what the arm is held against; None where none has this evaluation on both sides."""
    both = [pair for pair in nearest_pairs(arm, arms) if all(name in member.cell.evals for member in pair)]
    reasons = [_why_not(pair, name) for pair in both]
    kept = tuple(pair for pair, reason in zip(both, reasons, strict=True) if not reason)
    said = (f"{formats.plural(reasons.count(each), 'pair')} left out: {each}" for each in dict.fromkeys(reasons) if each)
    return EvalPairs(both[0][1].cell.arm, kept, tuple(said)) if both else None


def is_time(metric: str) -> bool:
    """Whether a metric is a time, which another machine changes."""
    return _TIME.search(metric) is not None


def same_machine(one: EvalResult, other: EvalResult) -> bool:
    """Whether both were measured on one device and processor, as far as the results tell."""
    return all(one.environment.get(key) == other.environment.get(key) for key in _MACHINE)


def by_question(results: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    """Results of one arm by what was asked of them: what sets it apart in words, empty where all were asked the same."""
    asked = [_asked(result) for result in results]
    apart = {path for each in asked for path in each if any(other.get(path) != each[path] for other in asked)}
    found: dict[str, list[EvalResult]] = {}
    for result, each in zip(results, asked, strict=True):
        words = ", ".join(f"{path}={each.get(path, formats.UNKNOWN)}" for path in sorted(apart))
        found.setdefault(words, []).append(result)
    return found


def _why_not(pair: Pair, name: str) -> str:
    for member in pair:
        if not member.finished:
            return f"“{member.name}” is {member.status}"
    one, other = (_asked(member.cell.evals[name]) for member in pair)
    apart = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    teachers = [member.cell.evals[name].subject.get("teacher") for member in pair]
    if None in teachers:
        apart = [path for path in apart if not path.startswith("teacher")]
    return f"they differ in {', '.join(apart)}" if apart else ""


def _asked(result: EvalResult) -> dict[str, str]:
    """Dotted paths and values as JSON, which tells apart what only looks alike."""
    subject: Mapping[str, Any] = {key: value for key, value in result.subject.items() if key != "weights"}
    flat = [*formats.flatten({"spec": result.spec}), *formats.flatten(subject)]
    return {path: json.dumps(value, sort_keys=True, default=str) for path, value in flat}
