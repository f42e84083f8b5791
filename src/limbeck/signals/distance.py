"""How far two rows are from one another when neither holds a whole distribution; what `limbeck.signals.diff` averages.

Every number errs on the same side, that of too little, or is unbiased for such a number; `limbeck.signals.diff` says which and
why. All is vectorised over rows, and in float64.

Shapes: T positions, K ids of a row, N draws of a row, M entries of all rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.types import HybridRows, SampledRows, TopKRows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAST = 1e-30
"""Instead of a probability of zero, where rounding made one."""


@dataclass(frozen=True)
class Head:
    """A few exact probabilities and the mass outside them, together 1, float64; padding has probability 0."""

    ids_TK: Ints
    probs_TK: Floats
    tail_T: Floats


def head_of(rows: TopKRows | HybridRows) -> Head:
    """The exact part of some rows, made to sum to one."""
    probs_TK = rows.log_probs_TK.double().exp().numpy()
    tail_T = rows.tail_T.double().numpy()
    total_T = probs_TK.sum(-1) + tail_T
    return Head(rows.ids_TK.numpy(), probs_TK / total_T[:, None], tail_T / total_T)


def partition_kl(one: Head, two: Head) -> tuple[Floats, Floats]:
    """KL(one || two) on the ids that both hold and one bucket of all others, and one's mass in the bucket; float64 [T]."""
    num_rows = len(one.tail_T)
    probs_M, others_M, row_M = _matched(one, two)
    shared_T = np.bincount(row_M, weights=probs_M * np.log(probs_M / others_M), minlength=num_rows)
    outside_one_T, outside_two_T = (
        head.tail_T + np.maximum(head.probs_TK.sum(-1) - np.bincount(row_M, weights=held_M, minlength=num_rows), 0.0)
        for head, held_M in ((one, probs_M), (two, others_M))
    )
    ratio_T = np.maximum(outside_one_T, _LEAST) / np.maximum(outside_two_T, _LEAST)
    return np.maximum(shared_T + outside_one_T * np.log(ratio_T), 0.0), outside_one_T


def _matched(one: Head, two: Head) -> tuple[Floats, Floats, Ints]:
    """Both probabilities of every id that both rows hold, and the row, [M]."""
    place_M, found_M = _places(one.ids_TK, one.probs_TK > 0, two)
    row_M = np.nonzero(one.probs_TK > 0)[0][found_M]
    return one.probs_TK[one.probs_TK > 0][found_M], two.probs_TK[two.probs_TK > 0][place_M[found_M]], row_M


def _places(ids_TK: Ints, wanted_TK: NDArray[np.bool_], head: Head) -> tuple[Ints, NDArray[np.bool_]]:
    """For each wanted id, in order, its place among the head's ids of probability above 0, in order, and if it is one."""
    held_TK = head.probs_TK > 0
    stride = 1 + max(int(ids_TK.max(initial=0)), int(head.ids_TK.max(initial=0)))
    rows_T1 = np.arange(len(ids_TK), dtype=np.int64)[:, None] * stride
    wanted_M, held_M = (rows_T1 + ids_TK)[wanted_TK], (rows_T1 + head.ids_TK)[held_TK]
    if not held_M.size:
        return np.zeros(len(wanted_M), dtype=np.int64), np.zeros(len(wanted_M), dtype=np.bool_)
    order_M = np.argsort(held_M)
    place_M = order_M[np.searchsorted(held_M[order_M], wanted_M).clip(max=len(held_M) - 1)]
    return place_M, held_M[place_M] == wanted_M


def drawn_kl(rows: SampledRows, head: Head) -> Floats:
    """Cross-entropy of the draws with a head, less the stored entropy; float64 [T].

    An id outside the head has at most the smaller of its least probability and its tail.
    """
    drawn_TK = rows.counts_TK.numpy() > 0
    least_T = np.minimum(np.where(head.probs_TK > 0, head.probs_TK, np.inf).min(-1, initial=np.inf), head.tail_T)
    place_M, found_M = _places(rows.ids_TK.numpy(), drawn_TK, head)
    q_M = np.maximum(least_T, _LEAST)[np.nonzero(drawn_TK)[0]]
    q_M[found_M] = head.probs_TK[head.probs_TK > 0][place_M[found_M]]
    costs_M = -np.log(q_M) * shares(rows)[drawn_TK]
    cross_T = np.bincount(np.nonzero(drawn_TK)[0], weights=costs_M, minlength=len(drawn_TK))
    return cross_T - rows.entropy_T.double().numpy()


