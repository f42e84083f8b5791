"""Tasks as jobs of a Slurm cluster, submitted through the package `submitit`.

A job is the command that does the task on one machine, and nothing else: nothing is pickled, neither here nor there. `submitit`
writes the batch script and submits it; `squeue` says which jobs are left (`sacct`, which `submitit` would ask, knows nothing
where a cluster keeps no accounts); how a job ended it says itself, in a file beside the task's.

A job's number is kept until its outcome has been told (`NAME-VERB.job`): a study that was killed finds its jobs again.
Shortly before its time is up, Slurm sends a job SIGTERM: it stops after its step and is submitted again, to go on from there.
"""

import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, first_line
from limbeck.paths import write_atomically
from limbeck.progress import say
from limbeck.spec.launch import Slurm
from limbeck.study.processes import alone, environment, torchrun, with_log
from limbeck.study.tasks import Outcome, Task, ending_path, read_ending, write_task

ASK_SECONDS = 5.0
"""Between two questions to Slurm, whose controller all users share."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"),
    *("TIMEOUT", "UNKNOWN"),
}
"""States that a job does not leave (squeue(1), "job state codes"), and that of a job which Slurm has forgotten."""


@dataclass(frozen=True)
class SlurmJobs:
    """Every task a job. `LimbeckError` where jobs cannot be submitted from here."""

    folder: Path
    launch: Slurm
    queue: "Queue" = field(default_factory=lambda: Queue())

    def __post_init__(self) -> None:
        for command in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(command) is None:
                raise LimbeckError(
                    f"launch.kind=slurm: there is no {command} here: run the study where jobs are submitted, or set "
                    "launch.kind=local"
                )
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise LimbeckError("launch.kind=slurm needs the package submitit: pip install 'limbeck[slurm]'") from error

    @property
    def slots(self) -> int:
        """Jobs that wait or run at once."""
        return self.launch.jobs

    def start(self, task: Task, slot: int) -> "SlurmJob":
        """Submit a task's job, or find the one that an earlier study submitted."""
        path = write_task(task, self.folder.absolute())
        job = SlurmJob(task.name, path, self.launch, self.queue)
        if job.number is None:
            job.submit()
        else:
            say(f"{task.name}: found again, job {job.number}, output in {job.log}")
        return job


