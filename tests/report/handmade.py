"""Handmade run folders, written and read through `limbeck.runs` as training would, and cells of a study around them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.eval_results import EvalResult, Metric
from limbeck.report.cells import Cell, StudyView
from limbeck.runs import Costs, Run, RunWriter, open_run
from limbeck.spec.load import load_recipe

DOCUMENTS = ((1000, 2000.0), (2000, 5000.0), (1500, 3000.0), (500, 1500.0), (3000, 6900.0), (1200, 3100.0))
"""(bytes, bits) of six documents: 9200 bytes, 21500 bits."""
BITS = 21500 / 9200


def make_run(
    folder: Path,
    *,
    objective: str = "ce",
    documents: Sequence[tuple[int, float]] | None = DOCUMENTS,
    evals: Sequence[tuple[Costs, float]] = (),
    end: Costs | None = None,
    finished: bool = True,
    overrides: dict[str, Any] | None = None,
    **summary: Any,
) -> Run:
    """A run folder that holds these measurements; without `end`, ten steps of a hundred tokens and a second each."""
    recipe = load_recipe("quickstart", {"objective.kind": objective, "name": "arm", **(overrides or {})})
    writer = RunWriter(folder, recipe=recipe, device="cpu")
    end = end or Costs(step=10, tokens=1000, seconds=10.0, student_flops=1e12)
    for costs, bits in evals:
        writer.record("train", costs, loss_nats=bits + 1)
        writer.record("eval", costs, bits_per_byte=bits, kl_to_teacher_nats=bits / 2)
    if finished:
        given = documents or ()
        whole = sum(bits for _, bits in given) / sum(size for size, _ in given) if given else None
        values = {"bits_per_byte": whole, "heldout_bytes": sum(size for size, _ in given), "heldout_documents": len(given)}
        if documents is not None:
            values["bits_per_byte_by_document"] = [list(pair) for pair in documents]
        writer.finish(end, **{"arm": "arm", "kl_to_teacher_nats": None, "teacher": None, **values, **summary})
    return open_run(folder)


def remeasured(run: Run, documents: Sequence[tuple[int, float]]) -> Run:
    """The same finished run as if it had ended with these documents; nothing is written."""
    assert run.summary is not None
    whole = sum(bits for _, bits in documents) / sum(size for size, _ in documents)
    pairs = [list(pair) for pair in documents]
    return dataclasses.replace(run, summary={**run.summary, "bits_per_byte": whole, "bits_per_byte_by_document": pairs})


def shifted(amount: float, *, wobble: float = 0.0) -> list[tuple[int, float]]:
    """The documents with every one `amount` bits per byte worse, and half of them `wobble` worse and half better."""
    return [(size, bits + size * (amount + (wobble if row % 2 else -wobble))) for row, (size, bits) in enumerate(DOCUMENTS)]


def cell(arm: str, run: Run | None, *, seed: int | None = None, **values: Any) -> Cell:
    """A cell named `arm-seed`, finished where its run is."""
    name = arm if seed is None else f"{arm}-{seed}"
    status = "waiting" if run is None else "stopped" if run.summary is None else "finished"
    return Cell(**{"name": name, "arm": arm, "seed": seed, "settings": {}, "run": run, "status": status, **values})


def study(*cells: Cell, **values: Any) -> StudyView:
    """A view of these cells."""
    return StudyView(**{"name": "study", "question": None, "cells": cells, "stores": (), **values})


def result(kind: str, metrics: dict[str, float], *, details: dict[str, Any] | None = None, name: str = "") -> EvalResult:
    """An evaluation with these metrics, without intervals."""
    return EvalResult(kind, name or kind, "model", {}, {key: Metric(value) for key, value in metrics.items()}, details or {})
