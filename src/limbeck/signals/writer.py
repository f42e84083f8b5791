"""Writing a signal store, shard by shard.

Shards are planned from the list of documents alone. Each is put in place whole; the store is published last. A kill loses at
most the shard in progress, and the next writer with the same identity and plan goes on from there.

Writers may share a folder, whether they know of each other or not. The first to put its plan there decides what is written; of
a shard that several write the first one's stays, since the manifest of whoever publishes names it by its checksum, and no two
took the same time to score it. A shard that is missing or damaged is pending, also in a store that is published already, and
publishing again makes the manifest anew where it speaks of other shards.
"""

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import StoreError
from limbeck.signals.manifest import (
    FORMAT,
    PLAN_FILE,
    STORE_FILE,
    StoreIdentity,
    canonical,
    checksum_of,
    differences,
    read_json,
    write_json,
)
from limbeck.signals.shards import ShardIndex, ShardPlan, finished_index, plan_shards, write_shard
from limbeck.signals.types import StoredRows

STALE_SECONDS = 3600.0
"""A file is written in one go, within minutes: one that has not grown for an hour has no writer any more."""
_BEGUN = re.compile(r"(shard-\d+\.rows|plan\.json|store\.json)\.\d+-[0-9a-f]{8}\.tmp")


class StoreWriter:
    """Writes a store, or goes on with one that was interrupted.

    `documents` are (id, number of tokens), in the order in which they fill shards of up to `shard_tokens` tokens; a document
    named twice is stored once. Those of `begins` begin a shard. Raises `StoreError` where the folder holds a store of another
    identity or plan.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: StoreIdentity,
        documents: Sequence[tuple[str, int]],
        shard_tokens: int,
        begins: Collection[str] = (),
    ) -> None:
        self.path = path
        self.identity = identity
        self.shards = plan_shards(_distinct(documents, path=path), shard_tokens=shard_tokens, begins=begins)
        self._indices: dict[int, ShardIndex] = {}
        plan = {
            "format": FORMAT,
            "identity": identity.as_json(),
            "shard_tokens": shard_tokens,
            "documents": _documents_digest(self.shards),
            "num_shards": len(self.shards),
        }
        self._plan = json.loads(canonical(plan))  # as it will be read back
        self._plan_checksum = checksum_of(plan)
        path.mkdir(parents=True, exist_ok=True)
        self._claim()

    @property
    def is_complete(self) -> bool:
        """True once the store is published."""
        return (self.path / STORE_FILE).exists()

    def pending_shards(self) -> list[ShardPlan]:
        """The shards still to be scored, in order; those that another process has finished meanwhile are not among them."""
        return [] if self._is_union else [shard for shard in self.shards if not self._is_finished(shard)]

    def write_shard(self, index: int, documents: Sequence[tuple[str, np.ndarray, StoredRows]], *, seconds: float = 0.0) -> None:
        """Encodes and stores all documents of a shard, as (id, tokens, rows) in the plan's order.

        `seconds` were spent scoring them. A shard that another process finished meanwhile is left as it is. Raises `StoreError`
        where the disk is full.
        """
        shard = self.shards[index]
        assert tuple((document_id, len(tokens)) for document_id, tokens, _ in documents) == shard.documents
        if self._is_union or self._is_finished(shard):
            return
        write_shard(
            self.path / shard.file,
            documents,
            signal=self.identity.spec,
            vocab_size=self.identity.vocab_size,
            plan_checksum=self._plan_checksum,
            seconds=seconds,
        )

    def publish(self) -> None:
        """Makes the store readable: writes `store.json`, the last step. Raises `StoreError` where shards are missing."""
        if self.is_complete:
            self._require_same_plan(read_json(self.path / STORE_FILE)["plan"])
        if self._is_union:
            return
        self._indices.clear()  # what lies there now is what the manifest has to speak of
        pending = self.pending_shards()
        if pending:
            raise StoreError(
                f"{self.path} cannot be published: {len(pending)} of {len(self.shards)} shards are missing (first: "
                f"{pending[0].file}); `limbeck cache write` with its recipe resumes it"
            )
        indices = [self._indices[shard.index] for shard in self.shards]
        entries = [
            {"file": shard.file, "bytes": index.num_bytes, "checksum": index.checksum}
            for shard, index in zip(self.shards, indices, strict=True)
        ]
        values = {"format": FORMAT, "plan": self._plan, "shards": entries, "statistics": _totals(indices)}
        if not self.is_complete or read_json(self.path / STORE_FILE) != values:
            write_json(self.path / STORE_FILE, values)
        (self.path / PLAN_FILE).unlink(missing_ok=True)
        _sweep(self.path)

    def _claim(self) -> None:
        """Make the folder this plan's, or see that it is; of writers that begin together the first one's plan stays."""
        while True:
            if self.is_complete:
                (self.path / PLAN_FILE).unlink(missing_ok=True)  # put there while the store was being published
                self._require_same_plan(read_json(self.path / STORE_FILE)["plan"])
                return
            write_json(self.path / PLAN_FILE, self._plan, keep=lambda there: True)
            try:
                self._require_same_plan(read_json(self.path / PLAN_FILE))
            except FileNotFoundError:  # published meanwhile
                continue
            if not self.is_complete:
                return

    @property
    def _is_union(self) -> bool:
        """Whether a store lies there that was merged or extended: its shards follow no plan."""
        return self.is_complete and read_json(self.path / STORE_FILE)["plan"]["shard_tokens"] is None

    def _is_finished(self, shard: ShardPlan) -> bool:
        """True where the shard's file is in place, whole, and of this plan; one that is not is written again."""
        if shard.index not in self._indices:
            index = finished_index(self.path / shard.file, plan_checksum=self._plan_checksum)
            if index is None:
                return False
            self._indices[shard.index] = index
        return True

    def _require_same_plan(self, held: Mapping[str, Any]) -> None:
        if held["shard_tokens"] is None:  # a union of stores: its shards follow no plan, but its identity names its documents
            held = {**self._plan, "format": held["format"], "identity": held["identity"]}
        found = list(differences(held, self._plan))
        if found:
            raise StoreError(
                f"{self.path} holds another store ({'; '.join(found)}); write to another folder, ask for the same, or delete it"
            )


