"""Writing signal stores: the teacher reads every training document once and leaves the rows of one or more signals.

Work goes shard by shard. What a shard holds and how its windows are grouped depends on the documents alone, so a store that was
interrupted and resumed, or written by any number of processes, is the store that one would have written in one go. Processes
share the shards that are missing when they start, in turn, and write to one folder; the first publishes when all are done. A
process that dies takes the shard in its hands with it, and nothing else.

A store can be extended by more documents. They are scored into a store of their own inside it (`EXTENSION`), which is then made
part of it in one step (`limbeck.signals.merge`): until then, readers see the store as it was. More draws are another signal:
their rows are scored afresh, into another store; that the first of them are the old ones makes the two comparable.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from limbeck.data.token_store import TokenStore
from limbeck.progress import progress
from limbeck.signals.manifest import StoreIdentity, signal_identity
from limbeck.signals.merge import Merged, absorb, documents_digest, require_same_but_documents
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select_all
from limbeck.signals.store import SignalStore
from limbeck.signals.types import SparseRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import StoredSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.score import passages, score_logits

SHARD_TOKENS = 16_384
"""Of a small store: a kill loses at most so much. A large one has about `MOST_SHARDS` files instead of ever more."""
MOST_SHARDS = 1024
EXTENSION = "extension"
"""The folder, inside a store, of an extension that is being scored."""


@dataclass(frozen=True)
class Share:
    """This process's part of the work, and how it waits until all processes have come as far."""

    rank: int = 0
    world_size: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Share()


def write_stores(
    teacher: Teacher,
    store: TokenStore,
    signals: Mapping[Path, StoredSignal],
    *,
    context: Context,
    shard_tokens: int | None = None,
    share: Share = ALONE,
) -> None:
    """Score every document of `store` once and publish one signal store per path. Resumes what an earlier call left."""
    identities = {path: store_identity(teacher, store, signal, context=context) for path, signal in signals.items()}
    _write(teacher, store, list(range(len(store))), identities, context=context, shard_tokens=shard_tokens, share=share)


def extend_store(
    teacher: Teacher,
    store: TokenStore,
    path: Path,
    *,
    signal: StoredSignal,
    context: Context,
    shard_tokens: int | None = None,
    share: Share = ALONE,
) -> Merged | None:
    """Score the documents of `store` that the signal store at `path` lacks and make them part of it; None if it lacks none.

    Raises `StoreError` where it holds other rows than `signal` of this teacher, tokenizer and context.
    """
    held = SignalStore.open(path)
    asked = store_identity(teacher, store, signal, context=context)
    require_same_but_documents(
        held.identity,
        asked,
        path=path,
        remedy="only documents can be added; write another store with `limbeck cache write` and store=PATH",
    )
    missing = set(held.missing_documents(store.ids))
    lacking = [place for place, name in enumerate(store.ids) if name in missing]
    if not lacking:
        return None
    addition = path / EXTENSION
    identity = dataclasses.replace(asked, documents=documents_digest(missing))
    _write(teacher, store, lacking, {addition: identity}, context=context, shard_tokens=shard_tokens, share=share)
    merged = None
    if share.rank == 0:
        merged = absorb(path, addition)
        shutil.rmtree(addition)
    share.wait()
    return merged


def _write(
    teacher: Teacher,
    store: TokenStore,
    places: Sequence[int],
    identities: Mapping[Path, StoreIdentity],
    *,
    context: Context,
    shard_tokens: int | None,
    share: Share,
) -> None:
    """Score the documents at `places` into one store for each identity, together with the other processes."""
    documents = [(store.ids[place], int(store.lengths[place])) for place in places]
    shard_tokens = shard_tokens or max(SHARD_TOKENS, sum(length - 1 for _, length in documents) // MOST_SHARDS)
    writers = [
        StoreWriter(path, identity=identity, documents=documents, shard_tokens=shard_tokens)
        for path, identity in identities.items()
    ]
    waiting = [{shard.index: shard for shard in writer.pending_shards()} for writer in writers]
    share.wait()  # all have seen the same shards missing before any writes one
    every = sorted({index: shard for shards in waiting for index, shard in shards.items()}.items())
    todo = every[share.rank :: share.world_size]
    place = {store.ids[index]: index for index in places}
    with progress(
        f"{teacher.files.name} reads documents", total=sum(shard.num_tokens - len(shard.documents) for _, shard in todo)
    ) as advance:
        for index, shard in todo:
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
    share.wait()
    if share.rank == 0:
        for writer in writers:
            writer.publish()
    share.wait()


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
