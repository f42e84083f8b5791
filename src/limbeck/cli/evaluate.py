"""`limbeck eval RUN|FOLDER|HUB_ID`, and several side by side with --by-position."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.by_position import labels, output_folder, show_by_position
from limbeck.cli.output import emit
from limbeck.errors import LimbeckError, SpecError
from limbeck.spec.base import parse
from limbeck.spec.data import FileTexts, Texts
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context

DEFAULT_WINDOW = 2048


def evaluate_model(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="A run folder, a model folder or a hub id; several with --by-position.", metavar="RUN|FOLDER|HUB_ID"
        ),
    ],
    recipe: Annotated[str | None, typer.Option(help="The recipe whose held-out texts (and teacher) to use.")] = None,
    texts: Annotated[list[str] | None, typer.Option(help="Text files to measure on instead; repeat for more.")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens the model reads at once; default: the recipe's sequence length, or 2048.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Tokens that the next window reads again as context.")] = 0,
    by_position: Annotated[
        bool,
        typer.Option(
            "--by-position",
            help="Nats per token by position in the document, over its first --window tokens, as table and figure.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where --by-position writes; default: the run's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bits per byte on held-out documents, and the KL to the recipe's teacher where the tokenizer is the same."""
    target = targets[0]
    if len(targets) > 1 and not by_position:
        raise SpecError(f"{len(targets)} models are named: add --by-position to see them side by side, or name one")
    models = [_model(each) for each in targets]
    chosen = _recipe(target, recipe, texts)
    if by_position:
        if overlap:
            raise SpecError("--overlap means nothing with --by-position: a document's first --window tokens are read at once")
        folder = output_folder(targets, output)
        names = dict(zip(labels(targets), models, strict=True))
        read = FileTexts(paths=tuple(texts)) if texts else _heldout(chosen)
        show_by_position(names, texts=read, window=window or DEFAULT_WINDOW, output=folder, as_json=as_json)
        return
    if output is not None:
        raise SpecError("-o is for --by-position, which writes a table and a figure")
    is_run, model = _is_run(target), models[0]
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


def _is_run(target: str) -> bool:
    return (Path(target) / "recipe.yaml").is_file()


def _model(target: str) -> str:
    """What is measured: of a run its student."""
    if not _is_run(target):
        return target
    if not (Path(target) / "student").is_dir():
        raise LimbeckError(f"{target} is unfinished: `limbeck train {target}/recipe.yaml` continues it")
    return f"{target}/student"


def _recipe(target: str, recipe: str | None, texts: list[str] | None) -> Recipe | None:
    """The one that is named, or that of the run; None where texts are named instead."""
    from limbeck.runs import open_run

    if recipe is not None:
        return load_recipe(recipe)
    if _is_run(target):
        return open_run(target).recipe
    if not texts:
        raise LimbeckError(
            f"{target} is no run (it has no recipe.yaml): to measure a model, name texts with --recipe or --texts"
        )
    return None


def _heldout(recipe: Recipe | None) -> Texts:
    assert recipe is not None, "checked above: without --texts there is a recipe"
    return recipe.data.heldout


def _longest(model: str) -> int | None:
    """The most tokens that a model can read at once, where its configuration is on this machine and says so."""
    from limbeck.teachers.files import TeacherFiles, read_config

    return (read_config(TeacherFiles(model, model)) or {}).get("max_position_embeddings")
