"""How runs that read what they write went: what was drawn, early and late, and where the time was spent.

From the records of `RUN/metrics.jsonl` that `limbeck.train.guards` and the on-policy loop fill. A collapse shows here first:
rollouts grow longer, fewer of them stop, more end in a loop, while the divergence goes on falling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import Arms, finite
from limbeck.report.blocks import Scalar, Table

_WATCHED = {
    "rollout_tokens": ("tokens a rollout", 1),
    "stopped_share": ("stopped", 2),
    "loop_share": ("in a loop", 2),
    "seq_rep_4": ("seq-rep-4", 3),
    "student_entropy_nats": ("entropy, nats", 2),
    "log_ratio_nats": ("log q − log p, nats", 3),
    "topk_mass": ("mass on the teacher’s k", 3),
}
_PHASES = ("generate_seconds", "teach_seconds", "train_seconds")
_END = 0.1
"""Of a run's steps: what early and late mean."""


def rollout_table(arms: Arms) -> Table | None:
    """A row for every run that wrote rollouts; None where none did."""
    found = {
        member.name: steps
        for member in arms.members
        if member.run is not None and (steps := [each for each in member.run.events("train") if _PHASES[0] in each])
    }
    if not found:
        return None
    watched = [name for name in _WATCHED if any(name in steps[0] for steps in found.values())]
    headers = ("run", "steps", *(_WATCHED[name][0] for name in watched), "generate", "teach", "train, seconds a step")
    rows = tuple(_row(name, steps, watched) for name, steps in found.items())
    records = tuple(_record(name, steps, watched) for name, steps in found.items())
    return Table(headers, rows, frozenset({0}), name="rollouts", title="Rollouts, early → late", records=records)


def _row(run: str, steps: Sequence[Mapping[str, Any]], watched: Sequence[str]) -> tuple[str, ...]:
    ends = {name: [formats.fixed(value, _WATCHED[name][1]) for value in _ends(steps, name)] for name in watched}
    phases = [formats.fixed(_mean(steps, name), 2) for name in _PHASES]
    return (run, formats.count(len(steps)), *(f"{early} → {late}" for early, late in ends.values()), *phases)


def _record(run: str, steps: Sequence[Mapping[str, Any]], watched: Sequence[str]) -> Mapping[str, Scalar]:
    record: dict[str, Scalar] = {"run": run, "steps": len(steps)}
    for name in watched:
        record[f"{name}_early"], record[f"{name}_late"] = _ends(steps, name)
    return {**record, **{name: _mean(steps, name) for name in _PHASES}}


def _ends(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, float | None]:
    """The means over the first and the last tenth of a run's steps."""
    size = max(1, round(_END * len(steps)))
    return _mean(steps[:size], name), _mean(steps[-size:], name)


def _mean(steps: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [value for step in steps if (value := finite(step.get(name))) is not None]
    return sum(known) / len(known) if known else None
