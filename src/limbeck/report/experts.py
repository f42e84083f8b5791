"""Experts over a run: how evenly they were used, and whether routers still chose as they did.

From the `experts` records of `RUN/metrics.jsonl` (`limbeck.train.expert_watch` says what the numbers are).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from limbeck.report import formats
from limbeck.report.arms import Arms, Member, cost_of, finite
from limbeck.report.blocks import Drawn, Scalar, Table
from limbeck.report.figures import drawn, label, looks
from limbeck.report.stages import mark_stages

_NUMBERS = {
    "load": ("busiest / mean", 2),
    "entropy": ("entropy / even", 3),
    "dead": ("dead", 3),
    "drift": ("drift", 3),
    "drift_from_first": ("drift from the first", 3),
}
_DRAWN = {"load": "busiest expert’s tokens / mean", "drift": "share of experts that changed"}


def expert_table(arms: Arms) -> Table | None:
    """A row for every layer with experts of every run at its last evaluation; None where no student has experts."""
    records = [
        {"run": member.name, "layer": number + 1, "step": last["step"], **{name: finite(layer[name]) for name in _NUMBERS}}
        for member in _with_experts(arms)
        for last in _records(member)[-1:]
        for number, layer in enumerate(last["layers"])
    ]
    if not records:
        return None
    headers = ("run", "layer with experts", *(words for words, _ in _NUMBERS.values()))
    rows = tuple(map(_row, records))
    return Table(headers, rows, name="experts", title="Experts at the last evaluation", records=tuple(records))


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (formats.fixed(record[name], places) for name, (_, places) in _NUMBERS.items())
    return (record["run"], formats.count(record["layer"]), *numbers)


def course_table(arms: Arms) -> Table | None:
    """A row for every evaluation of every run, the mean over layers; in a file alone."""
    records: list[Mapping[str, Scalar]] = [
        {
            "run": member.name,
            "stage": record.get("stage"),
            "step": record["step"],
            "tokens": record["tokens"],
            **{name: finite(record[name]) for name in _NUMBERS},
        }
        for member in _with_experts(arms)
        for record in _records(member)
    ]
    if not records:
        return None
    rows = tuple(tuple(formats.UNKNOWN if value is None else str(value) for value in record.values()) for record in records)
    return Table(tuple(records[0]), rows, name="experts-over-time", records=tuple(records), shown="file")


def draw_experts(arms: Arms) -> Drawn | None:
    """Load and drift against tokens, a run of each arm: means over layers, bands from the lowest to the highest layer."""
    shown = [arm for arm in arms if _records(arm.first)]
    if not shown:
        return None
    styles = looks(arms)

    def draw(figure: Figure) -> None:
        for axes, (name, words) in zip(figure.subplots(1, len(_DRAWN)), _DRAWN.items(), strict=True):
            for arm in shown:
                records = [record for record in _records(arm.first) if record[name] is not None]
                at_P = np.array([cost_of(record, "tokens", teacher_share=1.0) for record in records])
                value_PM = np.array([[layer[name] for layer in record["layers"]] for record in records], dtype=float)
                if not len(at_P):
                    continue
                look = styles[arm.name]
                axes.fill_between(at_P, value_PM.min(1), value_PM.max(1), color=look.colour, alpha=0.12, linewidth=0)
                axes.plot(at_P, value_PM.mean(1), look.line, color=look.colour, marker=look.marker, label=label(arm.name))
            mark_stages(axes, shown, "tokens")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_xlabel("training tokens")
            axes.set_ylabel(words)
        figure.axes[0].legend()

    caption = (
        "Experts on the same held-out tokens at every evaluation: the mean over layers, bands from the lowest to the highest "
        "layer. Changed: since the evaluation before. Dotted lines are ends of stages."
    )
    return drawn("experts", caption, draw, size=(9.0, 3.6), wide=True)


def _with_experts(arms: Arms) -> list[Member]:
    return [member for member in arms.members if _records(member)]


def _records(member: Member) -> list[dict[str, Any]]:
    return member.run.events("experts") if member.run is not None else []
