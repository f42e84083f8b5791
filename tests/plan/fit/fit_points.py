"""Points for the tests of fitting: measured ones from the CSV files, drawn ones from the published law, and handmade runs."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.plan.fit.points import Points, lowest_tokens_per_parameter
from limbeck.plan.laws import DISTILLATION
from limbeck.runs import Costs, RunWriter
from limbeck.spec.load import load_recipe

DATA = Path(__file__).parents[1] / "data"
CHINCHILLA_CSV = DATA / "chinchilla_epoch_svg.csv"
ISOFLOPS_CSV = DATA / "isoflops_openathena.csv"
HELDOUT = {"heldout_tokens": 1000, "heldout_bytes": 4000, "heldout_documents": 3}


def chinchilla_points(*, dropped: int = 5) -> Points:
    rows = list(csv.DictReader(CHINCHILLA_CSV.read_text(encoding="utf-8").splitlines()))
    params, flops, loss = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    points = Points(params, flops / (6 * params), loss)
    return points.where(~lowest_tokens_per_parameter(points, dropped))


def isoflops_points(experiment: str) -> Points:
    rows = [
        row for row in csv.DictReader(ISOFLOPS_CSV.read_text(encoding="utf-8").splitlines()) if row["experiment"] == experiment
    ]
    rows = [row for row in rows if row["outlier"] == "False"]
    return Points(*(np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "loss")))


def distilled_points(count: int = 697, *, seed: int = 0, noise: float = 0.003) -> tuple[Points, np.ndarray]:
    """Drawn from the published law over its range, and their losses without noise."""
    draw = np.random.default_rng(seed)
    params, tokens = np.exp(draw.uniform(np.log([143e6, 4e9]), np.log([7.75e9, 512e9]), (count, 2))).T
    teacher_loss = draw.uniform(1.9, 2.9, count)
    truth = DISTILLATION.loss(params, tokens, teacher_loss)
    return Points(params, tokens, truth * np.exp(noise * draw.standard_normal(count)), teacher_loss), truth


def write_run(
    folder: Path,
    *,
    params: float,
    tokens: float,
    bits_per_byte: float,
    teacher_bits: float | None = None,
    objective: str | None = None,
    finished: bool = True,
    overrides: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """A run folder with these measurements; distilled where there is a teacher's."""
    kind = objective or ("forward_kl" if teacher_bits is not None else "ce")
    recipe = load_recipe("quickstart", {"objective.kind": kind, "name": "run", **(overrides or {})})
    writer = RunWriter(folder, recipe=recipe, device="cpu")
    if finished:
        teacher = None if teacher_bits is None else {"name": "t", "bits_per_byte": teacher_bits, "flops_per_token": None}
        values = {"bits_per_byte": bits_per_byte, "parameters": {"non_embedding": params}, "teacher": teacher, **HELDOUT}
        costs = Costs(step=10, tokens=int(tokens), seconds=1.0, student_flops=1e12)
        writer.finish(costs, **{**values, **summary})
    return folder
