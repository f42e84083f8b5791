"""Running a study: teachers before those whom they teach, stores before the arms that read them, then the reports.

Finished parts are not made again. An arm whose teacher diverged is left out, and the others go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import DivergedError, SpecError
from limbeck.progress import say
from limbeck.report.from_runs import view_of_runs
from limbeck.report.study_page import write_study_report
from limbeck.runs import Costs, Run, is_finished, open_run, require_recipe
from limbeck.signals.places import info_at, is_published
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study
from limbeck.study.expand import expand, teacher_arms, waves


@dataclass(frozen=True)
class StudyResult:
    """Where everything is. `runs` of arms that were left out do not exist."""

    runs: dict[str, Path]
    stores: tuple[str, ...]
    """Folders or URLs."""
    reports: dict[str, Path]
    """A page for every control that arms are compared with."""

    @property
    def report(self) -> Path:
        """The page of a study with one control."""
        (page,) = self.reports.values()
        return page

    def as_json(self) -> dict[str, Any]:
        """What scripts read."""
        pages = {control: str(page) for control, page in self.reports.items()}
        return {
            "arms": [{"arm": arm, "run": str(path), **_costs_and_results(path)} for arm, path in self.runs.items()],
            "stores": list(self.stores),
            **({"report": str(self.report)} if len(pages) == 1 else {"reports": pages}),
        }


def run_study(study: Study, *, output: str, overrides: Mapping[str, Any]) -> StudyResult:
    """Run what is unfinished of a study, and write its reports. torch is imported only if there is something to run."""
    recipes = expand(study, output=output, overrides=overrides)
    _require_controls(study, recipes)
    order = waves(recipes)
    unfinished = {arm for arm, recipe in recipes.items() if not _is_done(recipe)}
    if unfinished:
        _run(recipes, order=order, unfinished=unfinished)
    runs = {arm: Path(recipe.run_path) for arm, recipe in recipes.items()}
    stores = sorted({recipe.store_path for recipe in recipes.values() if recipe.uses_store})
    return StudyResult(runs, tuple(stores), _reports(study, recipes, runs=runs, output=Path(output)))


def _require_controls(study: Study, recipes: Mapping[str, Recipe]) -> None:
    """`SpecError` for a control that learns from a teacher: better before the first run than in the report after the last."""
    for control, arms in study.groups().items():
        if len(arms) > 1 and needs_teacher(recipes[control].objective):
            raise SpecError(f"control={control} learns from a teacher itself: name an arm with objective.kind=ce")


def _reports(study: Study, recipes: Mapping[str, Recipe], *, runs: Mapping[str, Path], output: Path) -> dict[str, Path]:
    """One page for each control with its arms, under its name where there are several."""
    groups = study.groups()
    compared = {control: arms for control, arms in groups.items() if len(arms) > 1 or len(groups) == 1}
    pages = {}
    for control, arms in compared.items():
        only = len(compared) == 1
        read = sorted({recipes[arm].store_path for arm in arms if recipes[arm].uses_store})
        pages[control] = report_of(
            {arm: runs[arm] for arm in arms},
            control=control,
            stores=[path for path in read if is_published(path)],  # a finished study's stores may have been removed
            title=study.name if only else f"{study.name}: {control}",
            folder=output if only else output / "reports" / control,
        )
    return pages


def report_of(runs: Mapping[str, Path], *, control: str, stores: Sequence[str], title: str, folder: Path) -> Path:
    """The HTML report of some runs and the stores they read."""
    opened = {name: _run_at(path) for name, path in runs.items()}
    view = view_of_runs(opened, control=control, stores=[info_at(path) for path in stores], title=title)
    return write_study_report(view, folder=folder)


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


def _run(recipes: Mapping[str, Recipe], *, order: Sequence[Sequence[str]], unfinished: set[str]) -> None:
    from limbeck.train.train import train

    taught_by = teacher_arms(recipes)
    lost: set[str] = set()
    for wave in order:
        ready = [arm for arm in wave if arm in unfinished and taught_by.get(arm) not in lost]
        for arm in (arm for arm in wave if arm in unfinished and arm not in ready):
            lost.add(arm)
            say(f"{arm}: left out, because {taught_by[arm]}, its teacher, has no finished student; the others go on")
        _write_missing_stores([recipes[arm] for arm in ready])
        for arm in ready:
            try:
                train(recipes[arm])
            except DivergedError as error:  # a result like any other: the report shows the arm as unfinished
                lost.add(arm)
                say(str(error))


def _write_missing_stores(recipes: Sequence[Recipe]) -> None:
    from limbeck.study.stores import write_recipe_stores

    lacking = [recipe for recipe in recipes if recipe.uses_store and not is_published(recipe.store_path)]
    if lacking:
        for path in write_recipe_stores(lacking):
            say(describe_store(info_at(path)))


def _run_at(path: Path) -> Run | None:
    """A run, or None where the folder holds none: the arm was left out."""
    return open_run(path) if (path / "recipe.yaml").is_file() else None


def _costs_and_results(path: Path) -> dict[str, Any]:
    """Of a run; results are None where it diverged or was left out."""
    run = _run_at(path)
    records = run.records if run is not None else ()
    summary = run.summary if run is not None else None
    last = summary or {**asdict(Costs()), **(records[-1] if records else {})}
    names = ("tokens", "seconds", "student_flops", "teacher_flops")
    results = ("bits_per_byte", "kl_to_teacher_nats")
    return {**{name: last[name] for name in names}, **{name: (summary or {}).get(name) for name in results}}