@dataclass
class SlurmJob:
    """A task in a job of a cluster."""

    name: str
    path: Path
    launch: Slurm
    queue: "Queue"
    refused: str = ""
    """What `sbatch` said against it."""
    asked_to_stop: bool = False

    @property
    def log(self) -> Path:
        """What the job prints."""
        return self.path.with_suffix(".log")

    @property
    def kept(self) -> Path:
        """The file with its number."""
        return self.path.with_suffix(".job")

    @property
    def number(self) -> str | None:
        """As Slurm knows it; None where it has not been submitted, or its outcome has been told."""
        return self.kept.read_text(encoding="utf-8").strip() if self.kept.is_file() else None

    def submit(self) -> None:
        """Hand it to Slurm."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        ending_path(self.path).unlink(missing_ok=True)
        try:
            number = submit(self.launch, command_of(self.launch, self.path), name=self.name, log=self.log)
        except (FailedJobError, FailedSubmissionError) as error:
            self.refused = f"sbatch refused it: {_reason(error)}"
            return
        write_atomically(self.kept, number)
        self.queue.expect_more()
        say(f"{self.name}: submitted as job {number}, output in {self.log}")

    def outcome(self) -> Outcome | None:
        """As the job has said, or as Slurm does. One that its time limit stopped goes on in a job of its own."""
        if self.refused:
            return Outcome("failed", self.refused)
        ending = read_ending(self.path)
        if ending is not None and not ending.stopped:
            return self._told(ending.outcome)
        state = self._state()
        if state not in ENDED:
            return None
        ending = read_ending(self.path)  # once more: it may have been written since
        if ending is None:
            return self._told(self._unsaid(state))
        if ending.stopped and state != "CANCELLED" and not self.asked_to_stop:
            say(f"{self.name}: its time was up; it goes on")
            self.submit()
            return self.outcome() if self.refused else None
        return self._told(ending.outcome)

    def stop(self) -> None:
        """A job that waits is cancelled; one that runs is sent SIGTERM, on which training ends after its step."""
        self.asked_to_stop = True
        if self.number is not None:
            _quietly("scancel", "--state=PENDING", self.number)
            _quietly("scancel", "--batch", "--signal=TERM", self.number)  # to the command alone, not to each of its processes

    def wait(self) -> None:
        """Until it has ended."""
        while self.number is not None and self._state() not in ENDED:
            time.sleep(ASK_SECONDS)
        self.kept.unlink(missing_ok=True)

    def _state(self) -> str:
        assert self.number is not None
        return self.queue.state(self.number)

    def _told(self, outcome: Outcome) -> Outcome:
        self.kept.unlink(missing_ok=True)
        return with_log(outcome, self.log)

    def _unsaid(self, state: str) -> Outcome:
        """Of a job that had no time for a word."""
        if state == "COMPLETED":
            return Outcome("finished")
        why = {
            "UNKNOWN": "Slurm no longer knows it, and it has left no word",
            "TIMEOUT": "Slurm ended it before a step could be kept (TIMEOUT): raise launch.minutes",
            "OUT_OF_MEMORY": "it took more memory than it had asked for: raise launch.memory_gib",
        }.get(state, f"Slurm ended it ({state}) and it had no time for a word")
        return Outcome("failed", f"job {self.number}: {why}; the same command continues it")


@dataclass
class Queue:
    """What Slurm says of this user's jobs, asked of now and then for all of them at once."""

    states: dict[str, str] | None = None
    """None while Slurm does not answer: then every job counts as one that is left."""
    asked: float = -ASK_SECONDS

    def state(self, number: str) -> str:
        """A job's state in Slurm's words; UNKNOWN where Slurm has forgotten it, PENDING where nobody can say."""
        if time.monotonic() - self.asked >= ASK_SECONDS:
            self._ask()
        return "PENDING" if self.states is None else self.states.get(number, "UNKNOWN")

    def expect_more(self) -> None:
        """A job was submitted, of which the last answer cannot know."""
        self.states, self.asked = None, -ASK_SECONDS

    def _ask(self) -> None:
        done = _quietly("squeue", "--me", "--noheader", "--states=all", "--format=%i %T")
        self.asked = time.monotonic()
        if done.returncode != 0:
            say(f"Slurm does not answer ({done.stderr.strip() or 'squeue failed'}); the study waits")
            self.states = None
            return
        self.states = dict(line.split() for line in done.stdout.splitlines())


def command_of(launch: Slurm, path: Path) -> list[str]:
    """What does the task in a file on a node: one process, or one for each GPU."""
    return [*(torchrun(launch.gpus) if launch.gpus > 1 else alone()), str(path)]


def submit(launch: Slurm, command: list[str], *, name: str, log: Path) -> str:
    """Submit a command as a job whose output goes to a log; the number of the job.

    The command takes the place of the batch script's shell, which would keep signals from it.
    """
    import submitit

    scripts = log.parent / "slurm"
    scripts.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=scripts)
    executor.update_parameters(**parameters_of(launch, name=name, log=log))
    needed = environment(threads=max(1, launch.cpus // max(1, launch.gpus)))
    variables = shlex.join(f"{key}={value}" for key, value in needed.items() if key not in os.environ)
    return str(executor._submit_command(f"{variables} exec {shlex.join(command)}".strip()).job_id)


def parameters_of(launch: Slurm, *, name: str, log: Path) -> dict[str, Any]:
    """A job's resources and options, as `submitit` names them. `settings` of the study win over what it sets itself."""
    own = {"output": str(log), "signal": f"B:TERM@{notice_seconds(launch.minutes)}", "nodes": 1, "ntasks": 1}
    wanted = {
        "job_name": name,
        "time": launch.minutes,
        "partition": launch.partition,
        "cpus_per_task": launch.cpus,
        "gpus_per_node": launch.gpus or None,
        "mem": f"{launch.memory_gib}G" if launch.memory_gib is not None else None,
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": {**own, **launch.settings},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def notice_seconds(minutes: int) -> int:
    """How long before its time is up a job is told: a tenth of its time, at most three minutes. Slurm may tell it earlier."""
    return min(180, 6 * minutes)


def _quietly(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _reason(error: Exception) -> str:
    """What Slurm says in it, or its first line."""
    said = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.startswith("sbatch: error: ")]
    return "; ".join(said) or first_line(error)
