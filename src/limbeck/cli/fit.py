"""`limbeck fit DATA.csv` or `limbeck fit RUN…`: a scaling law from measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.errors import DataError, SpecError
from limbeck.paths import require_writable
from limbeck.progress import say

if TYPE_CHECKING:
    from limbeck.plan.fit.points import Split
    from limbeck.plan.fit.result import Errors, FitResult
    from limbeck.plan.laws import Supervised

RESAMPLES, RESAMPLES_DISTILLATION = 4000, 1000
_FIGURES = (".svg", ".png")


@dataclass(frozen=True)
class _Chosen:
    """Points, the law they are for, the law frozen inside a distillation law, and what was odd."""

    split: "Split"
    law: str
    frozen: "Supervised | None"
    warnings: tuple[str, ...]


def fit(
    data: Annotated[list[Path], typer.Argument(help="A CSV file, or run folders, or folders of runs.", metavar="CSV|RUN...")],
    law: Annotated[
        str | None,
        typer.Option(
            help="chinchilla, supervised, distillation or a formula such as 'E + A / N**alpha + B / D**beta'; "
            "default: distillation where a CSV has teacher_loss, or a run is distilled; otherwise chinchilla.",
            metavar="LAW|FORMULA",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a CSV has N (non-embedding parameters), D (tokens), loss and teacher_loss (nats per token): columns or "
            "arithmetic on them, also with names of your own: N=params,C=flops,D=C/(6*N). Default: columns of these names.",
            metavar="N=COL,D=COL,loss=COL[,teacher_loss=COL]",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Use only rows for which this holds, such as 'model==llama and N>1e8'; several must all hold.",
            metavar="COL==VALUE",
        ),
    ] = None,
    drop_lowest: Annotated[
        int,
        typer.Option(
            "--drop-lowest-tokens-per-parameter", min=0, help="Leave out this many points of least D / N.", metavar="K"
        ),
    ] = 0,
    start: Annotated[
        str | None,
        typer.Option(
            help="Starts of a formula's coefficients; one that starts at zero or below may take any sign.",
            metavar="NAME=VALUE,…",
        ),
    ] = None,
    supervised: Annotated[
        Path | None, typer.Option(help="The law of training alone inside a distillation law.", metavar="LAW.json")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Threshold of the Huber loss on log residuals; default 1e-3, the paper's laws (gamma free) 1e-4."),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(min=0, help=f"Of the bootstrap; default {RESAMPLES}, for distillation {RESAMPLES_DISTILLATION}."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    hold_out: Annotated[
        str | None, typer.Option(help="Set points aside to measure extrapolation, e.g. 'loss<2.3'.", metavar="CONDITION")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the law for `limbeck plan --law`.", metavar="LAW.json")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the errors, as PATH.svg and PATH.png.", metavar="PATH")] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law, with intervals, and say how far off it is."""
    from limbeck.plan.fit.choice import check_law, form_named, parse_starts
    from limbeck.plan.fit.fitting import fit_law

    if law is not None:
        check_law(law)
    for path in filter(None, (output, figure)):
        require_writable(path)
    if figure is not None:
        figure = figure.with_suffix("") if figure.suffix.lower() in _FIGURES else figure
        for suffix in _FIGURES:
            require_writable(figure.with_name(figure.name + suffix))
    starts = parse_starts(start) if start is not None else {}
    split_options = {"drop_lowest": drop_lowest, "hold_out": hold_out}
    if all(path.is_dir() for path in data):
        if columns:
            raise SpecError("--columns is for a CSV file; run folders say themselves what they measured")
        chosen = _of_runs(data, law=law, where=where or [], supervised=supervised, split_options=split_options)
    else:
        text = ",".join(columns) if columns else None
        chosen = _of_table(data, law=law, columns=text, where=where or [], supervised=supervised, split_options=split_options)
    if supervised is not None and chosen.law != "distillation":
        raise SpecError(f"--supervised is for --law distillation; {chosen.law} holds no other law")
    if resamples is None:
        resamples = RESAMPLES_DISTILLATION if chosen.law == "distillation" else RESAMPLES
    form = form_named(chosen.law, starts=starts, frozen=chosen.frozen)
    split = chosen.split
    result = fit_law(form, split.fitted, delta=delta, held_out=split.held_out, resamples=resamples, seed=seed)
    result = replace(result, warnings=(*chosen.warnings, *result.warnings))
    _deliver(result, split, output=output, figure=figure, as_json=as_json)


