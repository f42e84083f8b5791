"""Doing a study's tasks: one after another in this process, or several at once as processes or as jobs of a cluster.

A task that fails does not stop the others. Whoever stops the study stops what it has started here, after the step in hand.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from limbeck.errors import SpecError
from limbeck.progress import say
from limbeck.spec.launch import Launch, Local, Slurm, Torchrun
from limbeck.study.tasks import DIVERGED, Outcome, Task, attempt, write_task

POLL_SECONDS = 0.2
Report = Callable[[Task, Outcome], None]


class Job(Protocol):
    """A task that was started."""

    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        ...

    def stop(self) -> None:
        """Ask it to stop after the step in hand, and wait for that."""
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
    """Do tasks that do not depend on one another. `report` hears of each as it ends. `folder` holds task files and logs."""
    if isinstance(launch, Local) and slots == 1:
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
            return Processes(folder, slots=slots, command=[sys.executable, "-m", "limbeck.study.tasks"])
        case Torchrun(processes=processes):
            return Processes(folder, slots=1, command=torchrun(processes))
        case Slurm():
            from limbeck.study.slurm import SlurmJobs

            return SlurmJobs(folder, launch)


def torchrun(processes: int) -> list[str]:
    """The command that starts a module on several processes of one machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", "limbeck.study.tasks"),
    ]


def _run_side_by_side(tasks: Sequence[Task], launcher: Launcher, *, report: Report) -> dict[str, Outcome]:
    waiting, running, outcomes = list(tasks), dict[int, tuple[Task, Job]](), dict[str, Outcome]()
    try:
        while waiting or running:
            for slot in range(launcher.slots):
                if slot not in running and waiting:
                    task = waiting.pop(0)
                    running[slot] = (task, launcher.start(task, slot))
            for slot, (task, job) in list(running.items()):
                outcome = job.outcome()
                if outcome is not None:
                    del running[slot]
                    outcomes[task.name] = outcome
                    report(task, outcome)
            time.sleep(POLL_SECONDS)
    finally:
        for _, job in running.values():
            job.stop()
    return outcomes


@dataclass(frozen=True)
class Processes:
    """Tasks as processes of this machine, each with its share of the cores, or with one of the GPUs; output goes to logs."""

    folder: Path
    slots: int
    command: Sequence[str]

    def start(self, task: Task, slot: int) -> "Process":
        """A process of its own."""
        path = write_task(task, self.folder)
        log = path.with_suffix(".log")
        say(f"{task.name}: begun, output in {log}")
        with log.open("a", encoding="utf-8") as file:
            started = subprocess.Popen(
                [*self.command, str(path)], stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=self._environment(slot)
            )
        return Process(started, log)

    def _environment(self, slot: int) -> Mapping[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": str(max(1, cores // self.slots))}
        devices = gpus()
        mine = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices and self.slots > 1 else {}
        return {**threads, **os.environ, **mine}


@dataclass(frozen=True)
class Process:
    """A task in a process of this machine."""

    started: subprocess.Popen[bytes]
    log: Path

    def outcome(self) -> Outcome | None:
        """By the exit code; the error is the last line that the process wrote."""
        code = self.started.poll()
        if code is None:
            return None
        return outcome_of(code, self.log)

    def stop(self) -> None:
        """By SIGTERM, on which training ends after its step."""
        if self.started.poll() is None:
            self.started.terminate()
            self.started.wait()


def outcome_of(code: int, log: Path) -> Outcome:
    """What an exit code and a log say."""
    if code == 0:
        return Outcome("finished")
    said = [line.removeprefix("limbeck: ") for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    last = said[-1] if said else "it said nothing"
    if code == DIVERGED:
        return Outcome("diverged", last)
    if code < 0:
        return Outcome("failed", f"killed by signal {-code} (out of memory?); its log: {log}")
    return Outcome("failed", f"{last}; its log: {log}")


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; empty where there are none. Without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


def slots_of(launch: Launch, *, memory_bytes: float) -> int:
    """How many cells run at once, where the largest takes `memory_bytes`. `SpecError` where not even one fits."""
    if not isinstance(launch, Local):
        return launch.jobs if isinstance(launch, Slurm) else 1
    room = available_bytes()
    fits = int(room // memory_bytes) if room is not None else None
    if launch.jobs == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(len(gpus()) or cores, fits if fits is not None else 1))
    if fits is not None and launch.jobs > 1 and fits < launch.jobs:
        raise SpecError(
            f"launch.jobs={launch.jobs}: a cell takes about {memory_bytes / 1e9:.1f} GB and {room / 1e9:.1f} GB are free: "  # type: ignore[operator]
            f"set it to {max(fits, 1)} or to auto"
        )
    return launch.jobs


def available_bytes() -> float | None:
    """Of main memory, what can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return float(found[1]) * 1024 if found is not None else None
