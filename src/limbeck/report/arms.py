"""The arms of a study as its report sees them: an arm is the cells that differ by their seed alone.

A cell has a curve, a last measurement, and what it has spent. A curve is (cost, quantity) at every evaluation. Four costs can
be held equal: tokens, training seconds, the student's FLOPs, and the student's FLOPs with the teacher's added. An arm's curve
is the mean over its seeds, evaluation by evaluation, since those lie at the same fractions of every seed's budget.

Suffixes: P points of a curve, S seeds, N held-out documents, 2 the pair (bytes, bits).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import LimbeckError
from limbeck.paths import same_place
from limbeck.report.cells import Cell, StudyView
from limbeck.report.seeds import Spread, spread
from limbeck.report.statistics import Estimate, ratio_estimate
from limbeck.runs import Run
from limbeck.spec.objective import needs_teacher

Cost = Literal["tokens", "seconds", "student_flops", "all_flops"]
COSTS: tuple[Cost, ...] = ("tokens", "seconds", "student_flops", "all_flops")
SAME = 0.02
"""Two costs within this fraction of the larger count as equal, where a study does not say otherwise."""


@dataclass(frozen=True)
class Member:
    """One cell of an arm: a run with its seed. Its run is None where nothing has been trained yet."""

    cell: Cell

    @property
    def name(self) -> str:
        """The run's."""
        return self.cell.name

    @property
    def run(self) -> Run | None:
        """None where there is none."""
        return self.cell.run

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary, empty while it is unfinished."""
        return (self.run.summary if self.run is not None else None) or {}

    @property
    def bits_per_byte(self) -> float | None:
        """On the held-out documents at the end; None when unfinished or not finite."""
        return finite(self.summary.get("bits_per_byte"))

    @property
    def finished(self) -> bool:
        """Whether the run has ended and left a finite number of bits per byte."""
        return self.status == "finished"

    @property
    def status(self) -> str:
        """The cell's; 'diverged' also where the run ended without a finite measurement."""
        return "diverged" if self.cell.status == "finished" and self.bits_per_byte is None else self.cell.status

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
    def spent(self) -> Mapping[str, Any]:
        """The six costs at the end, or at the last record of an unfinished run; empty where nothing has been trained."""
        return self.summary or (self.run.records[-1] if self.run is not None and self.run.records else {})

    def curve(self, cost: Cost, quantity: str = "bits_per_byte", event: str = "eval", *, teacher_share: float = 1.0) -> "Curve":
        """The finite values of `quantity` against a cost, the final summary included, also of an unfinished run."""
        records = self.run.events(event) if self.run is not None else []
        if event == "eval" and self.summary and all(record["step"] < self.summary["step"] for record in records):
            records = [*records, self.summary]
        points = [
            (cost_of(record, cost, teacher_share=teacher_share), value)
            for record in records
            if (value := finite(record.get(quantity))) is not None
        ]
        points.sort(key=lambda point: point[0])
        return Curve(np.array([at for at, _ in points]), np.array([value for _, value in points]))


@dataclass(frozen=True)
class Curve:
    """A measured quantity against a cost: costs_P, ascending, and values_P."""

    costs: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.costs)


@dataclass(frozen=True)
class Arm:
    """The cells that differ by their seed alone."""

    name: str
    members: tuple[Member, ...]

    @property
    def finished(self) -> tuple[Member, ...]:
        """The members that count."""
        return tuple(member for member in self.members if member.finished)

    @property
    def status(self) -> str:
        """'finished' where every member is; otherwise how many are what: '2 finished, 1 diverged'."""
        states = [member.status for member in self.members]
        if len(set(states)) == 1:
            return states[0]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Axis and value; the same for every member."""
        return self.members[0].cell.settings

    @property
    def first(self) -> Member:
        """The member to show where one stands for all: a finished one, or one with a run, or any."""
        return next(iter([*self.finished, *(member for member in self.members if member.run is not None), *self.members]))

    @property
    def has_teacher(self) -> bool:
        """Whether it learns from a teacher."""
        return self.first.has_teacher

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Of the finished members."""
        return tuple(member.cell.seed for member in self.finished)

    @property
    def bits(self) -> Spread | None:
        """Bits per byte over the finished members; None where there are none."""
        return self.spread_of("bits_per_byte")

    def spread_of(self, key: str) -> Spread | None:
        """A number of the summaries over the finished members that have it."""
        return spread([value for member in self.finished if (value := finite(member.summary.get(key))) is not None])

    def spent(self, key: str) -> float | None:
        """The mean of a cost over the finished members, or over those that have begun where none has finished."""
        values = [value for member in self.finished or self.members if (value := finite(member.spent.get(key))) is not None]
        return float(np.mean(values)) if values else None

    @cached_property
    def documents_estimate(self) -> Estimate | None:
        """Bits per byte of an arm with one finished member, with its interval over documents; None otherwise."""
        if len(self.finished) != 1 or self.finished[0].documents is None:
            return None
        documents = self.finished[0].documents
        return ratio_estimate(documents[:, 1], documents[:, 0])

    def curve(self, cost: Cost, quantity: str = "bits_per_byte", event: str = "eval") -> "Band":
        """The mean curve of the finished members, or of those that have begun where none has finished."""
        return band([member.curve(cost, quantity, event) for member in self.finished or self.members])


