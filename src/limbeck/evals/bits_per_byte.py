"""Bits per byte on held-out documents, and the KL from the teacher to the student.

Bits per byte is the negative log2-likelihood of a document's text tokens over the UTF-8 bytes of its text. Every text token is
predicted exactly once (the start token makes the first one predictable); the end token has no bytes and is left out. So models
with different tokenizers can be compared. Of chats it is the tokens and the bytes of the bodies that are learnt
(`data.loss_on`): to recite a template is no merit. Windows follow one another, or overlap: then each but the first begins with
tokens that the one before has predicted, as context alone. Legend: R rows, V vocabulary, E teacher's width, N documents.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.token_store import TokenStore
from limbeck.errors import LimbeckError
from limbeck.eval_results import Metric
from limbeck.evals.reference import Reference
from limbeck.evals.subject import EvalModel
from limbeck.objectives.divergences import dense_forward_kl
from limbeck.objectives.head import HeadStatistics, head_statistics
from limbeck.progress import progress
from limbeck.report.statistics import ratio_estimate
from limbeck.signals.types import DenseRows
from limbeck.spec.data import Texts
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.teacher import Context
from limbeck.teachers.score import Reader, passages, score_hidden, score_logits

ROWS_AT_ONCE = 4096
"""Hidden states gathered before the head runs over them; its logits are held for fewer."""


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out documents."""

    bits_per_byte: float
    kl_to_teacher_nats: float | None
    tokens: int
    """Text tokens that were predicted and measured."""
    bytes: int
    documents: int
    bits_by_document: tuple[float, ...]
    bytes_by_document: tuple[int, ...]


def evaluate(
    reader: Reader, store: TokenStore, *, context: Context, reference: Reference | None = None, title: str | None = None
) -> HeldOut:
    """Measure a model on every document of a token store; with a teacher's `reference`, also the KL to it."""
    nats = np.zeros(len(store))
    kl_total = 0.0
    measured = [store.measured(index) for index in range(len(store))]
    counted = [store.counted(index) for index in range(len(store))]
    with torch.no_grad(), progress(title or "evaluating", total=store.num_rows) as advance:
        for stretches, statistics in _statistics(reader, store, context=context, reference=reference):
            nats_R = statistics.lse_T - statistics.gathered_TK[:, 0]
            for stretch, nats_S in zip(stretches, nats_R.split([len(stretch) for stretch in stretches]), strict=True):
                of_text_S = torch.from_numpy(measured[stretch.document][stretch.first + 1 : stretch.last + 1])
                nats[stretch.document] += float(nats_S[of_text_S.to(nats_S.device)].sum(dtype=torch.float64))
            if reference is not None:
                kl_R = dense_forward_kl(statistics)
                kl_total += float(kl_R[_counted_rows(stretches, counted, kl_R)].sum(dtype=torch.float64))
            advance(len(nats_R))
    if not np.isfinite(nats).all():
        raise LimbeckError(f"the loss on held-out document {store.ids[int(np.argmin(np.isfinite(nats)))]} is not finite")
    bits = nats / math.log(2)
    return HeldOut(
        bits_per_byte=float(bits.sum() / store.bytes_per_document.sum()),
        kl_to_teacher_nats=kl_total / float(store.targets_per_document.sum()) if reference is not None else None,
        tokens=int(store.measured_per_document.sum()),
        bytes=int(store.bytes_per_document.sum()),
        documents=len(store),
        bits_by_document=tuple(bits.tolist()),
        bytes_by_document=tuple(store.bytes_per_document.tolist()),
    )


def _counted_rows(stretches: Sequence["_Stretch"], counted: Sequence[np.ndarray | None], rows_R: Tensor) -> Tensor:
    """bool, of each row at hand whether its next token counts."""
    found = [
        np.ones(len(each), dtype=bool) if (tokens := counted[each.document]) is None else tokens[each.first + 1 : each.last + 1]
        for each in stretches
    ]
    return torch.from_numpy(np.concatenate(found)).to(rows_R.device)


def check(model: EvalModel, spec: BitsPerByte) -> None:
    """`LimbeckError` where the windows, the texts or their tokens are none that the model can read."""
    model.reading(spec.window, spec.overlap, kind=spec.kind)
    for texts in _texts(model, spec).values():
        model.tokens(texts)


