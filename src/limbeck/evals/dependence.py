"""What a result depends on beside an evaluation's settings: while all of it is as it was, nothing is measured again.

Beside what a model says of itself (`EvalModel.described`), these are the contents of the files that settings and recipes only
name, the teacher's weights and, where time is measured, the machine.
"""

import hashlib
import json
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import torch

from limbeck.evals.subject import EvalModel
from limbeck.gguf_folder import remembered_sha256
from limbeck.runs import processor_name
from limbeck.spec.data import FileTexts
from limbeck.spec.evals import Eval
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.calibration import Calibration
from limbeck.spec.evals.generation import Generation
from limbeck.spec.evals.gsm import Gsm
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.latency import Latency
from limbeck.spec.evals.long_context import LongContext
from limbeck.teachers.files import locate, weights_digest


def subject_of(model: EvalModel, spec: Eval) -> dict[str, Any]:
    """All that a result of `spec` depends on but `spec` itself, as JSON."""
    texts = [model.heldout, *_texts_of(spec)]
    patterns = [pattern for each in texts if isinstance(each, FileTexts) for pattern in each.paths]
    teacher = model.teacher if isinstance(spec, Calibration) and spec.to_teacher else None  # elsewhere it need not be here
    return {
        **model.described,
        "teacher_weights": weights_digest(locate(teacher)) if teacher is not None else None,
        "files": contents_digest([*patterns, *_files_of(spec)]),
        "machine": _machine(model.reader.device) if isinstance(spec, Latency | Generation | Gsm) else None,
    }


def contents_digest(patterns: Sequence[str]) -> str:
    """Of the bytes of all files that are there by these names or patterns; of folders the names, sizes and times of change."""
    found = [Path(path) for pattern in patterns for path in sorted({*glob(pattern, recursive=True), pattern})]
    described = [[str(path), _of_folder(path) if path.is_dir() else remembered_sha256(path)] for path in found if path.exists()]
    return hashlib.sha256(json.dumps(described).encode("utf-8")).hexdigest()[:32]


def _of_folder(folder: Path) -> list[list[Any]]:
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [[path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns] for path, status in files]


def _texts_of(spec: Eval) -> list[Any]:
    match spec:
        case BitsPerByte():
            return list(spec.domains.values())
        case LongContext():
            return [spec.essays]
    return []


def _files_of(spec: Eval) -> list[str]:
    """The files and folders that settings name."""
    match spec:
        case Gsm():
            named = [spec.path, spec.shots_path]
        case Generation():
            named = [spec.prompts, spec.end_chats]
        case Harness():
            named = [*spec.files, spec.include_path]
        case LongContext():
            named = [spec.qa_file]
        case _:
            named = []
    return [path for path in named if path is not None]


def _machine(device: torch.device) -> str:
    """Seconds are of a device, and of the processor that keeps it busy."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {processor_name()}"
