"""The arms of a comparison as the report sees them: their curves, their last measurement, and what each has spent.

A curve is (cost, quantity) at every evaluation. Four costs can be held equal: tokens, training seconds, the student's FLOPs,
and the student's FLOPs with the teacher's added. `equal_cost` reads two curves at the same cost by straight lines between
measurements and never beyond them. The arm that is read before its end is read before its learning rate has decayed, and a
straight line lies above a convex curve: both count against that arm, so the result says which one it was.

Suffixes: P points of a curve, N held-out documents, 2 the pair (bytes, bits).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import LimbeckError
from limbeck.paths import same_place
from limbeck.report.statistics import Estimate, interpolate, paired_difference, ratio_estimate
from limbeck.runs import Run
from limbeck.spec.objective import needs_teacher

Axis = Literal["tokens", "seconds", "student_flops", "all_flops"]
AXES: tuple[Axis, ...] = ("tokens", "seconds", "student_flops", "all_flops")
SAME = 0.01
"""Two costs within this fraction of each other count as equal."""


@dataclass(frozen=True)
class Arm:
    """One arm of a study. `run` is None where nothing has been trained yet."""

    name: str
    run: Run | None

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary, empty while it is unfinished."""
        return (self.run.summary if self.run is not None else None) or {}

    @property
    def finished(self) -> bool:
        """Whether the run has ended and left a finite number of bits per byte."""
        return self.bits_per_byte is not None

    @property
    def bits_per_byte(self) -> float | None:
        """On the held-out documents at the end; None when unfinished or not finite."""
        return finite(self.summary.get("bits_per_byte"))

    @property
    def status(self) -> str:
        """'finished', 'unfinished', or 'diverged' where the run ended without a finite measurement."""
        if self.finished:
            return "finished"
        return "diverged" if self.summary else "unfinished"

    @property
    def has_teacher(self) -> bool:
        """Whether the objective reads a teacher's signal."""
        return self.run is not None and needs_teacher(self.run.recipe.objective)

    @cached_property
    def documents(self) -> NDArray[np.float64] | None:
        """documents_N2, float64: (bytes, bits) of every held-out document at the end; None where the run did not keep them."""
        pairs = self.summary.get("bits_per_byte_by_document")
        return np.asarray(pairs, dtype=np.float64).reshape(-1, 2) if pairs else None

    @cached_property
    def estimate(self) -> Estimate | None:
        """Bits per byte with its interval over documents."""
        if self.bits_per_byte is None:
            return None
        if self.documents is None:
            return Estimate(self.bits_per_byte)
        return ratio_estimate(self.documents[:, 1], self.documents[:, 0])

    def seconds_per_step(self) -> float | None:
        """Training seconds per optimizer step over the whole run."""
        step = self.summary.get("step")
        return self.summary["seconds"] / step if step else None

    def curve(self, axis: Axis, quantity: str = "bits_per_byte", event: str = "eval") -> "Curve":
        """The finite values of `quantity` against a cost, the final summary included, also of an unfinished run."""
        records = self.run.events(event) if self.run is not None else []
        if event == "eval" and self.summary and all(record["step"] < self.summary["step"] for record in records):
            records = [*records, self.summary]
        points = [(spent(record, axis), value) for record in records if (value := finite(record.get(quantity))) is not None]
        points.sort(key=lambda point: point[0])
        return Curve(np.array([cost for cost, _ in points]), np.array([value for _, value in points]))


@dataclass(frozen=True)
class Curve:
    """A measured quantity against a cost: costs_P, ascending, and values_P."""

    costs: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.costs)


@dataclass(frozen=True)
class EqualCost:
    """Two curves read at one cost: where the one that ends first ends. A value is None where its curve starts later."""

    at: float
    arm: float | None
    control: float | None
    read_early: Literal["arm", "control", "neither"]
    """Whose value comes from inside its curve rather than from its end."""

    @property
    def difference(self) -> float | None:
        """Arm minus control, bits per byte; None where the curves do not overlap."""
        return self.arm - self.control if self.arm is not None and self.control is not None else None


def equal_cost(arm: Arm, control: Arm, axis: Axis) -> EqualCost:
    """Both arms, finished, at the largest cost that both have spent. Ends within `SAME` of each other are compared as ends."""
    arm_curve, control_curve = arm.curve(axis), control.curve(axis)
    arm_end, control_end = float(arm_curve.costs[-1]), float(control_curve.costs[-1])
    if same(arm_end, control_end):
        return EqualCost(control_end, float(arm_curve.values[-1]), float(control_curve.values[-1]), "neither")
    at = min(arm_end, control_end)
    return EqualCost(
        at=at,
        arm=interpolate(arm_curve.costs, arm_curve.values, at=at),
        control=interpolate(control_curve.costs, control_curve.values, at=at),
        read_early="arm" if control_end < arm_end else "control",
    )


def difference(arm: Arm, control: Arm) -> Estimate | None:
    """Arm minus control at their ends, in bits per byte, paired over the same held-out documents.

    Without an interval where a run kept no documents. None where either is unfinished or they were measured on different texts.
    """
    if arm.bits_per_byte is None or control.bits_per_byte is None or not same_heldout(arm, control):
        return None
    if arm.documents is None or control.documents is None:
        return Estimate(arm.bits_per_byte - control.bits_per_byte)
    return paired_difference(arm.documents, control.documents)


def same_heldout(arm: Arm, control: Arm) -> bool:
    """Whether both were measured on held-out texts of the same sizes in the same order, as far as the runs can tell."""
    if arm.documents is not None and control.documents is not None:
        return np.array_equal(arm.documents[:, 0], control.documents[:, 0])
    return all(arm.summary.get(key) == control.summary.get(key) for key in ("heldout_bytes", "heldout_documents"))


def find_control(arms: Sequence[Arm], name: str) -> Arm:
    """The arm of that name; a `LimbeckError` where there is none or it learns from a teacher itself."""
    names = [arm.name for arm in arms]
    repeated = sorted({arm for arm in names if names.count(arm) > 1})
    if repeated:
        raise LimbeckError(f"arms share a name ({', '.join(repeated)}): give every arm its own")
    if name not in names:
        raise LimbeckError(
            f"control={name} is not one of the arms ({', '.join(names) or 'none'}): name the arm without a teacher"
        )
    control = arms[names.index(name)]
    if control.has_teacher:
        raise LimbeckError(f"control={name} learns from a teacher itself: name an arm with objective.kind=ce as the control")
    return control


def reads(arm: Arm, store: Mapping[str, Any]) -> bool:
    """Whether an arm learns from this signal store."""
    return arm.run is not None and arm.run.recipe.uses_store and same_place(arm.run.recipe.store_path, str(store.get("path")))


def spent(record: Mapping[str, Any], axis: Axis) -> float:
    """What a record says has been spent on an axis."""
    if axis == "all_flops":
        return float(record["student_flops"]) + float(record["teacher_flops"])
    return float(record[axis])


def finite(value: Any) -> float | None:
    """A number, or None for a missing one, an infinity or a NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def same(first: float, second: float) -> bool:
    """Whether two costs are equal within `SAME`."""
    return math.isclose(first, second, rel_tol=SAME)