def _of_table(
    data: list[Path],
    *,
    law: str | None,
    columns: str | None,
    where: Sequence[str],
    supervised: Path | None,
    split_options: Mapping[str, Any],
) -> _Chosen:
    from limbeck.plan.fit.points import split
    from limbeck.plan.fit.table import Reading, parse_columns, read_table
    from limbeck.plan.laws import SUPERVISED

    if len(data) > 1:
        raise SpecError(f"{len(data)} paths, not all of them folders: give one CSV file, or run folders")
    if data[0].is_dir():
        raise DataError(f"{data[0]} is a folder")
    reading = Reading(read_table(data[0]), parse_columns(columns) if columns is not None else {})
    hold_out = split_options["hold_out"]
    reading.refuse_unused({"--where": where, "--hold-out": [] if hold_out is None else [hold_out]})
    for each in where:
        reading = reading.where(each)
    law = law or ("distillation" if reading.has("teacher_loss") else "chinchilla")
    if law == "distillation" and not reading.has("teacher_loss"):
        raise SpecError("--law distillation needs the teachers' losses: --columns teacher_loss=COL")
    points = reading.points(with_teacher=law == "distillation")
    frozen, warnings = _read_supervised(supervised), list[str]()
    if law == "distillation" and frozen is None:
        frozen = SUPERVISED
        warnings.append("what students reach alone is taken from arXiv 2502.08606 (C4): give your own law with --supervised")
    return _Chosen(split(points, reading.values(), **split_options), law, frozen, tuple(warnings))


def _of_runs(
    data: list[Path], *, law: str | None, where: Sequence[str], supervised: Path | None, split_options: Mapping[str, Any]
) -> _Chosen:
    from limbeck.plan.fit.choice import supervised_of_runs
    from limbeck.plan.fit.points import condition, split
    from limbeck.plan.fit.runs import read_runs

    found = read_runs(data)
    law = law or ("distillation" if found.distilled is not None else "chinchilla")
    points, others = (found.distilled, None) if law == "distillation" else (found.alone, found.distilled)
    warnings = list(found.warnings)
    if points is None:
        wanted = "distils" if law == "distillation" else "trains without a teacher"
        raise DataError(f"none of the runs {wanted}, which is what {law} is about")
    if others is not None:
        warnings.append(f"{len(others)} distilled runs are left out: {law} is about training alone")
    for each in where:
        points = points.where(condition(each, points.named(), count=len(points), option="--where"))
        if not len(points):
            raise DataError(f"--where {each!r} leaves no run")
    frozen = _read_supervised(supervised)
    if law == "distillation" and frozen is None:
        frozen = supervised_of_runs(found.alone)
    return _Chosen(split(points, points.named(), **split_options), law, frozen, tuple(warnings))


def _read_supervised(path: Path | None) -> "Supervised | None":
    from limbeck.plan.law_files import read_laws

    return None if path is None else read_laws(path).supervised


def _deliver(result: "FitResult", split: "Split", *, output: Path | None, figure: Path | None, as_json: bool) -> None:
    """Warnings to stderr, the figure, the law's file, and the result to stdout."""
    for warning in result.warnings:
        say(f"warning: {warning}")
    values = result.as_json()
    figures: tuple[Path, ...] = ()
    if figure is not None:
        from limbeck.plan.fit.figure import draw_fit

        figures = draw_fit(result.law, split.fitted, held_out=split.held_out, path=figure)
    if output is not None:
        from limbeck.plan.law_files import write_law

        write_law(output, values)
    written = {"path": None if output is None else str(output), "figures": [str(path) for path in figures]}
    places = [str(path) for path in (output, *figures) if path is not None]
    emit({**values, **written}, as_json=as_json, lines=[*_lines(result, values["law"]), *places])


def _lines(result: "FitResult", law: str) -> list[str]:
    def interval(ends: tuple[float, float] | None) -> str:
        return "" if ends is None else f"   95 % {ends[0]:.4g} to {ends[1]:.4g}"

    lines = [f"{law}: {result.fitted.points} points, objective {result.objective:.6g} (Huber, delta {result.delta:g})"]
    lines += [f"{name:>6} {value:<10.5g}{interval(result.intervals.get(name))}" for name, value in result.coefficients.items()]
    lines += [f"{name:>6} {each.value:<10.5g}{interval(each.interval)}" for name, each in result.derived.items()]
    lines.append(f"error on the points: {_shown(result.fitted)}")
    if result.held_out is not None:
        lines.append(f"error on {result.held_out.points} points set aside: {_shown(result.held_out)}")
    return lines


def _shown(errors: "Errors") -> str:
    return f"mean {100 * errors.mean_relative_error:.2f} %, largest {100 * errors.max_relative_error:.2f} %"
