"""What quantising a teacher does to what it says: the same documents read by a reference and by each scheme.

The reference's last hidden states are kept (see `limbeck.evals.reference`); its distributions are made from them again, a few
hundred positions at a time, beside each scheme's, so that no [tokens, vocabulary] is ever held. A model is loaded when its turn
comes and dropped before the next one. Legend: R rows at hand, N all rows of the documents, D documents, V vocabulary.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.chats import read_chats
from limbeck.data.texts import document, read_documents, split
from limbeck.data.token_store import TokenStore
from limbeck.errors import LimbeckError, TeacherError
from limbeck.evals.calibration import calibration_error
from limbeck.evals.reference import Reference, reads_alike, teacher_reference
from limbeck.progress import progress
from limbeck.report.statistics import Estimate, ratio_estimate
from limbeck.spec.data import ChatTexts, Texts
from limbeck.spec.teacher import Context, GGUFTeacher
from limbeck.spec.teacher import Teacher as TeacherSpec
from limbeck.teachers.files import locate, read_config
from limbeck.teachers.huggingface import Teacher, check_teacher, load_teacher
from limbeck.teachers.score import passages, score_logits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A scheme beside the reference. Intervals are over documents; nats are of natural logarithms, per position."""

    name: str
    quantisation: str
    dtype: str
    simulated: bool
    """Whether speed is that of full precision, and the bytes those of packed weights that are not really packed (or of the GGUF
    file that was dequantised)."""
    bits_per_byte: float
    bits_per_byte_change: Estimate
    kl_nats: Estimate
    """KL(reference || scheme)."""
    kl_p99_nats: float
    flips: Estimate
    """The share of positions whose most probable token is another one."""
    entropy_nats: float
    entropy_change_nats: Estimate
    calibration_error: float
    """Against the next token."""
    calibration_error_to_reference: float
    """Against the reference's confidence at the same positions."""
    end_log_prob_nats: float | None
    """Of the end token at the ends of whole texts, the mean. None where no document is the end of one."""
    end_log_change_nats: float | None
    """That minus the reference's."""
    end_log_error_nats: float | None
    """The mean of the absolute difference."""
    tokens_per_second: float
    """Reading, the head included."""
    weights_bytes: float
    quantised_share: float | None
    """Of all parameters, what was quantised when the teacher was loaded. None for a GGUF file."""


@dataclass(frozen=True)
class Failed:
    """A scheme that could not be measured."""

    name: str
    why: str


@dataclass(frozen=True)
class Table:
    """The comparisons, the reference's own first, and on what they were made."""

    rows: tuple[Comparison, ...]
    tokens: int
    documents: int
    ends: int
    """Documents that are the end of a whole text."""
    reference_was_quantised: str | None
    """What the reference's own file had been quantised with, which schemes with a like grid then cost little; None: nothing."""
    failed: tuple[Failed, ...] = ()


def compare(
    reference: TeacherSpec, arms: Mapping[str, TeacherSpec], *, store: TokenStore, ends: frozenset[str], device: torch.device
) -> Table:
    """Hold every arm against the reference on the documents of a token store; `ends` are ids of documents that end a text.

    All read with the reference's context. Before anything is read: `LimbeckError` where an arm has other tokens or another
    vocabulary, `TeacherError` where its package, its device or its shapes don't allow the scheme. An arm with a `TeacherError`
    later on is one of the `failed`; the reference's own is raised, also where its head is more than one matrix.
    """
    for name, spec in arms.items():
        _check(name, spec, reference, store, device=device)
    known = teacher_reference(reference, store, device=device)
    if known is None:
        raise TeacherError(
            f"teacher {locate(reference).name} has no plain head, so its distributions cannot be kept to compare"
        )
    rows = [_measured("reference", reference, reference, known, store, ends=ends, device=device)]
    failed = []
    for name, spec in arms.items():
        try:
            rows.append(_measured(name, spec, reference, known, store, ends=ends, device=device))
        except TeacherError as error:
            failed.append(Failed(name, str(error)))
    of_file = locate(reference).quantisation
    return Table(
        rows=tuple(rows),
        tokens=int(store.targets_per_document.sum()),
        documents=len(store),
        ends=len(ends & set(store.ids)),
        reference_was_quantised=None if of_file == "none" else of_file,
        failed=tuple(failed),
    )


