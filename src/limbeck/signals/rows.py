"""Rows put together, taken apart, moved, and held against the text."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from limbeck.signals.types import ChunkRows, DenseRows, SignalRows, SparseRows, StoredRows, sparse_target

R = TypeVar("R", bound=SignalRows)
S = TypeVar("S", bound=StoredRows)
_POSITIONS_AT_ONCE = 256


def concatenate(parts: Sequence[S]) -> S:
    """One set of rows from several of the same kind, in order; narrower ones are padded: id 0, count 0, log-prob -inf."""
    first = parts[0]
    if len(parts) == 1:
        return first
    assert all(type(part) is type(first) for part in parts), "rows of different signals cannot be put together"
    names = [field.name for field in fields(first)]
    joined: dict[str, Any] = {name: _joined(name, [getattr(part, name) for part in parts]) for name in names}
    return replace(first, **joined)


def _joined(name: str, values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    assert len(present) == len(values), f"{name} is missing in some of the rows"
    if present[0].ndim == 1:
        return torch.cat(present)
    width = max(value.shape[1] for value in present)
    padding = -math.inf if name == "log_probs_TK" else 0
    return torch.cat([torch.nn.functional.pad(value, (0, width - value.shape[1]), value=padding) for value in present])


def split(rows: S, lengths: Sequence[int]) -> list[S]:
    """The inverse of `concatenate`: so many rows each, every part as narrow as if it had been read alone."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    parts = {name: value.split(list(lengths)) for name, value in values.items() if value is not None}
    return [_narrowed(replace(rows, **{name: part[index] for name, part in parts.items()})) for index in range(len(lengths))]


def _narrowed(rows: S) -> S:
    """Without the columns that hold padding alone."""
    found = {field.name: getattr(rows, field.name) for field in fields(rows)}
    values: dict[str, Tensor] = {name: value for name, value in found.items() if value is not None}
    trimmed: dict[str, Any] = {}
    for suffix in ("_TK", "_TM"):
        named = {name: value for name, value in values.items() if name.endswith(suffix)}
        marks = next((value for name, value in named.items() if name.startswith(("counts", "log_probs"))), None)
        if marks is None:
            continue
        used_K = ((marks > -math.inf) if marks.is_floating_point() else (marks > 0)).any(0)
        width = int(used_K.nonzero().max()) + 1 if bool(used_K.any()) else 0
        trimmed |= {name: value[:, :width].contiguous() for name, value in named.items()}
    return replace(rows, **trimmed)


def within_pieces(rows: ChunkRows, lengths: Sequence[int], *, keep_ids: bool) -> ChunkRows:
    """The rows of pieces of documents, one after another, without the chunks that begin before their piece.

    `keep_ids`: of these positions too, as `signal.distribution=index` has them.
    """
    offset_T = (
        torch.cat([torch.arange(length, device=rows.tokens_T.device) for length in lengths]) if lengths else rows.tokens_T
    )
    cut_T = rows.tokens_T > offset_T + 1
    changed: dict[str, Any] = {
        name: getattr(rows, name).masked_fill(cut_T, 0)
        for name in ("tokens_T", "teacher_tokens_T", "log_prob_T", "before_T", "boundary_T")
    }
    if not keep_ids:
        changed |= {"ids_TK": rows.ids_TK.masked_fill(cut_T[:, None], 0), "tail_T": rows.tail_T.masked_fill(cut_T, 0)}
        changed["log_probs_TK"] = rows.log_probs_TK.masked_fill(cut_T[:, None], -math.inf)
    return replace(rows, **changed)


def rows_at(rows: R, positions_N: Tensor) -> R:
    """The rows of some positions."""
    if isinstance(rows, DenseRows):
        return replace(rows, hidden_TE=rows.hidden_TE[positions_N])
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    picked: dict[str, Any] = {name: value[positions_N] for name, value in values.items() if value is not None}
    return replace(rows, **picked)


def to_device(rows: R, device: torch.device) -> R:
    """The rows with every tensor on `device`."""
    tensors = {field.name: getattr(rows, field.name) for field in fields(rows)}
    moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(rows, **moved)


def mass_on(rows: SparseRows | DenseRows, ids_T: Tensor) -> Tensor:
    """The probability that the rows give one id each, float32: on the text's own tokens, how well rows and text are in step."""
    if isinstance(rows, DenseRows):
        chunks = zip(rows.hidden_TE.split(_POSITIONS_AT_ONCE), ids_T.split(_POSITIONS_AT_ONCE), strict=True)
        return torch.cat([_softmax_at(hidden_CE, rows, ids_C) for hidden_CE, ids_C in chunks])
    target = sparse_target(rows)
    return (target.probs_TK * (target.ids_TK == ids_T[:, None])).sum(-1)


def _softmax_at(hidden_CE: Tensor, rows: DenseRows, ids_C: Tensor) -> Tensor:
    logits_CV = torch.nn.functional.linear(hidden_CE, rows.head_VE).float() / rows.temperature
    return logits_CV.softmax(-1).gather(1, ids_C[:, None]).squeeze(1)
