"""Reading the ids of all sets with their marks: the bulk of a batch. The twin of `write_sets.py`.

Lanes go on from set to set by themselves, each at its own pace, so a step reads one id of every lane that is not done. Lanes
are in order of how much they hold: those that are not done are then always the first ones, and steps work on slices.

Shapes: R rows, L lanes, G sets that are not empty, in the order of their rows, K ids of a set, T steps.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.lanes import LaneReader
from limbeck.signals.codec.layout import MARK_BITS, WEIGHT_BITS, SetColumns
from limbeck.signals.codec.model import CountContexts
from limbeck.signals.codec.tables import Tables

_NO_ID = np.int32(2**31 - 1)


@dataclass(frozen=True)
class SetsToRead:
    """What is known of sets before their ids are."""

    num_lanes: int
    base_UR: np.ndarray
    """Of every set, empty or not: what its marks are told from."""
    row_G: np.ndarray
    place_G: np.ndarray
    """Which of its row's sets it is."""
    lane_G: np.ndarray
    count_G: np.ndarray
    cluster_row_G: np.ndarray
    """Its class's context in the tables."""
    band_row_L: np.ndarray
    mark_row_G: np.ndarray
    counts_G: np.ndarray
    """1 where marks are counts, else 0."""
    left_G: np.ndarray
    """What counts less one sum to."""
    weight_row_L: np.ndarray | None
    two_groups: bool

    @property
    def num_places(self) -> int:
        """Sets of a row."""
        return len(self.base_UR)

    @property
    def num_rows(self) -> int:
        """R."""
        return self.base_UR.shape[1]


def read_sets(
    lanes: LaneReader, sets: SetsToRead, *, tables: Tables, names: np.ndarray, level_P: np.ndarray
) -> tuple[SetColumns, ...]:
    """The ids of every set with marks and weights, in columns of each kind of set."""
    ids_L = np.bincount(sets.lane_G, sets.count_G, minlength=sets.num_lanes).astype(np.int64)
    order_L = np.argsort(-ids_L, kind="stable")
    lanes.reorder(order_L)
    num_steps = int(ids_L.max(initial=0))
    active_T = np.searchsorted(-ids_L[order_L], -np.arange(1, num_steps + 1), side="right")
    found_TL = _read_in_steps(lanes, sets, order_L, active_T.tolist(), tables=tables, names=names, level_P=level_P)
    lanes.reorder(np.argsort(order_L))
    # Lane by lane, each from its first step on, ids are in the order of their sets.
    found_E = found_TL.T[np.argsort(order_L)][np.arange(num_steps) < ids_L[:, None]]
    return tuple(_columns(sets, found_E, place) for place in range(sets.num_places))


def _read_in_steps(
    lanes: LaneReader,
    sets: SetsToRead,
    order_L: np.ndarray,
    active_T: list[int],
    *,
    tables: Tables,
    names: np.ndarray,
    level_P: np.ndarray,
) -> np.ndarray:
    """One id of each active lane in every step, int64 [T, L]; lanes as in `order_L`, those with most ids first."""
    if not active_T:
        return np.zeros((0, len(order_L)), dtype=np.int64)
    most = int(sets.count_G.max(initial=1))
    contexts = CountContexts(int(sets.left_G.max(initial=0)), most)
    found_TL = np.zeros((len(active_T), len(order_L)), dtype=np.int64)
    seen_KL = np.full((most, len(order_L)), _NO_ID, dtype=np.int32)
    number_L = np.zeros(len(order_L), dtype=np.int64)  # of ids read of the set
    lane_L = np.arange(len(order_L))
    set_L = np.searchsorted(sets.lane_G, order_L)
    # A lane that is done has no next set; it is given the last one there is and left alone.
    now = [np.append(values, values[-1:])[set_L] for values in (sets.count_G, sets.cluster_row_G, sets.mark_row_G, sets.left_G)]
    then = (sets.count_G, sets.cluster_row_G, sets.mark_row_G, sets.left_G)
    are_counts_L = np.append(sets.counts_G, sets.counts_G[-1:])[set_L]
    band_row_L = sets.band_row_L[order_L]
    weight_row_L = None if sets.weight_row_L is None else sets.weight_row_L[order_L]
    for time, width in enumerate(active_T):
        some = slice(0, width)
        count, cluster_row, mark_row, left = (values[some] for values in now)
        number, are_counts = number_L[some], are_counts_L[some]
        clusters = tables.first_P[lanes.places(some, cluster_row)]
        name, band = lanes.numbers(some, band_row_L[some] + clusters)
        if sets.two_groups:
            lanes.refill(some)
        ids = names[name]
        mark, _ = lanes.numbers(some, mark_row + are_counts * contexts.of(left, count - number, level_P[band]))
        lanes.refill(some)
        found = (ids << (MARK_BITS + WEIGHT_BITS)) | (mark << WEIGHT_BITS)
        if weight_row_L is not None:
            weight, _ = lanes.numbers(some, weight_row_L[some])
            lanes.refill(some)
            found |= weight
        found_TL[time, some] = found
        ids = ids.astype(np.int32)
        rank = np.add.reduce(seen_KL[: int(number.max()), some] < ids, axis=0, dtype=np.int64)
        seen_KL[number, lane_L[some]] = ids
        number += 1
        lanes.put_back(some, rank, number)
        left -= are_counts * mark
        done = (number == count).nonzero()[0]
        if done.size:
            set_L[done] += 1
            following = np.minimum(set_L[done], len(sets.count_G) - 1)
            for values, source in zip(now, then, strict=True):
                values[done] = source[following]
            are_counts_L[done] = sets.counts_G[following]
            number_L[done] = 0
            seen_KL[:, done] = _NO_ID
    return found_TL


def _columns(sets: SetsToRead, found_E: np.ndarray, place: int) -> SetColumns:
    """The sets of one kind, ids ascending."""
    are_here_G = sets.place_G == place
    count_R = np.zeros(sets.num_rows, dtype=np.int64)
    count_R[sets.row_G[are_here_G]] = sets.count_G[are_here_G]
    valid_RK = np.arange(int(count_R.max(initial=0))) < count_R[:, None]
    found_RK = np.full(valid_RK.shape, np.iinfo(np.int64).max)
    found_RK[valid_RK] = found_E[np.repeat(are_here_G, sets.count_G)]
    found_RK.sort(axis=1)
    found_RK[~valid_RK] = 0
    mark_mask, weight_mask = (1 << MARK_BITS) - 1, (1 << WEIGHT_BITS) - 1
    ids_RK = found_RK >> (MARK_BITS + WEIGHT_BITS)
    if (valid_RK[:, 1:] & (ids_RK[:, 1:] <= ids_RK[:, :-1])).any():
        raise DamagedRowsError("an id is twice in a row")
    return SetColumns(count_R, sets.base_UR[place], ids_RK, found_RK >> WEIGHT_BITS & mark_mask, found_RK & weight_mask)
