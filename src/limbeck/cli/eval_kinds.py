"""`limbeck eval MODEL --eval KIND …`: each kind's metrics with their intervals, kept beside the run."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.cli.artifact import rounding_of
from limbeck.cli.eval_target import is_kept, is_run, model_of, recipe_of, texts_of
from limbeck.cli.latency_shapes import is_recipe, latency_settings
from limbeck.cli.output import emit, table
from limbeck.eval_results import FOLDER, EvalResult, Metric
from limbeck.spec.load import load_evals, load_recipe, parse_overrides


def show_kinds(
    target: str,
    kinds: list[str],
    *,
    overrides: list[str],
    recipe: str | None,
    texts: list[str] | None,
    output: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Measure what is not there yet, or all of it `again`; keep it in the run's folder or `output`, and print the tables."""
    if is_recipe(target):
        _show_untrained(target, overrides=overrides, output=output, again=again, as_json=as_json)
        return
    settings = parse_overrides(overrides)
    folder = model_of(target)
    chosen = recipe_of(target, recipe)
    if chosen is not None and not chosen.evaluation.kl_to_teacher and "calibration" in kinds:
        settings = {"calibration.to_teacher": False, **settings}  # such as a teacher that cannot be loaded here
    if "artifact" in kinds:
        settings = {**{f"artifact.{key}": value for key, value in rounding_of(Path(target)).items()}, **settings}
    evals = load_evals(kinds, settings)
    kept = output or default_folder(target)
    from limbeck.evals.run import run_evals
    from limbeck.evals.subject import open_model

    model = open_model(
        target,
        folder,
        heldout=texts_of(chosen, texts),
        teacher=chosen.teacher if chosen is not None else None,
        sequence_length=chosen.data.sequence_length if chosen is not None else None,
        loss_on=chosen.data.loss_on if chosen is not None else None,
        chat_template=chosen.data.chat_template if chosen is not None else None,
        # Rounding a student's float32 weights would change what it says.
        dtype="float32" if is_run(target) or is_kept(target) else "auto",
    )
    _show(target, run_evals(model, evals, folder=kept, again=again), folder=kept, as_json=as_json)


def default_folder(target: str) -> Path:
    """Where results are kept unless it is said: in a run or a folder that it kept, or under the name of anything else, with
    that of what it lies in.

    `a/model` and `b/model` are two models.
    """
    path = Path(target)
    if is_run(target) or is_kept(target):
        return path
    parts = [*path.parent.parts, path.stem if path.is_file() else path.name]
    return Path(FOLDER) / "--".join([part for part in parts if part.strip("./\\")][-2:])


def _show_untrained(target: str, *, overrides: list[str], output: Path | None, again: bool, as_json: bool) -> None:
    """The latency of a recipe's student."""
    recipe, spec, kept = load_recipe(target), latency_settings(overrides), output or default_folder(target)
    from limbeck.evals.run import run_evals
    from limbeck.evals.untrained import open_untrained
    from limbeck.spec.pretrained_student import HuggingFaceStudent

    if isinstance(recipe.student, HuggingFaceStudent) and recipe.student.prune is not None:
        from limbeck.surgery.folder import pruned_student

        recipe = recipe.model_copy(update={"student": pruned_student(recipe.student, data=recipe.data)})
    model = open_untrained(recipe, dtype=recipe.precision, device=recipe.device)
    _show(target, run_evals(model, {spec.kind: spec}, folder=kept, again=again), folder=kept, as_json=as_json)


def _show(target: str, results: Mapping[str, EvalResult], *, folder: Path, as_json: bool) -> None:
    values = {"model": target, "folder": str(folder), "evals": {name: asdict(result) for name, result in results.items()}}
    lines = [line for name, result in results.items() for line in _lines(name, result, folder=folder)]
    emit(values, as_json=as_json, lines=lines[:-1])


def _lines(name: str, result: EvalResult, *, folder: Path) -> list[str]:
    settings = ", ".join(_settings(result.spec))
    rows = [[key, f"{metric.value:.4g}", _interval(metric), str(metric.n or "")] for key, metric in result.metrics.items()]
    title = f"{name} of {result.model}" + (f" ({settings})" if settings else "")
    written = folder / FOLDER / f"{name}.json"
    return [title, "", *table(["metric", "value", "95% interval", "n"], rows), "", f"written: {written}", ""]


def _settings(spec: Mapping[str, Any]) -> list[str]:
    """What was asked for; of what holds keys of its own, their names."""
    shown = {key: list(value) if isinstance(value, dict) else value for key, value in spec.items() if key != "kind"}
    return [f"{key}={value}" for key, value in shown.items() if value not in (None, [])]


def _interval(metric: Metric) -> str:
    return "" if metric.low is None or metric.high is None else f"[{metric.low:.4g}, {metric.high:.4g}]"
