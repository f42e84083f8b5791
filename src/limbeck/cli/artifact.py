"""`limbeck artifact write|eval`: a student in one small file, and what rounding it cost."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import Json, Overrides
from limbeck.cli.output import emit
from limbeck.errors import LimbeckError
from limbeck.runs import student_folder
from limbeck.spec.artifact import LIMIT_BYTES, ArtifactFormat, Rounding
from limbeck.spec.base import parse
from limbeck.spec.load import load_recipe, parse_overrides
from limbeck.spec.teacher import Context

if TYPE_CHECKING:
    from limbeck.evals.bits_per_byte import HeldOut
    from limbeck.report.statistics import Estimate

app = typer.Typer(no_args_is_help=True)


@app.command("write")
def write(
    run: Annotated[Path, typer.Argument(help="A run folder, or a folder that holds a student.", metavar="RUN")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path("student.limbeck"),
    limit: Annotated[int, typer.Option(min=1, help="Bytes that code and weights may have together.")] = LIMIT_BYTES,
    code: Annotated[
        Path | None, typer.Option(help="The file or folder that counts as code; default: the files of Limbeck that are needed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Round and compress a student: 6 bits a weight, 8 for embeddings, or as its run was trained to be.

    KEY=VALUE are the format's, e.g. matrix_bits=5.
    """
    form = parse(ArtifactFormat, {**rounding_of(run), **parse_overrides(overrides or [])}, source="artifact")
    from limbeck.students import hf
    from limbeck.students.artifact import write_artifact

    student, spec, _ = hf.load(student_folder(run))
    size = write_artifact(student, spec, out, form=form, code=code, limit_bytes=limit)
    values = {
        "artifact": str(out),
        "total_bytes": size.total_bytes,
        "weights_bytes": size.weights_bytes,
        "code_bytes": size.code_bytes,
        "limit_bytes": size.limit_bytes,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    lines = [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in values.items()]
    emit({**values, "code": size.code, "largest": dict(size.largest)}, as_json=as_json, lines=lines)


@app.command("eval")
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="What `limbeck artifact write` wrote.", metavar="FILE")],
    recipe: Annotated[str, typer.Option(help="The recipe whose held-out texts to use.")],
    run: Annotated[
        Path | None, typer.Option(help="The run, or folder, of the student before it was rounded; default: the recipe's run.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens read at once; default: the recipe's sequence length.")
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=0, help="Tokens that the next window reads again: the window less the stride.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Bits per byte of a student before and after it became an artifact, and the difference, on the same documents."""
    chosen = load_recipe(recipe)
    reading = {"window": window or chosen.data.sequence_length, "overlap": overlap}
    context = parse(Context, reading, source="--window and --overlap")
    before, after = _measure(artifact, student_folder(run or Path(chosen.run_path)), recipe=recipe, context=context)
    change = _difference(before, after)
    values = {
        "artifact": str(artifact),
        "bits_per_byte_before": before.bits_per_byte,
        "bits_per_byte_after": after.bits_per_byte,
        "difference": asdict(change),
        "tokens": after.tokens,
        "documents": after.documents,
        **context.model_dump(),
    }
    interval = "" if change.low is None else f" (95% over documents: {change.low:+.5f} to {change.high:+.5f})"
    shown = {**values, "difference": f"{change.value:+.5f}{interval}"}
    emit(values, as_json=as_json, lines=[f"{key}: {value}" for key, value in shown.items()])


def rounding_of(run: Path) -> dict[str, Any]:
    """What a run was trained to be rounded to, if it was; the format's own defaults otherwise."""
    if not (run / "recipe.yaml").is_file():
        return {}
    aware = load_recipe(str(run / "recipe.yaml")).quantisation_aware
    return {} if aware is None else aware.model_dump(include=set(Rounding.model_fields))


def _measure(artifact: Path, folder: Path, *, recipe: str, context: Context) -> tuple["HeldOut", "HeldOut"]:
    """Both as `limbeck eval` measures any model: from folders, in float32."""
    from tempfile import TemporaryDirectory

    from limbeck.evals.model import evaluate_model
    from limbeck.students import hf
    from limbeck.students.artifact import read_artifact

    rounded, spec, vocab_size = read_artifact(artifact)
    own, own_spec, own_vocabulary = hf.load(folder)
    if (spec, vocab_size) != (own_spec, own_vocabulary):
        raise LimbeckError(f"{artifact} is not of the student in {folder}: name its run with --run")
    data = load_recipe(recipe).data
    with TemporaryDirectory() as temporary:
        copies = {"before": own, "after": rounded}
        for name, student in copies.items():
            hf.save(student, spec=spec, folder=Path(temporary) / name, max_positions=context.window, tokenizer_folder=folder)
        before, after = (
            evaluate_model(
                f"{temporary}/{name}",
                texts=data.heldout,
                context=context,
                teacher=None,
                dtype="float32",
                loss_on=data.loss_on,
                chat_template=data.chat_template,
            )
            for name in copies
        )
    return before, after


def _difference(before: "HeldOut", after: "HeldOut") -> "Estimate":
    import numpy as np

    from limbeck.report.statistics import paired_difference

    before_N2, after_N2 = (
        np.array(list(zip(each.bytes_by_document, each.bits_by_document, strict=True)), dtype=np.float64)
        for each in (before, after)
    )
    return paired_difference(after_N2, before_N2)
