"""Rows of chunks as bytes: what chunks have of their own, deflated, and their ids as the head of a `topk` row.

A shard's model is that of the heads. A document is

    length of the columns, u32 | columns, deflated | lanes of the heads (`write.py`), where the tokens of the rows are too

and its columns are, for all chunks one after another: rows from the end of the chunk before (so that none is 0), the student's
tokens, the teacher's (u32 each), and three log-probs as `float16` (`values.py`): to 11 significant bits, an error of at most
2^-11 of each. Bytes of one significance lie side by side: most are 0, which takes nothing. Ids are exact; their log-probs and
tails are as far off as those of `topk` with `values=float16`. A row without ids is one of 0 ids.

Shapes: R rows, C chunks, K ids of a row.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.values import log_probs_to_steps, steps_to_log_probs
from limbeck.signals.types import ChunkRows, TopKRows
from limbeck.spec.signal import ChunksSignal, TopKSignal

_LENGTH = 4
_COUNTS = ("gap", "tokens", "teacher_tokens")
_NATS = ("log_prob", "before", "boundary")
_BYTES_OF_A_CHUNK = 4 * len(_COUNTS) + 2 * len(_NATS)


@dataclass(frozen=True)
class Columns:
    """What the rows of a document have besides ids; all of R."""

    tokens_R: np.ndarray
    teacher_tokens_R: np.ndarray
    log_prob_R: np.ndarray
    before_R: np.ndarray
    boundary_R: np.ndarray


def head_signal(signal: ChunksSignal) -> TopKSignal:
    """As what the ids are written."""
    return TopKSignal(k=signal.k, values="float16")


def heads_of(rows: ChunkRows) -> TopKRows:
    """The ids of rows."""
    return TopKRows(rows.ids_TK, rows.log_probs_TK, rows.tail_T, torch.zeros_like(rows.tail_T))


def with_columns(heads: TopKRows, columns: Sequence[Columns]) -> ChunkRows:
    """The rows again, of documents or pieces of them, one after another."""

    def joined(name: str) -> torch.Tensor:
        values = [getattr(one, name) for one in columns]
        return torch.from_numpy(np.concatenate(values) if values else np.zeros(0, dtype=np.int64))

    return ChunkRows(
        joined("tokens_R").long(),
        joined("teacher_tokens_R").long(),
        joined("log_prob_R").float(),
        joined("before_R").float(),
        joined("boundary_R").float(),
        heads.ids_TK,
        heads.log_probs_TK,
        heads.tail_T,
    )


def write_columns(rows: ChunkRows) -> bytes:
    """A document's columns, with their length before them."""
    ends_C = np.flatnonzero(rows.tokens_T.numpy())
    counts = [np.diff(ends_C, prepend=-1), rows.tokens_T.numpy()[ends_C], rows.teacher_tokens_T.numpy()[ends_C]]
    nats = [values_T.numpy()[ends_C] for values_T in (rows.log_prob_T, rows.before_T, rows.boundary_T)]
    planes = [_planes(numbers_C, "<u4") for numbers_C in counts]
    planes += [_planes(log_probs_to_steps(nats_C, values="float16"), "<u2") for nats_C in nats]
    packed = zlib.compress(b"".join(planes), 9)
    return len(packed).to_bytes(_LENGTH, "little") + packed


def split_document(data: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The deflated columns and the lanes of a document's bytes, uint8."""
    length = int.from_bytes(data[:_LENGTH].tobytes(), "little")
    if _LENGTH + length > len(data):
        raise DamagedRowsError("a document is shorter than its columns")
    return data[_LENGTH : _LENGTH + length].tobytes(), data[_LENGTH + length :]


def read_columns(packed: bytes, *, num_rows: int) -> Columns:
    """The inverse of `write_columns`, without the length; `DamagedRowsError` where the bytes are not those of so many rows."""
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(packed, _BYTES_OF_A_CHUNK * num_rows + 1)
    except zlib.error as error:
        raise DamagedRowsError(f"its columns cannot be read ({error})") from error
    number, rest = divmod(len(content), _BYTES_OF_A_CHUNK)
    if rest or not reader.eof or reader.unused_data or number > num_rows:
        raise DamagedRowsError("its columns are not those of its rows")
    values, at = {}, 0
    for name, width in [*((name, 4) for name in _COUNTS), *((name, 2) for name in _NATS)]:
        bytes_WC = np.frombuffer(content, dtype=np.uint8, count=width * number, offset=at).reshape(width, number)
        values[name] = np.ascontiguousarray(bytes_WC.T).view(f"<u{width}").reshape(number).astype(np.int64)
        at += width * number
    ends_C = values["gap"].cumsum() - 1
    tokens_C = values["tokens"]
    fits = (values["gap"] > 0).all() and (ends_C < num_rows).all() and ((tokens_C > 0) & (tokens_C <= values["gap"])).all()
    if not fits or not (values["teacher_tokens"] > 0).all() or any((values[name] > 0x7BFF).any() for name in _NATS):
        raise DamagedRowsError("its columns are not those of chunks")

    def placed(values_C: np.ndarray) -> np.ndarray:
        rows_R = np.zeros(num_rows, dtype=values_C.dtype)
        rows_R[ends_C] = values_C
        return rows_R

    nats = [placed(steps_to_log_probs(values[name], values="float16")) for name in _NATS]
    return Columns(placed(tokens_C), placed(values["teacher_tokens"]), *nats)


def columns_at(columns: Columns, start: int, stop: int) -> Columns:
    """Those of rows [start, stop)."""
    return replace(columns, **{name: values_R[start:stop] for name, values_R in vars(columns).items()})


def _planes(numbers_C: np.ndarray, dtype: str) -> bytes:
    """The lowest bytes of all numbers, then the next, …"""
    width = np.dtype(dtype).itemsize
    return np.ascontiguousarray(numbers_C.astype(dtype).view(np.uint8).reshape(-1, width).T).tobytes()
