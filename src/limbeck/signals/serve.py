"""Which signals a store can give, and how they come out of the rows that it holds.

| a store of | gives, at its own temperature |
|---|---|
| `topk` | fewer of the k ids; `topp` of a cap of at most k; `hard` |
| `topp` | a smaller p, a lower cap; `hard` |
| `hybrid` | itself; from its exact head `topk` and `topp` of at most k ids; `hard` |
| `sampled` | its own draws, and `hard` where the top-1 is kept; not fewer draws, since counts do not tell their order |
| `hard` | itself |
| `chunks` | its log-probs alone (`distribution=none`); fewer of the k ids of its own distribution |

Log-probs come as exactly as they were stored, so `values` has to be that of the store. The ids that reach p are found from
these log-probs: where the sum comes within their error of p, a `topp` store may hold one id more or fewer.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import StoreError
from limbeck.signals.manifest import StoreIdentity
from limbeck.signals.select import first_reaching
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, StoredRows, TopKRows, hard_rows
from limbeck.spec.signal import (
    ChunksSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    StoredSignal,
    TopKSignal,
    TopPSignal,
)


def check_can_serve(
    identity: StoreIdentity,
    signal: Signal,
    *,
    path: Path,
    tokenizer: str,
    teacher_tokenizer: str | None = None,
    vocab_size: int | None = None,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Raises `StoreError`, saying what to change, where the store at `path` cannot give `signal`; the table is above.

    `teacher_tokenizer` is that of a teacher with other tokens than the student; `vocab_size` and `context` are compared where
    they are given, and the former not with a store of chunks, whose ids are not the student's.
    """
    held = identity.spec
    if isinstance(held, ChunksSignal):
        _check_pair(identity, path=path, tokenizer=tokenizer, teacher_tokenizer=teacher_tokenizer)
    else:
        _check_tokens(identity, path=path, tokenizer=tokenizer, vocab_size=vocab_size)
    if context is not None and dict(context) != dict(identity.context):
        raise StoreError(
            f"the context asked for is {dict(context)} but {path} was scored with {dict(identity.context)}; ask for that "
            "one, or score again with `limbeck cache write`"
        )
    for field in _equal_fields(signal, held, path=path):
        _same(field, getattr(signal, field), getattr(held, field), path=path)
    match signal, held:
        case (TopKSignal(k=asked), TopKSignal(k=most) | HybridSignal(k=most)):
            _at_most("k", asked, most, path=path)
        case (TopPSignal(cap=asked), TopKSignal(k=most) | HybridSignal(k=most)):
            _at_most("cap", asked, most, path=path)
        case ChunksSignal(), ChunksSignal() if signal.distribution != "none":
            _at_most("k", signal.k, held.k, path=path)
        case TopPSignal(), TopPSignal():
            _at_most("p", signal.p, held.p, path=path)
            _at_most("cap", signal.cap, held.cap, path=path)
        case SampledSignal(keep_top1=True), SampledSignal(keep_top1=False):
            _same("keep_top1", True, False, path=path)


def _equal_fields(signal: Signal, held: StoredSignal, *, path: Path) -> tuple[str, ...]:
    """The fields in which a signal has to agree with the one that is held; `StoreError` where nothing could make it do."""
    match signal, held:
        case (HardSignal(), TopKSignal() | TopPSignal() | HybridSignal() | HardSignal() | SampledSignal(keep_top1=True)):
            return ()
        case (TopKSignal(), TopKSignal() | HybridSignal()) | (TopPSignal(), TopKSignal() | TopPSignal() | HybridSignal()):
            return ("temperature", "values")
        case ChunksSignal(distribution=distribution), ChunksSignal():
            return () if distribution == "none" else ("distribution",)
        case HybridSignal(), HybridSignal():
            return ("k", "draws", "temperature", "seed", "values")
        case SampledSignal(), SampledSignal():
            same = ("draws", "min_draws", "proposal_temperature", "temperature", "seed")
            return same if signal.min_draws is None else (*same, "full_entropy_nats")
        case HardSignal(), SampledSignal():
            raise StoreError(
                f"signal.kind=hard is not what {path} holds (sampled, without the top-1); set signal.kind=sampled or score "
                "with `limbeck cache write` and signal.keep_top1=true"
            )
        case _:
            raise StoreError(
                f"signal.kind={signal.kind} is not what {path} holds ({held.kind}); set signal.kind={held.kind} or score "
                f"with `limbeck cache write` and another signal"
            )


