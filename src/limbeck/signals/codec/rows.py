"""Rows as whole numbers, and whole numbers as rows. See `layout.py`.

Shapes: R rows, K ids of a row. Padding of rows is dropped here and made again: an id counts where its count is not 0, or its
log-prob not -inf.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.layout import Columns, Layout, SetColumns
from limbeck.signals.codec.values import (
    entropies_to_steps,
    log_probs_to_steps,
    steps_to_entropies,
    steps_to_log_probs,
    steps_to_tails,
    steps_to_weights,
    tails_to_steps,
    weights_to_steps,
)
from limbeck.signals.types import HardRows, HybridRows, SampledRows, SparseRows, TopKRows

_NO_ID = np.int64(1 << 40)


def columns_of(rows: SparseRows, *, layout: Layout, vocab_size: int, tokens: np.ndarray) -> Columns:
    """Rows of one document, whose tokens are one more, as whole numbers."""
    first_R = np.zeros(max(len(tokens) - 1, 0), dtype=np.int64)
    match rows:
        case SampledRows():
            sets: tuple[SetColumns, ...] = (_drawn(rows.ids_TK, rows.counts_TK, rows.weights_TK, most=layout.sets[0].most),)
            if rows.top1_T is not None:
                top, first_R = _kept_top_1(sets[0], rows.top1_T.numpy())
                sets = (*sets, top)
            numbers = [entropies_to_steps(rows.entropy_T.numpy(), vocab_size=vocab_size)]
        case TopKRows() | HybridRows():
            head, first_R = _head(rows.ids_TK, rows.log_probs_TK, values=layout.values)
            sets = (head,)
            if isinstance(rows, HybridRows):
                sets = (head, _drawn(rows.drawn_ids_TM, rows.counts_TM, None, most=layout.sets[1].most))
            entropy_R = entropies_to_steps(rows.entropy_T.numpy(), vocab_size=vocab_size)
            numbers = [entropy_R, tails_to_steps(rows.tail_T.numpy())]
        case HardRows():
            sets, numbers = (_single(np.ones(len(rows.ids_T), dtype=np.int64), rows.ids_T.numpy()),), []
    stacked_RN = np.stack(numbers, axis=1) if numbers else np.zeros((len(first_R), 0), dtype=np.int64)
    assert len(stacked_RN) == len(first_R) == len(sets[0].count_R)
    return Columns(stacked_RN, sets, first_R, tokens[1:].astype(np.int64))


def rows_of(columns: Columns, *, layout: Layout, kind: type[SparseRows], vocab_size: int) -> SparseRows:
    """The rows again."""
    numbers_RN, sets = columns.numbers_RN, columns.sets
    if kind is HardRows:
        if not (sets[0].count_R == 1).all():
            raise DamagedRowsError("a row has no id")
        return HardRows(torch.from_numpy(sets[0].ids_RK[:, 0].copy() if len(sets[0].ids_RK) else np.zeros(0, dtype=np.int64)))
    entropy_R = torch.from_numpy(steps_to_entropies(numbers_RN[:, 0], vocab_size=vocab_size))
    if kind is SampledRows:
        drawn = sets[0]
        weights_RK = None
        if layout.weights:
            weights_RK = torch.from_numpy(np.where(_valid(drawn), steps_to_weights(drawn.weights_RK), np.float32(0)))
        top1_R = torch.from_numpy(_top_1(drawn, sets[1], columns.first_R)) if len(sets) > 1 else None
        return SampledRows(torch.from_numpy(drawn.ids_RK), _counts(drawn), entropy_R, weights_RK, top1_R)
    ids_RK, log_probs_RK = _most_probable_first(sets[0], columns.first_R, values=layout.values)
    tail_R = torch.from_numpy(steps_to_tails(numbers_RN[:, 1], head=log_probs_RK.double().exp().sum(1).numpy()))
    if kind is TopKRows:
        return TopKRows(ids_RK, log_probs_RK, tail_R, entropy_R)
    return HybridRows(ids_RK, log_probs_RK, tail_R, torch.from_numpy(sets[1].ids_RK), _counts(sets[1]), entropy_R)


def by_rank(set_: SetColumns) -> np.ndarray:
    """Ids of each row, the one of the highest mark first, and ascending where marks are the same; -1 after the last. int64."""
    order_RK = np.argsort(np.where(_valid(set_), -set_.marks_RK, _NO_ID), axis=1, kind="stable")
    ids_RK = np.where(_valid(set_), set_.ids_RK, -1)
    return np.take_along_axis(ids_RK, order_RK, axis=1)


def _valid(set_: SetColumns) -> np.ndarray:
    return np.arange(set_.ids_RK.shape[1]) < set_.count_R[:, None]


def _ascending(
    ids_RK: np.ndarray, is_stored_RK: np.ndarray, others: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Count, ids and others of what is stored, ids ascending; 0 after the last."""
    order_RK = np.argsort(np.where(is_stored_RK, ids_RK, _NO_ID), axis=1, kind="stable")
    count_R = is_stored_RK.sum(1)
    width = int(count_R.max(initial=0))
    is_valid_RK = np.arange(width) < count_R[:, None]
    sorted_RK = [
        np.where(is_valid_RK, np.take_along_axis(values, order_RK, axis=1)[:, :width], 0) for values in (ids_RK, *others)
    ]
    assert (np.diff(np.where(is_valid_RK, sorted_RK[0], _NO_ID + np.arange(width)), axis=1) > 0).all(), "an id twice in a row"
    return count_R, sorted_RK[0], sorted_RK[1:]


