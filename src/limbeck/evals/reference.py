"""The teacher on the held-out documents, once for all students: its last hidden states and its head.

A hidden state is 2E bytes where a distribution is 4V, and the distribution comes back exactly by one product, so the KL to the
teacher needs no truncation and the teacher need not be loaded again. Kept in the user cache. Legend: R rows, E width,
V vocabulary.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.compute import pick_dtype
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import TeacherError
from limbeck.paths import cache_folder
from limbeck.progress import progress
from limbeck.spec.teacher import Teacher as TeacherSpec
from limbeck.teachers.files import TeacherFiles, locate, weights_digest
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.score import passages, score_hidden


@dataclass(frozen=True)
class Reference:
    """A teacher's hidden states at every row of a token store, and its head; on the CPU, whatever trains meanwhile."""

    teacher: str
    hidden_RE: Tensor
    head_VE: Tensor
    first_row: tuple[int, ...]
    """Of each document."""
    bits_per_byte: float
    """Of the teacher on the documents' text tokens."""

    def rows(self, document: int, first: int, last: int) -> Tensor:
        """Hidden states [last - first, E] of the teacher at positions [first, last) of a document."""
        begin = self.first_row[document]
        return self.hidden_RE[begin + first : begin + last]


def teacher_reference(
    spec: TeacherSpec, store: TokenStore, *, device: torch.device, teacher: Teacher | None = None
) -> Reference | None:
    """The reference of a teacher on a token store, made on first use; None where the teacher has no plain head.

    `teacher` is the loaded one if the caller has it; otherwise it is loaded when needed.
    """
    path = _path(spec, locate(spec), store, dtype=pick_dtype(spec.dtype, device))
    if not path.is_file():
        teacher = teacher or load_teacher(spec, device=device)
        if teacher.head_VE is None:
            return None
        _write(path, teacher, spec, store)
    return _read(path, store)


def reads_alike(files: TeacherFiles, store: TokenStore) -> bool:
    """Whether the teacher's own tokenizer made these tokens: only then do its logits speak of the same ids."""
    theirs = load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)
    return theirs.fingerprint == store.tokenizer_fingerprint


def _path(spec: TeacherSpec, files: TeacherFiles, store: TokenStore, *, dtype: torch.dtype) -> Path:
    weights = weights_digest(files)
    described: list[object] = [
        files.model,
        weights,
        files.quantisation,
        str(dtype),
        spec.context.model_dump(),
        store.ids,
        store.tokenizer_fingerprint,
    ]
    if store.has_masks:
        described.append([store.about.get("template"), store.about.get("loss_on")])
    key = hashlib.sha256(json.dumps(described).encode("utf-8")).hexdigest()[:20]
    return cache_folder() / "references" / f"{key}.safetensors"


def _write(path: Path, teacher: Teacher, spec: TeacherSpec, store: TokenStore) -> None:
    assert teacher.head_VE is not None
    documents = [store.document(index) for index in range(len(store))]
    first_row = _first_rows(store)
    measured = [store.measured(index) for index in range(len(store))]
    hidden_RE = torch.empty(store.num_rows, teacher.head_VE.shape[1], dtype=teacher.dtype)
    nats = 0.0
    with progress("teacher reads held-out documents", total=store.num_rows) as advance:
        for passage, rows_RE in score_hidden(teacher, documents, passages(store.lengths.tolist(), context=spec.context)):
            document, window = documents[passage.document], passage.window
            begin = first_row[passage.document] + window.first
            hidden_RE[begin : begin + len(rows_RE)] = rows_RE
            nats += _text_nats(rows_RE, teacher.head_VE, document, first=window.first, measured=measured[passage.document])
            if not math.isfinite(nats):
                raise TeacherError(
                    f"teacher {teacher.files.name}: logits on held-out document {store.ids[passage.document]} are not finite"
                )
            advance(len(rows_RE))
    bits_per_byte = nats / math.log(2) / float(store.bytes_per_document.sum())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {"hidden": hidden_RE, "head": teacher.head_VE.cpu().contiguous()}
    try:
        save_file(tensors, temporary, metadata={"teacher": teacher.files.name, "bits_per_byte": repr(bits_per_byte)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise TeacherError(f"{path} cannot be written ({error}): free some space and run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)


def _text_nats(hidden_RE: Tensor, head_VE: Tensor, document: np.ndarray, *, first: int, measured: np.ndarray) -> float:
    """Negative log-likelihood of the measured tokens that the rows from position `first` on predict (the end is no text)."""
    kept_R = np.flatnonzero(measured[first + 1 : first + 1 + len(hidden_RE)])
    targets_R = torch.from_numpy(document[first + 1 + kept_R].astype(np.int64))
    kept_RE = hidden_RE[torch.from_numpy(kept_R).to(hidden_RE.device)]
    logits_RV = torch.nn.functional.linear(kept_RE, head_VE).float()
    return float(torch.nn.functional.cross_entropy(logits_RV, targets_R.to(logits_RV.device), reduction="sum"))


def _read(path: Path, store: TokenStore) -> Reference:
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        return Reference(
            teacher=about["teacher"],
            hidden_RE=file.get_tensor("hidden"),
            head_VE=file.get_tensor("head"),
            first_row=_first_rows(store),
            bits_per_byte=float(about["bits_per_byte"]),
        )


def _first_rows(store: TokenStore) -> tuple[int, ...]:
    return tuple(int(offset) - index for index, offset in enumerate(store.offsets[:-1]))
