"""What the coder writes against entropies worked out in float64 elsewhere: it loses next to nothing of what its model says, and
on rows of a known distribution its model is next to the distribution itself."""

import numpy as np
import pytest
import torch
from codec_rows import Documents, documents_for, encoded, whole
from scipy.special import gammaln

from limbeck.signals.codec import decode, encode
from limbeck.signals.codec.fit import fit, flatten_rows
from limbeck.signals.codec.lanes import LaneReader, LaneWriter, bits_part, symbol_part
from limbeck.signals.codec.layout import Marks, layout_of
from limbeck.signals.codec.model import table_shapes
from limbeck.signals.codec.numbers import alphabet
from limbeck.signals.codec.rows import columns_of
from limbeck.signals.codec.tables import Table, flatten, frequencies, levels_of
from limbeck.signals.types import SampledRows, TopKRows
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

VOCAB = 5000


def log2_factorial(number: np.ndarray) -> np.ndarray:
    return gammaln(number + 1.0) / np.log(2)


def model_bits(documents: Documents, signal: StoredSignal, *, vocab: int) -> tuple[float, int]:
    """-log2 of the probability of all rows under the model, in float64, symbol by symbol; and the number of lanes.

    For sets without counts: those depend on the order in which ids happen to be written.
    """
    layout = layout_of(signal)
    assert all(set_.marks is not Marks.COUNTS for set_ in layout.sets)
    columns = [columns_of(rows, layout=layout, vocab_size=vocab, tokens=tokens) for tokens, rows in documents]
    flat = flatten_rows(columns, num_sets=len(layout.sets))
    fitted = fit(flat, layout=layout, vocab_size=vocab)
    shapes = table_shapes(layout, classes=fitted.model.classes)
    p = {name: frequencies(levels) / 2048.0 for name, levels in fitted.model.levels.items()}

    def number(name: str, contexts: np.ndarray, values: np.ndarray) -> float:
        symbols, _ = shapes[name].symbols.split(values)
        return float((-np.log2(p[name][contexts, symbols]) + shapes[name].symbols.bits_S[symbols]).sum())

    band = flat.numbers_RN[:, 0] // 8 if layout.numbers else np.zeros(len(flat.tokens_R), dtype=np.int64)
    zero = np.zeros_like(band)
    cluster, where, _ = fitted.model.words.naming
    _, _, place_bits = fitted.model.words.bands_by_name()

    def names(ids: np.ndarray, classes: np.ndarray) -> float:
        mine = -np.log2(p["cluster"][classes, cluster[ids]]) - np.log2(p["band"][cluster[ids], where[ids]])
        return float((mine + place_bits[cluster[ids], where[ids]]).sum())

    bits = sum(number(f"number{place}", band if place else zero, flat.numbers_RN[:, place]) for place in range(layout.numbers))
    for place, set_ in enumerate(flat.sets):
        bits += number(f"base{place}", band, set_.base_R) + number(f"count{place}", band, set_.count_R)
        classes = fitted.class_RU[:, place]
        starts = np.flatnonzero(flat.position_R == 0)
        before = np.concatenate([[0], classes[:-1]])
        before[starts] = fitted.model.classes
        bits += number(f"class{place}", before, classes)
        bits += names(set_.ids_E, classes[set_.row_E]) - float(log2_factorial(set_.count_R).sum())
        steps = layout.sets[place].marks is Marks.STEPS
        bits += number(f"mark{place}", (band if steps else zero)[set_.row_E], set_.marks_E)
    missed = flat.tokens_R[flat.place_R == 0]
    bits += number("place", band, flat.place_R) + number("first", zero, flat.first_R)
    bits += names(missed, np.full(len(missed), fitted.model.classes))
    return bits, int(flat.lane_R[-1]) + 1


@pytest.mark.parametrize("values", ["uint8", "float16"])
@pytest.mark.parametrize("kind", ["topk", "topp", "hard"])
def test_the_coder_writes_what_its_model_says(kind: str, values: str) -> None:
    """A lane costs at most its model's bits, a last word of 16 that it does not fill, the order of a first set that an empty
    lane cannot choose (log2 of its ids), and what says how long it is: 9 bits."""
    signals: dict[str, StoredSignal] = {
        "topk": TopKSignal.model_validate({"k": 20, "values": values}),
        "topp": TopPSignal.model_validate({"cap": 20, "values": values}),
        "hard": HardSignal(),
    }
    signal = signals[kind]
    documents = documents_for(signal, [900, 500], vocab=VOCAB, seed=0, power=6)
    bits, lanes = model_bits(documents, signal, vocab=VOCAB)
    written = 8 * sum(map(len, encoded(documents, signal, VOCAB).documents))
    assert bits < written + 5 * lanes
    assert written < bits + lanes * (16 + 5 + 9) + 2 * 24