def measure(model: EvalModel, spec: BitsPerByte) -> tuple[dict[str, Metric], dict[str, Any]]:
    """`bits_per_byte` over all documents, and `bits_per_byte_NAME` of each domain; intervals are over documents.

    A document of two domains counts in each, and once in all. `details.by_document` maps ids to (bytes, bits), for differences
    between models.
    """
    context = model.reading(spec.window, spec.overlap, kind=spec.kind)
    metrics: dict[str, Metric] = {}
    together: dict[str, tuple[float, int, int]] = {}  # bits, bytes and text tokens by document
    domains = {}
    for name, texts in _texts(model, spec).items():
        store = model.tokens(texts)
        found = evaluate(model.reader, store, context=context, title=f"bits per byte {name}".rstrip())
        text_tokens = store.measured_per_document.tolist()
        each = zip(found.bits_by_document, found.bytes_by_document, text_tokens, strict=True)
        by_document = dict(zip(store.ids, each, strict=True))
        together |= by_document
        if name:
            metrics[f"bits_per_byte_{name}"] = _metric(list(by_document.values()))
        domains[name] = {"documents": found.documents, "tokens": found.tokens, "bytes": found.bytes}
    details = {
        "window": context.window,
        "overlap": context.overlap,
        "tokens": sum(tokens for _, _, tokens in together.values()),
        "bytes": sum(size for _, size, _ in together.values()),
        "domains": domains if spec.domains else {},
        "by_document": {name: [size, bits] for name, (bits, size, _) in together.items()},
    }
    return {"bits_per_byte": _metric(list(together.values())), **metrics}, details


def _texts(model: EvalModel, spec: BitsPerByte) -> dict[str, Texts]:
    """By domain; the held-out texts have no name."""
    return dict(spec.domains) or {"": model.require_heldout(spec.kind)}


def _metric(found: Sequence[tuple[float, int, int]]) -> Metric:
    bits_N, bytes_N, _ = np.asarray(found, dtype=np.float64).T
    estimate = ratio_estimate(bits_N, bytes_N)
    return Metric(estimate.value, estimate.low, estimate.high, len(found), "lower")


@dataclass(frozen=True)
class _Stretch:
    """Rows [first, last) of a document."""

    document: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


def _statistics(
    reader: Reader, store: TokenStore, *, context: Context, reference: Reference | None
) -> Iterator[tuple[list[_Stretch], HeadStatistics]]:
    """A few thousand rows at a time: which they are, and what the head says of them and of their next tokens."""
    documents = [store.document(index) for index in range(len(store))]
    work = passages(store.lengths.tolist(), context=context)
    head_VE = reference.head_VE.to(reader.device) if reference is not None else None

    def taken(stretches: list[_Stretch]) -> tuple[Tensor, DenseRows | None]:
        targets = [documents[each.document][each.first + 1 : each.last + 1].astype(np.int64) for each in stretches]
        ids_R1 = torch.from_numpy(np.concatenate(targets))[:, None].to(reader.device)
        if reference is None or head_VE is None:
            return ids_R1, None
        hidden_RE = torch.cat([reference.rows(each.document, each.first, each.last) for each in stretches])
        return ids_R1, DenseRows(hidden_RE.to(reader.device), head_VE, 1.0)

    if reader.head_VE is None:
        for passage, first, logits_RV in score_logits(reader, documents, work):
            stretches = [_Stretch(passage.document, first, first + len(logits_RV))]
            ids_R1, teacher = taken(stretches)
            yield stretches, _plain_statistics(logits_RV.float(), ids_R1, teacher)
        return
    waiting: list[tuple[_Stretch, Tensor]] = []
    for passage, hidden_RE in score_hidden(reader, documents, work):
        waiting.append((_Stretch(passage.document, passage.window.first, passage.window.stop), hidden_RE))
        if sum(len(stretch) for stretch, _ in waiting) >= ROWS_AT_ONCE:
            yield _fused(reader.head_VE, waiting, taken)
            waiting = []
    if waiting:
        yield _fused(reader.head_VE, waiting, taken)


def _fused(
    head_VE: Tensor,
    waiting: list[tuple[_Stretch, Tensor]],
    taken: Callable[[list[_Stretch]], tuple[Tensor, DenseRows | None]],
) -> tuple[list[_Stretch], HeadStatistics]:
    stretches = [stretch for stretch, _ in waiting]
    ids_R1, teacher = taken(stretches)
    hidden_RE = torch.cat([hidden for _, hidden in waiting])
    return stretches, head_statistics(hidden_RE, head_VD=head_VE, ids_TK=ids_R1, teacher=teacher)[0]


def _plain_statistics(logits_RV: Tensor, ids_R1: Tensor, teacher: DenseRows | None) -> HeadStatistics:
    """The same from logits, for models whose head is more than one matrix."""
    lse_R, gathered_R1 = logits_RV.logsumexp(-1), logits_RV.gather(1, ids_R1)
    if teacher is None:
        return HeadStatistics(lse_R, gathered_R1)
    log_p_RV = torch.nn.functional.linear(teacher.hidden_TE, teacher.head_VE).float().log_softmax(-1)
    p_RV = log_p_RV.exp()
    return HeadStatistics(lse_R, gathered_R1, (p_RV * logits_RV).sum(-1), -(p_RV * log_p_RV).sum(-1))