def shares(rows: SampledRows) -> Floats:
    """The estimate of p that the draws are, float64 [T, K]."""
    counts_TK = rows.counts_TK.double().numpy()
    shares_TK = counts_TK / np.maximum(counts_TK.sum(-1, keepdims=True), 1.0)
    return shares_TK if rows.weights_TK is None else shares_TK * rows.weights_TK.double().numpy()


def squared_distance(one: SampledRows, two: SampledRows, *, uniforms_TN: Floats | None) -> Floats:
    """An unbiased estimate of ‖p - q‖², float64 [T], from two sets of at least two draws.

    `uniforms_TN`: the numbers that both were drawn with, the n-th draw of a row with the n-th, as far as the draws of either
    go; None where the two were drawn independently.
    """
    draws_one_T, draws_two_T = (rows.counts_TK.sum(-1).double().numpy() for rows in (one, two))
    assert min(draws_one_T.min(initial=2), draws_two_T.min(initial=2)) >= 2, "fewer than two draws tell no distance"
    cross_T = _cross(one, two)
    pairs_T = draws_one_T * draws_two_T
    if uniforms_TN is not None:
        cross_T -= _together(one, two, uniforms_TN)
        pairs_T -= np.minimum(draws_one_T, draws_two_T)
    return _within(one, draws_one_T) + _within(two, draws_two_T) - 2 * cross_T / pairs_T


def weights(rows: SampledRows) -> Floats:
    """Importance weights, float64 [T, K]; one where draws come from p itself."""
    return np.ones(rows.counts_TK.shape) if rows.weights_TK is None else rows.weights_TK.double().numpy()


def _within(rows: SampledRows, draws_T: Floats) -> Floats:
    """An unbiased estimate of Σ p²."""
    counts_TK = rows.counts_TK.double().numpy()
    return (weights(rows) ** 2 * counts_TK * (counts_TK - 1)).sum(-1) / (draws_T * (draws_T - 1))


def _cross(one: SampledRows, two: SampledRows) -> Floats:
    """Σ_i c_i d_i: the pairs of draws, one of each, that are the same id."""
    drawn_TK = one.counts_TK.numpy() > 0
    counts_two_TK = two.counts_TK.double().numpy()
    held = Head(two.ids_TK.numpy(), counts_two_TK, np.zeros(len(counts_two_TK)))
    place_M, found_M = _places(one.ids_TK.numpy(), drawn_TK, held)
    weighted_one_M = (one.counts_TK.double().numpy() * weights(one))[drawn_TK][found_M]
    weighted_two_M = (counts_two_TK * weights(two))[counts_two_TK > 0][place_M[found_M]]
    row_M = np.nonzero(drawn_TK)[0][found_M]
    products_M = weighted_one_M * weighted_two_M
    return np.bincount(row_M, weights=products_M, minlength=len(drawn_TK)).astype(np.float64)


def _together(one: SampledRows, two: SampledRows, uniforms_TN: Floats) -> Floats:
    """Of the pairs of `_cross` those that came from one uniform number.

    Draws are in the order of their numbers, so a row's n-th smallest draw came from the n-th smallest of its numbers.
    """
    number_TN = uniforms_TN.argsort(-1)
    (ids_one_TN, weights_one_TN), (ids_two_TN, weights_two_TN) = _by_number(one, number_TN), _by_number(two, number_TN)
    same_TN = (ids_one_TN == ids_two_TN) & (ids_one_TN >= 0)
    return np.where(same_TN, weights_one_TN * weights_two_TN, 0.0).sum(-1)


def _by_number(rows: SampledRows, number_TN: Ints) -> tuple[Ints, Floats]:
    """The draw of each of a row's numbers and its weight, [T, N]; -1 for numbers beyond a row's draws."""
    ids_M, weights_M = _drawn(rows)
    drawn_TN = number_TN < rows.counts_TK.sum(-1, keepdim=True).numpy()
    ids_TN, weights_TN = np.full(drawn_TN.shape, -1), np.zeros(drawn_TN.shape)
    ids_TN[drawn_TN], weights_TN[drawn_TN] = ids_M, weights_M
    return ids_TN, weights_TN


def _drawn(rows: SampledRows) -> tuple[Ints, Floats]:
    """Every draw of every row, ids ascending within a row, with its weight."""
    order_TK = np.where(rows.counts_TK.numpy() > 0, rows.ids_TK.numpy(), np.iinfo(np.int64).max).argsort(-1)
    ids_TK, counts_TK, weights_TK = (
        np.take_along_axis(values, order_TK, -1) for values in (rows.ids_TK.numpy(), rows.counts_TK.numpy(), weights(rows))
    )
    times_M = counts_TK.reshape(-1)
    return np.repeat(ids_TK.reshape(-1), times_M), np.repeat(weights_TK.reshape(-1), times_M)
