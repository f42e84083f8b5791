"""One shard of a signal store: the encoded rows of whole documents, and the index to them, in one file.

    payload | index (JSON) | length of the index, u64 | blake2b-128 of index and length | "LIMBECK2"

The payload is the length of the model (u32), the model that all documents of the shard are coded with (`signals/codec`), and
the documents one after another without gaps, in the order of the plan. The index holds the payload's blake2b-128, so the digest
at the end covers every byte of the file: it is the shard's checksum. Payload and index are one file because one link then
publishes both; two writers of one shard cannot mix theirs, and the first one's stays. The model and each document have their
own crc32, so damage is found when it is read, and can be named.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import StoreError
from limbeck.signals.codec import DamagedRowsError, Piece, decode, encode
from limbeck.signals.manifest import write_file
from limbeck.signals.rows import mass_on
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, StoredRows, TopKRows
from limbeck.spec.signal import StoredSignal

_MAGIC = b"LIMBECK2"
TRAILER = 8 + 16 + len(_MAGIC)
"""Bytes after the index."""
_LENGTH = 4  # bytes of the model's length
_CHUNK = 1 << 24


@dataclass(frozen=True)
class ShardPlan:
    """Which documents a shard holds: (id, number of tokens)."""

    index: int
    documents: tuple[tuple[str, int], ...]

    @property
    def file(self) -> str:
        return f"shard-{self.index:05d}.rows"

    @property
    def document_ids(self) -> tuple[str, ...]:
        return tuple(document_id for document_id, _ in self.documents)

    @property
    def num_tokens(self) -> int:
        return sum(num_tokens for _, num_tokens in self.documents)


@dataclass(frozen=True)
class ShardIndex:
    """What a shard's file says of itself."""

    checksum: str
    plan_checksum: str
    payload_checksum: str
    num_bytes: int  # of the whole file
    model_bytes: int
    document_ids: tuple[str, ...]
    num_rows: tuple[int, ...]
    sizes: tuple[int, ...]  # bytes of each document's rows
    crcs: tuple[int, ...]
    statistics: dict[str, float]

    @property
    def payload_bytes(self) -> int:
        """All bytes before the index."""
        return _LENGTH + self.model_bytes + sum(self.sizes)

    def places(self) -> Iterator[tuple[str, int, int, int]]:
        """(document id, number of rows, first byte, bytes) of each document."""
        offset = _LENGTH + self.model_bytes
        for document_id, num_rows, size in zip(self.document_ids, self.num_rows, self.sizes, strict=True):
            yield document_id, num_rows, offset, size
            offset += size


def plan_shards(documents: Sequence[tuple[str, int]], *, shard_tokens: int, begins: Collection[str] = ()) -> list[ShardPlan]:
    """Whole documents, in order, up to `shard_tokens` tokens to a shard; a longer document is a shard by itself.

    Each document of `begins` begins a shard, so that a store can be cut as another one was.
    """
    groups: list[list[tuple[str, int]]] = []
    filled = 0
    for document_id, num_tokens in documents:
        if not groups or filled + num_tokens > shard_tokens or document_id in begins:
            groups.append([])
            filled = 0
        groups[-1].append((document_id, num_tokens))
        filled += num_tokens
    return [ShardPlan(index, tuple(group)) for index, group in enumerate(groups)]


