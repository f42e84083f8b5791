"""A shard's model from its rows.

Frequencies are counted in the rows that they will code, so they are as good as they can be, and pay for themselves. How much
there is to tell depends on how much there is: one class for every 8,000 ids that rows hold, up to 32 (a power of two), and
twice as many clusters.

Shapes: R rows of all documents, E ids of a set of all rows, row by row, and V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.signals.codec.classes import assign, find_classes
from limbeck.signals.codec.layout import Columns, Layout, Marks, SetColumns
from limbeck.signals.codec.model import ENTROPY_BANDS, MARK_LEVELS, CountContexts, Model, possible_counts, table_shapes
from limbeck.signals.codec.numbers import Alphabet
from limbeck.signals.codec.rows import by_rank
from limbeck.signals.codec.tables import levels_of
from limbeck.signals.codec.words import MOST_MEMBERS, Words, frequency_class

IDS_PER_CLASS = 8_000
MOST_FITTED = 300_000
"""Ids of rows among which classes are sought; the rest are put into them."""
MEMBER_FROM = 4
"""Times an id must be in a row to be told apart: fewer do not pay for the byte and a half."""
_HARDLY_EVER = 1e-3
LANE_IDS = 160
MOST_LANE_ROWS = 64


@dataclass(frozen=True)
class FlatSet:
    """One set of all rows: its ids row by row, ascending in each."""

    count_R: np.ndarray
    base_R: np.ndarray
    row_E: np.ndarray
    ids_E: np.ndarray
    marks_E: np.ndarray
    weights_E: np.ndarray


@dataclass(frozen=True)
class Flat:
    """All rows of a shard, documents one after another."""

    numbers_RN: np.ndarray
    sets: tuple[FlatSet, ...]
    first_R: np.ndarray
    place_R: np.ndarray
    """The rank of the token in the first set, from 1 on; 0 where it is not there."""
    tokens_R: np.ndarray
    lane_R: np.ndarray
    position_R: np.ndarray  # in its lane
    lane_rows: int

    @property
    def entropy_band_R(self) -> np.ndarray:
        """The context of most numbers."""
        if not self.numbers_RN.shape[1]:
            return np.zeros(len(self.numbers_RN), dtype=np.int64)
        return self.numbers_RN[:, 0] * ENTROPY_BANDS >> 8


def flatten_rows(documents: Sequence[Columns], *, num_sets: int) -> Flat:
    """Documents one after another, cut into lanes of about `LANE_IDS` ids."""
    lengths = [len(document.tokens_R) for document in documents]
    sets = tuple(_flat_set([document.sets[place] for document in documents]) for place in range(num_sets))
    num_rows = sum(lengths)
    num_ids = sum(len(set_.ids_E) for set_ in sets)
    lane_rows = int(np.clip(round(LANE_IDS * num_rows / max(num_ids, 1)), 1, MOST_LANE_ROWS))
    position_R = np.concatenate([np.arange(length) for length in lengths] or [np.zeros(0, np.int64)])
    starts = position_R % lane_rows == 0
    places = [_places(document.sets[0], document.tokens_R) for document in documents]
    return Flat(
        np.concatenate([document.numbers_RN for document in documents]),
        sets,
        np.concatenate([document.first_R for document in documents]),
        np.concatenate(places),
        np.concatenate([document.tokens_R for document in documents]),
        np.cumsum(starts) - 1,
        position_R % lane_rows,
        lane_rows,
    )


def _flat_set(parts: Sequence[SetColumns]) -> FlatSet:
    valid = [np.arange(part.ids_RK.shape[1]) < part.count_R[:, None] for part in parts]
    count_R = np.concatenate([part.count_R for part in parts])
    ids, marks, weights = (
        np.concatenate([getattr(part, name)[mask] for part, mask in zip(parts, valid, strict=True)])
        for name in ("ids_RK", "marks_RK", "weights_RK")
    )
    base_R = np.concatenate([part.base_R for part in parts])
    return FlatSet(count_R, base_R, np.repeat(np.arange(len(count_R)), count_R), ids, marks, weights)


def _places(set_: SetColumns, tokens_R: np.ndarray) -> np.ndarray:
    if not set_.ids_RK.size:
        return np.zeros(len(tokens_R), dtype=np.int64)
    is_it_RK = by_rank(set_) == tokens_R[:, None]
    return np.where(is_it_RK.any(1), is_it_RK.argmax(1) + 1, 0)


@dataclass(frozen=True)
class Fitted:
    """A model, and the class of every row's sets."""

    model: Model
    class_RU: np.ndarray


