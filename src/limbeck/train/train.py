"""Training a recipe from start to end: set up, run the loop, finish.

Every stage of a curriculum is set up by its own recipe and begins with what the checkpoint of the one before it holds: that it
continues in the same process changes nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from limbeck.data.loader import RowSource
from limbeck.errors import SpecError
from limbeck.progress import say
from limbeck.runs import Costs, RunWriter, is_finished, read_preflight, require_recipe
from limbeck.spec.recipe import Recipe
from limbeck.train.check_stages import check_stages
from limbeck.train.course import Course
from limbeck.train.loop import run
from limbeck.train.measure import finish
from limbeck.train.parallel import Processes, leave, wait_for_all
from limbeck.train.pool import AskedRows, teaches
from limbeck.train.preflight import Preflight, preflight
from limbeck.train.resume import place_of
from limbeck.train.serving import serve
from limbeck.train.setup import Setup, open_setup
from limbeck.train.sinks import check_sinks, open_sinks


def train(recipe: Recipe) -> Path:
    """Train a recipe to the end of its budget, continuing where an earlier call was stopped. Returns the run folder."""
    path = Path(recipe.run_path)
    if (path / "recipe.yaml").is_file():
        require_recipe(path, recipe)
    if is_finished(path):
        return path
    if teaches(recipe):
        serve(recipe)
        return path
    check_sinks(recipe.sinks)
    processes = _train(recipe, path)
    gc.collect()  # shards hold on to the group of processes, whose threads would outlive it
    leave(processes)
    return path


def _train(recipe: Recipe, path: Path) -> Processes:
    """From the stage at hand to the summary."""
    place, precision = place_of(path)
    course = Course(recipe, place)
    setup = _opened(course, path, precision=precision)
    processes = setup.processes
    with _teachers_told(setup.loader.source):
        course = replace(course, recipe=_resolved(recipe, setup))
        check_stages(course, setup)
        checked = preflight(setup)  # before the run has a folder: what is mended here may change the recipe
        writer = RunWriter(path, recipe=course.recipe, device=str(setup.device)) if processes.is_first else None
        with _told(writer, course.recipe):
            costs = _run(setup, course, checked, path=path, writer=writer)
            while not course.is_last:
                del setup  # before there is another student
                gc.collect()
                wait_for_all(processes)  # until no checkpoint is there but the one that the next stage begins with
                course = _after(course, costs)
                setup = _opened(course, path, precision=place_of(path)[1])
                costs = _run(setup, course, preflight(setup), path=path, writer=writer)
            finish(setup, costs, path=path, writer=writer, whole=course.recipe)
    return processes


def _after(course: Course, costs: Costs) -> Course:
    """The next stage that is run; those that have no step are named aloud."""
    following = course.after(costs)
    for stage in course.passed_over(following):
        say(f"{course.recipe.name}: stage {stage.name} has no step: a step takes more of the budget than its share")
    return following


def _opened(course: Course, path: Path, *, precision: str | None) -> Setup:
    """The stage at hand; `precision` is that of the stages before it, which a probe could find otherwise."""
    recipe = course.stage_recipe
    if recipe.precision == "auto" and precision is not None and course.place.stage:
        recipe = recipe.model_copy(update={"precision": precision})
    setup = open_setup(recipe)
    require_same_start(path, setup)
    return setup


def _resolved(recipe: Recipe, setup: Setup) -> Recipe:
    """The whole recipe with what opening it filled in."""
    size = setup.recipe.student.vocab_size
    assert size is not None, "resolved"
    return recipe.model_copy(update={"student": recipe.student.with_vocab_size(size)})


def _run(setup: Setup, course: Course, checked: Preflight, *, path: Path, writer: RunWriter | None) -> Costs:
    """One stage, or all there is."""
    if writer is not None:
        said = course.recipe.name if course.stage is None else f"{course.recipe.name}, stage {course.stage.name}"
        say(f"{said}: {checked.line()}")
        began: dict[str, Any] = {} if setup.start is None else {"start": asdict(setup.start)}
        if setup.pruned is not None:
            began["pruned"] = setup.pruned.key
        writer.preflight(**asdict(checked), **began)
        if course.stage is not None:
            length, stream = setup.recipe.data.sequence_length, setup.loader.stream
            writer.stage = {"stage": course.stage.name, "sequence_length": length}
            texts = {"padding_share": stream.padding_share, "documents_left_out": stream.left_out}
            writer.keep_stage(course.stage.name, **texts, chats=setup.texts.train.chats)
    return run(setup, path=path, writer=writer, course=course)


@contextmanager
def _teachers_told(asked: RowSource | None) -> Iterator[None]:
    """Inside, teachers in other processes are at hand; afterwards they end too, well or not."""
    if not isinstance(asked, AskedRows):
        del asked  # a teacher of this stage, which the next one may not need
        yield
        return
    with asked.told_where_it_fails():
        yield
    asked.leave(well=True)


@contextmanager
def _told(writer: RunWriter | None, recipe: Recipe) -> Iterator[None]:
    """Inside, the recipe's sinks hear of every record."""
    if writer is None or not recipe.sinks:
        yield
        return
    with open_sinks(recipe, writer.path, recorded=writer.recorded()) as writer.listener:
        yield


def require_same_start(path: Path, setup: Setup) -> None:
    """`SpecError` where the run at `path` began with other weights than its recipe gives now."""
    found = read_preflight(path)
    began, pruned = found.get("start"), found.get("pruned")
    if pruned is not None and setup.pruned is not None and pruned != setup.pruned.key:
        raise SpecError(
            f"student.prune gives another model than {path} began as: put the old weights and calibration texts back (the "
            "device and its precision count too), or train under another name"
        )
    if began is not None and setup.start is not None and began["digest"] != setup.start.digest:
        raise SpecError(
            f"initial_weights={setup.start.weights} has changed since {path} began with it: put the old weights back, or train "
            "under another name"
        )
