"""Tasks as processes of this machine, each with its share of the cores, or with one of the GPUs; output goes to logs.

A process has a session of its own, so that Ctrl-C in a terminal reaches the study alone, which then asks each process once.
Whoever kills the study itself stops its processes too: they hold the reading end of a pipe that ends with it. Until they have
ended they keep what the study has locked, so that nobody begins their cells a second time.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.progress import say
from limbeck.study.machine import cores, gpus
from limbeck.study.tasks import WITH_STUDY, Outcome, Task, ending_path, read_ending, write_task

PATIENCE_SECONDS = 120
"""How long `torchrun` waits for the step in hand, and for a checkpoint to be written, before it kills."""
MODULE = ["-m", "limbeck.study.tasks"]


def alone() -> list[str]:
    """The command that does a task in one process; its file follows."""
    return [sys.executable, *MODULE]


def torchrun(processes: int) -> list[str]:
    """The command that does a task on several processes of one machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *MODULE]


def environment(*, threads: int) -> dict[str, str]:
    """What a task's processes need, unless the user says otherwise."""
    return {"OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE_SECONDS)}


@dataclass(frozen=True)
class Processes:
    """`slots` tasks at once, each by a command that starts `width` processes."""

    folder: Path
    slots: int
    command: Sequence[str]
    width: int = 1

    def start(self, task: Task, slot: int) -> "Process":
        """A process of its own."""
        path = write_task(task, self.folder)
        ending_path(path).unlink(missing_ok=True)
        log = path.with_suffix(".log")
        say(f"{task.name}: begun, output in {log}")
        with log.open("ab") as file:
            started = subprocess.Popen(
                [*self.command, str(path), WITH_STUDY],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=self._environment(slot),
                start_new_session=True,
                close_fds=False,  # the study's lock, which alone is inheritable, is held until the last has ended
            )
            return Process(started, path, begins=file.tell())

    def _environment(self, slot: int) -> Mapping[str, str]:
        needed = environment(threads=max(1, cores() // (self.slots * self.width)))
        devices = gpus()
        mine = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices and self.slots > 1 else {}
        return {**needed, **os.environ, **mine}


@dataclass(frozen=True)
class Process:
    """A task in a process of this machine."""

    started: subprocess.Popen[bytes]
    path: Path
    begins: int
    """Where in the log this process begins to write."""

    def outcome(self) -> Outcome | None:
        """As the process has said, or by its exit code and log."""
        code = self.started.poll()
        if code is None:
            return None
        self._let_go()
        return outcome_of(code, self.path, begins=self.begins)

    def stop(self) -> None:
        """By SIGTERM, on which training ends after its step."""
        if self.started.poll() is None:
            self.started.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self.started.wait()
        self._let_go()

    def _let_go(self) -> None:
        assert self.started.stdin is not None
        self.started.stdin.close()


def outcome_of(code: int, path: Path, *, begins: int) -> Outcome:
    """How the process that did the task in a file ended: in its own words, where it had time for any."""
    ending, log = read_ending(path), path.with_suffix(".log")
    if ending is not None:
        return with_log(ending.outcome, log)
    if code == 0:
        return Outcome("finished")
    if code < 0:
        return with_log(Outcome("failed", f"killed by signal {-code} (out of memory?)"), log)
    said = log.read_bytes()[begins:].decode("utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    return with_log(Outcome("failed", f"exit code {code}: {last}"), log)


def with_log(outcome: Outcome, log: Path) -> Outcome:
    """A failure, and where more is said."""
    return Outcome("failed", f"{outcome.error}; its log: {log}") if outcome.status == "failed" else outcome
