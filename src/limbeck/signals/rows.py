"""Putting rows of the same signal together."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from limbeck.signals.types import HardRows, SampledRows, SignalRows, SparseRows, TopKRows

R = TypeVar("R", TopKRows, SampledRows, HardRows)


def concatenate(parts: Sequence[SparseRows]) -> SparseRows:
    """One set of rows from several of the same kind, in order; shorter `sampled` rows are padded with id 0, count 0."""
    first = parts[0]
    if len(parts) == 1:
        return first
    match first:
        case TopKRows():
            top = _all_of(TopKRows, parts)
            return TopKRows(
                torch.cat([part.ids_TK for part in top]),
                torch.cat([part.log_probs_TK for part in top]),
                torch.cat([part.tail_T for part in top]),
            )
        case SampledRows():
            sampled = _all_of(SampledRows, parts)
            width = max(part.ids_TK.shape[1] for part in sampled)
            return SampledRows(
                torch.cat([_widened(part.ids_TK, width) for part in sampled]),
                torch.cat([_widened(part.counts_TK, width) for part in sampled]),
                first.draws,
                torch.cat([part.entropy_T for part in sampled]),
            )
        case HardRows():
            return HardRows(torch.cat([part.ids_T for part in _all_of(HardRows, parts)]))


def _all_of(kind: type[R], parts: Sequence[SparseRows]) -> list[R]:
    same = [part for part in parts if isinstance(part, kind)]
    assert len(same) == len(parts), "rows of different signals cannot be put together"
    return same


def _widened(values_TK: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values_TK, (0, width - values_TK.shape[1]))


def to_device(rows: SignalRows, device: torch.device) -> SignalRows:
    """The rows with every tensor on `device`."""
    tensors = {field.name: getattr(rows, field.name) for field in fields(rows)}
    moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(rows, **moved)
