"""The capacity gap in closed form: a student that regresses on a teacher that regresses on the target.

The target is f* = Σ a_i φ_i over orthonormal φ_i. A teacher of size p is the nearest function to f* in the span of the first p
with a norm of at most T; a student of size q is the nearest function to that teacher in the span of the first q with a norm of
at most Q (Busbridge et al. 2025, arXiv 2502.08606, Appendix C, Eqs 11-26). With h² = Σ_{i≤p} a_i² and k = min(p, q),

    teacher   C Σ_{i≤p} a_i φ_i,     C = min(1, T / h)
    student   D C Σ_{i≤k} a_i φ_i,   D = min(1, Q / (C sqrt(Σ_{i≤k} a_i²)))

The norm bound drives the effect, and nothing else does: once T binds, a larger teacher pays for each further function with a
smaller share C of those that the student can copy, so that the teacher improves while its student gets worse. Where T does
not bind, or where Q cuts the student down anyway, the strongest teacher is among the best. The error is at most mildly
U-shaped: with Q out of the way no coefficients and no T put the strongest teacher's student more than about 8% above the best.

Suffixes: N functions of the target, P teachers. Everything is float64. An error is ||g - f*||, the root of the squared error,
in units of the target's norm where the coefficients are normalised, as `power_law` does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.labs.settings import KernelSettings

Floats = NDArray[np.float64]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class StudentSweep:
    """One student's errors over all teachers. `best_teacher` is the smallest teacher that reaches `best_error`."""

    size: int
    errors: tuple[float, ...]
    best_teacher: int
    best_error: float
    strongest_error: float

    @property
    def gap(self) -> float:
        """How far the strongest teacher's student is above the best, as a fraction of the best error."""
        return self.strongest_error / self.best_error - 1 if self.best_error else 0.0


@dataclass(frozen=True)
class KernelResult:
    """Errors of the teachers of size 1 to N, and of each student taught by each of them."""

    settings: KernelSettings
    teacher_errors: tuple[float, ...]
    students: tuple[StudentSweep, ...]

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "settings": asdict(self.settings),
            "teacher_sizes": list(range(1, self.settings.functions + 1)),
            "teacher_errors": list(self.teacher_errors),
            "students": [{**asdict(student), "gap": student.gap} for student in self.students],
        }


def power_law(functions: int, *, decay: float) -> Floats:
    """Coefficients a_N with a_i ∝ i^-decay and Σ a_i² = 1."""
    raw_N = np.arange(1, functions + 1, dtype=np.float64) ** -decay
    return raw_N / np.linalg.norm(raw_N)


def teacher_error(coefficients_N: Floats, sizes_P: Sizes, *, norm: float) -> Floats:
    """Errors of teachers of `sizes_P` (0 to N functions) and a norm of at most `norm`."""
    scales_P = _teacher_scale(coefficients_N, sizes_P, norm=norm)
    return np.sqrt(_tail(coefficients_N)[sizes_P] + (1 - scales_P) ** 2 * _head(coefficients_N)[sizes_P])


def student_error(coefficients_N: Floats, sizes_P: Sizes, *, size: int, teacher_norm: float, student_norm: float) -> Floats:
    """Errors, to the target, of a student of `size` functions taught by each of the teachers of `sizes_P`."""
    scales_P = _teacher_scale(coefficients_N, sizes_P, norm=teacher_norm)
    shared_P = np.minimum(sizes_P, size)
    head_P = _head(coefficients_N)[shared_P]
    scales_P = scales_P * _shrink(scales_P * np.sqrt(head_P), to=student_norm)
    return np.sqrt(_tail(coefficients_N)[shared_P] + (1 - scales_P) ** 2 * head_P)


def sweep(settings: KernelSettings) -> KernelResult:
    """Teachers of every size, and every student taught by each."""
    coefficients_N, sizes_P = power_law(settings.functions, decay=settings.decay), np.arange(1, settings.functions + 1)
    norms = {"teacher_norm": settings.teacher_norm, "student_norm": settings.student_norm}
    students = []
    for size in settings.student_sizes:
        errors_P = student_error(coefficients_N, sizes_P, size=size, **norms)
        best = _first_smallest(errors_P.tolist())
        students.append(
            StudentSweep(size, tuple(errors_P.tolist()), int(sizes_P[best]), float(errors_P[best]), float(errors_P[-1]))
        )
    teachers_P = teacher_error(coefficients_N, sizes_P, norm=settings.teacher_norm)
    return KernelResult(settings, tuple(teachers_P.tolist()), tuple(students))


def _first_smallest(errors: Sequence[float]) -> int:
    """The first index at the minimum, ties read through rounding: teachers below the bound teach the same."""
    return int(np.flatnonzero(np.asarray(errors) <= min(errors) * (1 + 1e-12))[0])


def _head(coefficients_N: Floats) -> Floats:
    """Σ_{i≤n} a_i² at n = 0 … N."""
    return np.concatenate([[0.0], np.cumsum(coefficients_N**2)])


def _tail(coefficients_N: Floats) -> Floats:
    """Σ_{i>n} a_i² at n = 0 … N, summed from the small end: 1 - head would cancel."""
    return np.concatenate([np.cumsum(coefficients_N[::-1] ** 2)[::-1], [0.0]])


def _teacher_scale(coefficients_N: Floats, sizes_P: Sizes, *, norm: float) -> Floats:
    return _shrink(np.sqrt(_head(coefficients_N)[sizes_P]), to=norm)


def _shrink(norms_P: Floats, *, to: float) -> Floats:
    """The factor that brings each norm down to at most `to`; 1 for a norm of zero."""
    return np.minimum(1.0, to / np.maximum(norms_P, np.finfo(np.float64).tiny))
