"""Doing a study's tasks: one after another in this process, or several at once as processes or as jobs of a cluster.

A task that fails does not stop the others. Whoever stops the study stops what it has started, after the step in hand.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from limbeck.errors import SpecError
from limbeck.spec.launch import Launch, Local, Slurm, Torchrun
from limbeck.study.machine import available_bytes, cores, gpus
from limbeck.study.processes import Processes, alone, torchrun
from limbeck.study.tasks import Outcome, Task, attempt
from limbeck.train.interrupt import Interrupted, finish_the_step

POLL_SECONDS = 0.2
Report = Callable[[Task, Outcome], None]


class Job(Protocol):
    """A task that was started."""

    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        ...

    def stop(self) -> None:
        """Ask it to stop after the step in hand."""
        ...

    def wait(self) -> None:
        """Until it has ended."""
        ...


class Launcher(Protocol):
    """Where tasks are started."""

    @property
    def slots(self) -> int:
        """How many at once."""
        ...

    def start(self, task: Task, slot: int) -> Job:
        """Start one in a free slot."""
        ...


def run_tasks(tasks: Sequence[Task], *, launch: Launch, folder: Path, slots: int, report: Report) -> dict[str, Outcome]:
    """Do tasks that do not depend on one another. `report` hears of each as it ends. `folder` holds task files and logs.

    `Interrupted` where the study is asked to stop, when all that it has started has stopped.
    """
    if launch == Local(jobs=1):
        outcomes = {}
        for task in tasks:
            outcomes[task.name] = attempt(task)
            report(task, outcomes[task.name])
        return outcomes
    return _run_side_by_side(tasks, launcher_of(launch, folder=folder, slots=slots), report=report)


def launcher_of(launch: Launch, *, folder: Path, slots: int) -> Launcher:
    """What starts processes or jobs."""
    match launch:
        case Local():
            return Processes(folder, slots=slots, command=alone())
        case Torchrun(processes=processes):
            return Processes(folder, slots=1, command=torchrun(processes), width=processes)
        case Slurm():
            from limbeck.study.slurm import SlurmJobs

            return SlurmJobs(folder, launch)


def _run_side_by_side(tasks: Sequence[Task], launcher: Launcher, *, report: Report) -> dict[str, Outcome]:
    waiting, running, outcomes = list(tasks), dict[int, tuple[Task, Job]](), dict[str, Outcome]()
    try:
        with finish_the_step() as interrupt:
            while waiting or running:
                for slot in range(launcher.slots):
                    if slot not in running and waiting and not interrupt.asked:
                        task = waiting.pop(0)
                        running[slot] = (task, launcher.start(task, slot))
                if interrupt.asked:
                    raise Interrupted("the study was stopped; the same command continues it")
                for slot, (task, job) in list(running.items()):
                    outcome = job.outcome()
                    if outcome is not None:
                        del running[slot]
                        outcomes[task.name] = outcome
                        report(task, outcome)
                time.sleep(POLL_SECONDS)
    finally:
        _stop([job for _, job in running.values()])
    return outcomes


def _stop(jobs: Sequence[Job]) -> None:
    """All are asked before any is waited for: their steps end side by side."""
    for job in jobs:
        job.stop()
    for job in jobs:
        job.wait()


def slots_of(launch: Launch, *, memory_bytes: float) -> int:
    """How many cells run at once, where the largest takes `memory_bytes`: of main memory, if there is no GPU.

    `SpecError` where `launch.jobs` names more than fit. One cell is never refused: what it takes is an estimate.
    """
    if not isinstance(launch, Local):
        return launch.jobs if isinstance(launch, Slurm) else 1
    devices = gpus()
    room = None if devices else available_bytes()
    fits = int(room // memory_bytes) if room is not None else None
    if launch.jobs == "auto":
        return max(1, len(devices) or (1 if fits is None else min(cores(), fits)))
    if room is not None and fits is not None and 1 < launch.jobs > fits:
        raise SpecError(
            f"launch.jobs={launch.jobs}: a cell takes about {memory_bytes / 1e9:.1f} GB and {room / 1e9:.1f} GB are free: "
            f"set it to {max(fits, 1)} or to auto"
        )
    return launch.jobs
