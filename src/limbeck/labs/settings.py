"""What can be asked of the laboratories, with defaults that show what there is to see. The standard library alone."""

import math
from dataclasses import dataclass

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class KernelSettings:
    """What is swept: a target whose i-th coefficient falls as i^-decay, and who learns it."""

    functions: int = 256
    decay: float = 0.75
    student_sizes: tuple[int, ...] = (4, 16, 64)
    teacher_norm: float = 0.6
    student_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.functions < 2:
            raise LimbeckError(f"functions={self.functions}: a target needs at least 2 functions to have something to sweep")
        if not self.student_sizes or not all(1 <= size <= self.functions for size in self.student_sizes):
            raise LimbeckError(
                f"student sizes {list(self.student_sizes)}: each must lie between 1 and functions={self.functions}"
            )
        if len(set(self.student_sizes)) < len(self.student_sizes):
            raise LimbeckError(f"student sizes {list(self.student_sizes)}: name each once")
        for name, bound in (("teacher_norm", self.teacher_norm), ("student_norm", self.student_norm)):
            if not 0 < bound < math.inf:
                raise LimbeckError(f"{name}={bound}: a norm bound must be positive; the target's norm is 1")
        if not math.isfinite(self.decay):
            raise LimbeckError(f"decay={self.decay}: must be a finite number")


@dataclass(frozen=True)
class MappingSettings:
    """The whole experiment: the same settings give the same numbers on the same machine."""

    teacher_widths: tuple[int, ...] = (12, 16, 24, 32, 48, 64)
    student_width: int = 12
    seeds: int = 32
    teacher_steps: int = 2000
    student_steps: int = 1000
    learning_rate: float = 3e-3
    batch: int = 512
    heldout: int = 16_384
    seed: int = 0

    def __post_init__(self) -> None:
        widths = self.teacher_widths
        if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
            raise LimbeckError(f"teacher widths {list(widths)}: name at least one, each positive and once")
        for name in ("student_width", "teacher_steps", "student_steps", "batch", "heldout"):
            if getattr(self, name) < 1:
                raise LimbeckError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.seeds < 2:
            raise LimbeckError(f"seeds={self.seeds}: a spread needs at least 2")
        if not 0 < self.learning_rate < math.inf:
            raise LimbeckError(f"learning_rate={self.learning_rate}: must be positive")
