"""Running a study: stores first, then every arm, then the report. Finished parts are not made again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import DivergedError
from limbeck.progress import say
from limbeck.report.page import Arm, write_report
from limbeck.runs import Costs, is_finished, open_run, require_recipe
from limbeck.signals.manifest import info, is_published
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study
from limbeck.study.expand import expand


@dataclass(frozen=True)
class StudyResult:
    """Where everything is."""

    runs: dict[str, Path]
    stores: tuple[Path, ...]
    report: Path

    def as_json(self) -> dict[str, Any]:
        """What scripts read."""
        return {
            "arms": [{"arm": arm, "run": str(path), **_costs_and_results(path)} for arm, path in self.runs.items()],
            "stores": [str(path) for path in self.stores],
            "report": str(self.report),
        }


def run_study(study: Study, *, output: str, overrides: Mapping[str, Any]) -> StudyResult:
    """Run what is unfinished of a study, and write its report. torch is imported only if there is something to run."""
    recipes = expand(study, output=output, overrides=overrides)
    unfinished = [recipe for recipe in recipes.values() if not _is_done(recipe)]
    if unfinished:
        _run(unfinished)
    runs = {arm: Path(recipe.run_path) for arm, recipe in recipes.items()}
    stores = sorted({Path(recipe.store_path) for recipe in recipes.values() if recipe.uses_store})
    kept = [path for path in stores if is_published(path)]  # a finished study's stores may have been removed
    report = report_of(runs, control=study.control, stores=kept, title=study.name, folder=Path(output))
    return StudyResult(runs, tuple(stores), report)


def report_of(runs: Mapping[str, Path], *, control: str, stores: Sequence[Path], title: str, folder: Path) -> Path:
    """The HTML report of some runs and the stores they read."""
    opened = {name: open_run(path) for name, path in runs.items()}
    teachers = [run.summary["teacher"] for run in opened.values() if run.summary is not None and run.summary["teacher"]]
    return write_report(
        [Arm(name, run) for name, run in opened.items()],
        control=control,
        stores=[info(path) for path in stores],
        title=title,
        folder=folder,
        teacher=teachers[0] if teachers else None,
    )


def describe_store(facts: Mapping[str, Any]) -> str:
    """A store in one line: size, what it keeps, how fast it was scored."""
    tail = f", tail mass {facts['tail_mass']:.3f}" if "tail_mass" in facts else ""
    return (
        f"store {facts['path']}: {facts['bytes_per_token']:.1f} bytes/token, "
        f"{facts['distinct_ids_per_token']:.1f} ids/token{tail}, scored at {facts['scoring_tokens_per_second']:,.0f} tokens/s"
    )


def _is_done(recipe: Recipe) -> bool:
    if not is_finished(recipe.run_path):
        return False
    require_recipe(recipe.run_path, recipe)
    return True


def _run(recipes: Sequence[Recipe]) -> None:
    from limbeck.study.stores import stores_of, write_recipe_stores
    from limbeck.train.train import train

    wanted = [recipe for recipe in recipes if recipe.uses_store]
    if not all(is_published(path) for path in stores_of(wanted)):
        for path in write_recipe_stores(wanted):
            say(describe_store(info(path)))
    for recipe in recipes:
        try:
            train(recipe)
        except DivergedError as error:  # a result like any other: the report shows the arm as unfinished
            say(str(error))


def _costs_and_results(path: Path) -> dict[str, Any]:
    """Of a run; results are None where it diverged."""
    run = open_run(path)
    last = run.summary or {**asdict(Costs()), **(run.records[-1] if run.records else {})}
    names = ("tokens", "seconds", "student_flops", "teacher_flops")
    results = ("bits_per_byte", "kl_to_teacher_nats")
    return {**{name: last[name] for name in names}, **{name: (run.summary or {}).get(name) for name in results}}