def fit(flat: Flat, *, layout: Layout, vocab_size: int) -> Fitted:
    """The model of some rows, the same for the same rows."""
    frequency_V = np.bincount(np.concatenate([set_.ids_E for set_ in flat.sets]), minlength=vocab_size)
    num_ids = int(frequency_V.sum())
    classes = 1 << int(np.clip(np.log2(max(num_ids / IDS_PER_CLASS, 1)), 0, 5))
    order = np.argsort(-frequency_V, kind="stable")
    ranked = order[: min(int((frequency_V >= MEMBER_FROM).sum()), MOST_MEMBERS)]
    cluster_U, class_RU = _classes(flat, ranked, classes=classes, vocab_size=vocab_size)
    by_id = np.argsort(ranked)
    members_U, cluster_U = ranked[by_id], cluster_U[by_id]
    words = Words(members_U, cluster_U, frequency_class(frequency_V[members_U]), 2 * classes + 1, vocab_size)
    cluster_V, name_band_V, _ = words.naming
    band_of_V = cluster_V * words.bands + name_band_V
    mark_levels = _mark_levels(flat, layout, band_of_V, bands=words.clusters * words.bands)
    counts = _number_counts(flat, layout, class_RU, mark_levels[band_of_V].astype(np.int64), classes=classes)
    missed = flat.tokens_R[flat.place_R == 0]
    clusters = np.zeros((classes + 1, words.clusters), dtype=np.int64)
    bands = np.bincount(band_of_V, frequency_V, minlength=words.clusters * words.bands)
    np.add.at(clusters[classes], cluster_V[missed], 1)
    bands += np.bincount(band_of_V[missed], minlength=len(bands))
    for place, set_ in enumerate(flat.sets):
        np.add.at(clusters, (class_RU[set_.row_E, place], cluster_V[set_.ids_E]), 1)
    levels = {name: levels_of(_trimmed(table)) for name, table in counts.items()}
    levels["cluster"], levels["band"] = levels_of(clusters), levels_of(bands.reshape(words.clusters, -1))
    model = Model(layout, classes, flat.lane_rows, words, levels, mark_levels.reshape(words.clusters, -1))
    return Fitted(model, class_RU)


def _trimmed(counts_CS: np.ndarray) -> np.ndarray:
    """Without the symbols after the last one seen."""
    seen = np.flatnonzero(counts_CS.any(0))
    return counts_CS[:, : int(seen.max(initial=0)) + 1]


