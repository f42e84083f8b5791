"""What `limbeck eval` measures, and on what: a run's student on the run's texts, any other model on those that are named."""

from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.runs import is_finished, open_run
from limbeck.spec.data import FileTexts, Texts
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe

KEPT = ("milestones", "stages")
"""Folders of a run, with students as they were on the way."""


def is_run(target: str) -> bool:
    """Whether it is a run's folder, and no model's."""
    return (Path(target) / "recipe.yaml").is_file()


def model_of(target: str) -> str:
    """What is measured: of a run its student. `LimbeckError` where the run has not ended."""
    if not is_run(target):
        return target
    if not (Path(target) / "student").is_dir() or not is_finished(target):
        raise LimbeckError(f"{target} is unfinished: `limbeck train {target}/recipe.yaml` continues it")
    return f"{target}/student"


def recipe_of(target: str, recipe: str | None) -> Recipe | None:
    """The one that is named, or that of the run, or of the run that kept the folder on its way; None for a model alone.

    Of a curriculum it is that of the stage which left the student so.
    """
    if recipe is not None:
        return load_recipe(recipe).last_stage
    if is_run(target):
        return open_run(target).recipe.last_stage
    return _stage_of(Path(target)) if is_kept(target) else None


def is_kept(target: str) -> bool:
    """Whether it is a folder that a run kept on its way."""
    folder = Path(target).absolute()
    return folder.parent.name in KEPT and is_run(str(folder.parent.parent))


def _stage_of(folder: Path) -> Recipe:
    """Of a folder that a run kept: a stage's own, or that in which the milestone was reached."""
    folder = folder.absolute()
    run = open_run(folder.parent.parent)
    name = folder.name
    if folder.parent.name == "milestones":
        reached = [record for record in run.events("milestone") if record["amount"] == float(folder.name)]
        name = reached[-1].get("stage", "") if reached else ""
    return next((recipe for stage, recipe in run.recipe.stages if stage.name == name), run.recipe.last_stage)


def texts_of(recipe: Recipe | None, texts: list[str] | None) -> Texts | None:
    """Those that are named, or the recipe's held-out ones."""
    if texts:
        return FileTexts(paths=tuple(texts))
    return recipe.data.heldout if recipe is not None else None


def require_texts(target: str, recipe: Recipe | None, texts: list[str] | None) -> Texts:
    """The same; `LimbeckError` where there are none."""
    found = texts_of(recipe, texts)
    if found is None:
        raise LimbeckError(
            f"{target} is no run (it has no recipe.yaml): to measure a model, name texts with --recipe or --texts"
        )
    return found