def test_sets_of_independent_ids_take_about_their_entropy() -> None:
    """Id i is in a row with probability π_i, independently of all others: Σ H(π_i) bits a row, and no code can take less."""
    rng = np.random.default_rng(0)
    vocab, rows = 400, 1500
    pi = 0.15 / (1 + np.arange(vocab) / 8)
    held = rng.random((rows, vocab)) < pi
    held[~held.any(1), 0] = True
    held[:, -1] = False
    entropy = float((-pi * np.log2(pi) - (1 - pi) * np.log2(1 - pi)).sum())
    counts = held.sum(1)
    width, order = int(counts.max()), np.argsort(~held, axis=1, kind="stable")
    log_probs = torch.where(torch.from_numpy(np.arange(width) < counts[:, None]), -4.0, -torch.inf)
    same = torch.full((rows,), 0.5)
    documents: Documents = [(np.full(rows + 1, vocab - 1), TopKRows(torch.from_numpy(order[:, :width]), log_probs, same, same))]
    bits = 8 * len(encoded(documents, TopPSignal(cap=width, values="uint8"), vocab).documents[0]) / rows
    # The token is never in its row; it is named by the stretch of 8 ids that it is in, and 3 bits.
    assert 0.97 * entropy < bits - 3 < 1.08 * entropy  # the model, which is not counted here, knows these very rows


def test_classes_of_rows_are_found_and_pay() -> None:
    """Rows of 16 kinds, each drawing from 100 ids of its own: knowing the kind saves log2 16 bits an id, but for once a row."""
    rng = np.random.default_rng(1)
    rows, draws = 12_000, 12
    kind = rng.integers(0, 16, rows)
    ids = np.sort(np.array([rng.choice(100, draws, replace=False) for _ in range(rows)]) + 100 * kind[:, None], axis=1)
    tokens = np.append(0, ids[:, 0])
    signal = SampledSignal(draws=draws)

    def size(ids_RK: np.ndarray) -> float:
        plain = SampledRows(torch.from_numpy(ids_RK), torch.ones(ids_RK.shape, dtype=torch.int64), torch.zeros(rows))
        shard = encode([(tokens, plain)], signal=signal, vocab_size=1600)
        return 8 * (len(shard.model) + len(shard.documents[0])) / rows

    # log2 of 16 x (100 choose 12) sets; the token is always the first of its row.
    floor = float(4 + log2_factorial(np.array(100)) - log2_factorial(np.array(12)) - log2_factorial(np.array(88)))
    assert floor < size(ids) < 1.2 * floor
    without = np.sort(np.array([rng.choice(1600, draws, replace=False) for _ in range(rows)]), axis=1)
    tokens[1:] = without[:, 0]
    assert size(without) > size(ids) + 30


def table(counts: np.ndarray) -> Table:
    levels = levels_of(counts)
    symbols = alphabet(levels.shape[1] - 1, exact=256)
    return Table(levels, *(np.broadcast_to(part, levels.shape) for part in (symbols.first_S, symbols.bits_S)))


