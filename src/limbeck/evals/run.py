"""Running evaluations on one model: each kind measures it, and each result is kept at once.

A result that is there already, of the same settings, model, teacher and contents of files, is not made again.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.eval_results import FOLDER, EvalResult, Metric, read_results, write_result
from limbeck.evals import artifact, bits_per_byte, calibration, copying, generation, gsm, harness, latency, long_context
from limbeck.evals.dependence import subject_of
from limbeck.evals.subject import EvalModel
from limbeck.paths import require_writable
from limbeck.runs import environment
from limbeck.spec.evals import Eval
from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.calibration import Calibration
from limbeck.spec.evals.copying import Copying
from limbeck.spec.evals.generation import Generation
from limbeck.spec.evals.gsm import Gsm
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.latency import Latency
from limbeck.spec.evals.long_context import LongContext


def run_evals(model: EvalModel, evals: Mapping[str, Eval], *, folder: Path, again: bool = False) -> dict[str, EvalResult]:
    """Measure what is asked for under each name, and keep it in `folder/evals`; `again` also what is there already,
    with what was generated for it.

    `LimbeckError` before anything is measured where one of the evaluations cannot be.
    """
    there = {} if again else read_results(folder)
    results = {name: there[name] for name, spec in evals.items() if name in there and _is_of(there[name], model, spec)}
    missing = {name: spec for name, spec in evals.items() if name not in results}
    for name in missing:
        require_writable(folder / FOLDER / f"{name}.json")
    check(model, missing)
    for name, spec in missing.items():
        values = spec.model_dump(mode="json")
        generations = folder / FOLDER / f"{name}.generations.jsonl"
        if again:
            generations.unlink(missing_ok=True)  # its seconds are measured, too
        metrics, details = measure(model, spec, generations=generations)
        where = environment(str(model.reader.device))
        results[name] = EvalResult(spec.kind, name, model.name, values, metrics, details, where, subject_of(model, spec))
        write_result(folder, results[name])
    return {name: results[name] for name in evals}


def _is_of(known: EvalResult, model: EvalModel, spec: Eval) -> bool:
    return known.spec == spec.model_dump(mode="json") and known.subject == subject_of(model, spec)


def check(model: EvalModel, evals: Mapping[str, Eval]) -> None:
    """Everything that can be known to be wrong before anything is measured: each kind's own `check`, where it has one."""
    if evals:
        model.require_own_tokenizer()
    for spec in evals.values():
        kind = importlib.import_module(f"limbeck.evals.{spec.kind}")
        if hasattr(kind, "check"):
            kind.check(model, spec)


def measure(model: EvalModel, spec: Eval, *, generations: Path | None = None) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details of one evaluation; what a kind generates on the way is kept in the file `generations`."""
    match spec:
        case Artifact():
            return artifact.measure(model, spec)
        case BitsPerByte():
            return bits_per_byte.measure(model, spec)
        case Calibration():
            return calibration.measure(model, spec)
        case Copying():
            return copying.measure(model, spec)
        case Generation():
            return generation.measure(model, spec, generations=generations)
        case Gsm():
            return gsm.measure(model, spec, generations=generations)
        case Harness():
            return harness.measure(model, spec, generations=generations)
        case Latency():
            return latency.measure(model, spec)
        case LongContext():
            return long_context.measure(model, spec, generations=generations)
