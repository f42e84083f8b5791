"""`limbeck transplant MODEL TOKENIZER OUT`: give a model another tokenizer."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.eval_target import model_of
from limbeck.cli.output import emit
from limbeck.errors import SpecError
from limbeck.paths import require_writable


class Method(StrEnum):
    """How the rows of new tokens are made."""

    omp = "omp"
    mean = "mean"
    focus = "focus"
    random = "random"


def transplant(
    model: Annotated[str, typer.Argument(help="The model: a folder, a hub id, a run, or smollm2.", metavar="MODEL")],
    tokenizer: Annotated[
        str, typer.Argument(help="The tokenizer that it is to have: a folder or a hub id.", metavar="TOKENIZER")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write.", metavar="OUT")],
    method: Annotated[
        Method | None,
        typer.Option(
            help="omp: of a few shared tokens, as in a donor's space; focus: of the shared tokens near it there; mean: of the "
            "pieces in which the old tokenizer writes it; random. Default: omp with a donor, mean without."
        ),
    ] = None,
    donor: Annotated[
        str | None, typer.Option(help="A model that has the new tokenizer, of any width; for omp and focus.", metavar="MODEL")
    ] = None,
    atoms: Annotated[int, typer.Option(min=1, help="Of omp: the most shared tokens that one is made of.")] = 64,
    rescale: Annotated[bool, typer.Option(help="Make new rows as long, in the mean, as copied ones.")] = False,
    seed: Annotated[int, typer.Option(help="Of random.")] = 0,
    as_json: Json = False,
) -> None:
    """Give a causal language model another tokenizer: rows of tokens that both have are copied, the others are made.

    The folder is a Hugging Face model, to be trained with `student.kind=huggingface`; `limbeck eval` says what was lost.
    """
    chosen = method or (Method.mean if donor is None else Method.omp)
    if donor is not None and chosen not in (Method.omp, Method.focus):
        raise SpecError(f"--method {chosen} has no use for --donor {donor}: leave it out, or take --method omp")
    require_writable(out.resolve().with_name(f".{out.name}.check"))
    from limbeck.surgery.transplant import Asked
    from limbeck.surgery.transplant_folder import transplant_folder

    asked = Asked(chosen.value, atoms=atoms, rescale=rescale, seed=seed)
    about = transplant_folder(model_of(model), tokenizer, out, asked=asked, donor=donor and model_of(donor))
    following = f"limbeck train RECIPE student.kind=huggingface student.model={out}"
    emit(
        {"folder": str(out), **about, "next": following},
        as_json=as_json,
        lines=[*_lines(about), f"written: {out}", f"train it: {following}"],
    )


def _lines(about: dict[str, Any]) -> list[str]:
    tokens = about["tokens"]
    lines = [
        f"tokens: {tokens['copied']:,} copied, and {tokens['copied_special']:,} special ones; {tokens['made']:,} made "
        f"({about['asked']['method']}); {tokens['unused']:,} rows unused"
    ]
    for name, norms in about["norms"].items():
        ratio = "" if norms["ratio"] is None else f", made rows {norms['ratio']:.2f} times that"
        both = " (and output)" if about["tied"] else ""
        lines.append(f"{name}{both} matrix: copied rows of norm {norms['copied']:.3g}{ratio}")
    return lines