def _sweep(folder: Path) -> None:
    """Remove what killed writers left of files they had begun. A younger one may be in the making, by another writer."""
    for leftover in folder.glob("*.tmp"):
        try:
            if _BEGUN.fullmatch(leftover.name) and time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
        except FileNotFoundError:  # another writer swept, or finished
            continue


def _distinct(documents: Sequence[tuple[str, int]], *, path: Path) -> list[tuple[str, int]]:
    lengths: dict[str, int] = {}
    for document_id, num_tokens in documents:
        if lengths.setdefault(document_id, num_tokens) != num_tokens:
            raise StoreError(
                f"document {document_id} is listed with {lengths[document_id]} and with {num_tokens} tokens; tokenise it once"
            )
    if not any(num_tokens > 1 for num_tokens in lengths.values()):
        raise StoreError(f"nothing to store in {path}: no document has two tokens; give longer documents")
    return list(lengths.items())


def _documents_digest(shards: Sequence[ShardPlan]) -> str:
    return checksum_of({"documents": [[list(document) for document in shard.documents] for shard in shards]})


def _totals(indices: Sequence[ShardIndex]) -> dict[str, float]:
    totals: dict[str, float] = {
        "documents": sum(len(index.document_ids) for index in indices),
        "tokens": sum(sum(index.num_rows) for index in indices),
    }
    for index in indices:
        for name, value in index.statistics.items():
            totals[name] = totals.get(name, 0) + value
    return totals