def test_lanes_give_back_what_was_written_at_its_entropy() -> None:
    """Symbols of a known distribution, numbers of some bits, and numbers taken off and put back: 300 of each, in 40 lanes."""
    rng = np.random.default_rng(0)
    lanes, steps = 40, 300
    tables = flatten([table(np.array([[900, 90, 9, 1]])), table(np.array([[1, 1, 1, 1, 1]]))])
    exact = [frequencies(levels_of(np.array([row]))) / 2048.0 for row in ([900, 90, 9, 1], [1, 1, 1, 1, 1])]
    one, two = rng.choice(4, (steps, lanes), p=exact[0][0]), rng.choice(5, (steps, lanes), p=exact[1][0])
    widths = rng.integers(0, 20, (steps, lanes))
    numbers = rng.integers(0, 2**20, (steps, lanes)) & ((1 << widths) - 1)
    counts = rng.integers(1, 100, (steps, lanes))
    everyone = np.arange(lanes)
    writer = LaneWriter(lanes, room=8)
    taken = np.zeros((steps, lanes), dtype=np.int64)
    for step in reversed(range(steps)):
        taken[step] = writer.take(everyone, counts[step])
        parts = [symbol_part(tables, one[step]), symbol_part(tables, 4 + two[step]), bits_part(numbers[step], widths[step])]
        writer.write(everyone, parts)
    words = writer.finish()
    bits = -np.log2(exact[0][0][one]) - np.log2(exact[1][0][two]) + widths - np.log2(counts)
    spent = np.array([16 * len(lane) for lane in words]) - bits.sum(0)
    # A last word of 16 bits not filled, and numbers below 100 that an empty lane cannot choose: at most three, 6.6 bits each.
    assert spent.min() > -2 and spent.max() < 16 + 3 * 6.7 and spent.mean() < 18
    assert taken.max() < 100 and (taken < counts).all() and (taken > 0).any()

    slack = 8
    flat = np.concatenate([np.concatenate([np.zeros(slack, np.uint16), lane]) for lane in words])
    stops = np.cumsum([slack + len(lane) for lane in words])
    starts = stops - np.array([len(lane) for lane in words])
    reader = LaneReader(flat, starts=starts, stops=stops, slack=slack, tables=tables)
    for step in range(steps):
        assert np.array_equal(reader.places(everyone, np.zeros(lanes, np.int64)), one[step])
        assert np.array_equal(reader.places(everyone, np.ones(lanes, np.int64)) - 4, two[step])
        assert np.array_equal(reader.bits(everyone, widths[step]), numbers[step])
        reader.refill(everyone)
        reader.put_back(everyone, taken[step], counts[step])
    reader.require_end()


def test_frequencies_are_shares_of_what_was_seen() -> None:
    """Half-octave steps: within a factor 2^(1/4) of the share, a little off where a share is rounded up to 1 of 2048."""
    counts = np.array([[1000, 500, 250, 3, 0], [7, 7, 7, 7, 7], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]])
    found = frequencies(levels_of(counts))
    assert found.sum(1).tolist() == [2048] * 4
    assert (found[counts > 0] > 0).all() and (found[:2][counts[:2] == 0] == 0).all()
    shares_of = counts[:2] / counts[:2].sum(1, keepdims=True) * 2048
    ratio = found[:2][counts[:2] > 3] / shares_of[counts[:2] > 3]
    assert (np.abs(np.log2(ratio)) < 0.26).all()
    assert found[3].tolist() == [0, 0, 0, 2048, 0]


@pytest.mark.parametrize("greatest", [0, 1, 31, 32, 50, 255, 1000, 31_743, 65_537])
def test_every_number_has_one_name(greatest: int) -> None:
    for exact, per_octave in ((32, 4), (64, 4), (8, 8), (16, 16)):
        symbols = alphabet(greatest, exact=exact, per_octave=per_octave)
        numbers = np.unique(np.linspace(0, greatest, 5000).astype(np.int64))
        names, low = symbols.split(numbers)
        assert len(symbols) <= 256 and (low < 1 << symbols.bits_S[names]).all() and (low >= 0).all()
        assert np.array_equal(symbols.first_S[names] + low, numbers)


def test_reading_needs_no_more_than_a_row_more_than_its_lane() -> None:
    """Rows of one nearly certain id hold less than the order of their ids: readers put back more than they have read."""
    rng = np.random.default_rng(0)
    vocab = 64
    documents: Documents = []
    for length in (1, 2, 700):
        ids = np.sort(np.array([rng.permutation(vocab)[:60] for _ in range(length)]), axis=1)
        rows = SampledRows(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64), torch.zeros(length))
        documents.append((rng.integers(0, vocab, length + 1), rows))
    signal = SampledSignal(draws=60)
    shard = encoded(documents, signal, vocab)
    read = decode(whole(shard, documents), signal=signal, vocab_size=vocab).rows
    assert isinstance(read, SampledRows)
    assert torch.equal(read.ids_TK, torch.cat([rows.ids_TK for _, rows in documents if isinstance(rows, SampledRows)]))
    # 60 ids of 64 as if each could come again, in no order, and which of them the token is: 94 bits. (log2 of 64 over 60: 19.)
    bits = 8 * sum(map(len, shard.documents)) / 703
    assert bits == pytest.approx(60 * 6 - float(log2_factorial(np.array(60))) + np.log2(60), rel=0.06)
