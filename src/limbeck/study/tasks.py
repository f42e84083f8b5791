"""The pieces of work of a study, and doing one: in this process, or as `python -m limbeck.study.tasks FILE` in another.

A task is a YAML file, so that any launcher can start it: on this machine, under `torchrun`, on a node of a cluster.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from limbeck.errors import DivergedError, LimbeckError, first_line
from limbeck.paths import write_atomically
from limbeck.progress import is_first_process, say
from limbeck.spec.base import Spec, parse
from limbeck.spec.evals import Eval
from limbeck.spec.recipe import Recipe
from limbeck.train.interrupt import EndedEarly, Interrupted

FIDELITY = "fidelity"
"""The folder, in a study's, of what stands between teachers and their stores."""
DIVERGED = 3
"""Exit code of a task whose student diverged."""
WITH_STUDY = "--with-study"
"""After the task's file: stop when stdin ends, which the study that started this process holds open."""


class Task(Spec):
    """Train and measure a student, let a teacher read (one pass for all recipes), or measure a teacher."""

    verb: Literal["train", "stores", "teacher"]
    name: str
    """Of the cell; of stores and teachers a name for the log."""
    recipes: tuple[Recipe, ...] = Field(min_length=1)
    evals: dict[str, Eval] = Field(default_factory=dict)
    folder: str | None = None
    """Where a teacher's evaluations, or what is known of stores' fidelity, are kept."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    status: Literal["finished", "diverged", "failed"]
    error: str = ""


def perform(task: Task) -> None:
    """Do a task here. What was begun and stopped goes on; what is finished is not done again."""
    first = task.recipes[0]
    match task.verb:
        case "train":
            from limbeck.train.train import train

            path = train(first)
            if task.evals and is_first_process():
                from limbeck.evals.of_runs import evaluate_run

                evaluate_run(path, task.evals)
        case "stores":
            from limbeck.signals.places import info_at
            from limbeck.study.stores import describe_store, keep_fidelity, write_recipe_stores

            for place in write_recipe_stores(task.recipes):
                say(describe_store(info_at(place)))
                if task.folder is not None and is_first_process():
                    keep_fidelity(place, Path(task.folder))
        case "teacher":
            from limbeck.evals.of_runs import evaluate_teacher

            assert task.folder is not None
            if is_first_process():
                evaluate_teacher(first, task.evals, folder=Path(task.folder))


def attempt(task: Task) -> Outcome:
    """Do a task here; what a user can mend becomes its outcome. `Interrupted` where it was asked to stop, and did.

    `EndedEarly` where other processes know why it ended.
    """
    try:
        perform(task)
    except (Interrupted, EndedEarly):
        raise
    except DivergedError as error:
        return Outcome("diverged", str(error))
    except LimbeckError as error:
        return Outcome("failed", str(error))
    except Exception as error:  # memory that is full, an error in a custom loss: the other cells can be run all the same
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {first_line(error)}")
    return Outcome("finished")


def write_task(task: Task, folder: Path) -> Path:
    """The task as a file that another process can do."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}-{task.verb}.yaml"
    write_atomically(path, yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return path


@dataclass(frozen=True)
class Ending:
    """What a process says of how its task ended, where it had time to say it.

    Exit codes do not tell: `torchrun` and Slurm have their own, and a study that was killed cannot ask for them.
    """

    outcome: Outcome
    stopped: bool = False
    """Asked to stop it did, without losing anything: the same task goes on from there."""


def ending_path(path: Path) -> Path:
    """Where the process that does the task in a file leaves its ending."""
    return path.with_suffix(".ending.json")


def read_ending(path: Path) -> Ending | None:
    """The ending of the task in a file; None where there is none."""
    ending = ending_path(path)
    if ending.name not in os.listdir(path.parent):  # network file systems look again for a list, not always for a name
        return None
    values = json.loads(ending.read_text(encoding="utf-8"))
    return Ending(Outcome(**values["outcome"]), values["stopped"])


def _write_ending(path: Path, ending: Ending) -> None:
    """Of several processes, the one that fails first knows why; that all is well is for the first to say."""
    if ending_path(path).exists() or (ending.outcome.status == "finished" and not is_first_process()):
        return
    write_atomically(ending_path(path), json.dumps(asdict(ending), ensure_ascii=False))


def main(arguments: Sequence[str]) -> int:
    """Do the task in a file. How it ended is written beside the file; an error is also the last line on stderr."""
    path, options = Path(arguments[0]), arguments[1:]
    if is_first_process():
        ending_path(path).unlink(missing_ok=True)
    if WITH_STUDY in options:
        _stop_with_the_study()
    try:
        task = parse(Task, yaml.safe_load(path.read_text(encoding="utf-8")), source=str(path))
        outcome, stopped = attempt(task), False
    except Interrupted as error:
        outcome, stopped = Outcome("failed", str(error)), True
    except EndedEarly as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        _write_ending(path, Ending(Outcome("failed", f"{type(error).__name__}: {first_line(error)}")))
        raise
    _write_ending(path, Ending(outcome, stopped))
    if outcome.error:
        print(f"limbeck: {outcome.error}", file=sys.stderr)
    if stopped:
        return Interrupted.exit_code
    return {"finished": 0, "diverged": DIVERGED, "failed": LimbeckError.exit_code}[outcome.status]


def _stop_with_the_study() -> None:
    """SIGTERM to this process when stdin ends: the study, which holds the other end and never writes, is no more."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
