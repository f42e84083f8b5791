"""`limbeck quantise RECIPE`: what quantising the recipe's teacher would do to what it says."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from limbeck.cli.arguments import Json, Overrides, RecipeName
from limbeck.cli.output import emit, human, table
from limbeck.errors import SpecError, TeacherError
from limbeck.paths import require_writable
from limbeck.spec.data import FileTexts, Texts
from limbeck.spec.load import load_recipe, parse_overrides
from limbeck.spec.quantisation import quantisation_named
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import DType, GGUFTeacher, Teacher

if TYPE_CHECKING:
    from limbeck.evals.quantisation import Comparison, Table
    from limbeck.report.statistics import Estimate

DEFAULT_SCHEMES = ("bfloat16", "int8-row-sym", "int4-g128", "int4-g32", "fp8-row", "nf4-g64", "mxfp4", "gguf-q4_k")
ENDINGS = (".svg", ".png")
Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        help="int4-g128, int8-row-sym, fp8-row, nf4-g64, mxfp4, gguf-q6_k, bnb-nf4, torchao-int8-row, …, a dtype, or a "
        f"GGUF file; repeat for more. Default: {', '.join(DEFAULT_SCHEMES)}.",
    ),
]


def quantise(
    recipe: RecipeName,
    overrides: Overrides = None,
    scheme: Schemes = None,
    reference: Annotated[str, typer.Option(help="The dtype of the unquantised teacher that all are held against.")] = "float32",
    texts: Annotated[list[str] | None, typer.Option(help="Text files instead of the recipe's held-out ones.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the table: PATH.svg and PATH.png.")] = None,
    as_json: Json = False,
) -> None:
    """A table of the recipe's teacher under several quantisations, on its held-out documents.

    Bits per byte, KL from the unquantised teacher, flipped top-1, entropy, calibration, the end token, speed and size.
    Quantised teachers compute in the recipe's teacher.dtype; what that costs alone is in the row of the dtype. Where one can't
    be measured, the line below says why, and the exit code is 1.
    """
    chosen = load_recipe(recipe, parse_overrides(overrides or []))
    if chosen.teacher is None:
        raise SpecError(f"{recipe}: there is no teacher to quantise: set teacher.kind")
    if reference not in get_args(DType):
        raise SpecError(f"--reference={reference} is not one of {', '.join(get_args(DType))}")
    drawn = _figures(figure) if figure is not None else []
    full = chosen.teacher.model_copy(update={"quantisation": None, "dtype": reference})
    arms = {name: _arm(name, chosen.teacher) for name in scheme or DEFAULT_SCHEMES}
    if chosen.teacher.quantisation is not None:
        arms[chosen.teacher.quantisation.slug] = chosen.teacher
    found = _measure(chosen, full, arms, texts=FileTexts(paths=tuple(texts)) if texts else chosen.data.heldout)
    shown = [*_lines(found), *(f"figure: {path}" for path in drawn)]
    emit({**asdict(found), "figures": [str(path) for path in drawn]}, as_json=as_json, lines=shown)
    if figure is not None:
        _draw(found, figure)
    if found.failed:
        names = ", ".join(each.name for each in found.failed)
        raise TeacherError(f"{len(found.failed)} of {len(arms)} schemes could not be measured: {names}")


def _arm(name: str, teacher: Teacher) -> Teacher:
    if name.endswith(".gguf"):
        return GGUFTeacher(path=name, dtype=teacher.dtype, context=teacher.context)
    if name in get_args(DType):
        return teacher.model_copy(update={"quantisation": None, "dtype": name})
    return teacher.model_copy(update={"quantisation": quantisation_named(name)})


def _measure(recipe: Recipe, reference: Teacher, arms: dict[str, Teacher], *, texts: Texts) -> "Table":
    from limbeck.compute import pick_device
    from limbeck.data.chat_template import with_chat_template
    from limbeck.data.prepare import prepare_texts
    from limbeck.data.tokenizers import load_tokenizer
    from limbeck.evals.quantisation import compare, whole_text_ends
    from limbeck.teachers.files import locate

    files = locate(reference)
    tokenizer = load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)
    tokenizer = with_chat_template(tokenizer, recipe.data.chat_template)
    store = prepare_texts(texts, tokenizer, title="held-out", loss_on=recipe.data.loss_on)
    return compare(reference, arms, store=store, ends=whole_text_ends(texts), device=pick_device(recipe.device))


def _figures(figure: Path) -> list[Path]:
    """The files to draw; `LimbeckError` before anything is measured where they can't be written."""
    paths = [_stem(figure).with_name(f"{_stem(figure).name}{ending}") for ending in ENDINGS]
    for path in paths:
        require_writable(path)
    return paths


def _stem(figure: Path) -> Path:
    """Without the ending of a figure; any other dot is part of the name (`llama-3.2`)."""
    return figure.with_suffix("") if figure.suffix in ENDINGS else figure


def _draw(found: "Table", figure: Path) -> None:
    from limbeck.drawing import write_figure
    from limbeck.evals.quantisation_figure import forest

    draw, size = forest(found)
    write_figure(draw, _stem(figure), size=size)


def _lines(found: "Table") -> list[str]:
    headers = ["scheme", "dtype", "BPB", "Δ BPB", "KL nats", "95%", "p99", "flips", "Δ entropy", "ECE", "ECE to ref"]
    headers += ["end log p", "Δ end", "tokens/s", "weights", "quantised"]
    lines = table(headers, [_cells(row) for row in found.rows])
    lines += [f"{each.name}: not measured: {each.why}" for each in found.failed]
    lines.append(f"{found.tokens:,} positions of {found.documents} documents, of which {found.ends} end a whole text")
    lines.append("~: simulated: the weights are rounded, the speed is full precision's, the size that of packed ones or a file")
    lines.append("quantised: the share of all parameters that was quantised when the teacher was loaded")
    if found.reference_was_quantised is not None:
        lines.append(
            f"note: the reference's own weights come from {found.reference_was_quantised}: a scheme with the same grid costs "
            "less here than it would on the original, and every scheme is measured on weights that are rounded already"
        )
    return lines


def _cells(row: "Comparison") -> list[str]:
    def of(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def interval(estimate: "Estimate", form: str) -> str:
        return "-" if estimate.low is None else f"{estimate.low:{form}}–{estimate.high:{form}}"

    return [
        f"{row.name}~" if row.simulated else row.name,
        row.dtype,
        f"{row.bits_per_byte:.4f}",
        f"{row.bits_per_byte_change.value:+.4f}",
        f"{row.kl_nats.value:.2e}",
        interval(row.kl_nats, ".1e"),
        f"{row.kl_p99_nats:.2e}",
        f"{100 * row.flips.value:.2f}%",
        f"{row.entropy_change_nats.value:+.4f}",
        f"{100 * row.calibration_error:.2f}%",
        f"{100 * row.calibration_error_to_reference:.2f}%",
        of(row.end_log_prob_nats, ".2f"),
        of(row.end_log_change_nats, "+.3f"),
        f"{row.tokens_per_second:,.0f}",
        human(row.weights_bytes, "B"),
        of(row.quantised_share, ".1%"),
    ]
