"""What a model, and its teacher beside it, say at every position of held-out documents, a few hundred positions at a time.

The distributions are made of one chunk of logits each and dropped; numbers of each position stay. The teacher's come from its
kept hidden states (`limbeck.evals.reference`). q is the model and p the teacher, as in KL(p || q).

Legend: R rows at hand, N all rows of the documents, V vocabulary, K most probable tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.token_store import TokenStore
from limbeck.errors import LimbeckError
from limbeck.evals.reference import Reference
from limbeck.progress import progress
from limbeck.spec.teacher import Context
from limbeck.teachers.score import Passage, Reader, passages, score_logits

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Of one distribution that is held. On CPUs fresh memory of more than some megabytes costs page faults every time."""
Columns = dict[str, NDArray[np.float64]]
"""A number of every position [N], by its name; `document` is the index of its document."""


@torch.no_grad()
def read_positions(
    reader: Reader,
    store: TokenStore,
    *,
    context: Context,
    reference: Reference | None,
    agreement: Sequence[int] = (),
    title: str = "reading",
) -> Columns:
    """Every position whose next token counts, of a plain text that before the end token too, in the order of the store.

    Of the model: `confidence` (its largest probability), `correct` (whether that is the next token's), `entropy` in nats and
    `brier`. With a reference the same of the teacher but brier (`teacher_confidence`, …); `agrees` (the same top-1), `kl` =
    KL(p || q) and `reverse_kl` in nats; for each k of `agreement` `shared_k`, what share of the k most probable tokens is of
    both. `LimbeckError` names the document where one of them is not finite.
    """
    documents = [store.document(index) for index in range(len(store))]
    work = passages(store.lengths.tolist(), context=context)
    head_VE = reference.head_VE.to(reader.device) if reference is not None else None
    first_row = store.offsets[:-1] - np.arange(len(store))
    columns: Columns = {"document": np.repeat(np.arange(len(store), dtype=np.float64), store.lengths - 1)}
    with progress(title, total=store.num_rows) as advance:
        for passage, first, logits_RV in _chunks(score_logits(reader, documents, work)):
            last = first + len(logits_RV)
            targets = documents[passage.document][first + 1 : last + 1].astype(np.int64)
            next_R = torch.from_numpy(targets).to(logits_RV.device)
            log_q_RV = logits_RV.float().log_softmax(-1)
            found = dict(_of_model(log_q_RV, next_R))
            if reference is not None and head_VE is not None:
                hidden_RE = reference.rows(passage.document, first, last).to(reader.device)
                log_p_RV = torch.nn.functional.linear(hidden_RE, head_VE).float().log_softmax(-1)
                found |= {f"teacher_{name}": values_R for name, values_R in _of_model(log_p_RV, next_R) if name != "brier"}
                found |= dict(_of_both(log_p_RV, log_q_RV, agreement))
            begin = int(first_row[passage.document]) + first
            for name, values_R in found.items():
                if not torch.isfinite(values_R).all():
                    raise LimbeckError(f"what is said of held-out document {store.ids[passage.document]} is not finite")
                columns.setdefault(name, np.empty(store.num_rows))[begin : begin + len(targets)] = (
                    values_R.double().cpu().numpy()
                )
            advance(len(targets))
    if not store.has_masks:
        return columns
    counted = [store.counted(index) for index in range(len(store))]
    kept_N = np.concatenate(
        [np.ones(n, dtype=bool) if each is None else each[1:] for each, n in zip(counted, store.lengths - 1, strict=True)]
    )
    return {name: values_N[kept_N] for name, values_N in columns.items()}


def _chunks(scored: Iterator[tuple[Passage, int, Tensor]]) -> Iterator[tuple[Passage, int, Tensor]]:
    for passage, first, logits_RV in scored:
        rows = max(1, CHUNK_ELEMENTS.get(logits_RV.device.type, 2**22) // logits_RV.shape[1])
        for start in range(0, len(logits_RV), rows):
            yield passage, first + start, logits_RV[start : start + rows]


def _of_model(log_q_RV: Tensor, next_R: Tensor) -> Iterator[tuple[str, Tensor]]:
    q_RV = log_q_RV.exp()
    top_R, choice_R = q_RV.max(-1)
    yield "confidence", top_R
    yield "correct", choice_R == next_R
    yield "entropy", _expected(q_RV, -log_q_RV)
    # Brier 1950: the squared distance from the distribution that knows the next token; 0 to 2.
    yield "brier", q_RV.square().sum(-1) + 1 - 2 * q_RV.gather(1, next_R[:, None])[:, 0]


def _of_both(log_p_RV: Tensor, log_q_RV: Tensor, agreement: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    yield "agrees", log_p_RV.argmax(-1) == log_q_RV.argmax(-1)
    yield "kl", _expected(p_RV, log_p_RV - log_q_RV)
    yield "reverse_kl", _expected(q_RV, log_q_RV - log_p_RV)
    if agreement:
        top_p_RK, top_q_RK = (log_RV.topk(max(agreement)).indices for log_RV in (log_p_RV, log_q_RV))
        for k in agreement:
            shared_RK = (top_p_RK[:, :k, None] == top_q_RK[:, None, :k]).any(-1)
            yield f"shared_{k}", shared_RK.float().mean(-1)


def _expected(p_RV: Tensor, values_RV: Tensor) -> Tensor:
    """What has no probability has no part, also where its logarithm is infinite."""
    return torch.where(p_RV > 0, p_RV * values_RV, 0.0).sum(-1)