def _check(name: str, spec: TeacherSpec, reference: TeacherSpec, store: TokenStore, *, device: torch.device) -> None:
    """Whatever can be wrong with an arm before anything is read: its files, package, device, shapes, tokenizer, vocabulary."""
    try:
        check_teacher(spec, device=device)
    except TeacherError as error:
        raise TeacherError(f"{name}: {error}") from error
    if not reads_alike(locate(spec), store):
        other = reference.model_slug
        raise LimbeckError(f"{name} has another tokenizer than {other}: their distributions cannot be compared")
    ours, theirs = _vocabulary(spec), _vocabulary(reference)
    if None not in (ours, theirs) and ours != theirs:
        raise LimbeckError(f"{name} has {ours} logits and {reference.model_slug} has {theirs}: they cannot be compared")


def _vocabulary(spec: TeacherSpec) -> int | None:
    """Logits by the config.json; None where that is not on this machine."""
    config = read_config(locate(spec)) or {}
    size: int | None = (config.get("text_config") or config).get("vocab_size")
    return size


def _measured(
    name: str,
    spec: TeacherSpec,
    reference: TeacherSpec,
    known: Reference,
    store: TokenStore,
    *,
    ends: frozenset[str],
    device: torch.device,
) -> Comparison:
    """One row. The teacher lives in here alone, so that it is freed before the next one is loaded."""
    teacher = load_teacher(spec, device=device)
    if teacher.vocab_size != len(known.head_VE):
        raise TeacherError(f"{name} has {teacher.vocab_size} logits and {known.teacher} has {len(known.head_VE)}")
    positions = _read(teacher, known, store, context=reference.context, title=name)
    row = _compared(name, spec, teacher, positions, store, ends=ends)
    path = _file_arm(name, spec, reference)
    if path is None:
        return row
    return replace(row, simulated=True, weights_bytes=path.stat().st_size, quantised_share=None)


def _file_arm(name: str, spec: TeacherSpec, reference: TeacherSpec) -> Path | None:
    """The GGUF file that an arm stands for, when it is not another dtype of the reference: its weights are dequantised."""
    if not isinstance(spec, GGUFTeacher) or spec.quantisation is not None:
        return None
    return Path(spec.path) if name.endswith(".gguf") or locate(spec).model != locate(reference).model else None


def whole_text_ends(texts: Texts) -> frozenset[str]:
    """Ids of the documents at whose end a text really ends: of a text that was cut, the last piece; all chats."""
    if isinstance(texts, ChatTexts):
        return frozenset(chat.id for chat in read_chats(texts))
    whole = read_documents(texts.model_copy(update={"split_bytes": None}))
    pieces = (split(found.text, max_bytes=texts.split_bytes)[-1] for found in whole)
    return frozenset(document(piece, source="held-out").id for piece in pieces)


@dataclass(frozen=True)
class _Positions:
    """Of every row [N] whose next token counts, in any order: p is the reference, q the scheme."""

    document_N: Array
    is_text_N: Array
    is_end_N: Array
    nats_p_N: Array
    nats_q_N: Array
    kl_N: Array
    entropy_p_N: Array
    entropy_q_N: Array
    confidence_p_N: Array
    confidence_q_N: Array
    correct_q_N: Array
    flipped_N: Array
    seconds: float

    def per_document(self, values_N: Array, num_documents: int) -> Array:
        """Sums [D]."""
        return np.bincount(self.document_N.astype(np.int64), weights=values_N, minlength=num_documents).astype(np.float64)


@torch.no_grad()
def _read(teacher: Teacher, reference: Reference, store: TokenStore, *, context: Context, title: str) -> _Positions:
    documents = [store.document(index) for index in range(len(store))]
    work = passages(store.lengths.tolist(), context=context)
    head_VE = reference.head_VE.to(teacher.device)
    parts: list[dict[str, Array]] = []
    seconds = 0.0
    with progress(title, total=store.num_rows) as advance:
        chunks = score_logits(teacher, documents, work)
        while True:
            started = time.perf_counter()
            found = next(chunks, None)
            if teacher.device.type == "cuda":
                torch.cuda.synchronize(teacher.device)
            seconds += time.perf_counter() - started
            if found is None:
                break
            passage, first, logits_RV = found
            last = first + len(logits_RV)
            hidden_RE = reference.rows(passage.document, first, last).to(teacher.device)
            reference_RV = torch.nn.functional.linear(hidden_RE, head_VE)
            next_R = torch.from_numpy(documents[passage.document][first + 1 : last + 1].astype(np.int64)).to(teacher.device)
            part = {name: values_R.double().cpu().numpy() for name, values_R in _of_rows(reference_RV, logits_RV, next_R)}
            part["document_N"] = np.full(len(next_R), float(passage.document))
            part["is_text_N"] = store.measured(passage.document)[first + 1 : last + 1].astype(np.float64)
            part["is_end_N"] = (np.arange(first, last) == len(documents[passage.document]) - 2).astype(np.float64)
            counted = store.counted(passage.document)
            kept_R = slice(None) if counted is None else counted[first + 1 : last + 1]
            parts.append({name: values_R[kept_R] for name, values_R in part.items()})
            advance(len(next_R))
    names = [field.name for field in fields(_Positions) if field.name != "seconds"]
    return _Positions(**{name: np.concatenate([part[name] for part in parts]) for name in names}, seconds=seconds)


