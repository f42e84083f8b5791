"""Several stores made one: `limbeck cache merge`, and the last step of `limbeck cache extend`.

Stores whose rows depend on the same things (teacher, tokenizer, context, signal) differ in their documents alone, so their
shards can lie in one folder. Shards go over whole, byte for byte: nothing is decoded and encoded again. A document in several
stores is kept from the first; a shard that brings nothing new is left out, and of one that brings something the manifest
lists the documents to be passed over (`without`), whose bytes stay. Rows of one document that differ are an error: one of the
stores is not what it says, or the same teacher rounded otherwise when it wrote them (other batches, another machine). For the
latter the caller may ask for the first store's to be kept.

A union lies in place whole or not at all: shards come first, under names that no reader of the folder knows, `store.json`
last.
"""

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.errors import StoreError
from limbeck.signals.diff import groups, locate
from limbeck.signals.manifest import (
    FORMAT,
    STORE_FILE,
    StoreIdentity,
    checksum_of,
    differences,
    is_published,
    read_manifest,
    write_json,
)
from limbeck.signals.shards import ShardIndex, read_index
from limbeck.signals.store import SignalStore


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
    return _publish(stores[0].identity, parts, output, duplicates=duplicates, place=_copy)


def absorb(path: Path, addition: Path) -> Merged:
    """Make the documents of `addition`, a store on the same disk, part of the store at `path`, which readers may have open."""
    stores = [SignalStore.open(path), SignalStore.open(addition)]
    parts, duplicates = _union(stores, keep_first=False)
    return _publish(stores[0].identity, parts, path, duplicates=duplicates, place=_link)


def documents_digest(document_ids: Iterable[str]) -> str:
    """One name for a set of documents; that of a token store is the same."""
    return hashlib.sha256("".join(sorted(document_ids)).encode("ascii")).hexdigest()[:32]


def require_same_but_documents(held: StoreIdentity, asked: StoreIdentity, *, path: Path, remedy: str) -> None:
    """Raises `StoreError` where two identities differ in more than their documents."""
    ours, theirs = dataclasses.asdict(held), dataclasses.asdict(asked)
    for identity in (ours, theirs):
        identity.pop("documents")
    found = list(differences(ours, theirs))
    if found:
        raise StoreError(f"{path} holds other rows ({'; '.join(found)}); {remedy}")


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


def _unequal(one: Any, two: Any) -> np.ndarray:
    """Which rows differ in anything, bool [T]; both were padded alike, since equal rows are as wide."""
    unequal_T = np.zeros(len(one.entropy_T if hasattr(one, "entropy_T") else one.ids_T), dtype=np.bool_)
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
) -> Merged:
    """Put the shards in place, and the manifest last."""
    statistics, documents, dead_bytes = _statistics(parts)
    plan = {
        "format": FORMAT,
        "identity": dataclasses.asdict(dataclasses.replace(identity, documents=documents_digest(documents))),
        "shard_tokens": None,
        "documents": checksum_of({"documents": documents}),
        "num_shards": len(parts),
    }
    entries = []
    for number, part in enumerate(parts):
        entry: dict[str, Any] = {"file": f"shard-{number:05d}.rows", "bytes": part.index.num_bytes}
        entry |= {"checksum": part.index.checksum, **({"without": list(part.without)} if part.without else {})}
        entries.append(entry)
    values = {"format": FORMAT, "plan": plan, "shards": entries, "statistics": statistics}
    path.mkdir(parents=True, exist_ok=True)
    if is_published(path):
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
    """A copy that appears under its name whole."""
    _appear(target, lambda temporary: shutil.copyfile(source, temporary))


def _link(source: Path, target: Path) -> None:
    """A second name for a file; shards are never changed in place."""
    _appear(target, lambda temporary: os.link(source, temporary))


def _appear(target: Path, make: Callable[[Path], object]) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        make(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
