"""What the planner said before a study beside what was measured after it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Member, finite, reads
from limbeck.report.blocks import Scalar, Table

QUANTITIES = {
    "tokens": "tokens",
    "student_flops": "student FLOPs",
    "teacher_flops": "teacher FLOPs",
    "seconds": "seconds",
    "store_bytes": "store bytes",
}


def predicted_table(arms: Arms, stores: Sequence[Mapping[str, Any]]) -> Table | None:
    """For every arm the mean prediction, the mean measurement and their ratio; None where nothing was predicted.

    Only finished runs count, of which both are known.
    """
    told = [arm for arm in arms if any(member.cell.predicted is not None for member in arm.finished)]
    if not told:
        return None
    rows, records = [], []
    for arm in told:
        cells = [arm.name]
        record: dict[str, Scalar] = {"arm": arm.name}
        for key in QUANTITIES:
            predicted, measured = _means(arm, key, stores)
            cells.append(_cell(key, predicted, measured))
            ratio = measured / predicted if predicted and measured is not None else None
            record |= {f"{key}_predicted": predicted, f"{key}_measured": measured, f"{key}_ratio": ratio}
        rows.append(tuple(cells))
        records.append(record)
    headers = ("arm", *QUANTITIES.values())
    return Table(headers, tuple(rows), name="predicted", records=tuple(records))


def _means(arm: Arm, key: str, stores: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    both = [
        (said, found)
        for member in arm.finished
        if (said := finite(getattr(member.cell.predicted, key, None))) is not None
        and (found := _measured(member, key, stores)) is not None
    ]
    if not both:
        return None, None
    predicted, measured = zip(*both, strict=True)
    return float(np.mean(predicted)), float(np.mean(measured))


def _measured(member: Member, key: str, stores: Sequence[Mapping[str, Any]]) -> float | None:
    if key == "store_bytes":
        return next((finite(store.get("bytes")) for store in stores if reads(member, store)), None)
    return finite(member.summary.get(key))


def _cell(key: str, predicted: float | None, measured: float | None) -> str:
    if predicted is None or measured is None:
        return formats.UNKNOWN
    show = {"tokens": formats.count, "seconds": formats.seconds, "store_bytes": formats.size}.get(key, formats.power)
    if predicted == measured == 0:
        return "0"
    return f"{show(predicted)} → {show(measured)} ({formats.ratio(measured, predicted)})"