def write_shard(
    path: Path,
    documents: Sequence[tuple[str, np.ndarray, StoredRows]],
    *,
    signal: StoredSignal,
    vocab_size: int,
    plan_checksum: str,
    seconds: float,
) -> None:
    """Encodes (id, tokens, rows) of each document and puts the file in place, whole. `plan_checksum` names the store's plan.

    A shard of that plan which another writer has put there meanwhile stays.
    """
    encoded = encode([(tokens, rows) for _, tokens, rows in documents], signal=signal, vocab_size=vocab_size)
    payload = [len(encoded.model).to_bytes(_LENGTH, "little"), encoded.model, *encoded.documents]
    payload_digest = hashlib.blake2b(digest_size=16)
    for data in payload:
        payload_digest.update(data)
    index: dict[str, Any] = {
        "plan_checksum": plan_checksum,
        "payload_checksum": payload_digest.hexdigest(),
        "model_bytes": len(encoded.model),
        "document_ids": [document_id for document_id, _, _ in documents],
        "num_rows": [max(len(tokens) - 1, 0) for _, tokens, _ in documents],
        "sizes": [len(data) for data in encoded.documents],
        "crcs": [zlib.crc32(data) for data in encoded.documents],
        "statistics": {**_statistics([(tokens, rows) for _, tokens, rows in documents]), "scoring_seconds": seconds},
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    closed = text + len(text).to_bytes(8, "little")
    chunks = [*payload, closed, hashlib.blake2b(closed, digest_size=16).digest(), _MAGIC]
    write_file(path, chunks, keep=lambda there: finished_index(there, plan_checksum=plan_checksum) is not None)


def _statistics(documents: Sequence[tuple[np.ndarray, StoredRows]]) -> dict[str, float]:
    """Sums over rows, taken before anything is rounded: distinct ids, mass on the text's tokens, entropy in nats, tail mass.

    Of chunks their number and their log-prob in nats.
    """
    if any(isinstance(rows, ChunkRows) for _, rows in documents):
        return _chunk_statistics([rows for _, rows in documents if isinstance(rows, ChunkRows)])
    sums: dict[str, float] = {"distinct_ids": 0, "mass_on_text": 0.0}
    for tokens, rows in documents:
        assert not isinstance(rows, ChunkRows), "rows of one signal"
        following_T = torch.from_numpy(tokens[1:].astype(np.int64))
        sums["mass_on_text"] += float(mass_on(rows, following_T).double().sum())
        match rows:
            case SampledRows():
                sums["distinct_ids"] += int((rows.counts_TK > 0).sum())
            case TopKRows():
                sums["distinct_ids"] += int((rows.log_probs_TK > -torch.inf).sum())
            case HybridRows():
                sums["distinct_ids"] += int((rows.log_probs_TK > -torch.inf).sum()) + int((rows.counts_TM > 0).sum())
            case HardRows():
                sums["distinct_ids"] += len(rows.ids_T)
        if not isinstance(rows, HardRows):
            sums["entropy_nats"] = sums.get("entropy_nats", 0.0) + float(rows.entropy_T.double().sum())
        if isinstance(rows, TopKRows | HybridRows):
            sums["tail_mass"] = sums.get("tail_mass", 0.0) + float(rows.tail_T.double().sum())
    return sums


def _chunk_statistics(documents: Sequence[ChunkRows]) -> dict[str, float]:
    return {
        "distinct_ids": sum(int((rows.log_probs_TK > -torch.inf).sum()) for rows in documents),
        "chunks": sum(int((rows.tokens_T > 0).sum()) for rows in documents),
        "chunk_log_prob_nats": sum(float(rows.log_prob_T.double().sum()) for rows in documents),
    }


def finished_index(path: Path, *, plan_checksum: str) -> ShardIndex | None:
    """The index of a shard that is in place, whole, and of this plan; else None."""
    try:
        index = read_index(path)
    except StoreError:
        return None
    return index if index.plan_checksum == plan_checksum else None


def read_index(path: Path) -> ShardIndex:
    """The index of a shard's file, checked against its digest; `StoreError` naming the file where it is not whole."""
    try:
        num_bytes, text, trailer = _read_end(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
    if hashlib.blake2b(text + trailer[:8], digest_size=16).digest() != trailer[8:24]:
        raise StoreError(f"{path} is damaged (the checksum of its index does not hold)")
    try:
        columns = json.loads(text)
        index = ShardIndex(
            checksum=trailer[8:24].hex(),
            plan_checksum=columns["plan_checksum"],
            payload_checksum=columns["payload_checksum"],
            num_bytes=num_bytes,
            model_bytes=columns["model_bytes"],
            document_ids=tuple(columns["document_ids"]),
            num_rows=tuple(columns["num_rows"]),
            sizes=tuple(columns["sizes"]),
            crcs=tuple(columns["crcs"]),
            statistics=columns["statistics"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged (its index is not that of a shard)") from error
    if index.payload_bytes + len(text) + TRAILER != num_bytes:
        raise StoreError(f"{path} is damaged (its length is not what its index says)")
    return index


def _read_end(path: Path) -> tuple[int, bytes, bytes]:
    """A shard's length, the text of its index, and what follows it."""
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        file.seek(max(num_bytes - TRAILER, 0))
        trailer = file.read()
        length = int.from_bytes(trailer[:8], "little")
        if trailer[24:] != _MAGIC or length > num_bytes - TRAILER:
            raise StoreError(f"{path} is damaged (its end is not that of a shard)")
        file.seek(num_bytes - TRAILER - length)
        return num_bytes, file.read(length), trailer


def checksum_at_end(end: bytes) -> str | None:
    """The checksum of a shard, from the last `TRAILER` bytes of its file; None where they are not those of a shard."""
    return end[8:24].hex() if len(end) == TRAILER and end[24:] == _MAGIC else None


def map_shard(path: Path) -> np.ndarray:
    """The file's bytes, uint8, mapped and read as they are touched; `StoreError` where it is gone or empty."""
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise StoreError(
            f"{path} cannot be read any more ({error}): the store was damaged, or replaced, after it was opened; open it "
            "again, or see what `limbeck cache verify` says"
        ) from error


def model_of(data: np.ndarray) -> bytes:
    """The model of a shard, whose bytes are `data`: for `codec.Piece`, which finds out whether it is whole."""
    length = int.from_bytes(data[:_LENGTH].tobytes(), "little")
    return data[_LENGTH : _LENGTH + length].tobytes()


def verify_shard(
    path: Path, *, checksum: str, signal: StoredSignal, vocab_size: int, progress: Callable[[int], None]
) -> list[str]:
    """What is wrong with a shard, one clause each: every byte is read, every row decoded. `progress` is given bytes read."""
    try:
        index, data = read_index(path), map_shard(path)
    except StoreError as error:
        return [str(error)]
    problems = []
    if index.checksum != checksum:
        problems.append(f"{path} is not the shard that store.json speaks of (checksum {index.checksum}, not {checksum})")
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, index.payload_bytes, _CHUNK):
        chunk = data[start : min(start + _CHUNK, index.payload_bytes)]
        digest.update(chunk.data)
        progress(len(chunk))
    if digest.hexdigest() != index.payload_checksum:
        problems.append(f"{path} is damaged (the checksum of its rows does not hold)")
    progress(index.num_bytes - index.payload_bytes)
    model = model_of(data)
    for crc, (document_id, num_rows, offset, size) in zip(index.crcs, index.places(), strict=True):
        piece = Piece(data[offset : offset + size], model, num_rows, 0, num_rows)
        found = _document_problem(piece, crc=crc, signal=signal, vocab_size=vocab_size)
        if found is not None:
            problems.append(f"{path}: document {document_id}: {found}")
    return problems


def _document_problem(piece: Piece, *, crc: int, signal: StoredSignal, vocab_size: int) -> str | None:
    if zlib.crc32(piece.data.data) != crc:
        return "its bytes changed since they were written"
    try:
        decode([piece], signal=signal, vocab_size=vocab_size)
    except DamagedRowsError as error:
        return f"its rows cannot be decoded ({error})"
    return None
