"""Limbeck's own runs as points: N outside the embeddings, D tokens trained on, the held-out loss in nats per token.

Runs without a teacher are for a law of training alone, distilled ones for the law of distillation. They can be compared where
they read the same held-out text with the same tokenizer; others are refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import DataError, LimbeckError
from limbeck.plan.fit.points import Points
from limbeck.runs import Run, open_run
from limbeck.spec.objective import ForwardKL, needs_teacher, terms


@dataclass(frozen=True)
class RunPoints:
    """Points of runs trained alone and of distilled ones (None where there are none), and what was odd, a sentence each."""

    alone: Points | None
    distilled: Points | None
    warnings: tuple[str, ...]


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "recipe.yaml").is_file()


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders, where `paths` names them or folders of them; `LimbeckError` for a folder with neither."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if is_run(path) else sorted(child for child in path.iterdir() if is_run(child))
        if not inside:
            raise LimbeckError(
                f"{path} is no run and holds none: name run folders, or a folder of them such as out/quickstart/runs"
            )
        found += inside
    return list(dict.fromkeys(found))


def read_runs(paths: Sequence[Path]) -> RunPoints:
    """The points of finished runs. Runs that can't be points are left out with a warning; `DataError` where none is left."""
    warnings: list[str] = []
    runs: list[Run] = []
    for path in run_folders(paths):
        run = open_run(path)
        reason = _unusable(run)
        if reason is None:
            runs.append(run)
        else:
            warnings.append(f"{path} is left out: {reason}")
    if not runs:
        raise DataError(f"none of the {len(warnings)} runs is a point ({warnings[0]})")
    _refuse_mixture(runs)
    warnings += _oddities(runs)
    alone = [run for run in runs if not needs_teacher(run.recipe.objective)]
    distilled = [run for run in runs if needs_teacher(run.recipe.objective)]
    return RunPoints(_points(alone), _points(distilled), tuple(warnings))


def _summary(run: Run) -> dict[str, Any]:
    assert run.summary is not None, "unfinished runs have been left out"
    return run.summary


def _unusable(run: Run) -> str | None:
    if run.summary is None:
        return f"it is unfinished, `limbeck train {run.path}/recipe.yaml` continues it"
    if not _is_positive(run.summary.get("bits_per_byte")):
        return "it ended without a finite loss"
    if not all(_is_positive(run.summary.get(key)) for key in ("tokens", "heldout_tokens", "heldout_bytes")):
        return "its summary lacks what its held-out text measures, `limbeck train` writes it"
    if needs_teacher(run.recipe.objective) and not _is_positive((run.summary.get("teacher") or {}).get("bits_per_byte")):
        return "its teacher was not measured, which needs the student's tokenizer and evaluation.kl_to_teacher=true"
    return None


def _refuse_mixture(runs: Sequence[Run]) -> None:
    first = _summary(runs[0])
    for run in runs[1:]:
        summary = _summary(run)
        if summary["heldout_bytes"] != first["heldout_bytes"]:
            raise DataError(
                f"{run.path} was measured on {summary['heldout_bytes']:,} held-out bytes, {runs[0].path} on "
                f"{first['heldout_bytes']:,}: fit runs with the same held-out text"
            )
        vocabularies = [each.recipe.student.vocab_size for each in (run, runs[0])]
        if summary["heldout_tokens"] != first["heldout_tokens"] or vocabularies[0] != vocabularies[1]:
            raise DataError(
                f"{run.path} and {runs[0].path} have different tokenizers: their losses per token can't be compared"
            )


def _oddities(runs: Sequence[Run]) -> list[str]:
    found = []
    texts = {run.recipe.data.train.whole.model_dump_json() for run in runs}
    if len(texts) > 1:
        found.append(f"the runs read {len(texts)} different training texts: a law is about one")
    for run in runs:
        parts = [weighted.term for weighted in terms(run.recipe.objective)]
        if needs_teacher(run.recipe.objective) and not all(isinstance(part, ForwardKL) for part in parts):
            found.append(f"{run.path} minimises {run.recipe.objective.kind}: the distillation law is about pure distillation")
    return found


def _points(runs: Sequence[Run]) -> Points | None:
    """Of runs that are all alone or all distilled."""
    if not runs:
        return None
    teacher_loss = None
    if needs_teacher(runs[0].recipe.objective):
        teacher_loss = np.array([_nats_per_token(run, _summary(run)["teacher"]["bits_per_byte"]) for run in runs])
    return Points(
        params=np.array([_summary(run)["parameters"]["non_embedding"] for run in runs], dtype=np.float64),
        tokens=np.array([_summary(run)["tokens"] for run in runs], dtype=np.float64),
        loss=np.array([_nats_per_token(run, _summary(run)["bits_per_byte"]) for run in runs]),
        teacher_loss=teacher_loss,
        places=tuple(str(run.path) for run in runs),
    )


def _nats_per_token(run: Run, bits_per_byte: float) -> float:
    return float(bits_per_byte * math.log(2) * _summary(run)["heldout_bytes"] / _summary(run)["heldout_tokens"])


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