def _of_rows(reference_RV: Tensor, logits_RV: Tensor, next_R: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Everything that is asked of a few positions. Logits of -inf, as of padded vocabularies, have no part in any sum."""
    log_p_RV, log_q_RV = reference_RV.float().log_softmax(-1), logits_RV.float().log_softmax(-1)
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    entropy_p_R, entropy_q_R = _expected(p_RV, -log_p_RV), _expected(q_RV, -log_q_RV)
    (top_p_R, choice_p_R), (top_q_R, choice_q_R) = p_RV.max(-1), q_RV.max(-1)
    yield "nats_p_N", -log_p_RV.gather(1, next_R[:, None])[:, 0]
    yield "nats_q_N", -log_q_RV.gather(1, next_R[:, None])[:, 0]
    yield "kl_N", _expected(p_RV, log_p_RV - log_q_RV)
    yield "entropy_p_N", entropy_p_R
    yield "entropy_q_N", entropy_q_R
    yield "confidence_p_N", top_p_R
    yield "confidence_q_N", top_q_R
    yield "correct_q_N", choice_q_R == next_R
    yield "flipped_N", choice_p_R != choice_q_R


def _expected(p_RV: Tensor, values_RV: Tensor) -> Tensor:
    return torch.where(p_RV > 0, p_RV * values_RV, 0.0).sum(-1)


def _compared(
    name: str, spec: TeacherSpec, teacher: Teacher, found: _Positions, store: TokenStore, *, ends: frozenset[str]
) -> Comparison:
    def mean(values_N: Array) -> Estimate:
        ones_N = np.ones(len(values_N))
        return ratio_estimate(found.per_document(values_N, len(store)), found.per_document(ones_N, len(store)))

    if not np.isfinite(found.nats_q_N).all():
        raise TeacherError(f"{name}: the logits on the held-out documents are not finite; use float32 or more bits")
    bytes_D = store.bytes_per_document.astype(np.float64)
    bits_p_D, bits_q_D = (
        found.per_document(nats_N * found.is_text_N, len(store)) / math.log(2) for nats_N in (found.nats_p_N, found.nats_q_N)
    )
    ends_whole_D = np.array([ident in ends for ident in store.ids])
    at_end_N = (found.is_end_N == 1) & ends_whole_D[found.document_N.astype(np.int64)]
    change_N = (found.nats_p_N - found.nats_q_N)[at_end_N]
    return Comparison(
        name=name,
        quantisation=teacher.files.quantisation,
        dtype=str(teacher.dtype).removeprefix("torch."),
        simulated=spec.quantisation is not None and spec.quantisation.simulated,
        bits_per_byte=float(bits_q_D.sum() / bytes_D.sum()),
        bits_per_byte_change=ratio_estimate(bits_q_D - bits_p_D, bytes_D),
        kl_nats=mean(found.kl_N),
        kl_p99_nats=float(np.quantile(found.kl_N, 0.99)),
        flips=mean(found.flipped_N),
        entropy_nats=float(found.entropy_q_N.mean()),
        entropy_change_nats=mean(found.entropy_q_N - found.entropy_p_N),
        calibration_error=calibration_error(found.confidence_q_N, found.correct_q_N),
        calibration_error_to_reference=calibration_error(found.confidence_q_N, found.confidence_p_N),
        end_log_prob_nats=float(-found.nats_q_N[at_end_N].mean()) if at_end_N.any() else None,
        end_log_change_nats=float(change_N.mean()) if at_end_N.any() else None,
        end_log_error_nats=float(np.abs(change_N).mean()) if at_end_N.any() else None,
        tokens_per_second=store.num_rows / found.seconds,
        weights_bytes=teacher.weights_bytes,
        quantised_share=teacher.quantised_share,
    )
