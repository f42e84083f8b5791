"""`limbeck plan`: should I distil, from which teacher, for how long? Answers in a second, before anything is rented."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import DEFAULT_DEVICE, DEFAULT_UTILISATION, DeviceCount, DeviceName, Json, Utilisation
from limbeck.cli.output import emit
from limbeck.errors import SpecError

if TYPE_CHECKING:
    from limbeck.plan.laws import Laws

app = typer.Typer(invoke_without_command=True)

StudentName = Annotated[
    str | None,
    typer.Option(
        help="Parameters outside the embeddings (1B, 3e8), a family member (ladder-198m) or a recipe.", metavar="SIZE|NAME"
    ),
]
LawFile = Annotated[Path | None, typer.Option(help="A law that `limbeck fit` wrote; default: the paper's.")]


@app.callback()
def plan(
    context: typer.Context,
    student: StudentName = None,
    flops: Annotated[str | None, typer.Option(help="A compute budget: what does it buy, with and without a teacher?")] = None,
    tokens: Annotated[str | None, typer.Option(help="The student's training tokens: which teacher suits it best?")] = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            help="With --tokens: teachers that exist, by name (`limbeck plan teachers`), config.json or folder; "
            "=NATS behind a name is its measured cross-entropy.",
            metavar="NAME[=NATS],…",
        ),
    ] = None,
    loss: Annotated[float | None, typer.Option(help="A cross-entropy in nats per token: what does it cost?")] = None,
    law: LawFile = None,
    device: DeviceName = DEFAULT_DEVICE,
    devices: DeviceCount = 1,
    utilisation: Utilisation = DEFAULT_UTILISATION,
    as_json: Json = False,
) -> None:
    """Should I distil, and from which teacher? With --student alone: up to what compute distillation pays.

    Scaling laws of arXiv 2502.08606; docs/scaling-laws.md says what they can and can't tell.
    """
    given = [name for name in context.params if _is_given(context, name)]
    if context.invoked_subcommand is not None:
        if given:
            option = "--" + given[0].removeprefix("as_").replace("_", "-")
            raise SpecError(f"write {option} behind {context.invoked_subcommand}, or ask without it")
        return
    if student is None:
        raise SpecError("name a student: limbeck plan --student 1B --flops 1e21 (see limbeck plan --help)")
    questions = [name for name, asked in (("--flops", flops), ("--tokens", tokens), ("--loss", loss)) if asked is not None]
    if teachers is not None and tokens is None:
        raise SpecError("--teachers needs --tokens: on how many would the student be trained?")
    if teachers is None and (priced := [name for name in given if name in ("device", "devices", "utilisation")]):
        raise SpecError(f"--{priced[0]} is for the hours of --teachers, which aren't named")
    if len(questions) > 1:
        raise SpecError(f"{' and '.join(questions)} are different questions: ask one at a time")
    from limbeck.cli import plan_lines
    from limbeck.plan import answers, teacher_answers
    from limbeck.plan.devices import find_device
    from limbeck.plan.quantities import amount
    from limbeck.plan.sizes import size_of

    laws, size = _laws(law), size_of(student)
    values: dict[str, Any]
    if flops is not None:
        values = answers.of_budget(size, flops=amount(flops, source="--flops"), laws=laws)
        lines = plan_lines.budget_lines(values)
    elif tokens is not None and teachers is not None:
        values = teacher_answers.of_teachers(
            size,
            tokens=amount(tokens, source="--tokens", least=1),
            names=teachers,
            laws=laws,
            device=find_device(device),
            utilisation=utilisation,
            count=devices,
        )
        lines = plan_lines.teachers_lines(values)
    elif tokens is not None:
        values = answers.of_tokens(size, tokens=amount(tokens, source="--tokens", least=1), laws=laws)
        lines = plan_lines.tokens_lines(values)
    elif loss is not None:
        if not 0 < loss < float("inf"):
            raise SpecError(f"--loss={loss}: a cross-entropy is a number of nats above zero")
        values = answers.of_loss(size, loss_nats=loss, laws=laws)
        lines = plan_lines.loss_lines(values)
    else:
        values = answers.of_student(size, laws=laws)
        lines = plan_lines.crossover_lines(values)
    emit(values, as_json=as_json, lines=lines)


@app.command("teachers")
def teachers_table(
    context_length: Annotated[int, typer.Option("--context", min=1, help="Tokens that attention reaches over.")] = 4096,
    tokens: Annotated[str, typer.Option(help="The student's tokens that each would read.")] = "5B",
    as_json: Json = False,
) -> None:
    """Well-known teachers: parameters, FLOPs per token, Chinchilla's budget, and what reading a student's tokens costs."""
    from limbeck.cli.plan_lines import catalogue_lines
    from limbeck.plan.quantities import amount
    from limbeck.plan.teacher_answers import of_catalogue

    values = of_catalogue(context=context_length, tokens=amount(tokens, source="--tokens", least=1))
    emit(values, as_json=as_json, lines=catalogue_lines(values))


@app.command("cache")
def cache_or_live(
    teacher: Annotated[str, typer.Option(help="A name (`limbeck plan teachers`), config.json or folder.")],
    student: Annotated[str, typer.Option(help="As of `limbeck plan`.")],
    tokens: Annotated[str, typer.Option(help="Different tokens to be read.")],
    passes: Annotated[float, typer.Option(help="How often they are read: epochs x students x restarts.")] = 1.0,
    signal: Annotated[str, typer.Option(help="sampled-50, topk-64 or hard.")] = "sampled-50",
    read_speed: Annotated[str, typer.Option(help="Bytes per second.", metavar="BYTES")] = "1G",
    write_speed: Annotated[str, typer.Option(help="Bytes per second.", metavar="BYTES")] = "500M",
    device: DeviceName = DEFAULT_DEVICE,
    devices: DeviceCount = 1,
    utilisation: Utilisation = DEFAULT_UTILISATION,
    as_json: Json = False,
) -> None:
    """Store the teacher's signal, or run the teacher beside the student every time?"""
    from limbeck.cli.plan_lines import cache_lines
    from limbeck.plan.devices import find_device
    from limbeck.plan.quantities import amount
    from limbeck.plan.sizes import size_of
    from limbeck.plan.teacher_answers import of_cache

    values = of_cache(
        size_of(student),
        teacher=teacher,
        tokens=amount(tokens, source="--tokens", least=1),
        passes=passes,
        signal=signal,
        read_bytes_per_second=amount(read_speed, source="--read-speed"),
        write_bytes_per_second=amount(write_speed, source="--write-speed"),
        device=find_device(device),
        utilisation=utilisation,
        count=devices,
    )
    emit(values, as_json=as_json, lines=cache_lines(values))


