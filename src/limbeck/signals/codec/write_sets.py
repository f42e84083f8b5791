"""Writing the ids of all sets with their marks: the bulk of a shard.

Step by step every lane writes one id, the last of its last set first. A set's remaining ids are kept in order; the lane says
which of them is written (`LaneWriter.take`), and what is left moves up.

Shapes: R rows, L lanes, G sets that are not empty, in the order of their rows, E ids of all sets, K ids of a set.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.signals.codec.fit import Fitted, Flat
from limbeck.signals.codec.lanes import LaneWriter, Part, bits_part, symbol_part
from limbeck.signals.codec.layout import Marks
from limbeck.signals.codec.model import CountContexts, Model, needs_two_groups


@dataclass(frozen=True)
class _Sets:
    """Sets that are not empty, and the ids of all of them."""

    lane_G: np.ndarray
    count_G: np.ndarray
    start_G: np.ndarray  # of its ids in E
    mark_row_G: np.ndarray  # of the table of its marks
    counts_G: np.ndarray  # 1 where its marks are counts, else 0
    id_parts: list[Part]
    level_E: np.ndarray  # of counts in the id's band
    marks_E: np.ndarray
    mark_symbol_E: np.ndarray
    mark_bits: Part
    weight_parts: list[Part] | None


def write_sets(lanes: LaneWriter, flat: Flat, fitted: Fitted) -> None:
    """All sets of all lanes."""
    sets = _gather(flat, fitted)
    num_lanes = lanes.num_lanes
    ids_L = np.bincount(sets.lane_G, sets.count_G, minlength=num_lanes).astype(np.int64)
    order_L = np.argsort(-ids_L, kind="stable")
    set_L = (np.searchsorted(sets.lane_G, np.arange(num_lanes), side="right") - 1)[order_L]
    active = np.searchsorted(-ids_L[order_L], -np.arange(1, int(ids_L.max(initial=0)) + 1), side="right")
    most = int(sets.count_G.max(initial=1))
    left_KL = np.repeat(np.arange(most)[:, None], num_lanes, axis=1)
    count_L = sets.count_G[set_L] if len(sets.count_G) else set_L
    given_L = np.zeros(num_lanes, dtype=np.int64)
    contexts = CountContexts(max(set_.most for set_ in fitted.model.layout.sets), most)
    for width in active.tolist():
        some = slice(0, width)
        set_, count, here = set_L[some], count_L[some], order_L[some]
        picked = lanes.take(here, count)
        place = np.take_along_axis(left_KL[:, some], picked[None], axis=0)[0]
        id_ = sets.start_G[set_] + place
        given_L[some] += sets.counts_G[set_] * sets.marks_E[id_]
        whole = sets.count_G[set_]
        context = contexts.of(given_L[some], whole - count + 1, sets.level_E[id_])
        _write(lanes, here, fitted.model, sets, id_, sets.mark_row_G[set_] + sets.counts_G[set_] * context)
        rows = int(count.max())
        moves = np.arange(rows - 1)[:, None] >= picked
        left_KL[: rows - 1, some] = np.where(moves, left_KL[1:rows, some], left_KL[: rows - 1, some])
        count -= 1
        done = (count == 0).nonzero()[0]
        if done.size:
            set_[done] -= 1
            count[done] = sets.count_G[set_[done]]
            given_L[done] = 0
            left_KL[:, done] = np.arange(most)[:, None]


def _write(lanes: LaneWriter, here: np.ndarray, model: Model, sets: _Sets, id_: np.ndarray, mark_rows: np.ndarray) -> None:
    """One id of each lane with its mark and its weight."""
    if sets.weight_parts is not None:
        lanes.write(here, [part.of(id_) for part in sets.weight_parts])
    mark = symbol_part(model.tables, model.tables.at_R[mark_rows] + sets.mark_symbol_E[id_])
    name_parts = [part.of(id_) for part in sets.id_parts]
    mark_parts = [mark, sets.mark_bits.of(id_)]
    if needs_two_groups(model.layout, model.words.vocab_size):
        lanes.write(here, mark_parts)
        lanes.write(here, name_parts)
    else:
        lanes.write(here, [*name_parts, *mark_parts])


def id_parts(model: Model, ids_E: np.ndarray, class_E: np.ndarray) -> list[Part]:
    """Cluster, band and place of ids that are met in some class."""
    cluster_V, band_V, place_V = model.words.naming
    tables, rows = model.tables, model.rows
    cluster_E = cluster_V[ids_E]
    in_class = symbol_part(tables, tables.at_R[rows["cluster"] + class_E] + cluster_E)
    places = tables.at_R[rows["band"] + cluster_E] + band_V[ids_E]
    return [in_class, symbol_part(tables, places), bits_part(place_V[ids_E], tables.bits_P[places])]


def _gather(flat: Flat, fitted: Fitted) -> _Sets:
    """Sets of all kinds in the order of their rows; ids stay where they are, kind by kind."""
    model = fitted.model
    columns, ids, classes, marks, symbols, low_bits, low_widths, weights = ([] for _ in range(8))
    at = 0
    for place, (set_, kind) in enumerate(zip(flat.sets, model.layout.sets, strict=True)):
        filled = np.flatnonzero(set_.count_R)
        starts = at + (np.cumsum(set_.count_R) - set_.count_R)[filled]
        band = flat.entropy_band_R[filled] if kind.marks is Marks.STEPS else np.zeros_like(filled)
        are_counts = np.full(len(filled), kind.marks is Marks.COUNTS)
        rows = model.rows[f"mark{place}"] + band
        columns.append(np.stack([filled, np.full(len(filled), place), set_.count_R[filled], starts, rows, are_counts]))
        ids.append(set_.ids_E)
        classes.append(fitted.class_RU[set_.row_E, place])
        marks.append(set_.marks_E)
        weights.append(set_.weights_E)
        symbol, low = kind.mark.split(set_.marks_E)
        symbols.append(symbol)
        low_bits.append(low)
        low_widths.append(kind.mark.bits_S[symbol])
        at += len(set_.ids_E)
    row, place, count, start, mark_row, are_counts = np.concatenate(columns, axis=1)
    order = np.lexsort((place, row))
    ids_E = np.concatenate(ids)
    cluster_V, band_V, _ = model.words.naming
    return _Sets(
        flat.lane_R[row[order]],
        count[order],
        start[order],
        mark_row[order],
        are_counts[order],
        id_parts(model, ids_E, np.concatenate(classes)),
        model.mark_levels[cluster_V[ids_E], band_V[ids_E]].astype(np.int64),
        np.concatenate(marks),
        np.concatenate(symbols),
        bits_part(np.concatenate(low_bits), np.concatenate(low_widths)),
        _weight_parts(model, np.concatenate(weights)) if model.layout.weights else None,
    )


def _weight_parts(model: Model, weights_E: np.ndarray) -> list[Part]:
    symbols, low_bits = model.layout.weight.split(weights_E)
    places = model.tables.at_R[model.rows["weight"]] + symbols
    return [symbol_part(model.tables, places), bits_part(low_bits, model.tables.bits_P[places])]
