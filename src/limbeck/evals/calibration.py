"""Whether a model's confidence is how often it is right, or how confident another model is.

Expected calibration error: positions are sorted into bins of equal width by a model's confidence, its largest probability; in
each bin the mean confidence is held against the mean outcome, and the differences are averaged by the bins' sizes (Guo et al.,
arXiv 1706.04599, eq. 3; Distillation Scaling Laws, arXiv 2502.08606, eqs. 38 and 39, with 21 bins). The outcome is whether the
top-1 was the next token, whether it was the teacher's top-1, or how confident the teacher was itself: the distributional error,
which that paper draws with the bins of either model. Beside them stand the distances to the teacher whose averages they are.

Suffixes: N positions, D documents, B bins, S resamples.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.token_store import TokenStore
from limbeck.errors import LimbeckError, SpecError, TeacherError
from limbeck.eval_results import Metric
from limbeck.evals.positions import Columns, read_positions
from limbeck.evals.reference import Reference, reads_alike, teacher_reference
from limbeck.evals.subject import EvalModel
from limbeck.report.statistics import LEVEL, RESAMPLES, SEED, Estimate, ratio_estimate
from limbeck.spec.evals.calibration import Calibration
from limbeck.teachers.files import locate, read_config

BINS = 21
Array = NDArray[np.float64]


def calibration_error(confidence_N: NDArray[np.floating], outcome_N: NDArray[np.generic], *, bins: int = BINS) -> float:
    """Σ |bin| / N · |mean outcome - mean confidence|, over bins of `confidence_N` (in [0, 1]).

    Outcomes are whether the top-1 was the next token (calibration to the data), whether it was a teacher's top-1, or a
    teacher's own confidence at the same position (the distributional error, binned by the model of `confidence_N`).
    """
    gap_N = outcome_N.astype(np.float64) - confidence_N
    return float(np.abs(np.bincount(_bin(confidence_N, bins), weights=gap_N, minlength=bins)).sum() / len(confidence_N))


def _bin(confidence_N: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """A confidence on an edge belongs to the bin below, as in Guo et al.: ((m - 1) / M, m / M]."""
    return np.clip(np.ceil(confidence_N.astype(np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)


@dataclass(frozen=True)
class Reliability:
    """The bins of a comparison: how many positions of each document each holds, and sums over them."""

    count_DB: Array
    confidence_DB: Array
    outcome_DB: Array

    @property
    def error(self) -> Estimate:
        """The calibration error and its 95% interval over documents.

        Noise alone gives a difference in every bin, and resampling adds as much noise again, so the resampled errors lie too
        high by about as much as the error does. The basic bootstrap (Efron & Tibshirani 1993, ch. 13) mirrors them at it, which
        takes that off; the interval is held to contain the error, and ends at 0. Where the error is no larger than the noise
        (0.03 with 2,000 positions in 21 bins) it is still too short: it holds an error of 0 in half of all cases.
        """
        gap_DB, count_D = self.outcome_DB - self.confidence_DB, self.count_DB.sum(1)
        value = float(np.abs(gap_DB.sum(0)).sum() / count_D.sum())
        documents = len(count_D)
        if documents < 2:
            return Estimate(value)
        shares_D = np.full(documents, 1 / documents)
        drawn_SD = np.random.default_rng(SEED).multinomial(documents, shares_D, size=RESAMPLES).astype(np.float64)
        errors_S = np.abs(drawn_SD @ gap_DB).sum(1) / (drawn_SD @ count_D)
        low, high = np.quantile(errors_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(np.clip(2 * value - high, 0, value)), float(max(2 * value - low, value)))

    @property
    def diagram(self) -> dict[str, Any]:
        """As a reliability diagram shows it: of each bin its count, mean confidence and mean outcome (None where empty)."""
        count_B = self.count_DB.sum(0)
        means = [
            [total / count if count else None for total, count in zip(sums_DB.sum(0).tolist(), count_B.tolist(), strict=True)]
            for sums_DB in (self.confidence_DB, self.outcome_DB)
        ]
        counts = count_B.astype(int).tolist()
        return {"error": self.error.value, "count": counts, "confidence": means[0], "outcome": means[1]}


def reliability(confidence_N: Array, outcome_N: Array, *, document_N: NDArray[np.integer], bins: int = BINS) -> Reliability:
    """The positions of every document in bins of their confidence; documents are numbered from 0."""
    documents = int(document_N.max()) + 1
    place_N = document_N * bins + _bin(confidence_N, bins)

    def sums(weights_N: Array | None) -> Array:
        return np.bincount(place_N, weights_N, documents * bins).reshape(documents, bins).astype(np.float64)

    return Reliability(sums(None), sums(confidence_N), sums(outcome_N))


def check(model: EvalModel, spec: Calibration) -> None:
    """`LimbeckError` where texts or windows are none that it reads, or the teacher's distributions are over other tokens."""
    model.reading(spec.window, spec.overlap, kind=spec.kind)
    store = model.tokens(model.require_heldout(spec.kind))
    if spec.agreement and max(spec.agreement) > model.reader.vocab_size:
        most = model.reader.vocab_size
        raise SpecError(f"calibration.agreement={max(spec.agreement)}: there are but {most} tokens, name fewer")
    if spec.to_teacher and model.teacher is not None:
        files = locate(model.teacher)
        config = read_config(files) or {}
        _require_same_tokens(model, files.name, (config.get("text_config") or config).get("vocab_size"))
        if not reads_alike(files, store):
            raise LimbeckError(_no_comparison(f"{model.name} and its teacher {files.name} have different tokenizers"))


