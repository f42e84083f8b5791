"""Writing signal stores: the teacher reads every training document once and leaves the rows of one or more signals.

Work goes shard by shard. What a shard holds and how its windows are grouped depends on the documents alone, so a store that was
interrupted and resumed, or written by any number of processes, is the store that one would have written in one go. Processes
share the shards that are missing when they start, in turn, and write to one folder; the first publishes when all are done. A
process that is killed takes the shard in its hands with it. The others, which are told to stop as soon as one is gone, finish
theirs first, for as long as who tells them waits (`torchrun`: 30 seconds); a shard that takes longer is lost too.

A store can be extended by more documents, and by more draws. They are scored into a store of their own inside it (`EXTENSION`),
which then becomes part of it, or takes the place of its rows, in one step (`limbeck.signals.merge`): until then, readers see
the store as it was. The first of more draws are the old ones, provided that teacher and rounding are the same, so old
documents are scored anew in the shards that they are in, and every draw is compared. What a kill leaves is taken up by the next
extension: one that was scored to its end is made part of the store first, whatever is asked for then.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from limbeck.data.counterpart import Counterpart
from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.errors import StoreError
from limbeck.progress import progress
from limbeck.signals.manifest import (
    PLAN_FILE,
    StoreIdentity,
    canonical,
    differences,
    discard,
    is_published,
    read_json,
    signal_identity,
)
from limbeck.signals.merge import (
    Merged,
    absorb,
    documents_digest,
    draws_of,
    remove_superseded,
    require_same_but_documents,
    supersede,
    with_draws,
)
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select_all
from limbeck.signals.store import SignalStore
from limbeck.signals.types import ChunkRows, SparseRows, StoredRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import ChunksSignal, StoredSignal, TokenSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.chunks import ChunkReading, Vocabulary
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.live_chunks import chunk_text
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
    between_shards: Callable[[], AbstractContextManager[Callable[[], None]]] = lambda: nullcontext(lambda: None)
    """Entered while shards are scored; what it gives is called after each, and raises where this process is to stop."""


ALONE = Share()


def write_stores(
    teacher: Teacher,
    store: TokenStore,
    signals: Mapping[Path, StoredSignal],
    *,
    context: Context,
    shard_tokens: int | None = None,
    share: Share = ALONE,
    counterpart: Counterpart | None = None,
) -> None:
    """Score every document of `store` once and publish one signal store per path. Resumes what an earlier call left.

    Signals of chunks need the documents in the teacher's tokens too, as `counterpart`; others come without.
    """
    identities = {
        path: store_identity(teacher, store, signal, context=context, counterpart=counterpart)
        for path, signal in signals.items()
    }
    work = _Work(teacher, store, context, share, counterpart)
    _write(work, list(range(len(store))), identities, shard_tokens=shard_tokens)


def extend_store(
    teacher: Teacher,
    store: TokenStore,
    path: Path,
    *,
    signal: StoredSignal,
    context: Context,
    shard_tokens: int | None = None,
    share: Share = ALONE,
    counterpart: Counterpart | None = None,
) -> Merged | None:
    """Score the documents of `store` that the signal store at `path` lacks and make them part of it; None if it lacks none.

    Where `signal` asks for more draws, all documents get them first. Raises `StoreError` where the store holds other rows than
    `signal` of this teacher, tokenizer and context, or where its draws are not the first of the new ones.
    """
    asked = store_identity(teacher, store, signal, context=context, counterpart=counterpart)
    work = _Work(teacher, store, context, share, counterpart)
    merged = _settle(path, share=share)
    held = SignalStore.open(path)
    has_more_draws = draws_of(asked) > draws_of(held.identity)
    require_same_but_documents(
        with_draws(held.identity, draws_of(asked)) if has_more_draws else held.identity,
        asked,
        path=path,
        remedy="only documents and draws can be added; write another store with `limbeck cache write` and store=PATH",
    )
    if has_more_draws:
        places = _places_of(store, held)
        identity = dataclasses.replace(asked, documents=held.identity.documents)
        begins = {documents[0] for documents in held.shard_documents() if documents}
        _require_unbegun_or(identity, path / EXTENSION)
        tokens = int(store.lengths[places].sum())
        _write(work, places, {path / EXTENSION: identity}, shard_tokens=tokens, begins=begins)
        merged = _settle(path, share=share)
    missing = set(held.missing_documents(store.ids))
    lacking = [place for place, name in enumerate(store.ids) if name in missing]
    if lacking:
        identity = dataclasses.replace(asked, documents=documents_digest(missing))
        _require_unbegun_or(identity, path / EXTENSION)
        _write(work, lacking, {path / EXTENSION: identity}, shard_tokens=shard_tokens)
        merged = _settle(path, share=share)
    return merged


def _settle(path: Path, *, share: Share) -> Merged | None:
    """One process brings an extension that is scored into its store; None where there is none."""
    merged = _bring_in(path, path / EXTENSION) if share.rank == 0 and is_published(path / EXTENSION) else None
    share.wait()
    return merged


def _bring_in(path: Path, addition: Path) -> Merged | None:
    """Make a store part of another or let it take its place, unless that was done and it was left behind."""
    held, extension, merged = SignalStore.open(path), SignalStore.open(addition), None
    if draws_of(extension.identity) > draws_of(held.identity):
        merged = supersede(path, addition)
    elif held.missing_documents(extension.document_ids):
        merged = absorb(path, addition)
    remove_superseded(path)
    discard(addition)
    return merged


def _places_of(store: TokenStore, held: SignalStore) -> list[int]:
    """Where the documents of a signal store are in the token store, in the former's order."""
    place = {name: index for index, name in enumerate(store.ids)}
    lost = [name for name in held.document_ids if name not in place]
    if lost:
        raise StoreError(
            f"{held.path} holds {len(lost):,} documents that the recipe has not (first: {lost[0]}), and more draws need the "
            "texts of all; name them in data.train too, or write another store with `limbeck cache write` and store=PATH"
        )
    return [place[name] for name in held.document_ids]