def _drawn(ids_RK: Tensor, counts_RK: Tensor, weights_RK: Tensor | None, *, most: int) -> SetColumns:
    counts = counts_RK.numpy().astype(np.int64)
    steps_RK = np.zeros_like(counts) if weights_RK is None else weights_to_steps(weights_RK.numpy())
    count_R, ids, (sorted_counts, weights) = _ascending(ids_RK.numpy(), counts > 0, [counts, steps_RK])
    return SetColumns(count_R, most - counts.sum(1), ids, np.maximum(sorted_counts - 1, 0), weights)


def _counts(set_: SetColumns) -> Tensor:
    return torch.from_numpy(np.where(_valid(set_), set_.marks_RK + 1, 0))


def _head(ids_RK: Tensor, log_probs_RK: Tensor, *, values: str) -> tuple[SetColumns, np.ndarray]:
    """Steps above the row's least, and where the first id is among those of the highest mark."""
    log_probs = log_probs_RK.numpy()
    is_stored_RK = log_probs > -np.inf
    steps_RK = log_probs_to_steps(log_probs, values=values)
    base_R = np.where(is_stored_RK, steps_RK, 0).max(1, initial=0)
    marks_RK = np.where(is_stored_RK, base_R[:, None] - steps_RK, 0)
    count_R, ids, (marks,) = _ascending(ids_RK.numpy(), is_stored_RK, [marks_RK])
    head = SetColumns(count_R, base_R, ids, marks, np.zeros_like(marks))
    # The most probable of all may share its step with others; among those it keeps its place.
    top_R1 = np.where(is_stored_RK, log_probs, -np.inf).argmax(1)[:, None] if ids_RK.shape[1] else None
    first_R = np.zeros(len(count_R), dtype=np.int64)
    if top_R1 is not None:
        first_R = (by_rank(head) == np.take_along_axis(ids_RK.numpy(), top_R1, axis=1)).argmax(1) if marks.size else first_R
    return head, first_R


def _most_probable_first(set_: SetColumns, first_R: np.ndarray, *, values: str) -> tuple[Tensor, Tensor]:
    order_RK = np.argsort(np.where(_valid(set_), -set_.marks_RK, _NO_ID), axis=1, kind="stable")
    width = order_RK.shape[1]
    if (first_R >= np.maximum(set_.count_R, 1)).any():
        raise DamagedRowsError("the most probable id is not there")
    # The first of its step comes before the others of its step, which keep their order.
    place_RK = np.arange(width)
    moved_RK = np.where(place_RK == 0, first_R[:, None], np.where(place_RK <= first_R[:, None], place_RK - 1, place_RK))
    order_RK = np.take_along_axis(order_RK, moved_RK, axis=1) if width else order_RK
    steps_RK = set_.base_R[:, None] - np.take_along_axis(set_.marks_RK, order_RK, axis=1)
    if width and (np.where(_valid(set_), steps_RK, 0) < 0).any():
        raise DamagedRowsError("a log-prob above 0")
    valid_RK = _valid(set_)
    log_probs_RK = np.where(valid_RK, steps_to_log_probs(np.where(valid_RK, steps_RK, 0), values=values), np.float32(-np.inf))
    ids_RK = np.where(valid_RK, np.take_along_axis(set_.ids_RK, order_RK, axis=1), 0)
    return torch.from_numpy(ids_RK), torch.from_numpy(log_probs_RK)


def _single(count_R: np.ndarray, ids_R: np.ndarray) -> SetColumns:
    """A set of at most one id without a mark."""
    width = int(count_R.max(initial=0))
    ids_RK = np.where(count_R > 0, ids_R, 0)[:, None][:, :width].astype(np.int64)
    zeros_RK = np.zeros_like(ids_RK)
    return SetColumns(count_R, np.zeros_like(count_R), ids_RK, zeros_RK, zeros_RK)


def _kept_top_1(drawn: SetColumns, top1_R: np.ndarray) -> tuple[SetColumns, np.ndarray]:
    """The top-1 where it was not drawn; where it was, its rank among the drawn, from 1 on."""
    is_it_RK = by_rank(drawn) == top1_R[:, None]
    was_drawn_R = is_it_RK.any(1)
    rank_R = is_it_RK.argmax(1) + 1 if is_it_RK.shape[1] else np.zeros(len(top1_R), dtype=np.int64)
    return _single((~was_drawn_R).astype(np.int64), top1_R), np.where(was_drawn_R, rank_R, 0)


def _top_1(drawn: SetColumns, top: SetColumns, rank_R: np.ndarray) -> np.ndarray:
    if (rank_R > drawn.count_R).any() or ((rank_R == 0) != (top.count_R == 1)).any():
        raise DamagedRowsError("the most probable id is not there")
    ranked_RK = np.concatenate([top.ids_RK if top.ids_RK.shape[1] else np.zeros((len(rank_R), 1), np.int64), by_rank(drawn)], 1)
    return np.take_along_axis(ranked_RK, rank_R[:, None], axis=1)[:, 0]
