"""The stages of curricula: what each read, what it spent, how the student stood at its end; milestones; marks in figures.

From the records of `RUN/metrics.jsonl`, which say their stage, and `RUN/stages.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Cost, cost_of, finite
from limbeck.report.blocks import Scalar, Table
from limbeck.runs import Run, read_stages
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe


def stage_table(arms: Arms) -> Table | None:
    """A row for every stage of every run that has begun it; None where no run has stages."""
    records = [
        {"run": member.name, **row}
        for member in arms.members
        if member.run is not None and member.run.recipe.curriculum
        for row in stages_of(member.run)
    ]
    if not records:
        return None
    headers = (
        "run",
        "stage",
        "budget",
        "tokens",
        "length",
        "signal",
        "on-policy",
        "padding",
        "left out",
        "bits per byte at its end",
    )
    rows = tuple(_shown(record) for record in records)
    return Table(headers, rows, frozenset({0, 1, 5, 6}), name="stages", title="Stages", records=tuple(records))


def stages_of(run: Run) -> list[dict[str, Scalar]]:
    """Of each stage that has a record: share, tokens, length, what it learnt from, padding, bits per byte at its end.

    Bits per byte are measured in windows of the stage's own length.
    """
    found: list[dict[str, Scalar]] = []
    about, before = read_stages(run.path), 0
    for stage, recipe in run.recipe.stages:
        own = [record for record in run.records if record.get("stage") == stage.name]
        if not own:
            continue
        measured = [record for record in own if record["event"] == "eval"]
        texts = about.get(stage.name, {})
        tokens = max(int(record["tokens"]) for record in own)
        found.append(
            {
                "stage": stage.name,
                "share": stage.share,
                "tokens": tokens - before,
                "sequence_length": recipe.data.sequence_length,
                "signal": _signal(recipe),
                "on_policy": recipe.on_policy is not None,
                "padding_share": finite(texts.get("padding_share")),
                "documents_left_out": texts.get("documents_left_out"),
                "bits_per_byte": finite(measured[-1].get("bits_per_byte")) if measured else None,
            }
        )
        before = tokens
    return found


def _signal(recipe: Recipe) -> str:
    if not needs_teacher(recipe.objective) or recipe.signal is None:
        return "none"
    return f"{recipe.signal.kind}, {'a store' if recipe.uses_store else 'live'}"


def trace_table(arms: Arms) -> Table | None:
    """What assistants thought in the chats of each run or stage, by effort, in tokens; None where no run reads chats."""
    records: list[dict[str, Scalar]] = [
        {"run": member.name, "stage": stage, "effort": effort, **{name: finite(numbers.get(name)) for name in _TRACE}}
        for member in arms.members
        if member.run is not None
        for stage, chats in _chats(member.run)
        for source in chats
        for effort, numbers in (source.get("traces") or {}).items()
    ]
    if not records:
        return None
    words = ("run", "stage", "effort")
    rows = tuple(
        (*(str(record[name] or formats.UNKNOWN) for name in words), *(formats.count(finite(record[name])) for name in _TRACE))
        for record in records
    )
    headers = (*words, "chats", "mean", "p50", "p90", "longest")
    return Table(headers, rows, frozenset({0, 1, 2}), name="traces", title="Traces, tokens", records=tuple(records))


_TRACE = ("chats", "mean", "p50", "p90", "max")


def _chats(run: Run) -> list[tuple[str | None, Sequence[Mapping[str, Any]]]]:
    """Of each stage, or of the whole run, what its training chats are like."""
    about = read_stages(run.path)
    if about:
        return [(name, values.get("chats") or ()) for name, values in about.items()]
    return [(None, ((run.summary or {}).get("chats") or {}).get("train") or ())]


def _shown(record: Mapping[str, Any]) -> tuple[str, ...]:
    padding = record["padding_share"]
    return (
        record["run"],
        record["stage"],
        f"{100 * record['share']:.3g} %",
        formats.count(record["tokens"]),
        formats.count(record["sequence_length"]),
        record["signal"],
        "yes" if record["on_policy"] else "no",
        formats.UNKNOWN if padding is None else f"{100 * padding:.1f} %",
        formats.count(record["documents_left_out"]),
        formats.fixed(record["bits_per_byte"]),
    )


def milestone_table(arms: Arms) -> Table | None:
    """A row for every milestone that a run has reached; None where there is none."""
    records = [
        {
            "run": member.name,
            "amount": record["amount"],
            "step": record["step"],
            "tokens": record["tokens"],
            "stage": record.get("stage"),
            "sequence_length": record["sequence_length"],
            "bits_per_byte": finite(record.get("bits_per_byte")),
        }
        for member in arms.members
        if member.run is not None
        for record in member.run.events("milestone")
    ]
    if not records:
        return None
    rows = tuple(
        (
            str(record["run"]),
            formats.significant(record["amount"]),
            formats.count(record["tokens"]),
            str(record["stage"] or formats.UNKNOWN),
            formats.count(record["sequence_length"]),
            formats.fixed(record["bits_per_byte"]),
        )
        for record in records
    )
    headers = ("run", "milestone", "tokens", "stage", "length", "bits per byte")
    return Table(headers, rows, frozenset({0, 3}), name="milestones", title="Milestones", records=tuple(records))


def stage_ends(run: Run, cost: Cost) -> list[tuple[str, float]]:
    """(name, cost at its end) of every stage but the last."""
    found = []
    for stage in run.recipe.curriculum[:-1]:
        own = [record for record in run.records if record.get("stage") == stage.name]
        if own:
            found.append((stage.name, max(cost_of(record, cost, teacher_share=1.0) for record in own)))
    return found


def mark_stages(axes: Axes, arms: Sequence[Arm], cost: Cost) -> None:
    """A line where each stage of the first arm that has some ends, with the name of the one that ends on its left.

    Nothing where arms have other stages: one line could not be of both.
    """
    runs = [arm.first.run for arm in arms if arm.first.run is not None and arm.first.run.recipe.curriculum]
    if not runs or any(_borders(run) != _borders(runs[0]) for run in runs):
        return
    for name, at in stage_ends(runs[0], cost):
        axes.axvline(at, color="#999999", linestyle=(0, (1, 2)), linewidth=1.1)
        label = formats.short(formats.visible(name), 16).replace("$", r"\$")
        where: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "right"}
        axes.text(at, 0.02, f"{label} ", color="#666666", fontsize=8, **where)


def _borders(run: Run) -> list[tuple[str, float]]:
    return [(stage.name, stage.share) for stage in run.recipe.curriculum]