def _check_tokens(identity: StoreIdentity, *, path: Path, tokenizer: str, vocab_size: int | None) -> None:
    if tokenizer != identity.tokenizer:
        raise StoreError(
            f"{path} speaks of tokens of tokenizer {identity.tokenizer}, not of {tokenizer}; give the student the teacher's "
            "tokenizer or score again with `limbeck cache write`"
        )
    if vocab_size not in (None, identity.vocab_size):
        raise StoreError(
            f"{path} holds ids of a vocabulary of {identity.vocab_size} but {vocab_size} was asked for; set the student's "
            f"vocabulary to {identity.vocab_size}"
        )


def _check_pair(identity: StoreIdentity, *, path: Path, tokenizer: str, teacher_tokenizer: str | None) -> None:
    held = (identity.tokenizer, identity.teacher_tokenizer)
    asked = (tokenizer, teacher_tokenizer or tokenizer)
    if asked != held:
        raise StoreError(
            f"{path} holds chunks of another pair: of a student's tokenizer {held[0]} and a teacher's {held[1]}, not of "
            f"{asked[0]} and {asked[1]}; name the store of this pair, or write one with `limbeck cache write` and another store"
        )


def _same(field: str, asked: object, held: object, *, path: Path) -> None:
    if asked != held:
        raise StoreError(
            f"signal.{field}={asked} is not the {held} stored in {path}; set signal.{field}={held} or score again with "
            f"`limbeck cache write` and {field}={asked}"
        )


def _at_most(field: str, asked: float, held: float, *, path: Path) -> None:
    if asked > held:
        raise StoreError(
            f"signal.{field}={asked} exceeds the {held} stored in {path}; set signal.{field}={held} or score again with "
            f"`limbeck cache write` and {field}={asked}"
        )


def narrow(rows: StoredRows, signal: StoredSignal) -> StoredRows:
    """What `signal` asks for, out of rows that hold it or more (see `check_can_serve`)."""
    match rows, signal:
        case (TopKRows() | HybridRows(), TopKSignal(k=k)):
            return _first(_head_of(rows), k)
        case (TopKRows() | HybridRows(), TopPSignal(p=p, cap=cap)):
            return _cut(_first(_head_of(rows), cap), p=p)
        case (TopKRows() | HybridRows() | HardRows(), HardSignal()):
            return hard_rows(rows)
        case SampledRows(top1_T=Tensor() as ids_T), HardSignal():
            return HardRows(ids_T)
        case SampledRows(), SampledSignal():
            top1_T = rows.top1_T if signal.keep_top1 else None
            return SampledRows(rows.ids_TK, rows.counts_TK, rows.entropy_T, rows.weights_TK, top1_T)
        case HybridRows(), HybridSignal():
            return rows
        case ChunkRows(), ChunksSignal():
            return _first_of_chunks(rows, 0 if signal.distribution == "none" else signal.k)
        case _:
            raise AssertionError(f"{type(rows).__name__} do not hold a {signal.kind} signal")


def _head_of(rows: TopKRows | HybridRows) -> TopKRows:
    return rows if isinstance(rows, TopKRows) else TopKRows(rows.ids_TK, rows.log_probs_TK, rows.tail_T, rows.entropy_T)


def _first(rows: TopKRows, k: int) -> TopKRows:
    """The first k ids; the mass of the others is added to the tail."""
    tail_T = rows.tail_T + rows.log_probs_TK[:, k:].exp().sum(-1)
    return TopKRows(rows.ids_TK[:, :k], rows.log_probs_TK[:, :k], tail_T, rows.entropy_T)


def _first_of_chunks(rows: ChunkRows, k: int) -> ChunkRows:
    """As `_first`; without any ids there is no tail either."""
    tail_T = rows.tail_T + rows.log_probs_TK[:, k:].exp().sum(-1) if k else torch.zeros_like(rows.tail_T)
    return replace(rows, ids_TK=rows.ids_TK[:, :k], log_probs_TK=rows.log_probs_TK[:, :k], tail_T=tail_T)


def _cut(rows: TopKRows, *, p: float) -> TopKRows:
    """The fewest first ids of each row that reach p, or all of them; the mass of the others is added to the tail."""
    kept_TK = first_reaching(rows.log_probs_TK.double().exp(), p=p)
    tail_T = rows.tail_T + rows.log_probs_TK.masked_fill(kept_TK, -float("inf")).exp().sum(-1)
    ids_TK, log_probs_TK = rows.ids_TK.masked_fill(~kept_TK, 0), rows.log_probs_TK.masked_fill(~kept_TK, -float("inf"))
    width = int(kept_TK.sum(-1).max()) if len(kept_TK) else 0
    return TopKRows(ids_TK[:, :width], log_probs_TK[:, :width], tail_T, rows.entropy_T)
