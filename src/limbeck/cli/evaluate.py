"""`limbeck eval RUN|FOLDER|HUB_ID`: bits per byte, what else there is with --eval, several side by side with --by-position.

Of a recipe, which has no trained student yet, the latency alone: as it is, or in shapes of equal size (--layers), which a model
may be given too.
"""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.by_position import labels, output_folder, show_by_position
from limbeck.cli.eval_kinds import default_folder, show_kinds
from limbeck.cli.eval_target import is_kept, is_run, model_of, recipe_of, require_texts
from limbeck.cli.latency_shapes import require_latency, show_shapes
from limbeck.cli.output import emit
from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.teacher import Context

DEFAULT_WINDOW = 2048


def evaluate_model(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="A run folder, a model folder or a hub id; several with --by-position; a recipe with --eval latency. Then "
            "settings of what --eval names, e.g. calibration.bins=15.",
            metavar="RUN|FOLDER|HUB_ID|RECIPE [KEY=VALUE]...",
        ),
    ],
    kinds: Annotated[
        list[str] | None,
        typer.Option("--eval", help="What to measure (`limbeck list`), kept beside the run; repeat for more.", metavar="KIND"),
    ] = None,
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
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layers",
            min=1,
            help="With --eval latency: a recipe's student, or a model's architecture with random weights, with so many layers "
            "and the same number of parameters; repeat.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where --eval and --by-position write; default: the run's folder, or evals/NAME of a model."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="With --eval: measure also what is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Bits per byte on held-out documents, and the KL to the recipe's teacher where the tokenizer is the same.

    With --eval, what it names in its place: each kind's metrics with their intervals.
    """
    overrides = [each for each in targets[1:] if _is_setting(each)]
    models = [each for each in targets if each not in overrides]
    _require_alone(models, overrides, kinds=kinds, by_position=by_position, again=again, window=window, overlap=overlap)
    require_latency(models[0], kinds, layers=layers)
    if layers:
        folder = output or default_folder(models[0])
        show_shapes(models[0], layers, overrides=overrides, output=folder, as_json=as_json)
    elif kinds:
        show_kinds(
            models[0],
            list(dict.fromkeys(kinds)),
            overrides=overrides,
            recipe=recipe,
            texts=texts,
            output=output,
            again=again,
            as_json=as_json,
        )
    elif by_position:
        folder = output_folder(models, output)
        names = {name: model_of(target) for name, target in labels(models).items()}
        read = require_texts(models[0], recipe_of(models[0], recipe), texts)
        show_by_position(names, texts=read, window=window or DEFAULT_WINDOW, output=folder, as_json=as_json)
    else:
        if output is not None:
            raise SpecError("-o is for --eval and --by-position, which write files")
        _bits_per_byte(models[0], recipe=recipe, texts=texts, window=window, overlap=overlap, as_json=as_json)


def _is_setting(argument: str) -> bool:
    """`key.path=value`, unless there is a folder of that name."""
    return "=" in argument and not Path(argument).exists()


def _require_alone(
    models: list[str],
    overrides: list[str],
    *,
    kinds: list[str] | None,
    by_position: bool,
    again: bool,
    window: int | None,
    overlap: int,
) -> None:
    """`SpecError` where something is asked for that means nothing beside the rest."""
    if kinds and by_position:
        raise SpecError("--eval and --by-position are two commands: give one of them")
    if len(models) > 1 and not by_position:
        raise SpecError(f"{len(models)} models are named: add --by-position to see them side by side, or name one")
    if by_position and overlap:
        raise SpecError("--overlap means nothing with --by-position: a document's first --window tokens are read at once")
    if kinds and (window is not None or overlap):
        raise SpecError(f"--window and --overlap are for bits per byte without --eval: write {kinds[0]}.window=…")
    if not kinds and (overrides or again):
        raise SpecError(f"{overrides[0] if overrides else '--again'} is for --eval: name what to measure with it")


def _bits_per_byte(
    target: str, *, recipe: str | None, texts: list[str] | None, window: int | None, overlap: int, as_json: bool
) -> None:
    model, chosen = model_of(target), recipe_of(target, recipe)
    read = require_texts(target, chosen, texts)
    usual = chosen.data.sequence_length if chosen is not None else DEFAULT_WINDOW
    context = {"window": window or min(usual, _longest(model) or usual), "overlap": overlap}
    reading = parse(Context, context, source="--window and --overlap")
    from limbeck.evals.model import evaluate_model as measure

    heldout = measure(
        model,
        texts=read,
        context=reading,
        teacher=chosen.teacher if chosen is not None and chosen.evaluation.kl_to_teacher else None,
        loss_on=chosen.data.loss_on if chosen is not None else None,
        chat_template=chosen.data.chat_template if chosen is not None else None,
        # Rounding a student's float32 weights would change its bits per byte.
        dtype="float32" if is_run(target) or is_kept(target) else "auto",
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


def _longest(model: str) -> int | None:
    """The most tokens that a model can read at once, where its configuration is on this machine and says so."""
    from limbeck.teachers.files import TeacherFiles, read_config

    return (read_config(TeacherFiles(model, model)) or {}).get("max_position_embeddings")
