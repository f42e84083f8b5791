"""Where a live teacher should run: what a step takes on G devices for each placement, from the seconds of its phases on one.

Let t_gen, t_teach and t_train be device-seconds of one step: what one device takes for all of its sequences. Assumed: work is
divided without loss, nothing is spent on communication, and a device runs one phase at a time.

    same            (t_gen + t_teach + t_train) / G
    split           max(t_teach, t_train) / p                      on p = G // 2 pairs of devices
    pool of n       max(c t_teach, t_train / m)                    with m = G - n students

A pool is asked by whole students: with n <= m, ceil(m / n) of them wait at the busiest teacher, each with a share of 1 / m, so
c = ceil(m / n) / m; with n > m the worst served student has floor(n / m) teachers, so c = 1 / (m floor(n / m)). The maximum is
of a teacher that reads the next step while the students are at this one. What the student writes itself is not there before the
student has written it: in an on-policy run the phases of a step follow one another, and the maxima are sums with t_gen beside
t_train. The balanced pool, n = ceil(G t_teach / (t_gen + t_teach + t_train)), gives the teachers their share of the work.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["same", "split", "pool"]


@dataclass(frozen=True)
class Phases:
    """Device-seconds of one step."""

    generate: float
    """0 where texts alone are read."""
    teach: float
    train: float

    @property
    def total(self) -> float:
        """Of the step on one device."""
        return self.generate + self.teach + self.train


@dataclass(frozen=True)
class Placed:
    """A placement and what a step is expected to take in it."""

    kind: Kind
    teachers: int
    """Devices that hold a teacher alone."""
    idle: int
    """Devices that nothing is put on."""
    step_seconds: float
    tokens_per_second: float


def balanced_pool(phases: Phases, *, devices: int) -> int:
    """How many of the devices should teach alone: their share of the work, at least one, and not all."""
    return min(max(1, math.ceil(devices * phases.teach / phases.total)), devices - 1)


def expected(phases: Phases, *, devices: int, tokens: float) -> list[Placed]:
    """Every placement that so many devices allow, the fastest first; `tokens` are those of a step."""
    found = [_placed("same", phases.total / devices, tokens)]
    if devices > 1:
        pairs, pool = devices // 2, balanced_pool(phases, devices=devices)
        students = devices - pool
        split = _together(phases.teach / pairs, phases.train / pairs, phases.generate / pairs)
        asked = _together(phases.teach * _busiest(students, pool), phases.train / students, phases.generate / students)
        found.append(_placed("split", split, tokens, teachers=pairs, idle=devices % 2))
        found.append(_placed("pool", asked, tokens, teachers=pool))
    return sorted(found, key=lambda placed: placed.step_seconds)


def _together(teach: float, train: float, generate: float) -> float:
    """Of a step whose teacher runs on devices of its own."""
    return generate + teach + train if generate else max(teach, train)


def _busiest(students: int, teachers: int) -> float:
    """The share of a step's rows that the slowest way of asking leaves to one teacher."""
    if teachers <= students:
        return math.ceil(students / teachers) / students
    return 1 / (students * (teachers // students))


def _placed(kind: Kind, seconds: float, tokens: float, *, teachers: int = 0, idle: int = 0) -> Placed:
    return Placed(kind, teachers, idle, seconds, tokens / seconds)
