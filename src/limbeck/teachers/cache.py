"""Writing signal stores: the teacher reads every training document once and leaves the rows of one or more signals.

Work goes shard by shard. What a shard holds and how its windows are grouped depends on the documents alone, so a store that was
interrupted and resumed is the store that would have been written in one go.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from limbeck.data.token_store import TokenStore
from limbeck.progress import progress
from limbeck.signals.manifest import StoreIdentity, signal_identity
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select_all
from limbeck.signals.types import SparseRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import StoredSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.score import passages, score_logits

SHARD_TOKENS = 16_384
"""Of a small store: a kill loses at most so much. A large one has about `MOST_SHARDS` files instead of ever more."""
MOST_SHARDS = 1024


def write_stores(
    teacher: Teacher,
    store: TokenStore,
    signals: Mapping[Path, StoredSignal],
    *,
    context: Context,
    shard_tokens: int | None = None,
) -> None:
    """Score every document of `store` once and publish one signal store per path. Resumes what an earlier call left."""
    documents = list(zip(store.ids, store.lengths.tolist(), strict=True))
    shard_tokens = shard_tokens or max(SHARD_TOKENS, store.num_rows // MOST_SHARDS)
    writers = [
        StoreWriter(
            path,
            identity=store_identity(teacher, store, signal, context=context),
            documents=documents,
            shard_tokens=shard_tokens,
        )
        for path, signal in signals.items()
    ]
    waiting = [{shard.index: shard for shard in writer.pending_shards()} for writer in writers]
    todo = {index: shard for shards in waiting for index, shard in shards.items()}
    place = {document_id: index for index, document_id in enumerate(store.ids)}
    with progress(
        f"{teacher.files.name} reads documents", total=sum(shard.num_tokens - len(shard.documents) for shard in todo.values())
    ) as advance:
        for index, shard in sorted(todo.items()):
            lacking = [writer for writer, shards in zip(writers, waiting, strict=True) if index in shards]
            ids = shard.document_ids
            tokens = [store.document(place[document_id]) for document_id in ids]
            signals_lacking = [writer.identity.spec for writer in lacking]
            started = time.perf_counter()
            rows = score_documents(teacher, tokens, ids=ids, signals=signals_lacking, context=context, advance=advance)
            seconds = time.perf_counter() - started
            for number, writer in enumerate(lacking):
                content = [(ident, array, taken[number]) for ident, array, taken in zip(ids, tokens, rows, strict=True)]
                writer.write_shard(index, content, seconds=seconds)
    for writer in writers:
        writer.publish()


def store_identity(teacher: Teacher, store: TokenStore, signal: StoredSignal, *, context: Context) -> StoreIdentity:
    """All that the rows depend on: teacher, tokenizer, documents, context policy and selection."""
    return StoreIdentity(
        teacher=teacher.identity,
        tokenizer=store.tokenizer_fingerprint,
        documents=store.documents_digest,
        context=context.model_dump(mode="json"),
        signal=signal_identity(signal),
        vocab_size=teacher.vocab_size,
    )


@torch.no_grad()
def score_documents(
    teacher: Teacher,
    documents: Sequence[np.ndarray],
    *,
    ids: Sequence[str],
    signals: Sequence[StoredSignal],
    context: Context,
    advance: Callable[[float], None] = lambda rows: None,
) -> list[tuple[SparseRows, ...]]:
    """For each document, the rows of every signal, one row per position that has a next token. `advance` is told of rows."""
    work = passages([len(tokens) for tokens in documents], context=context)
    parts: dict[int, list[tuple[int, tuple[SparseRows, ...]]]] = {index: [] for index in range(len(documents))}
    for passage, first, logits_RV in score_logits(teacher, documents, work):
        positions_R = torch.arange(first, first + len(logits_RV))
        taken = select_all(logits_RV, signals, document_id=ids[passage.document], positions_T=positions_R)
        parts[passage.document].append((first, taken))
        advance(len(logits_RV))
    in_order = [[taken for _, taken in sorted(parts[index], key=lambda part: part[0])] for index in range(len(documents))]
    return [tuple(concatenate(list(same_signal)) for same_signal in zip(*chunks, strict=True)) for chunks in in_order]
