"""`limbeck lab kernel|mapping`: where a better teacher makes a worse student."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit
from limbeck.labs.settings import KernelSettings, MappingSettings
from limbeck.labs.verdict import TOLD_AT, Difference, MappingResult, Measured

if TYPE_CHECKING:  # numpy, for those who ask for it
    from limbeck.labs.kernel import KernelResult

app = typer.Typer(no_args_is_help=True)
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the numbers (JSON) and the figure (SVG, PNG).")]
FOLDER = Path("out/labs")
NOTHING = 1e-9
"""A gap below this is rounding."""
SIZES = list(KernelSettings.student_sizes)
WIDTHS = list(MappingSettings.teacher_widths)


@app.command("kernel")
def kernel(
    output: Output = FOLDER,
    functions: Annotated[
        int, typer.Option(help="Functions of the target, and of the largest teacher.")
    ] = KernelSettings.functions,
    decay: Annotated[float, typer.Option(help="The target's i-th coefficient falls as i^-DECAY.")] = KernelSettings.decay,
    student_size: Annotated[list[int], typer.Option(help="Functions of a student; repeat for more.")] = SIZES,
    teacher_norm: Annotated[
        float, typer.Option(help="A teacher's largest norm; the target's is 1.")
    ] = KernelSettings.teacher_norm,
    student_norm: Annotated[float, typer.Option(help="A student's largest norm.")] = KernelSettings.student_norm,
    as_json: Json = False,
) -> None:
    """The capacity gap in closed form: a student regresses on a teacher that regresses on the target. Takes a second."""
    from limbeck.labs.figures import write_kernel_figure
    from limbeck.labs.kernel import sweep
    from limbeck.paths import write_atomically

    settings = KernelSettings(
        functions=functions,
        decay=decay,
        student_sizes=tuple(sorted(student_size)),
        teacher_norm=teacher_norm,
        student_norm=student_norm,
    )
    result = sweep(settings)
    files = [output / "kernel.json", *write_kernel_figure(result, output / "kernel")]
    write_atomically(files[0], json.dumps(result.as_json(), indent=1))
    names = [str(file) for file in files]
    emit({**result.as_json(), "files": names}, as_json=as_json, lines=[*_kernel_lines(result), f"written: {', '.join(names)}"])


@app.command("mapping")
def mapping(
    output: Output = FOLDER,
    teacher_width: Annotated[list[int], typer.Option(help="Units per hidden layer of a teacher; repeat for more.")] = WIDTHS,
    student_width: Annotated[int, typer.Option(help="Units per hidden layer of the student.")] = MappingSettings.student_width,
    seeds: Annotated[int, typer.Option(help="Networks of each kind.")] = MappingSettings.seeds,
    teacher_steps: Annotated[int, typer.Option(help="Training steps of a teacher.")] = MappingSettings.teacher_steps,
    student_steps: Annotated[int, typer.Option(help="Training steps of a student.")] = MappingSettings.student_steps,
    learning_rate: Annotated[float, typer.Option(help="Adam's peak learning rate.")] = MappingSettings.learning_rate,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = MappingSettings.batch,
    heldout: Annotated[int, typer.Option(help="Examples to measure on.")] = MappingSettings.heldout,
    seed: Annotated[int, typer.Option(help="Other seeds, other numbers.")] = MappingSettings.seed,
    as_json: Json = False,
) -> None:
    """The capacity gap by experiment: small networks on the mapping problem, in minutes on a CPU. Resumable."""
    settings = MappingSettings(
        teacher_widths=tuple(sorted(teacher_width)),
        student_width=student_width,
        seeds=seeds,
        teacher_steps=teacher_steps,
        student_steps=student_steps,
        learning_rate=learning_rate,
        batch=batch,
        heldout=heldout,
        seed=seed,
    )
    from limbeck.labs.figures import write_mapping_figure
    from limbeck.labs.mapping import run

    result = run(settings, path=output / "mapping.json")
    names = [str(file) for file in (output / "mapping.json", *write_mapping_figure(result, output / "mapping"))]
    emit({**result.as_json(), "files": names}, as_json=as_json, lines=[*_mapping_lines(result), f"written: {', '.join(names)}"])


def _kernel_lines(result: "KernelResult") -> list[str]:
    return [
        f"student of {student.size} functions: best from a teacher of {student.best_teacher}, error {student.best_error:.4f}; "
        f"from the strongest ({result.settings.functions}) {student.strongest_error:.4f}, "
        + (f"{student.gap:.1%} above: the capacity gap" if student.gap > NOTHING else "no worse: no capacity gap")
        for student in result.students
    ]


def _mapping_lines(result: MappingResult) -> list[str]:
    verdict = result.verdict()
    return [
        f"mean ± standard deviation over {result.settings.seeds} seeds, held-out nats per example (accuracy):",
        f"  no teacher         student {_spread(result.control)}",
        *(
            f"  teacher of {point.teacher_width:>4}    student {_spread(point.student)}    teacher {_spread(point.teacher)}"
            for point in result.points
        ),
        ("U-shape: " if verdict.u_shape else "no U-shape told at these settings: ")
        + f"over the best teacher's students (picked by the other seeds), those of the strongest ({verdict.strongest_width}) "
        f"lie {_difference(verdict.strongest_above_best)} nats, those of the weakest ({verdict.weakest_width}) "
        f"{_difference(verdict.weakest_above_best)} (mean ± standard error of pairs; told beyond {TOLD_AT:g})",
        f"over the student without a teacher: best {_difference(verdict.best_above_control)} nats, "
        f"strongest {_difference(verdict.strongest_above_control)}",
    ]


def _spread(measured: Measured) -> str:
    return f"{mean(measured.losses):.4f} ± {stdev(measured.losses):.4f} ({mean(measured.accuracies):.1%})"


def _difference(difference: Difference) -> str:
    return f"{difference.mean:+.4f} ± {difference.standard_error:.4f}"