@dataclass(frozen=True)
class Band:
    """A mean curve: costs_P, ascending, the mean over `seeds` curves, the lowest and the highest of them."""

    costs: NDArray[np.float64]
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seeds: int

    def __len__(self) -> int:
        return len(self.costs)


def band(curves: Sequence[Curve]) -> Band:
    """Curves of several seeds as one: the k-th points together, as far as every curve goes; costs and values are means."""
    drawn = [curve for curve in curves if len(curve)]
    length = min(map(len, drawn), default=0)
    if length == 0:
        empty = np.zeros(0)
        return Band(empty, empty, empty, empty, 0)
    costs_SP = np.stack([curve.costs[:length] for curve in drawn])
    values_SP = np.stack([curve.values[:length] for curve in drawn])
    return Band(costs_SP.mean(axis=0), values_SP.mean(axis=0), values_SP.min(axis=0), values_SP.max(axis=0), len(drawn))


@dataclass(frozen=True)
class Arms:
    """All arms of a study in the order of their cells, and the members by the names of their cells."""

    all: tuple[Arm, ...]
    by_cell: Mapping[str, Member]
    control_cells: frozenset[str]
    """The names of the cells that others are held against as controls."""
    teacher_share: float = 1.0
    """Of the teacher's FLOPs, how much counts at equal FLOPs."""
    tolerance: float = SAME
    """Costs within this fraction of the larger are equal."""

    def __iter__(self) -> Iterator[Arm]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def named(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.all if arm.name == name)

    def is_control(self, arm: Arm) -> bool:
        """Whether others are held against it as their control."""
        return any(member.name in self.control_cells for member in arm.members)

    @property
    def members(self) -> tuple[Member, ...]:
        """All cells."""
        return tuple(self.by_cell.values())


def arms_of(view: StudyView) -> Arms:
    """The arms of a study; a `LimbeckError` where cells share a name, or are compared with what is not there or is taught."""
    by_cell = {cell.name: Member(cell) for cell in view.cells}
    if len(by_cell) < len(view.cells):
        names = [cell.name for cell in view.cells]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise LimbeckError(f"cells share a name ({', '.join(repeated)}): give every run its own")
    members: dict[str, list[Member]] = {}
    for member in by_cell.values():
        members.setdefault(member.cell.arm, []).append(member)
    controls = frozenset(name for cell in view.cells for name in cell.controls.values())
    for cell in view.cells:
        _check_references(cell, by_cell=by_cell, arms=members)
    every = tuple(Arm(name, tuple(found)) for name, found in members.items())
    return Arms(every, by_cell, controls, view.teacher_share, view.tolerance)


def _check_references(cell: Cell, *, by_cell: Mapping[str, Member], arms: Mapping[str, Any]) -> None:
    for name in cell.controls.values():
        if name not in by_cell:
            raise LimbeckError(f"{cell.name}: control={name} is none of the runs ({', '.join(by_cell)}): name one of them")
        if by_cell[name].has_teacher:
            raise LimbeckError(f"{cell.name}: control={name} learns from a teacher itself: name one with objective.kind=ce")
    if cell.compared_with is not None and cell.compared_with not in arms:
        raise LimbeckError(f"{cell.name}: compared_with={cell.compared_with} is none of the arms ({', '.join(arms)})")


def same_heldout(one: Member, other: Member) -> bool:
    """Whether both were measured on held-out texts of the same sizes in the same order, as far as the runs can tell."""
    if one.documents is not None and other.documents is not None:
        return np.array_equal(one.documents[:, 0], other.documents[:, 0])
    return all(one.summary.get(key) == other.summary.get(key) for key in ("heldout_bytes", "heldout_documents"))


def reads(member: Member, store: Mapping[str, Any]) -> bool:
    """Whether a cell learns from this signal store."""
    run = member.run
    return run is not None and any(same_place(path, str(store.get("path"))) for path in run.recipe.stores)


def cost_of(record: Mapping[str, Any], cost: Cost, *, teacher_share: float = 1.0) -> float:
    """What a record or a summary says has been spent; of `all_flops` the teacher's count to this share."""
    if cost == "all_flops":
        return float(record["student_flops"]) + teacher_share * float(record["teacher_flops"])
    return float(record[cost])


def finite(value: Any) -> float | None:
    """A number, or None for a missing one, an infinity or a NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def same(first: float, second: float, *, tolerance: float = SAME) -> bool:
    """Whether two costs are equal within a fraction of the larger."""
    return math.isclose(first, second, rel_tol=tolerance)
