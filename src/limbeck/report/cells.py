"""A study as its report sees it: cells, each a run with its seed, what it is compared with, and what was measured of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.eval_results import EvalResult
from limbeck.runs import Run
from limbeck.spec.study import Basis

Status = Literal["finished", "running", "stopped", "diverged", "failed", "waiting", "left out"]


@dataclass(frozen=True)
class Prediction:
    """What the planner said before the run; None where it cannot be told."""

    tokens: float | None
    student_flops: float | None
    teacher_flops: float | None
    seconds: float | None
    store_bytes: float | None


@dataclass(frozen=True)
class Cell:
    """One run of a study. Cells that differ by their seed alone share an `arm`."""

    name: str
    """The run's."""
    arm: str
    seed: int | None
    settings: Mapping[str, Any]
    """Axis and the value that this cell has on it; empty without axes."""
    run: Run | None
    """None where nothing has been trained yet."""
    status: Status
    note: str = ""
    """Why it failed or was left out."""
    controls: Mapping[Basis, str] = field(default_factory=dict)
    """The cells without a teacher that had the same of each basis; empty for a control and where the study has none."""
    compared_with: str | None = None
    """Another arm that the study compares this one with, by its name; seeds are paired."""
    evals: Mapping[str, EvalResult] = field(default_factory=dict)
    predicted: Prediction | None = None
    base: str = ""
    """The arm without its values on axes: what an axis shows is told for the cells of one base."""


@dataclass(frozen=True)
class StudyView:
    """All that a study's report shows."""

    name: str
    question: str | None
    """In the words of whoever wrote the study."""
    cells: Sequence[Cell]
    stores: Sequence[Mapping[str, Any]]
    """What `limbeck cache info` says of each signal store."""
    fidelity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Store and what `limbeck cache fidelity` says of it, where it was asked."""
    teachers: Mapping[str, Mapping[str, EvalResult]] = field(default_factory=dict)
    """Evaluations of teachers, by teacher."""
    source: str = ""
    """The study's YAML."""
    command: str = ""
    """The command that runs it again."""
    teacher_share: float = 1.0
    """Of the teacher's FLOPs, how much counts where FLOPs are held equal."""
    tolerance: float = 0.02
    """Costs that differ by more than this fraction are not equal."""
