"""`limbeck eval MODEL --eval KIND …`: each kind's metrics with their intervals, kept beside the run."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.cli.eval_target import is_run, model_of, recipe_of, texts_of
from limbeck.cli.output import emit, table
from limbeck.eval_results import FOLDER, EvalResult, Metric
from limbeck.spec.load import load_evals, parse_overrides


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
    settings = parse_overrides(overrides)
    folder = model_of(target)
    chosen = recipe_of(target, recipe)
    if chosen is not None and not chosen.evaluation.kl_to_teacher and "calibration" in kinds:
        settings = {"calibration.to_teacher": False, **settings}  # such as a teacher that cannot be loaded here
    evals = load_evals(kinds, settings)
    kept = output or (Path(target) if is_run(target) else Path(FOLDER) / Path(target).name)
    from limbeck.evals.run import run_evals
    from limbeck.evals.subject import open_model

    model = open_model(
        target,
        folder,
        heldout=texts_of(chosen, texts),
        teacher=chosen.teacher if chosen is not None else None,
        sequence_length=chosen.data.sequence_length if chosen is not None else None,
        dtype="float32" if is_run(target) else "auto",  # rounding a student's float32 weights would change what it says
    )
    results = run_evals(model, evals, folder=kept, again=again)
    values = {"model": target, "folder": str(kept), "evals": {name: asdict(result) for name, result in results.items()}}
    lines = [line for name, result in results.items() for line in _lines(name, result, folder=kept)]
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
