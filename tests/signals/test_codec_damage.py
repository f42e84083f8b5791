"""Bytes that are not rows: an error, or rows that the signal could have; nothing else, however they came about."""

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from codec_rows import documents_for, encoded, whole

from limbeck.signals.codec import DamagedRowsError, Decoded, Piece, decode
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, TopKRows
from limbeck.spec.signal import ChunksSignal, HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal

VOCAB = 700
SIGNALS: list[StoredSignal] = [
    SampledSignal(draws=30),
    SampledSignal(draws=12, min_draws=3, proposal_temperature=2, keep_top1=True),
    TopKSignal(k=16),
    TopPSignal(cap=12, values="uint8"),
    HybridSignal(k=4, draws=9),
    HardSignal(),
    ChunksSignal(distribution="last", k=8),
]


@pytest.fixture(params=SIGNALS, ids=lambda signal: f"{signal.kind}-{getattr(signal, 'draws', '')}")
def signal(request: pytest.FixtureRequest) -> StoredSignal:
    return request.param


def require_rows_of(decoded: Decoded, piece: Piece, signal: StoredSignal) -> None:
    """As many rows as were asked for, whose ids, counts and log-probs the signal could have."""
    rows, count = decoded.rows, piece.stop - piece.start
    assert len(decoded.checks) == count
    assert decoded.checks.min(initial=0) >= 0 and decoded.checks.max(initial=0) < VOCAB
    for name, value in vars(rows).items():
        if value is not None:
            assert len(value) == count, name
            if "ids" in name or name == "top1_T":
                assert not value.numel() or 0 <= int(value.min()) <= int(value.max()) < VOCAB, name
    if isinstance(rows, HardRows):
        return
    if isinstance(rows, ChunkRows):
        assert bool((rows.tokens_T <= torch.arange(1, count + 1) + piece.start).all())
        assert bool(((rows.tokens_T > 0) == (rows.teacher_tokens_T > 0)).all())
        for nats in (rows.log_prob_T, rows.before_T, rows.boundary_T, rows.log_probs_TK):
            assert bool((nats <= 0).all())
        return
    assert bool(((rows.entropy_T >= 0) & (rows.entropy_T <= np.log(VOCAB) + 1e-5)).all())
    if isinstance(rows, SampledRows) and isinstance(signal, SampledSignal):
        assert bool(((rows.counts_TK >= 0).all(1) & (rows.counts_TK.sum(1) <= signal.draws)).all())
        kept = rows.counts_TK[:, 1:] > 0
        assert bool((rows.ids_TK[:, 1:] > rows.ids_TK[:, :-1])[kept].all())
    if isinstance(rows, TopKRows | HybridRows):
        assert bool((rows.log_probs_TK <= 0).all())
        assert bool(((rows.tail_T >= 0) & (rows.tail_T <= 1)).all())
        assert isinstance(signal, TopKSignal | TopPSignal | HybridSignal)
        assert rows.ids_TK.shape[1] <= (signal.cap if isinstance(signal, TopPSignal) else signal.k)


def outcome(piece: Piece, signal: StoredSignal) -> bool:
    """Whether it is found out; rows that are read all the same are checked."""
    try:
        decoded = decode([piece], signal=signal, vocab_size=VOCAB)
    except DamagedRowsError:
        return True
    require_rows_of(decoded, piece, signal)
    return False


def pieces_for(signal: StoredSignal) -> list[Piece]:
    documents = documents_for(signal, [150, 40], vocab=VOCAB, seed=3)
    return whole(encoded(documents, signal, VOCAB), documents)


def with_data(piece: Piece, data: np.ndarray) -> Piece:
    return dataclasses.replace(piece, data=data.astype(np.uint8))


def test_flipped_bits_are_an_error_or_rows(signal: StoredSignal) -> None:
    """A lane must end as it began, which gives most flips away. A code without redundancy leaves the others to the checksum."""
    rng = np.random.default_rng(0)
    piece = pieces_for(signal)[0]
    found = []
    for _ in range(200):
        data = piece.data.copy()
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        found.append(outcome(with_data(piece, data), signal))
    assert np.mean(found) > 0.4


