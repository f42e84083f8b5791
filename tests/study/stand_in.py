"""A stand-in for training that needs no torch: steps of a tenth of a second, written to a file; and a study that starts it.

`python stand_in.py FILE` does a task. `python stand_in.py study FOLDER` is a study of the tasks in `FOLDER/study.json`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import DivergedError, LimbeckError
from limbeck.spec.base import Spec, parse
from limbeck.spec.launch import Launch
from limbeck.spec.recipe import Recipe
from limbeck.study import launch, tasks
from limbeck.study.tasks import Task
from limbeck.train.interrupt import Interrupted, finish_the_step

LIMIT = 300
"""Seconds after which what does not happen is a failure, also on a busy machine."""


class Work(Spec):
    launch: Launch
    tasks: tuple[Task, ...]


def command() -> list[str]:
    """What does a task."""
    return [sys.executable, __file__]


def task_of(values: Mapping[str, Any], name: str, *, steps: int = 1) -> Task:
    """A task of that name, of some steps."""
    recipe = parse(Recipe, {**values, "name": name, "budget": {"kind": "steps", "amount": steps}}, source="test")
    return Task(verb="train", name=name, recipes=(recipe,))


def perform(task: Task) -> None:
    """Steps, of which those that an earlier process ended are not done again; then what the task's name says."""
    recipe = task.recipes[0]
    steps = Path(recipe.output).with_name(f"{task.name}.steps")
    with finish_the_step() as interrupt:
        for step in range(len(steps_of(steps.parent, task.name)), int(recipe.budget.amount)):
            with steps.open("a", encoding="utf-8") as file:
                file.write("begun ")
                file.flush()
                time.sleep(0.1)
                file.write(f"threads={os.environ['OMP_NUM_THREADS']} ended\n")
            if interrupt.asked:
                raise Interrupted(f"stopped after step {step + 1}")
    match task.name:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wild":
            raise DivergedError("no loss")
        case "wrong":
            raise LimbeckError("no such text")
        case "broken":
            raise ValueError("of ours")
        case "mute":
            os._exit(7)


def steps_of(folder: Path, name: str) -> list[str]:
    """The lines that a task has written."""
    path = folder / f"{name}.steps"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def wait_for(ready: Callable[[], bool]) -> None:
    """Until it is so."""
    give_up = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def start_study(folder: Path, launch: Launch, tasks: Sequence[Task]) -> subprocess.Popen[str]:
    """A study as a command in a terminal has it: in a process group of its own, which Ctrl-C reaches whole."""
    (folder / "study.json").write_text(Work(launch=launch, tasks=tuple(tasks)).model_dump_json(), encoding="utf-8")
    return subprocess.Popen([*command(), "study", str(folder)], stdout=subprocess.PIPE, text=True, process_group=0)


def study(folder: Path) -> int:
    """What a study's process does."""
    from limbeck.study import slurm
    from limbeck.study.run import only_one

    work = parse(Work, json.loads((folder / "study.json").read_text("utf-8")), source="test")
    launch.alone = slurm.alone = command  # type: ignore[assignment]
    slurm.ASK_SECONDS = 0.05
    try:
        with only_one(folder):
            found = launch.run_tasks(work.tasks, launch=work.launch, folder=folder / "tasks", slots=2, report=lambda *_: None)
    except Interrupted as stop:
        return stop.exit_code
    print(*(found[task.name].status for task in work.tasks))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "study":
        sys.exit(study(Path(sys.argv[2])))
    tasks.perform = perform
    sys.exit(tasks.main(sys.argv[1:]))