@app.command("figures")
def figures(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.")] = Path("out/figures"),
    law: LawFile = None,
    as_json: Json = False,
) -> None:
    """Everything that the law determines, drawn: as SVG and as PNG, with the numbers beside them."""
    from limbeck.paths import require_writable
    from limbeck.plan.figures.all import draw_all

    require_writable(output / "figures.json")
    paths = draw_all(output, laws=_laws(law))
    emit({"figures": [str(path) for path in paths]}, as_json=as_json, lines=[str(path) for path in paths])


@app.command("design")
def design_study(
    students: Annotated[str, typer.Option(help="Sizes of the family: 198M, ladder-198m or layers=2, with commas.")] = "",
    teachers: Annotated[str, typer.Option(help="Likewise.")] = "",
    student_flops: Annotated[str, typer.Option(help="Budgets of IsoFLOP students, with commas.")] = "",
    teacher_flops: Annotated[str, typer.Option(help="Budgets of IsoFLOP teachers, with commas.")] = "",
    student_tokens_per_parameter: Annotated[str, typer.Option(help="Of fixed students, with commas.")] = "20",
    teacher_tokens_per_parameter: Annotated[str, typer.Option(help="Of fixed-ratio teachers, with commas.")] = "20",
    protocols: Annotated[
        str | None, typer.Option(help="Of teachers, isoflop-students, isoflop-teachers, fixed; default: all that can be made.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="The base recipe: a shipped name or a file.")] = "laws",
    unique_tokens: Annotated[str | None, typer.Option(help="Tokens of the training documents, for the price.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The study file.")] = Path("laws-study.yaml"),
    device: DeviceName = DEFAULT_DEVICE,
    devices: DeviceCount = 1,
    utilisation: Utilisation = DEFAULT_UTILISATION,
    as_json: Json = False,
) -> None:
    """An experiment from which a law can be fitted, as a study file with its price; `limbeck study run` runs it."""
    from limbeck.cli.plan_lines import design_lines
    from limbeck.paths import require_writable
    from limbeck.plan.design import Grid, design, member_of
    from limbeck.plan.design_file import write_design
    from limbeck.plan.devices import find_device, sustained_flops_per_second
    from limbeck.plan.quantities import amount

    def amounts(text: str, source: str) -> tuple[float, ...]:
        return tuple(amount(each, source=source) for each in _listed(text))

    require_writable(output)
    grid = Grid(
        students=tuple(member_of(each, source="--students") for each in _listed(students)),
        teachers=tuple(member_of(each, source="--teachers") for each in _listed(teachers)),
        student_flops=amounts(student_flops, "--student-flops"),
        teacher_flops=amounts(teacher_flops, "--teacher-flops"),
        student_tokens_per_parameter=amounts(student_tokens_per_parameter, "--student-tokens-per-parameter"),
        teacher_tokens_per_parameter=amounts(teacher_tokens_per_parameter, "--teacher-tokens-per-parameter"),
        protocols=tuple(_listed(protocols)) if protocols is not None else None,
    )
    made = design(
        grid,
        recipe=recipe,
        name=output.stem,
        unique_tokens=amount(unique_tokens, source="--unique-tokens", least=1) if unique_tokens is not None else None,
        flops_per_second=sustained_flops_per_second(find_device(device), utilisation=utilisation, count=devices),
    )
    write_design(made, output)
    values = {"study": str(output), "protocols": made.protocols, **made.price.as_json()}
    emit(values, as_json=as_json, lines=design_lines(made, output))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _laws(path: Path | None) -> "Laws":
    if path is None:
        from limbeck.plan.laws import PUBLISHED

        return PUBLISHED
    from limbeck.plan.law_files import read_laws

    return read_laws(path)
