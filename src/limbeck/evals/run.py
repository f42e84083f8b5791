"""Running evaluations on one model: each kind measures it, and each result is kept at once.

A result that is there already, of the same settings, is not made again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.token_store import prepare_texts
from limbeck.eval_results import FOLDER, EvalResult, Metric, read_results, write_result
from limbeck.evals import harness, long_context
from limbeck.evals.bits_per_byte import evaluate as bits_per_byte
from limbeck.evals.subject import EvalModel
from limbeck.report.statistics import ratio_estimate
from limbeck.runs import environment
from limbeck.spec.evals import Eval
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.long_context import LongContext
from limbeck.spec.teacher import Context


def run_evals(model: EvalModel, evals: Mapping[str, Eval], *, folder: Path) -> dict[str, EvalResult]:
    """Measure what is asked for under each name, and keep it in `folder/evals`."""
    there = read_results(folder)
    results = {}
    for name, spec in evals.items():
        values = spec.model_dump(mode="json")
        known = there.get(name)
        if known is None or known.spec != values or known.model != model.name:
            metrics, details = measure(model, spec, generations=folder / FOLDER / f"{name}.generations.jsonl")
            known = EvalResult(spec.kind, name, model.name, values, metrics, details, environment(str(model.reader.device)))
            write_result(folder, known)
        results[name] = known
    return results


def measure(model: EvalModel, spec: Eval, *, generations: Path | None = None) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details of one evaluation; what a kind generates on the way is kept in the file `generations`."""
    match spec:
        case BitsPerByte():
            return _bits_per_byte(model, spec)
        case Harness():
            return harness.measure(model, spec, generations=generations)
        case LongContext():
            return long_context.measure(model, spec, generations=generations)


def _bits_per_byte(model: EvalModel, spec: BitsPerByte) -> tuple[dict[str, Metric], dict[str, Any]]:
    store = prepare_texts(model.require_heldout(spec.kind), model.tokenizer, title="held-out")
    found = bits_per_byte(model.reader, store, context=Context(window=model.window(spec.window), overlap=spec.overlap))
    estimate = ratio_estimate(np.asarray(found.bits_by_document), np.asarray(found.bytes_by_document, dtype=float))
    metric = Metric(found.bits_per_byte, estimate.low, estimate.high, found.documents, "lower")
    return {"bits_per_byte": metric}, {"tokens": found.tokens, "bytes": found.bytes}
