"""The pieces of work of a study, and doing one: in this process, or as `python -m limbeck.study.tasks FILE` in another.

A task is a YAML file, so that any launcher can start it: on this machine, under `torchrun`, on a node of a cluster.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from limbeck.errors import DivergedError, LimbeckError
from limbeck.paths import write_atomically
from limbeck.spec.base import Spec, parse
from limbeck.spec.evals import Eval
from limbeck.spec.recipe import Recipe

DIVERGED = 3
"""Exit code of a task whose student diverged."""


class Task(Spec):
    """Train and measure a student, let a teacher read (one pass for all recipes), or measure a teacher."""

    verb: Literal["train", "stores", "teacher"]
    name: str
    """Of the cell; of stores and teachers a name for the log."""
    recipes: tuple[Recipe, ...] = Field(min_length=1)
    evals: dict[str, Eval] = Field(default_factory=dict)
    folder: str | None = None
    """Where a teacher's evaluations are kept."""


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
            if task.evals:
                from limbeck.evals.of_runs import evaluate_run

                evaluate_run(path, task.evals)
        case "stores":
            from limbeck.progress import say
            from limbeck.signals.places import info_at
            from limbeck.study.stores import describe_store, write_recipe_stores

            for place in write_recipe_stores(task.recipes):
                say(describe_store(info_at(place)))
        case "teacher":
            from limbeck.evals.of_runs import evaluate_teacher

            assert task.folder is not None
            evaluate_teacher(first, task.evals, folder=Path(task.folder))


def attempt(task: Task) -> Outcome:
    """Do a task here; what a user can mend becomes its outcome."""
    try:
        perform(task)
    except DivergedError as error:
        return Outcome("diverged", str(error))
    except LimbeckError as error:
        from limbeck.train.interrupt import Interrupted

        if isinstance(error, Interrupted):
            raise
        return Outcome("failed", str(error))
    return Outcome("finished")


def write_task(task: Task, folder: Path) -> Path:
    """The task as a file that another process can do."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}-{task.verb}.yaml"
    write_atomically(path, yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return path


def main(arguments: Sequence[str]) -> int:
    """Do the task in a file. An error that a user can mend is the last line on stderr."""
    (path,) = arguments
    task = parse(Task, yaml.safe_load(Path(path).read_text(encoding="utf-8")), source=path)
    try:
        perform(task)
    except DivergedError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return DIVERGED
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
