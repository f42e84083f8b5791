"""Bits per byte on held-out documents, and the KL from the teacher to the student.

Bits per byte is the negative log2-likelihood of a document's text tokens over the UTF-8 bytes of its text. Every text token is
predicted exactly once (the start token makes the first one predictable); the end token has no bytes and is left out. So models
with different tokenizers can be compared. Legend: R rows, V vocabulary, E teacher's width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.data.token_store import TokenStore
from limbeck.errors import LimbeckError
from limbeck.evals.reference import Reference
from limbeck.progress import progress
from limbeck.spec.teacher import Context
from limbeck.teachers.score import Reader, passages, score_logits


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out documents."""

    bits_per_byte: float
    kl_to_teacher_nats: float | None
    tokens: int
    """Text tokens that were predicted."""
    bytes: int
    documents: int
    bits_by_document: tuple[float, ...]
    bytes_by_document: tuple[int, ...]


def evaluate(
    reader: Reader, store: TokenStore, *, context: Context, reference: Reference | None = None, title: str | None = None
) -> HeldOut:
    """Measure a model on every document of a token store; with a teacher's `reference`, also the KL to it."""
    documents = [store.document(index) for index in range(len(store))]
    nats = np.zeros(len(store))
    kl_total, kl_rows = 0.0, 0
    with progress(title or "evaluating", total=store.num_rows) as advance:
        for passage, first, logits_RV in score_logits(reader, documents, passages(store.lengths.tolist(), context=context)):
            document, last = documents[passage.document], first + len(logits_RV)
            targets_R = torch.from_numpy(document[first + 1 : last + 1].astype(np.int64)).to(logits_RV.device)
            logits_RV = logits_RV.float()
            lse_R = logits_RV.logsumexp(-1)
            nats_R = lse_R - logits_RV.gather(1, targets_R[:, None]).squeeze(1)
            text_rows = len(document) - 2 - first  # the last row predicts the end token
            nats[passage.document] += float(nats_R[:text_rows].sum(dtype=torch.float64))
            if reference is not None:
                teacher_RV = reference.logits(passage.document, first, last)
                kl_total += float(_forward_kl(teacher_RV, logits_RV, lse_R).sum(dtype=torch.float64))
                kl_rows += len(logits_RV)
            advance(len(logits_RV))
    if not np.isfinite(nats).all():
        raise LimbeckError(f"the loss on held-out document {store.ids[int(np.argmin(np.isfinite(nats)))]} is not finite")
    bits = nats / math.log(2)
    return HeldOut(
        bits_per_byte=float(bits.sum() / store.bytes_per_document.sum()),
        kl_to_teacher_nats=kl_total / kl_rows if kl_rows else None,
        tokens=store.num_rows - len(store),
        bytes=int(store.bytes_per_document.sum()),
        documents=len(store),
        bits_by_document=tuple(bits.tolist()),
        bytes_by_document=tuple(store.bytes_per_document.tolist()),
    )


def _forward_kl(teacher_RV: Tensor, student_RV: Tensor, lse_R: Tensor) -> Tensor:
    """KL(teacher || student) of each row, in nats, from logits."""
    log_p_RV = teacher_RV.float().log_softmax(-1)
    return (log_p_RV.exp() * (log_p_RV - student_RV)).sum(-1) + lse_R