def _require_same_tokens(model: EvalModel, teacher: str, vocabulary: int | None) -> None:
    if vocabulary not in (None, model.reader.vocab_size):
        reason = f"{model.name} has {model.reader.vocab_size} logits and its teacher {teacher} has {vocabulary}"
        raise LimbeckError(_no_comparison(reason))


def _no_comparison(reason: str) -> str:
    return f"calibration: {reason}; calibration.to_teacher=false measures against the text alone"


def measure(model: EvalModel, spec: Calibration) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics with intervals over documents; the diagrams of all comparisons in `details.reliability`.

    In nats and per position, the one that predicts the end of a document too. What is measured against the teacher is absent
    without one.
    """
    context = model.reading(spec.window, spec.overlap, kind=spec.kind)
    store = model.tokens(model.require_heldout(spec.kind))
    reference = _reference(model, spec, store)
    found = read_positions(
        model.reader, store, context=context, reference=reference, agreement=spec.agreement, title="calibration"
    )
    diagrams = _diagrams(found, bins=spec.bins, teacher=reference is not None)
    metrics = {
        name: _metric(diagrams[comparison].error, len(store), "lower")
        for name, comparison in _ERRORS.items()
        if comparison in diagrams
    }
    metrics |= {
        name: _metric(_mean(found, column), len(store), better)
        for name, (column, better) in _means(spec).items()
        if column in found
    }
    details = {
        "positions": int(store.targets_per_document.sum()),
        "bins": spec.bins,
        "window": context.window,
        "overlap": context.overlap,
        "teacher": _teacher_details(model, reference, found),
        "reliability": {name: each.diagram for name, each in diagrams.items()},
    }
    return metrics, details


def _reference(model: EvalModel, spec: Calibration, store: TokenStore) -> Reference | None:
    if not spec.to_teacher or model.teacher is None:
        return None
    found = teacher_reference(model.teacher, store, device=model.reader.device)
    if found is None:
        raise TeacherError(_no_comparison(f"the teacher {locate(model.teacher).name} has no plain head to be kept"))
    _require_same_tokens(model, found.teacher, len(found.head_VE))
    return found


_ERRORS = {
    "calibration_error": "data",
    "calibration_error_to_teacher_top1": "teacher_top1",
    "distributional_error_student_bins": "teacher_by_student",
    "distributional_error_teacher_bins": "student_by_teacher",
}


def _means(spec: Calibration) -> dict[str, tuple[str, Literal["lower", "higher"] | None]]:
    """Metrics that are means over positions: the column, and what is better."""
    return {
        "accuracy": ("correct", "higher"),
        "confidence": ("confidence", None),
        "entropy_nats": ("entropy", None),
        "brier_score": ("brier", "lower"),
        "kl_to_teacher_nats": ("kl", "lower"),
        "reverse_kl_to_teacher_nats": ("reverse_kl", "lower"),
        **{f"agreement_top{k}": (f"shared_{k}", "higher") for k in spec.agreement},
    }


def _diagrams(found: Columns, *, bins: int, teacher: bool) -> dict[str, Reliability]:
    """By what the outcome is, and by whose confidence positions are sorted where that is not the student's."""
    confidence_N, document_N = found["confidence"], found["document"].astype(np.int64)

    def binned(by_N: Array, outcome_N: Array) -> Reliability:
        return reliability(by_N, outcome_N, document_N=document_N, bins=bins)

    data = {"data": binned(confidence_N, found["correct"])}
    if not teacher:
        return data
    return {
        **data,
        "teacher_top1": binned(confidence_N, found["agrees"]),
        "teacher_by_student": binned(confidence_N, found["teacher_confidence"]),
        "student_by_teacher": binned(found["teacher_confidence"], confidence_N),
        "teacher_data": binned(found["teacher_confidence"], found["teacher_correct"]),
    }


def _teacher_details(model: EvalModel, reference: Reference | None, found: Columns) -> dict[str, Any] | None:
    """It reads windows of its own, whatever those of the student are."""
    if reference is None or model.teacher is None:
        return None
    means = {name: float(found[f"teacher_{name}"].mean()) for name in ("correct", "confidence", "entropy")}
    values = {"accuracy": means["correct"], "confidence": means["confidence"], "entropy_nats": means["entropy"]}
    context = model.teacher.context.model_dump(include={"window", "overlap"})
    return {"name": reference.teacher, **values, "bits_per_byte": reference.bits_per_byte, **context}


def _mean(found: Columns, column: str) -> Estimate:
    """Over positions, and its interval over documents."""
    document_N = found["document"].astype(np.int64)
    sums_D, counts_D = (np.bincount(document_N, each).astype(np.float64) for each in (found[column], None))
    return ratio_estimate(sums_D, counts_D)


def _metric(estimate: Estimate, documents: int, better: Literal["lower", "higher"] | None) -> Metric:
    return Metric(estimate.value, estimate.low, estimate.high, documents, better)