def _require_unbegun_or(identity: StoreIdentity, addition: Path) -> None:
    """Raises `StoreError` where an extension was begun that is another one."""
    if not (addition / PLAN_FILE).exists():
        return
    held = read_json(addition / PLAN_FILE)["identity"]
    if list(differences(held, json.loads(canonical(identity.as_json())))):
        raise StoreError(
            f"{addition} holds an extension that was begun for other documents or another signal; finish it with the "
            "`limbeck cache extend` that began it, or delete that folder"
        )


@dataclass(frozen=True)
class _Work:
    """Who reads what, and how."""

    teacher: Teacher
    store: TokenStore
    context: Context
    share: Share
    counterpart: Counterpart | None


def _write(
    work: _Work,
    places: Sequence[int],
    identities: Mapping[Path, StoreIdentity],
    *,
    shard_tokens: int | None,
    begins: Collection[str] = (),
) -> None:
    """Score the documents at `places` into one store for each identity, together with the other processes."""
    store, share = work.store, work.share
    documents = [(store.ids[place], int(store.lengths[place])) for place in places]
    shard_tokens = shard_tokens or max(SHARD_TOKENS, sum(length - 1 for _, length in documents) // MOST_SHARDS)
    writers = [
        StoreWriter(path, identity=identity, documents=documents, shard_tokens=shard_tokens, begins=begins)
        for path, identity in identities.items()
    ]
    waiting = [{shard.index: shard for shard in writer.pending_shards()} for writer in writers]
    share.wait()  # all have seen the same shards missing before any writes one
    every = sorted({index: shard for shards in waiting for index, shard in shards.items()}.items())
    todo = every[share.rank :: share.world_size]
    place = {store.ids[index]: index for index in places}
    rows_to_score = sum(shard.num_tokens - len(shard.documents) for _, shard in todo)
    title = f"{work.teacher.files.name} reads documents"
    with progress(title, total=rows_to_score) as advance, share.between_shards() as stop_if_asked:
        for index, shard in todo:
            lacking = [writer for writer, shards in zip(writers, waiting, strict=True) if index in shards]
            ids = shard.document_ids
            tokens = [store.document(place[document_id]) for document_id in ids]
            signals_lacking = [writer.identity.spec for writer in lacking]
            started = time.perf_counter()
            rows = _scored(work, [place[document_id] for document_id in ids], signals_lacking, advance=advance)
            seconds = time.perf_counter() - started
            for number, writer in enumerate(lacking):
                content = [(ident, array, taken[number]) for ident, array, taken in zip(ids, tokens, rows, strict=True)]
                writer.write_shard(index, content, seconds=seconds)
            stop_if_asked()
    share.wait()
    if share.rank == 0:
        for writer in writers:
            writer.publish()
    share.wait()


def _scored(
    work: _Work, places: Sequence[int], signals: Sequence[StoredSignal], *, advance: Callable[[float], None]
) -> Sequence[tuple[StoredRows, ...]]:
    """For each document, the rows of every signal. `advance` is told of the students' rows."""
    store, chunks = work.store, [signal for signal in signals if isinstance(signal, ChunksSignal)]
    if not chunks:
        of_tokens = [signal for signal in signals if not isinstance(signal, ChunksSignal)]
        tokens, ids = [store.document(place) for place in places], [store.ids[place] for place in places]
        return score_documents(work.teacher, tokens, ids=ids, signals=of_tokens, context=work.context, advance=advance)
    assert work.counterpart is not None and len(chunks) == len(signals), "signals of chunks are written apart"
    return score_chunks(work.teacher, work.counterpart, places, signals=chunks, context=work.context, advance=advance)


def store_identity(
    teacher: Teacher, store: TokenStore, signal: StoredSignal, *, context: Context, counterpart: Counterpart | None = None
) -> StoreIdentity:
    """All that the rows depend on: teacher, tokenizer or tokenizers, documents, context policy and selection."""
    of_chunks = isinstance(signal, ChunksSignal)
    assert not of_chunks or counterpart is not None, "chunks are of two tokenizations"
    students = len(counterpart.student.content) if of_chunks and counterpart is not None else 0
    return StoreIdentity(
        teacher=teacher.identity,
        tokenizer=store.tokenizer_fingerprint,
        documents=store.documents_digest,
        context=context.model_dump(mode="json"),
        signal=signal_identity(signal),
        vocab_size=max(teacher.vocab_size, students),
        teacher_tokenizer=counterpart.tokens.tokenizer_fingerprint if of_chunks and counterpart is not None else None,
        teacher_template=counterpart.template if of_chunks and counterpart is not None else None,
    )


@torch.no_grad()
def score_documents(
    teacher: Teacher,
    documents: Sequence[np.ndarray],
    *,
    ids: Sequence[str],
    signals: Sequence[TokenSignal],
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


def score_chunks(
    teacher: Teacher,
    counterpart: Counterpart,
    places: Sequence[int],
    *,
    signals: Sequence[ChunksSignal],
    context: Context,
    advance: Callable[[float], None] = lambda rows: None,
) -> list[tuple[ChunkRows, ...]]:
    """For each of a student's documents, the rows of every signal, one per position that has a next token."""
    own = counterpart.own
    whole = [Piece(index, 0, int(own.lengths[place]) - 1) for index, place in enumerate(places)]
    reading = ChunkReading([chunk_text(counterpart, place) for place in places], whole, signals=signals, context=context)
    to_read = sum(passage.window.stop - passage.window.first for passage in reading.work)
    share = sum(piece.stop for piece in whole) / max(to_read, 1)
    vocabulary = Vocabulary(counterpart.teacher, vocab_size=teacher.vocab_size, device=teacher.device)
    return reading.read(teacher, vocabulary, advance=lambda rows: advance(rows * share))
