"""Several stores made one: `limbeck cache merge`, and the last step of `limbeck cache extend`.

Stores whose rows depend on the same things (teacher, tokenizer, context, signal) differ in their documents alone, so their
shards can lie in one folder. Shards go over whole, byte for byte: nothing is decoded and encoded again. A document in several
stores is kept from the first; a shard that brings nothing new is left out, and of one that brings something the manifest
lists the documents to be passed over (`without`), whose bytes stay. Rows of one document that differ are an error: one of the
stores is not what it says, or the same teacher rounded otherwise when it wrote them (other batches, another machine). For the
latter the caller may ask for the first store's to be kept.

A union lies in place whole or not at all: shards come first, under names that no reader of the folder knows, `store.json`
last. The same holds where a store of more draws takes the place of one of fewer (`supersede`): that every draw of the old one
is among the new ones proves that teacher and seed are the same. Its shards are numbered after the old ones, which go last.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.errors import StoreError
from limbeck.signals.diff import groups, locate
from limbeck.signals.manifest import (
    FORMAT,
    PLAN_FILE,
    STORE_FILE,
    StoreIdentity,
    checksum_of,
    differences,
    is_published,
    link_or_copy,
    put,
    read_manifest,
    write_json,
)
from limbeck.signals.shards import ShardIndex, read_index
from limbeck.signals.store import SignalStore
from limbeck.signals.types import HybridRows, SampledRows, StoredRows, TopKRows


@dataclass(frozen=True)
class Merged:
    """What a union holds: documents taken, and those that were in a store before it."""

    path: Path
    documents: int
    duplicates: int
    shards: int
    dead_bytes: int
    """Of duplicates inside shards that were kept."""


@dataclass(frozen=True)
class _Part:
    """A shard of the union: where it lies now, and the documents of it that are passed over."""

    source: Path
    index: ShardIndex
    without: tuple[str, ...]


def merge(paths: Sequence[Path | str], output: Path, *, keep_first: bool = False) -> Merged:
    """One store at `output` of the documents of several. `keep_first`: rows of a document that differ are no error.

    Raises `StoreError` where the stores differ in more than their documents, where rows conflict, or `output` is taken.
    """
    stores = [SignalStore.open(path) for path in paths]
    if any(store.path.resolve() == output.resolve() for store in stores):
        raise StoreError(f"{output} is one of the stores to be merged; name a new folder")
    parts, duplicates = _union(stores, keep_first=keep_first)
    if not is_published(output) and (output / PLAN_FILE).exists():
        raise StoreError(f"{output} holds a store that is being written; name another folder, or delete it")
    return _publish(stores[0].identity, parts, output, duplicates=duplicates, place=_copy)


def absorb(path: Path, addition: Path) -> Merged:
    """Make the documents of `addition`, a store on the same disk, part of the store at `path`, which readers may have open."""
    stores = [SignalStore.open(path), SignalStore.open(addition)]
    parts, duplicates = _union(stores, keep_first=False)
    first = _number(read_manifest(path)["shards"][0])
    return _publish(stores[0].identity, parts, path, duplicates=duplicates, place=_link, first=first)


def supersede(path: Path, addition: Path) -> Merged:
    """Put the rows of `addition`, more draws for the same documents, in the place of those at `path`, on the same disk.

    Who has the store open reads on from the shards that it has mapped, and has to open it again for others. Raises `StoreError`
    where the draws at `path` are not among those of `addition`.
    """
    held, more = SignalStore.open(path), SignalStore.open(addition)
    require_same_but_documents(
        with_draws(held.identity, draws_of(more.identity)), more.identity, path=path, remedy=f"{addition} is another store"
    )
    _require_more_draws(held, more)
    parts, _ = _union([more], keep_first=True)
    first = 1 + _number(read_manifest(path)["shards"][-1])
    merged = _publish(more.identity, parts, path, duplicates=0, place=_link, first=first, grows=False)
    remove_superseded(path)
    return merged


def remove_superseded(path: Path) -> None:
    """Remove the shards whose place others have taken."""
    first = _number(read_manifest(path)["shards"][0])
    for file in path.glob("shard-*.rows"):
        if _number({"file": file.name}) < first:
            file.unlink()


def _number(entry: Mapping[str, Any]) -> int:
    return int(entry["file"].removeprefix("shard-").removesuffix(".rows"))


def documents_digest(document_ids: Iterable[str]) -> str:
    """One name for a set of documents; that of a token store is the same."""
    return hashlib.sha256("".join(sorted(document_ids)).encode("ascii")).hexdigest()[:32]


def require_same_but_documents(held: StoreIdentity, asked: StoreIdentity, *, path: Path, remedy: str) -> None:
    """Raises `StoreError` where two identities differ in more than their documents."""
    ours, theirs = held.as_json(), asked.as_json()
    for identity in (ours, theirs):
        identity.pop("documents")
    found = list(differences(ours, theirs))
    if found:
        raise StoreError(f"{path} holds other rows ({'; '.join(found)}); {remedy}")


def draws_of(identity: StoreIdentity) -> int:
    """The draws of a row, 0 of a signal without."""
    return int(identity.signal.get("draws", 0))


def with_draws(identity: StoreIdentity, draws: int) -> StoreIdentity:
    """The identity of the same rows with so many draws."""
    return dataclasses.replace(identity, signal={**identity.signal, "draws": draws})


def _union(stores: Sequence[SignalStore], *, keep_first: bool) -> tuple[list[_Part], int]:
    """The shards of all stores that bring something new, and how many documents were duplicates."""
    first = stores[0]
    taken: dict[str, SignalStore] = {}
    parts: list[_Part] = []
    duplicates = 0
    for store in stores:
        require_same_but_documents(
            first.identity, store.identity, path=first.path, remedy=f"{store.path} cannot be merged with it"
        )
        known = [name for name in store.document_ids if name in taken]
        duplicates += len(known)
        if not keep_first:
            for other in dict.fromkeys(taken[name] for name in known):
                _require_same_rows(other, store, [name for name in known if taken[name] is other])
        for entry in read_manifest(store.path)["shards"]:
            index = read_index(store.path / entry["file"])
            passed_over = {*entry.get("without", ()), *(name for name in index.document_ids if name in taken)}
            if passed_over.issuperset(index.document_ids):
                continue
            without = tuple(name for name in index.document_ids if name in passed_over)
            parts.append(_Part(store.path / entry["file"], index, without))
        taken.update((name, store) for name in store.document_ids if name not in taken)
    return parts, duplicates


def _require_same_rows(one: SignalStore, two: SignalStore, names: Sequence[str]) -> None:
    for group in groups(one, names):
        sizes = [one.num_rows(name) for name in group]
        if sizes != [two.num_rows(name) for name in group]:
            name = next(name for name in group if one.num_rows(name) != two.num_rows(name))
            raise StoreError(f"document {name} has other tokens in {one.path} than in {two.path}; tokenise it once for both")
        here, there = one.whole(group), two.whole(group)
        wrong = np.flatnonzero(here.checks != there.checks)
        other = "tokens"
        if not wrong.size:
            wrong, other = np.flatnonzero(_unequal(here.rows, there.rows)), "rows"
        if wrong.size:
            name, position = locate(int(wrong[0]), names=group, sizes=sizes)
            raise StoreError(
                f"document {name}, position {position}: {one.path} and {two.path} hold different {other}; `limbeck cache diff` "
                "says how far apart they are, and merging with --keep-first takes the first's"
            )


def _require_more_draws(few: SignalStore, many: SignalStore) -> None:
    """Raises `StoreError` where the draws of `few` are not among those of `many`: draws begin with fewer of them."""
    for group in groups(few, few.document_ids):
        sizes = [few.num_rows(name) for name in group]
        same_rows = sizes == [many.num_rows(name) for name in group]
        here, there = few.whole(group), many.whole(group)
        wrong = np.flatnonzero((here.checks != there.checks) | _lacks_draws(here.rows, there.rows)) if same_rows else [0]
        if len(wrong):
            name, position = locate(int(wrong[0]), names=group, sizes=sizes)
            raise StoreError(
                f"document {name}, position {position}: the draws in {few.path} are not the first of those in {many.path}, as "
                "they are where teacher, seed and rounding are the same (another machine rounds otherwise); the latter is a "
                "whole store: move it to a folder of its own to use it, or delete it"
            )


def _lacks_draws(few: StoredRows, many: StoredRows) -> np.ndarray:
    """Rows of `many` that lack a draw of `few`, or whose head is another, bool [T]."""
    match few, many:
        case SampledRows(), SampledRows():
            drawn = [(few.ids_TK, few.counts_TK), (many.ids_TK, many.counts_TK)]
            lacks_T = np.zeros(len(few.ids_TK), dtype=np.bool_)
        case HybridRows(), HybridRows():
            drawn = [(few.drawn_ids_TM, few.counts_TM), (many.drawn_ids_TM, many.counts_TM)]
            lacks_T = _unequal(*(TopKRows(rows.ids_TK, rows.log_probs_TK, rows.tail_T, rows.entropy_T) for rows in (few, many)))
        case _:
            raise AssertionError(f"{type(few).__name__} and {type(many).__name__} have no draws to compare")
    base = 1 + max(int(ids.max()) if ids.numel() else 0 for ids, _ in drawn)
    keys, counts = [], []
    for ids_TK, counts_TK in drawn:
        rows, places = np.nonzero(counts_TK.numpy())
        keys.append(rows * base + ids_TK.numpy()[rows, places])
        counts.append(counts_TK.numpy()[rows, places])
    distinct, which = np.unique(np.concatenate(keys), return_inverse=True)
    more = np.bincount(which, weights=np.concatenate([-counts[0], counts[1]]), minlength=len(distinct))
    lacks_T[distinct[more < 0] // base] = True
    return lacks_T


def _unequal(one: Any, two: Any) -> np.ndarray:
    """Which rows differ in anything, bool [T]; both were padded alike, since equal rows are as wide."""
    first = getattr(one, dataclasses.fields(one)[0].name)
    unequal_T = np.zeros(len(first), dtype=np.bool_)
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(two, field.name)
        if not isinstance(ours, Tensor):
            continue
        left, right = (values.numpy().reshape(len(unequal_T), -1) for values in (ours, theirs))
        width = min(left.shape[1], right.shape[1])
        unequal_T |= (left[:, :width] != right[:, :width]).any(-1)
        if left.shape[1] != right.shape[1]:
            wider = left if left.shape[1] > width else right
            unequal_T |= ((wider[:, width:] != 0) & (wider[:, width:] != -np.inf)).any(-1)
    return unequal_T


def _publish(
    identity: StoreIdentity,
    parts: Sequence[_Part],
    path: Path,
    *,
    duplicates: int,
    place: Callable[[Path, Path], None],
    first: int = 0,
    grows: bool = True,
) -> Merged:
    """Put the shards in place, numbered from `first`, and the manifest last."""
    statistics, documents, dead_bytes = _statistics(parts)
    plan = {
        "format": FORMAT,
        "identity": dataclasses.replace(identity, documents=documents_digest(documents)).as_json(),
        "shard_tokens": None,
        "documents": checksum_of({"documents": documents}),
        "num_shards": len(parts),
    }
    entries = []
    for number, part in enumerate(parts, start=first):
        entry: dict[str, Any] = {"file": f"shard-{number:05d}.rows", "bytes": part.index.num_bytes}
        entry |= {"checksum": part.index.checksum, **({"without": list(part.without)} if part.without else {})}
        entries.append(entry)
    values = {"format": FORMAT, "plan": plan, "shards": entries, "statistics": statistics}
    path.mkdir(parents=True, exist_ok=True)
    if grows and is_published(path):
        _require_prefix(path, entries)
    for entry, part in zip(entries, parts, strict=True):
        if part.source.resolve() != (path / entry["file"]).resolve():
            place(part.source, path / entry["file"])
    write_json(path / STORE_FILE, values)
    return Merged(path, len(documents), duplicates, len(parts), dead_bytes)


def _require_prefix(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """A published store may only grow: its readers have its shards open under their names."""
    held = read_manifest(path)["shards"]
    if held != list(entries[: len(held)]):
        raise StoreError(f"{path} holds another store; name another folder, or delete it")


def _statistics(parts: Sequence[_Part]) -> tuple[dict[str, float], list[str], int]:
    """Sums over the documents that count, their ids, and the bytes of the others.

    Of a shard with documents passed over, sums that are not counts of documents or tokens are taken in proportion to its rows.
    """
    totals: dict[str, float] = {}
    documents: list[str] = []
    tokens = dead_bytes = 0
    for part in parts:
        kept = 0
        for name, num_rows, _, size in part.index.places():
            if name in part.without:
                dead_bytes += size
                continue
            documents.append(name)
            kept += num_rows
        share = kept / max(sum(part.index.num_rows), 1)
        for name, value in part.index.statistics.items():
            totals[name] = totals.get(name, 0) + (value if share == 1 else value * share)
        tokens += kept
    return {**totals, "documents": len(documents), "tokens": tokens}, documents, dead_bytes


def _copy(source: Path, target: Path) -> None:
    put(target, lambda temporary: shutil.copyfile(source, temporary), num_bytes=source.stat().st_size)


def _link(source: Path, target: Path) -> None:
    put(target, lambda temporary: link_or_copy(source, temporary), num_bytes=source.stat().st_size)
