"""`limbeck export RUN|FOLDER --format gguf|hf -o PATH`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.errors import SpecError
from limbeck.runs import student_folder


class Format(StrEnum):
    """What to write."""

    hf = "hf"
    gguf = "gguf"


class Dtype(StrEnum):
    """Of the matrices in a GGUF file."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def export(
    target: Annotated[str, typer.Argument(help="A run folder, or the folder of a student.", metavar="RUN|FOLDER")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder (hf) or the file (gguf) to write.")],
    format: Annotated[Format, typer.Option(help="hf: a folder for transformers; gguf: a file for llama.cpp.")] = Format.hf,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of a GGUF file's matrices; default: float16. A folder is float32.")
    ] = None,
    yarn: Annotated[
        float | None, typer.Option(min=1, help="Stretch positions by this factor (YaRN), without training; hf alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a trained student for use elsewhere. What a GGUF file cannot express is refused, naming the part."""
    folder = student_folder(target)
    if format is Format.hf and dtype is not None:
        raise SpecError(f"--dtype={dtype} is for --format gguf: a folder holds float32, and transformers reads it in any dtype")
    if format is Format.gguf and yarn is not None:
        raise SpecError("--yarn is for --format hf: export that folder to GGUF afterwards")
    where = _place(output, folder, format=format)
    if format is Format.gguf:
        from limbeck.students.gguf import export as write

        write(folder, path=where, dtype=(dtype or Dtype.float16).value)
    else:
        from limbeck.students.hf import save_again

        save_again(folder, to=where, yarn_factor=yarn)
    emit({"student": str(folder), "format": format.value, "path": str(output)}, as_json=as_json, lines=[f"{format}: {output}"])


def _place(output: Path, folder: Path, *, format: Format) -> Path:
    """Where to write, as an absolute path; `SpecError` where something would have to make room for a folder."""
    where, source = output.resolve(), folder.resolve()
    if where == source or where in source.parents:
        raise SpecError(f"--output={output} is, or holds, the folder to export: name another")
    if format is Format.hf:
        if source in where.parents:
            raise SpecError(f"--output={output} is inside the folder to export: name another")
        if where.exists() and not (where.is_dir() and not any(where.iterdir())):
            raise SpecError(f"--output={output} exists already: name a new folder, or remove that one")
    return where