def test_any_bytes_at_all(signal: StoredSignal) -> None:
    """Damaged, or rows that the signal could have; nothing else may come of it. Most of it is found out."""
    rng = np.random.default_rng(1)
    found = []
    for piece in pieces_for(signal):
        for _ in range(100):
            data = piece.data.copy()
            begin = int(rng.integers(len(data)))
            data[begin:] = rng.integers(0, 256, len(data) - begin)
            found.append(outcome(with_data(piece, data), signal))
    assert np.mean(found) > 0.9


def test_every_shorter_or_longer_document_is_found(signal: StoredSignal) -> None:
    piece = pieces_for(signal)[1]
    for length in range(len(piece.data)):
        assert outcome(with_data(piece, piece.data[:length]), signal), length
    assert outcome(with_data(piece, np.append(piece.data, 0)), signal)
    assert outcome(with_data(piece, np.concatenate([piece.data, piece.data])), signal)
    assert outcome(dataclasses.replace(piece, num_rows=piece.num_rows + 40, stop=piece.num_rows + 40), signal)


def test_a_lane_of_another_document_reads_as_rows_but_not_as_these(signal: StoredSignal) -> None:
    """What only a checksum or the tokens can tell: whole rows in the wrong place."""
    one, two = pieces_for(signal)
    decoded = decode([dataclasses.replace(two, start=3, stop=20)], signal=signal, vocab_size=VOCAB)
    require_rows_of(decoded, dataclasses.replace(two, start=3, stop=20), signal)
    assert not np.array_equal(decoded.checks, decode([one], signal=signal, vocab_size=VOCAB).checks[3:20])


def test_a_changed_model_is_found(signal: StoredSignal) -> None:
    rng = np.random.default_rng(2)
    piece = pieces_for(signal)[1]
    for place in rng.integers(0, len(piece.model), 60).tolist():
        model = bytearray(piece.model)
        model[place] ^= 1 << int(rng.integers(8))
        assert outcome(dataclasses.replace(piece, model=bytes(model)), signal)
    for length in (0, 3, 4, 20, len(piece.model) - 1):
        assert outcome(dataclasses.replace(piece, model=piece.model[:length]), signal)


def test_a_model_made_up_with_a_right_checksum(signal: StoredSignal) -> None:
    """As above; a model that only makes other things probable may well read as rows."""
    rng = np.random.default_rng(4)
    piece = pieces_for(signal)[1]
    found = []
    for _ in range(400):
        model = bytearray(piece.model[:-4])
        for _ in range(int(rng.integers(1, 4))):
            # Half of them in the head, where shapes are.
            model[int(rng.integers(len(model) if rng.random() < 0.5 else 40))] = int(rng.integers(256))
        forged = bytes(model) + zlib.crc32(bytes(model)).to_bytes(4, "little")
        found.append(outcome(dataclasses.replace(piece, model=forged), signal))
    assert np.mean(found) > 0.5


def test_the_model_of_another_signal_or_vocabulary_is_not_taken_for_this_one() -> None:
    documents = documents_for(SampledSignal(draws=30), [200], vocab=VOCAB, seed=0)
    (piece,) = whole(encoded(documents, SampledSignal(draws=30), VOCAB), documents)
    for signal, vocab in ((TopKSignal(k=30), VOCAB), (HybridSignal(), VOCAB), (SampledSignal(draws=30), 100)):
        with pytest.raises(DamagedRowsError):
            decode([piece], signal=signal, vocab_size=vocab)


def test_no_rows_are_no_bytes() -> None:
    signal = SampledSignal(draws=3)
    documents = documents_for(signal, [0, -1], vocab=9, seed=0)
    shard = encoded(documents, signal, 9)
    assert shard.documents == (b"", b"")
    decoded = decode(whole(shard, documents), signal=signal, vocab_size=9)
    assert (len(decoded.checks), decoded.num_bytes) == (0, 0)
    assert isinstance(decoded.rows, SampledRows) and torch.equal(decoded.rows.entropy_T, torch.zeros(0))
