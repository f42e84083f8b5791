"""Stores small enough to be written in milliseconds: random documents, and teachers that are functions of a document."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.signals.manifest import StoreIdentity, signal_identity
from limbeck.signals.select import select
from limbeck.signals.types import SparseRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.signal import StoredSignal

VOCAB = 700
LENGTHS = (40, 25, 1, 60, 2, 33)
Documents = list[tuple[str, np.ndarray]]
Speaks = Callable[[str, int], Tensor]
"""From a document's id and its number of rows to logits [rows, vocabulary]."""


def make_documents(lengths: Sequence[int] = LENGTHS, *, vocab: int = VOCAB, first: int = 0xAB00) -> Documents:
    rng = np.random.default_rng(first - 0xAB00)
    return [(f"{index:032x}", rng.integers(0, vocab, length)) for index, length in enumerate(lengths, start=first)]


def random_teacher(document_id: str, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(document_id, 16))
    return torch.randn(rows, VOCAB, generator=generator) * 3


def blurred(scale: float) -> Speaks:
    """The random teacher with noise on its logits, as a quantised one has."""

    def speaks(document_id: str, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(document_id, 16) + 1)
        return random_teacher(document_id, rows) + scale * torch.randn(rows, VOCAB, generator=generator)

    return speaks


def rows_of(document_id: str, tokens: np.ndarray, signal: StoredSignal, *, teacher: Speaks = random_teacher) -> SparseRows:
    rows = len(tokens) - 1
    return select(teacher(document_id, rows), signal, document_id=document_id, positions_T=torch.arange(rows))


def identity_of(signal: StoredSignal, *, documents_id: str = "docs1", **changes: Any) -> StoreIdentity:
    identity = StoreIdentity(
        teacher={"name": "some/teacher", "weights": "w1", "revision": None, "quantisation": None, "dtype": "bfloat16"},
        tokenizer="tok1",
        documents=documents_id,
        context={"window": 2048, "overlap": 512},
        signal=signal_identity(signal),
        vocab_size=VOCAB,
    )
    return dataclasses.replace(identity, **changes)


def open_writer(
    path: Path, signal: StoredSignal, *, shard_tokens: int = 70, documents: Documents | None = None, **changes: Any
) -> StoreWriter:
    lengths = [(document_id, len(tokens)) for document_id, tokens in documents or make_documents()]
    return StoreWriter(path, identity=identity_of(signal, **changes), documents=lengths, shard_tokens=shard_tokens)


def fill(
    writer: StoreWriter,
    *,
    at_most: int = 100,
    documents: Documents | None = None,
    teacher: Speaks = random_teacher,
    seconds: float | None = None,
) -> None:
    """Score what is pending. It takes as long as it takes, unless `seconds` are given: no two writers take the same time."""
    texts, signal = dict(documents or make_documents()), writer.identity.spec
    for shard in writer.pending_shards()[:at_most]:
        started = time.perf_counter()
        content = [(name, texts[name], rows_of(name, texts[name], signal, teacher=teacher)) for name in shard.document_ids]
        writer.write_shard(shard.index, content, seconds=seconds or time.perf_counter() - started)


def write_store(
    path: Path,
    signal: StoredSignal,
    *,
    documents: Documents | None = None,
    teacher: Speaks = random_teacher,
    shard_tokens: int = 70,
    identity: dict[str, str | None] | None = None,
    seconds: float | None = None,
    **changes: Any,
) -> Path:
    """A published store. `teacher` speaks; `identity` is who it is said to be."""
    if identity is not None:
        changes["teacher"] = identity
    writer = open_writer(path, signal, shard_tokens=shard_tokens, documents=documents, **changes)
    fill(writer, documents=documents, teacher=teacher, seconds=seconds)
    writer.publish()
    return path
