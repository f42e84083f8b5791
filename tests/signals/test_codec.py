"""Rows survive the codec: ids, counts and tokens exactly, values within the stated errors, any rows of any documents."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from codec_rows import Documents, documents_for, encoded, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.signals.codec import Piece, decode, encode, row_checks
from limbeck.signals.rows import concatenate
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import ChunksSignal, HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

# Half a step of the curve |log p| = (e^(s d) - 1) / 4 whose step 255 is 63 nats, in nats per nat of 1/4 + |log p|; and a little
# for float32.
HALF_STEP = math.exp(math.log(253) / 510) - 1 + 1e-6


def half_entropy_step(vocab: int) -> float:
    """Of the curve H = (e^(s d) - 1) / 25 whose step 255 is ln V, in nats per nat of 1/25 + H; and a little for float32."""
    return math.exp(math.log(1 + 25 * math.log(vocab)) / 510) - 1 + 1e-6


SIGNALS: list[StoredSignal] = [
    SampledSignal(draws=13),
    SampledSignal(draws=9, min_draws=2),
    SampledSignal(draws=7, proposal_temperature=1.5),
    SampledSignal(draws=7, keep_top1=True),
    SampledSignal(draws=40, min_draws=5, proposal_temperature=0.5, keep_top1=True),
    TopKSignal(k=6),
    TopKSignal(k=6, values="uint8"),
    TopPSignal(cap=9),
    TopPSignal(cap=9, values="uint8"),
    HybridSignal(k=3, draws=5),
    HybridSignal(k=3, draws=5, values="uint8"),
    HardSignal(),
    ChunksSignal(),
    ChunksSignal(distribution="last", k=6),
    ChunksSignal(distribution="index", k=3),
]


def name_of(signal: StoredSignal) -> str:
    return "-".join(str(value) for value in signal.model_dump(exclude_defaults=True).values()) or signal.kind


def same_but_padding(read: Tensor, written: Tensor) -> bool:
    """Equal where both have columns, and nothing in the others."""
    width = min(read.shape[1], written.shape[1])
    rest = torch.cat([read[:, width:], written[:, width:]], dim=1)
    return torch.equal(read[:, :width], written[:, :width]) and not (rest.nan_to_num(neginf=0) != 0).any()


def require_log_probs(read: Tensor, written: Tensor, *, values: str) -> None:
    """Within the stated error, and -inf where and only where it was."""
    width = min(read.shape[1], written.shape[1])
    assert (read[:, width:] == -torch.inf).all()
    assert (written[:, width:] == -torch.inf).all()
    one, two = read[:, :width].double(), written[:, :width].double()
    assert torch.equal(one.isinf(), two.isinf())
    kept = ~two.isinf()
    error, size = (one[kept] - two[kept]).abs(), two[kept].abs().clamp(max=63 if values == "uint8" else 65504)
    held = (two[kept] < -63) if values == "uint8" else torch.zeros_like(error, dtype=torch.bool)
    bound = HALF_STEP * (0.25 + size) if values == "uint8" else (size * 2**-11).clamp(min=2**-25)
    assert (held | (error <= bound)).all()
    assert (one[kept][held] == -63).all() or not held.any()


def require_head(read: TopKRows | HybridRows, written: TopKRows | HybridRows, *, values: str) -> None:
    """The same ids with their log-probs, most probable first, the first one first."""
    assert (read.log_probs_TK[:, 1:] <= read.log_probs_TK[:, :-1]).all()
    assert len(read.ids_TK) == len(written.ids_TK)
    assert torch.equal(read.ids_TK[:, :1], written.ids_TK[: len(read.ids_TK), : read.ids_TK.shape[1]][:, :1])
    keys = [torch.where(rows.log_probs_TK > -torch.inf, rows.ids_TK, 2**40) for rows in (read, written)]
    orders = [key.argsort(dim=1, stable=True) for key in keys]
    ids = [rows.ids_TK.gather(1, order) for rows, order in zip((read, written), orders, strict=True)]
    assert same_but_padding(*ids)
    log_probs = [rows.log_probs_TK.gather(1, order) for rows, order in zip((read, written), orders, strict=True)]
    require_log_probs(*log_probs, values=values)
    # ln of the tail within a whole step; what is below e^-63 is none.
    ln_tail = written.tail_T.double().log()
    error = (read.tail_T.double().log() - ln_tail).abs()
    assert ((error <= 2.02 * HALF_STEP * (0.25 + ln_tail.abs())) | (written.tail_T < 1e-27)).all()
    assert (read.tail_T[written.tail_T == 0] == 0).all()


def require_same_chunks(read: ChunkRows, written: ChunkRows) -> None:
    """Counts exactly; log-probs to 11 significant bits, zeros as they are."""
    assert torch.equal(read.tokens_T, written.tokens_T)
    assert torch.equal(read.teacher_tokens_T, written.teacher_tokens_T)
    for name in ("log_prob_T", "before_T", "boundary_T"):
        torch.testing.assert_close(getattr(read, name), getattr(written, name), rtol=2**-11, atol=2**-25)
    heads = [TopKRows(rows.ids_TK, rows.log_probs_TK, rows.tail_T, torch.zeros(0)) for rows in (read, written)]
    require_head(heads[0], heads[1], values="float16")


def require_same(read: SparseRows, written: SparseRows, *, signal: StoredSignal, vocab: int) -> None:
    """Exact where it is said to be, within the stated errors elsewhere."""
    assert type(read) is type(written)
    if isinstance(read, HardRows) and isinstance(written, HardRows):
        assert torch.equal(read.ids_T, written.ids_T)
        return
    if isinstance(read, ChunkRows) and isinstance(written, ChunkRows):
        require_same_chunks(read, written)
        return
    assert not isinstance(read, HardRows | ChunkRows) and not isinstance(written, HardRows | ChunkRows)
    torch.testing.assert_close(
        read.entropy_T, written.entropy_T, rtol=half_entropy_step(vocab), atol=half_entropy_step(vocab) / 25
    )
    if isinstance(read, SampledRows) and isinstance(written, SampledRows):
        assert same_but_padding(read.ids_TK, written.ids_TK)
        assert same_but_padding(read.counts_TK, written.counts_TK)
        assert (read.top1_T is None) == (written.top1_T is None)
        assert read.top1_T is None or written.top1_T is None or torch.equal(read.top1_T, written.top1_T)
        assert (read.weights_TK is None) == (written.weights_TK is None)
        if read.weights_TK is not None and written.weights_TK is not None:
            width = min(read.weights_TK.shape[1], written.weights_TK.shape[1])
            torch.testing.assert_close(read.weights_TK[:, :width], written.weights_TK[:, :width], rtol=0.0079, atol=0)
    else:
        assert isinstance(read, TopKRows | HybridRows) and isinstance(written, TopKRows | HybridRows)
        assert isinstance(signal, TopKSignal | TopPSignal | HybridSignal)
        require_head(read, written, values=signal.values)
    if isinstance(read, HybridRows) and isinstance(written, HybridRows):
        assert same_but_padding(read.drawn_ids_TM, written.drawn_ids_TM)
        assert same_but_padding(read.counts_TM, written.counts_TM)


@pytest.mark.parametrize("signal", SIGNALS, ids=name_of)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(-1, 3), st.integers(0, 120)), min_size=1, max_size=4),
    vocab=st.sampled_from([2, 3, 9, 300, 49_152, 65_537, 300_000, 2**20]),
    power=st.floats(1, 30),
    seed=st.integers(0, 2**32),
)
def test_what_is_read_is_what_was_written(
    signal: StoredSignal, lengths: list[int], vocab: int, power: float, seed: int
) -> None:
    documents = documents_for(signal, lengths, vocab=vocab, seed=seed, power=power)
    shard = encoded(documents, signal, vocab)
    assert shard == encoded(documents, signal, vocab), "the same rows, the same bytes"
    decoded = decode(whole(shard, documents), signal=signal, vocab_size=vocab)
    assert np.array_equal(decoded.checks, np.concatenate([row_checks(tokens) for tokens, _ in documents]))
    require_same(decoded.rows, concatenate([rows for _, rows in documents]), signal=signal, vocab=vocab)


def pieces_of(shards: list[tuple[Documents, list[Piece]]], rng: np.random.Generator) -> list[Piece]:
    chosen = []
    for _ in range(int(rng.integers(0, 6))):
        _, pieces = shards[int(rng.integers(len(shards)))]
        piece = pieces[int(rng.integers(len(pieces)))]
        start, stop = np.sort(rng.integers(0, piece.num_rows + 1, 2)).tolist()
        chosen.append(dataclasses.replace(piece, start=start, stop=stop))
    return chosen


@pytest.mark.parametrize("signal", SIGNALS, ids=name_of)
def test_any_rows_of_any_shards_are_those_of_the_whole(signal: StoredSignal) -> None:
    """A batch takes pieces of several shards, each with its own model, and gets what each document gives by itself."""
    rng = np.random.default_rng(5)
    vocab = 1000
    shards = []
    for seed, lengths in enumerate(([97, 1, 230], [400], [0, 33])):
        documents = documents_for(signal, lengths, vocab=vocab, seed=seed)
        shards.append((documents, whole(encoded(documents, signal, vocab), documents)))
    for _ in range(40):
        pieces = pieces_of(shards, rng)
        decoded = decode(pieces, signal=signal, vocab_size=vocab)
        at = 0
        for piece in pieces:
            alone = decode([dataclasses.replace(piece, start=0, stop=piece.num_rows)], signal=signal, vocab_size=vocab)
            count = piece.stop - piece.start
            assert np.array_equal(decoded.checks[at : at + count], alone.checks[piece.start : piece.stop])
            for name, value in vars(decoded.rows).items():
                other = getattr(alone.rows, name)
                if value is None or other is None:
                    assert value is other
                    continue
                mine, theirs = value[at : at + count], other[piece.start : piece.stop]
                assert torch.equal(mine, theirs) if value.ndim == 1 else same_but_padding(mine, theirs), name
            at += count
        assert at == len(decoded.checks)


def test_a_part_of_a_document_is_read_from_a_part_of_its_bytes() -> None:
    signal = SampledSignal(draws=20)
    documents = documents_for(signal, [2000], vocab=5000, seed=0)
    (piece,) = whole(encoded(documents, signal, 5000), documents)
    middle = decode([dataclasses.replace(piece, start=1000, stop=1100)], signal=signal, vocab_size=5000)
    assert len(piece.data) / 20 < middle.num_bytes < len(piece.data) / 12
    assert decode([piece], signal=signal, vocab_size=5000).num_bytes == len(piece.data)


def test_the_most_probable_of_equal_steps_stays_the_first() -> None:
    """Log-probs a thousandth apart are one step of uint8: their ids come in ascending order, but for the first."""
    log_probs = torch.tensor([[-1.0, -1.001, -1.002, -7.0]]).expand(3, 4)
    ids = torch.tensor([[5, 1, 9, 2], [1, 9, 5, 2], [9, 5, 1, 2]])
    rows = TopKRows(ids, log_probs, torch.full((3,), 0.2), torch.ones(3))
    documents: Documents = [(np.arange(4), rows)]
    signal = TopKSignal(k=4, values="uint8")
    read = decode(whole(encoded(documents, signal, 10), documents), signal=signal, vocab_size=10).rows
    assert isinstance(read, TopKRows)
    assert read.ids_TK.tolist() == [[5, 1, 9, 2], [1, 5, 9, 2], [9, 1, 5, 2]]


def test_head_and_tail_sum_to_one_where_rounding_allows() -> None:
    """The tail makes up for what rounding did to the head, Σ p e with the stated errors e, unless it is smaller than that."""
    logits = torch.randn(500, 300, generator=torch.Generator().manual_seed(0)).double() * 3
    log_probs, ids = logits.log_softmax(1).sort(1, descending=True)
    tail = log_probs[:, 20:].exp().sum(1)
    rows = TopKRows(ids[:, :20], log_probs[:, :20].float(), tail.float(), torch.ones(500))
    documents: Documents = [(np.arange(501) % 300, rows)]
    p, size = log_probs[:, :20].exp(), log_probs[:, :20].abs()
    for values, error in (("float16", size * 2**-11), ("uint8", HALF_STEP * (0.25 + size))):
        signal = TopKSignal(k=20, values=values)
        read = decode(whole(encoded(documents, signal, 300), documents), signal=signal, vocab_size=300).rows
        assert isinstance(read, TopKRows)
        head_error = (p * error).sum(1) * 1.05  # e^x - 1 is a little more than x
        missing = (read.log_probs_TK.double().exp().sum(1) + read.tail_T.double() - 1).abs()
        assert (missing <= head_error).all()
        assert (missing < 1e-6).double().mean() > (0.6 if values == "float16" else 0.2)


def test_values_beyond_what_is_kept_are_held() -> None:
    rows = TopKRows(torch.tensor([[1, 0]]), torch.tensor([[0.0, -1e30]]), torch.tensor([0.0]), torch.tensor([99.0]))
    for values, lowest in (("uint8", -63.0), ("float16", -65504.0)):
        signal = TopKSignal(k=2, values=values)
        documents: Documents = [(np.array([0, 1]), rows)]
        read = decode(whole(encoded(documents, signal, 4), documents), signal=signal, vocab_size=4).rows
        assert isinstance(read, TopKRows)
        assert read.log_probs_TK[0].tolist() == pytest.approx([0.0, lowest])
        assert read.tail_T.tolist() == [0.0]
        assert read.entropy_T.tolist() == pytest.approx([math.log(4)])


def read_entropies(entropies: np.ndarray, *, vocab: int) -> np.ndarray:
    rows = len(entropies)
    signal = SampledSignal(draws=2)
    ids, counts = torch.ones(rows, 1, dtype=torch.int64), torch.full((rows, 1), 2)
    documents: Documents = [(np.zeros(rows + 1, np.int64), SampledRows(ids, counts, torch.from_numpy(entropies).float()))]
    read = decode(whole(encoded(documents, signal, vocab), documents), signal=signal, vocab_size=vocab).rows
    assert isinstance(read, SampledRows)
    return read.entropy_T.double().numpy()


def test_entropies_of_nearly_certain_rows_are_told_apart() -> None:
    """Those of a distribution that gives 1 - e to one id and e to another, down to e = 1e-5; an int8 teacher moves the mean by
    0.006. Everywhere else a hundredth of what it is."""
    e = np.geomspace(1e-5, 0.5, 400)
    entropies = -e * np.log(e) - (1 - e) * np.log1p(-e)
    for vocab in (2, 700, 128_256):
        error = np.abs(read_entropies(entropies, vocab=vocab) - entropies)
        assert error[entropies < 0.02].max() < 0.0007
        assert (error[entropies > 0.2] / entropies[entropies > 0.2]).max() < 0.0135
    wide = np.linspace(0.5, math.log(128_256), 3000)
    off = read_entropies(wide, vocab=128_256) - wide
    assert np.abs(off / wide).max() < 0.0125
    assert abs(off.mean()) < 5 * off.std() / len(wide) ** 0.5


def test_a_shard_may_hold_many_ids_of_which_none_is_frequent() -> None:
    """Four rows of 4,096 ids, all different: more than 16,000, which would make two classes of rows."""
    ids = torch.arange(4 * 4096).reshape(4, 4096) * 3
    rows = TopKRows(ids, torch.linspace(-9, -10, 4096).expand(4, -1), torch.full((4,), 0.5), torch.ones(4))
    documents: Documents = [(np.arange(5), rows)]
    signal = TopKSignal(k=4096)
    read = decode(whole(encoded(documents, signal, 50_000), documents), signal=signal, vocab_size=50_000).rows
    assert isinstance(read, TopKRows)
    assert torch.equal(read.ids_TK.sort(1).values, ids)


def test_the_most_draws_that_a_signal_may_have_are_counted_and_no_more_are_taken() -> None:
    """A count less one has 17 bits, and a set 2^16 ids; what would not come back is not written."""
    signal = SampledSignal(draws=65_536)
    counts = torch.tensor([[65_536, 0], [65_535, 1], [32_768, 32_768], [1, 65_535]])
    rows = SampledRows(torch.tensor([[7, 0], [7, 9], [7, 9], [7, 9]]), counts, torch.ones(4))
    documents: Documents = [(np.arange(5), rows)]
    read = decode(whole(encoded(documents, signal, 50), documents), signal=signal, vocab_size=50).rows
    assert isinstance(read, SampledRows)
    assert torch.equal(read.counts_TK, counts)
    for unchecked in (SampledSignal.model_construct(draws=65_537), TopKSignal.model_construct(k=65_537)):
        with pytest.raises(AssertionError, match="the spec asks for no more"):
            encode(documents, signal=unchecked, vocab_size=50)


def test_rows_that_are_all_alike_take_next_to_nothing() -> None:
    """50 draws of one id, and that id comes next: nothing is left to say but the model, and words that lanes do not fill."""
    rows = SampledRows(torch.full((5000, 1), 7), torch.full((5000, 1), 50), torch.zeros(5000))
    shard = encode([(np.full(5001, 7), rows)], signal=SampledSignal(draws=50), vocab_size=49_152)
    assert len(shard.model) + sum(map(len, shard.documents)) < 1500


def test_checks_tell_every_other_token() -> None:
    tokens = np.random.default_rng(0).integers(0, 300_000, 1000)
    assert row_checks(tokens[:1]).size == row_checks(tokens[:0]).size == 0
    assert row_checks(tokens).tolist() == tokens.tolist()[1:]
    for others in (tokens ^ 1, tokens + 65_536):
        assert not (row_checks(others) == row_checks(tokens)).any()
