"""A recipe: one complete description of a run. What it cannot say cannot be run."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec
from limbeck.spec.budget import Budget
from limbeck.spec.data import Data
from limbeck.spec.objective import ForwardKL, HardLabels, Objective, needs_teacher, terms
from limbeck.spec.optim import Cosine, Optimizer, Schedule
from limbeck.spec.signal import DenseSignal, HardSignal, Signal, TopKSignal
from limbeck.spec.student import Student
from limbeck.spec.teacher import Teacher


class Batch(Spec):
    """Sequences per optimizer step, over all processes, and how many of them go through the student at once."""

    sequences: PositiveInt = 8
    micro_sequences: PositiveInt | None = None
    """None: all of a process's share at once."""


class Evaluation(Spec):
    """When the held-out documents are measured: after every `every` of the budget, and at the end."""

    every: float = Field(0.25, gt=0, le=1)
    kl_to_teacher: bool = True
    """Also measure, at the end, the mean KL(teacher || student) on the held-out documents."""


class Checkpoint(Spec):
    """How often a run can be resumed from: training seconds between checkpoints."""

    seconds: float = Field(60.0, gt=0)


class Recipe(Spec):
    """A student, its texts, its teacher and signal, what it minimises, with what optimizer and for how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    student: Student
    data: Data
    teacher: Teacher | None = None
    signal: Signal | None = None
    store: str | None = None
    """The signal store; None: `<output>/stores/<teacher>-<signal>`."""
    objective: Objective
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Cosine()
    budget: Budget
    batch: Batch = Batch()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the student's matrix products; auto: bfloat16 where a probe finds it faster."""
    device: str = "auto"
    """auto: cuda where there is one, otherwise cpu."""
    seed: int = Field(0, ge=0)
    output: str = "out"

    @model_validator(mode="after")
    def _objective_has_its_signal(self) -> Self:
        if not needs_teacher(self.objective):
            return self
        if self.signal is None:
            raise ValueError(f"objective.kind={self.objective.kind} reads a teacher's signal: set signal.kind")
        if self.teacher is None:
            raise ValueError(f"objective.kind={self.objective.kind} needs a teacher: set teacher.kind")
        for weighted in terms(self.objective):
            match weighted.term:
                case HardLabels() if not isinstance(self.signal, HardSignal | TopKSignal):
                    raise ValueError(f"signal.kind={self.signal.kind} has no top-1: hard labels need hard or topk")
                case ForwardKL() if isinstance(self.signal, HardSignal):
                    raise ValueError("signal.kind=hard is no distribution: forward_kl needs topk, sampled or dense")
                case ForwardKL(tail="renormalised") if not isinstance(self.signal, TopKSignal):
                    raise ValueError(f"objective.tail=renormalised is about topk; signal.kind={self.signal.kind} has no tail")
        return self

    @model_validator(mode="after")
    def _tokenizer_is_known(self) -> Self:
        if self.data.tokenizer is None and self.teacher is None:
            raise ValueError("data.tokenizer is missing and there is no teacher to take it from")
        return self

    @property
    def uses_store(self) -> bool:
        """Whether training reads a signal store."""
        return needs_teacher(self.objective) and self.signal is not None and not self.signal.live

    @property
    def signal_slug(self) -> str:
        """The signal as a name for folders."""
        match self.signal:
            case None:
                return "none"
            case TopKSignal(k=k, temperature=temperature):
                slug = f"topk-{k}"
            case HardSignal():
                return "hard"
            case DenseSignal(temperature=temperature):
                slug = "dense"
            case sampled:
                slug, temperature = f"sampled-{sampled.draws}", sampled.temperature
                slug += f"-seed{sampled.seed}" if sampled.seed else ""
        return slug if temperature == 1 else f"{slug}-t{temperature:g}"

    @property
    def store_path(self) -> str:
        """Where the signal store of this recipe lies."""
        if self.store is not None:
            return self.store
        teacher = self.teacher.slug if self.teacher is not None else "none"
        return f"{self.output}/stores/{teacher}-{self.signal_slug}"

    @property
    def run_path(self) -> str:
        """Where the run of this recipe lies."""
        return f"{self.output}/runs/{self.name}"
