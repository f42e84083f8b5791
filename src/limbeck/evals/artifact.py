"""A student as an artifact (`limbeck.students.artifact`): its bytes, and its bits per byte once it is rounded and read back."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from limbeck.data.prepare import prepare_texts
from limbeck.eval_results import Metric
from limbeck.evals.bits_per_byte import evaluate
from limbeck.evals.student import StudentReader
from limbeck.evals.subject import EvalModel
from limbeck.report.statistics import paired_difference
from limbeck.spec.artifact import LIMIT_BYTES
from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.teacher import Context
from limbeck.students import hf
from limbeck.students.artifact import read_artifact, write_artifact
from limbeck.students.decoder import Decoder


def check(model: EvalModel, spec: Artifact) -> None:
    """`LimbeckError` for what cannot be packed: a model that is not a student of our own kinds, in a folder."""
    model.require_heldout(spec.kind)
    hf.read_spec(Path(model.reader.files.model))


def measure(model: EvalModel, spec: Artifact) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Bytes of code and weights; bits per byte before, after, and the difference, paired by document."""
    student, student_spec, _ = hf.load(Path(model.reader.files.model))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        size = write_artifact(student, student_spec, path, form=spec)
        rounded, _, _ = read_artifact(path)
    before_N2 = _documents(model, student, title=model.name)
    after_N2 = _documents(model, rounded, title=f"rounded {model.name}")
    change = paired_difference(after_N2, before_N2)
    documents = len(after_N2)
    metrics = {
        "artifact_bytes": Metric(size.total_bytes, better="lower"),
        "artifact_weights_bytes": Metric(size.weights_bytes, better="lower"),
        "artifact_bits_per_byte": Metric(float(after_N2[:, 1].sum() / after_N2[:, 0].sum()), n=documents, better="lower"),
        "artifact_bits_per_byte_change": Metric(change.value, change.low, change.high, documents, "lower"),
    }
    return metrics, {"limit_bytes": LIMIT_BYTES, "code": size.code, "code_bytes": size.code_bytes}


def _documents(model: EvalModel, student: Decoder, *, title: str) -> np.ndarray:
    """documents_N2, float64: (bytes, bits) of every held-out document."""
    store = prepare_texts(model.require_heldout("artifact"), model.tokenizer, title="held-out", loss_on=model.loss_on)
    device = model.reader.device
    reader = StudentReader(student.to(device).eval(), device=device, dtype=torch.float32)
    found = evaluate(reader, store, context=Context(window=model.window(None), overlap=0), title=title)
    return np.array(list(zip(found.bytes_by_document, found.bits_by_document, strict=True)), dtype=np.float64)
