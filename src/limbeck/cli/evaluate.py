"""`limbeck eval RUN|FOLDER|HUB_ID`."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.errors import LimbeckError
from limbeck.spec.base import parse
from limbeck.spec.data import FileTexts, Texts
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context

DEFAULT_WINDOW = 2048


def evaluate_model(
    target: Annotated[str, typer.Argument(help="A run folder, a model folder or a hub id.", metavar="RUN|FOLDER|HUB_ID")],
    recipe: Annotated[str | None, typer.Option(help="The recipe whose held-out texts (and teacher) to use.")] = None,
    texts: Annotated[list[str] | None, typer.Option(help="Text files to measure on instead; repeat for more.")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens the model reads at once; default: the recipe's sequence length, or 2048.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Tokens that the next window reads again as context.")] = 0,
    as_json: Json = False,
) -> None:
    """Bits per byte on held-out documents, and the KL to the recipe's teacher where the tokenizer is the same."""
    from limbeck.runs import open_run

    is_run = (Path(target) / "recipe.yaml").is_file()
    if is_run and not (Path(target) / "student").is_dir():
        raise LimbeckError(f"{target} is unfinished: `limbeck train {target}/recipe.yaml` continues it")
    if not is_run and recipe is None and not texts:
        raise LimbeckError(
            f"{target} is no run (it has no recipe.yaml): to measure a model, name texts with --recipe or --texts"
        )
    chosen = load_recipe(recipe) if recipe is not None else open_run(target).recipe if is_run else None
    model = f"{target}/student" if is_run else target
    usual = chosen.data.sequence_length if chosen is not None else DEFAULT_WINDOW
    context = {"window": window or min(usual, _longest(model) or usual), "overlap": overlap}
    reading = parse(Context, context, source="--window and --overlap")
    from limbeck.evals.model import evaluate_model as measure

    heldout = measure(
        model,
        texts=FileTexts(paths=tuple(texts)) if texts else _heldout(chosen),
        context=reading,
        teacher=chosen.teacher if chosen is not None and chosen.evaluation.kl_to_teacher else None,
        dtype="float32" if is_run else "auto",  # rounding a student's float32 weights would change its bits per byte
    )
    values = {
        "model": target,
        "bits_per_byte": heldout.bits_per_byte,
        "kl_to_teacher_nats": heldout.kl_to_teacher_nats,
        "tokens": heldout.tokens,
        "bytes": heldout.bytes,
        "documents": heldout.documents,
    }
    emit(values, as_json=as_json, lines=[f"{key}: {value}" for key, value in values.items()])


def _heldout(recipe: Recipe | None) -> Texts:
    assert recipe is not None, "checked above: without --texts there is a recipe"
    return recipe.data.heldout


def _longest(model: str) -> int | None:
    """The most tokens that a model can read at once, where its configuration is on this machine and says so."""
    from limbeck.teachers.files import TeacherFiles, read_config

    return (read_config(TeacherFiles(model, model)) or {}).get("max_position_embeddings")
