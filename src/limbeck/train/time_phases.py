"""What a step's phases take here: the student writes, the teacher reads, the student learns. A few real steps, thrown away.

The run's folder is not touched; what any run of the recipe leaves in the user cache (tokens, a converted teacher) is. Teacher
and student are on one device for this, whatever the recipe says, so that phases follow one another and each is timed alone.
"""

import gc
import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from limbeck.data.loader import Batch
from limbeck.errors import SpecError
from limbeck.evals.generate import synchronise
from limbeck.objectives.objective import START
from limbeck.optim.build import build_optimizer
from limbeck.plan.placement import Phases
from limbeck.progress import progress
from limbeck.spec.objective import needs_teacher
from limbeck.spec.on_policy import OnPolicy, ServerEngine
from limbeck.spec.placement import SameDevice
from limbeck.spec.recipe import Recipe
from limbeck.train.loop import optimizer_step
from limbeck.train.on_policy import OnPolicySteps
from limbeck.train.parallel import leave, sum_values
from limbeck.train.setup import Setup, open_setup

WARM_UP = 1
"""Steps that are not timed: the first one also allocates and looks for kernels."""


@dataclass(frozen=True)
class Timed:
    """A step's phases: means over steps."""

    phases: Phases
    tokens: float
    """That have a loss, of one step."""
    processes: int
    """That shared the steps which were timed."""


def time_phases(recipe: Recipe, *, steps: int = 3) -> Timed:
    """Open the recipe, take at least so many steps and one before them, and forget them.

    `SpecError` where no teacher is live.
    """
    if not needs_teacher(recipe.objective) or recipe.uses_store:
        raise SpecError(f"{recipe.name}: phases are those of a run with a live teacher: set signal.live=true")
    quiet = recipe.evaluation.model_copy(update={"kl_to_teacher": False})  # nothing is measured
    writing = _without_refresh(recipe.on_policy)
    setup = open_setup(recipe.model_copy(update={"placement": SameDevice(), "evaluation": quiet, "on_policy": writing}))
    processes = setup.processes
    turns = 1 if recipe.on_policy is None else recipe.on_policy.steps_per_rollout
    number = turns * math.ceil(steps / turns)  # so many that each share of writing is counted
    found = []
    with (
        TemporaryDirectory() as folder,
        closing(_steps(setup, Path(folder))) as timed,
        progress(f"timing {recipe.name}", total=WARM_UP + number) as advance,
    ):
        for _ in range(WARM_UP + number):
            found.append(next(timed))
            advance(1)
    del setup, timed  # shards hold on to the group of processes, whose threads would outlive it
    gc.collect()
    leave(processes)
    means = np.array([[each.generate, each.teach, each.train] for each, _ in found[WARM_UP:]]).mean(0)
    tokens = float(np.mean([each for _, each in found[WARM_UP:]]))
    return Timed(Phases(*(processes.world_size * means).tolist()), tokens, processes.world_size)


def _without_refresh(spec: OnPolicy | None) -> OnPolicy | None:
    """A server keeps its weights: those of this dry run are thrown away."""
    if spec is None or not isinstance(spec.engine, ServerEngine):
        return spec
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"refresh_url": None})})


def _steps(setup: Setup, folder: Path) -> Generator[tuple[Phases, float], None, None]:
    """Seconds of each step here, and its tokens over all processes."""
    optimizer = build_optimizer(setup.recipe.optimizer, setup.trained, dtype=setup.dtype)
    on_policy = OnPolicySteps(setup, folder) if setup.recipe.on_policy is not None else None
    with closing((on_policy or setup.loader).steps(0)) as steps:
        while True:
            begun = _now(setup)
            batches: list[Batch] = next(steps)
            read = _now(setup)
            optimizer_step(setup, optimizer, batches, moment=START)
            learnt = _now(setup)
            generate = on_policy.numbers["generate_seconds"] if on_policy is not None else 0.0
            counted = torch.tensor(float(sum(batch.counted for batch in batches)), device=setup.device)
            yield Phases(generate, read - begun - generate, learnt - read), float(sum_values(counted, setup.processes))


def _now(setup: Setup) -> float:
    synchronise(setup.device)
    return time.perf_counter()