def _classes(flat: Flat, ranked: np.ndarray, *, classes: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of ids in order of frequency, and classes [R, sets]."""
    num_rows, num_sets = len(flat.tokens_R), len(flat.sets)
    rank_V = np.full(vocab_size, -1)
    rank_V[ranked] = np.arange(len(ranked))
    rank_E = np.concatenate([rank_V[set_.ids_E] for set_ in flat.sets])
    sets_E = np.concatenate([place * num_rows + set_.row_E for place, set_ in enumerate(flat.sets)])
    sets_E, rank_E = sets_E[rank_E >= 0], rank_E[rank_E >= 0]
    total = num_sets * num_rows
    if classes == 1 or not rank_E.size:
        return np.full(len(ranked), 1), np.zeros((num_rows, num_sets), dtype=np.int64)
    step = -(-len(rank_E) // MOST_FITTED)
    some = sets_E % step == 0
    found = find_classes(
        sets_E[some] // step,
        rank_E[some],
        num_sets=-(-total // step),
        num_ids=len(ranked),
        classes=classes,
        clusters=2 * classes,
    )
    class_G = assign(sets_E, rank_E, num_sets=total, log_p_US=found.log_p_US)
    return found.cluster_U, class_G.reshape(num_sets, num_rows).T


def _mark_levels(flat: Flat, layout: Layout, band_of_V: np.ndarray, *, bands: int) -> np.ndarray:
    """Which quarter of all counts the mean of a band's belongs to, uint8 [bands]; 0 where marks are no counts."""
    sums, seen = np.zeros(bands), np.zeros(bands)
    for set_, kind in zip(flat.sets, layout.sets, strict=True):
        if kind.marks is Marks.COUNTS:
            band_E = band_of_V[set_.ids_E]
            sums += np.bincount(band_E, set_.marks_E, minlength=bands)
            seen += np.bincount(band_E, minlength=bands)
    mean = sums / np.maximum(seen, 1)
    order = np.argsort(mean, kind="stable")
    below = np.cumsum(seen[order]) - seen[order] / 2
    levels = np.zeros(bands, dtype=np.uint8)
    levels[order] = np.minimum(below * MARK_LEVELS // max(seen.sum(), 1), MARK_LEVELS - 1)
    return levels


def _number_counts(
    flat: Flat, layout: Layout, class_RU: np.ndarray, level_V: np.ndarray, *, classes: int
) -> dict[str, np.ndarray]:
    """How often each symbol of each table but clusters and bands is met in each context."""
    shapes = table_shapes(layout, classes=classes)
    tables = {name: np.zeros((shape.contexts, len(shape.symbols)), dtype=np.int64) for name, shape in shapes.items()}

    def tally(name: str, contexts: np.ndarray, numbers: np.ndarray) -> None:
        symbols, _ = shapes[name].symbols.split(numbers)
        np.add.at(tables[name], (contexts, symbols), 1)

    band_R = flat.entropy_band_R
    zero_R = np.zeros_like(band_R)
    for number in range(layout.numbers):
        tally(f"number{number}", zero_R if number == 0 else band_R, flat.numbers_RN[:, number])
    for place, (set_, kind) in enumerate(zip(flat.sets, layout.sets, strict=True)):
        tally(f"base{place}", band_R, set_.base_R)
        tally(f"count{place}", band_R, set_.count_R)
        filled = set_.count_R > 0
        before_R = classes_before(flat, filled, class_RU[:, place], classes=classes)
        tally(f"class{place}", before_R[filled], class_RU[filled, place])
        if kind.marks is Marks.COUNTS:
            tally(f"mark{place}", _count_contexts(set_, level_V, most=kind.most), set_.marks_E)
            tables[f"mark{place}"] = _with_possible(tables[f"mark{place}"], kind.mark)
        else:
            tally(f"mark{place}", band_R[set_.row_E] if kind.marks is Marks.STEPS else zero_R[set_.row_E], set_.marks_E)
        if layout.weights:
            tally("weight", zero_R[set_.row_E], set_.weights_E)
    tally("place", band_R, flat.place_R)
    tally("first", zero_R, flat.first_R)
    return tables


def _with_possible(seen_CS: np.ndarray, symbols: Alphabet) -> np.ndarray:
    """Counts met in contexts, and a little for those that may yet be met: the order of ids is not the one tallied here."""
    most = int(symbols.first_S[np.flatnonzero(seen_CS.any(0)).max(initial=0)])
    possible_CS = symbols.first_S <= np.minimum(possible_counts(symbols.greatest), most)[:, None]
    return np.where(possible_CS, np.maximum(seen_CS, _HARDLY_EVER), 0)


def classes_before(flat: Flat, filled_R: np.ndarray, class_R: np.ndarray, *, classes: int) -> np.ndarray:
    """The class of the last filled set before each row's in its lane; `classes` where there is none."""
    rows = np.flatnonzero(filled_R)
    lanes = flat.lane_R[rows]
    same = np.concatenate([[False], lanes[1:] == lanes[:-1]]) if len(rows) else np.zeros(0, dtype=np.bool_)
    before = np.full(len(filled_R), classes, dtype=np.int64)
    before[rows[same]] = class_R[rows[np.flatnonzero(same) - 1]]
    return before


def _count_contexts(set_: FlatSet, level_V: np.ndarray, *, most: int) -> np.ndarray:
    """Contexts of counts if the ids of a row came in some order: one drawn here, since the writer's is not known yet."""
    order = np.lexsort((np.random.default_rng(0).random(len(set_.row_E)), set_.row_E))
    starts_R = np.cumsum(set_.count_R) - set_.count_R
    shuffled = set_.marks_E[order]
    before = np.cumsum(shuffled) - shuffled
    given_E = before - np.append(before, 0)[np.minimum(starts_R, len(before))][set_.row_E]
    left = (most - set_.base_R - set_.count_R)[set_.row_E] - given_E
    ids = set_.count_R[set_.row_E] - (np.arange(len(order)) - starts_R[set_.row_E])
    contexts = np.empty(len(order), dtype=np.int64)
    contexts[order] = CountContexts(most, most).of(left, ids, level_V[set_.ids_E[order]])
    return contexts
