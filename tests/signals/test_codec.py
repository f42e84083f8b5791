"""Rows survive the codec: ids and counts exactly, float16 values within the stated error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.signals.codec import DamagedRowsError, Decoded, Piece, decode, encode, encoded_size, pack, row_checks, unpack
from limbeck.signals.types import HardRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal


def sampled_rows(rows: int, *, draws: int, vocab: int, concentration: float, rng: np.random.Generator) -> SampledRows:
    ids_TN = np.sort((vocab * rng.random((rows, draws)) ** concentration).astype(np.int64), axis=1)
    counted = [np.unique(row, return_counts=True) for row in ids_TN]
    width = max((len(ids) for ids, _ in counted), default=0)
    padded = [[np.pad(column, (0, width - len(column))) for column in pair] for pair in counted]
    stacked = np.array(padded, dtype=np.int64).reshape(rows, 2, width)
    entropy = torch.from_numpy(rng.uniform(0, 11, rows).astype(np.float32))
    return SampledRows(torch.from_numpy(stacked[:, 0].copy()), torch.from_numpy(stacked[:, 1].copy()), draws, entropy)


def top_k_rows(rows: int, *, k: int, vocab: int, rng: np.random.Generator) -> TopKRows:
    ids = np.array([rng.choice(vocab, k, replace=False) for _ in range(rows)], dtype=np.int64).reshape(rows, k)
    log_probs = -np.sort(rng.exponential(6, (rows, k)).astype(np.float32), axis=1)
    tail = np.exp(-rng.exponential(20, rows)).astype(np.float32)
    return TopKRows(torch.from_numpy(ids), torch.from_numpy(log_probs), torch.from_numpy(tail))


def round_trip(rows: SparseRows, *, signal: StoredSignal, vocab: int, tokens: np.ndarray) -> Decoded:
    data = np.frombuffer(encode(rows, signal=signal, vocab_size=vocab, tokens=tokens), dtype=np.uint8)
    num_rows = len(tokens) - 1
    assert encoded_size(data, num_rows=num_rows, signal=signal, vocab_size=vocab) == len(data)
    return decode([Piece(data, num_rows, 0, num_rows)], signal=signal, vocab_size=vocab)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 40),
    draws=st.integers(1, 70),
    vocab=st.one_of(st.integers(2, 300), st.sampled_from([49_152, 65_535, 65_536, 65_537, 2**20 - 1, 2**20])),
    concentration=st.floats(1, 30),
    seed=st.integers(0, 2**32),
)
def test_sampled_ids_and_counts_are_exact(num_rows: int, draws: int, vocab: int, concentration: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sampled_rows(num_rows, draws=draws, vocab=vocab, concentration=concentration, rng=rng)
    tokens = rng.integers(0, vocab, num_rows + 1)
    decoded = round_trip(rows, signal=SampledSignal(draws=draws), vocab=vocab, tokens=tokens)
    assert isinstance(decoded.rows, SampledRows)
    assert torch.equal(decoded.rows.ids_TK, rows.ids_TK)
    assert torch.equal(decoded.rows.counts_TK, rows.counts_TK)
    torch.testing.assert_close(decoded.rows.entropy_T, rows.entropy_T, rtol=2**-11, atol=2**-25)
    assert np.array_equal(decoded.checks, row_checks(tokens))


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(0, 20),
    k=st.integers(1, 40),
    vocab=st.sampled_from([40, 129, 49_152, 2**17 + 1, 2**20]),
    seed=st.integers(0, 2**32),
)
def test_top_k_ids_are_exact_and_log_probs_within_the_stated_error(num_rows: int, k: int, vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = top_k_rows(num_rows, k=k, vocab=vocab, rng=rng)
    decoded = round_trip(rows, signal=TopKSignal(k=k), vocab=vocab, tokens=rng.integers(0, vocab, num_rows + 1)).rows
    assert isinstance(decoded, TopKRows)
    assert torch.equal(decoded.ids_TK, rows.ids_TK)
    torch.testing.assert_close(decoded.log_probs_TK, rows.log_probs_TK, rtol=2**-11, atol=2**-25)
    torch.testing.assert_close(decoded.log_probs_TK.exp(), rows.log_probs_TK.exp(), rtol=0, atol=1.8e-4)
    # a tail of e^-100 is far below the smallest float16; its logarithm is not
    torch.testing.assert_close(decoded.tail_T.log(), rows.tail_T.log(), rtol=2**-10, atol=2**-20)


def test_values_beyond_float16_are_held() -> None:
    rows = TopKRows(torch.tensor([[1, 0]]), torch.tensor([[0.0, -1e30]]), torch.tensor([0.0]))
    decoded = round_trip(rows, signal=TopKSignal(k=2), vocab=4, tokens=np.array([0, 1])).rows
    assert isinstance(decoded, TopKRows)
    assert decoded.log_probs_TK.exp().tolist() == [[1.0, 0.0]]
    assert decoded.tail_T.tolist() == [0.0]


@given(vocab=st.sampled_from([2, 3, 257, 2**20]), num_rows=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_hard_ids_are_exact(vocab: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = HardRows(torch.from_numpy(rng.integers(0, vocab, num_rows)))
    decoded = round_trip(rows, signal=HardSignal(), vocab=vocab, tokens=rng.integers(0, vocab, num_rows + 1)).rows
    assert isinstance(decoded, HardRows)
    assert torch.equal(decoded.ids_T, rows.ids_T)


@given(bits=st.integers(1, 20), count=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_packing_is_a_little_endian_number(bits: int, count: int, seed: int) -> None:
    """Packed numbers, read as one big integer, are the sum of number x 2^(place x bits)."""
    numbers = np.random.default_rng(seed).integers(0, 2**bits, count)
    packed = pack(numbers, bits=bits)
    assert int.from_bytes(packed, "little") == sum(int(number) << (place * bits) for place, number in enumerate(numbers))
    assert len(packed) == math.ceil(count * bits / 8)
    padded = np.frombuffer(packed + b"\xff\xff\xff", dtype=np.uint8)
    assert np.array_equal(unpack(padded, np.arange(count) * bits, bits=bits), numbers)


@pytest.mark.parametrize("signal", [SampledSignal(draws=13), TopKSignal(k=5), HardSignal()])
def test_any_pieces_equal_the_full_decode(signal: StoredSignal) -> None:
    rng = np.random.default_rng(4)
    vocab, documents = 1000, []
    for num_rows in (97, 1, 30):
        tokens = rng.integers(0, vocab, num_rows + 1)
        match signal:
            case SampledSignal(draws=draws):
                rows = sampled_rows(num_rows, draws=draws, vocab=vocab, concentration=4, rng=rng)
            case TopKSignal(k=k):
                rows = top_k_rows(num_rows, k=k, vocab=vocab, rng=rng)
            case HardSignal():
                rows = HardRows(torch.from_numpy(rng.integers(0, vocab, num_rows)))
        data = np.frombuffer(encode(rows, signal=signal, vocab_size=vocab, tokens=tokens), dtype=np.uint8)
        full = decode([Piece(data, num_rows, 0, num_rows)], signal=signal, vocab_size=vocab)
        documents.append((data, num_rows, full))
    for _ in range(60):
        chosen = [documents[index] for index in rng.integers(0, 3, rng.integers(0, 6))]
        bounds = [np.sort(rng.integers(0, num_rows + 1, 2)) for _, num_rows, _ in chosen]
        pieces = [Piece(data, n, int(start), int(stop)) for (data, n, _), (start, stop) in zip(chosen, bounds, strict=True)]
        decoded = decode(pieces, signal=signal, vocab_size=vocab)
        expected = [np.concatenate([[], *(full.checks[a:b] for (_, _, full), (a, b) in zip(chosen, bounds, strict=True))])]
        assert np.array_equal(decoded.checks, expected[0])
        for name, value in vars(decoded.rows).items():
            if name == "draws":
                continue
            parts = [getattr(full.rows, name)[a:b] for (_, _, full), (a, b) in zip(chosen, bounds, strict=True)]
            at = 0
            for part in parts:
                mine = value[at : at + len(part)]
                width = min(mine.shape[-1], part.shape[-1]) if part.ndim == 2 else None
                assert torch.equal(mine[..., :width], part[..., :width])
                assert width is None or (not mine[:, width:].any() and not part[:, width:].any())
                at += len(part)
            assert at == len(value)


def test_a_check_sees_a_shift_a_swap_and_a_change() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 49_152, 40_001)
    checks = row_checks(tokens)
    assert checks.dtype == np.uint8
    assert row_checks(tokens[:1]).size == 0
    assert row_checks(tokens[:0]).size == 0
    for others in (np.roll(tokens, 1), tokens[::-1], tokens ^ 1, tokens + 65_536):
        agreeing = (row_checks(others) == checks).mean()
        assert agreeing == pytest.approx(1 / 256, abs=5 * math.sqrt(1 / 256 / 40_000))
    histogram = np.bincount(checks, minlength=256)
    assert abs(((histogram - 156.25) ** 2 / 156.25).sum() - 255) < 5 * math.sqrt(2 * 255)
    assert (row_checks(np.arange(0, 512, 2)) == row_checks(np.arange(1, 513, 2))).mean() < 0.05


def test_damaged_bytes_are_not_rows() -> None:
    rng = np.random.default_rng(0)
    rows = sampled_rows(8, draws=8, vocab=100, concentration=2, rng=rng)
    data = np.frombuffer(encode(rows, signal=SampledSignal(draws=8), vocab_size=100, tokens=np.arange(9)), dtype=np.uint8)
    broken = data.copy()
    broken[3 * 8 + 2] &= 0xFE  # the first bit of row 2's composition
    with pytest.raises(DamagedRowsError, match="first id"):
        decode([Piece(broken, 8, 0, 8)], signal=SampledSignal(draws=8), vocab_size=100)
    with pytest.raises(DamagedRowsError):
        decode([Piece(data[:-2], 8, 0, 8)], signal=SampledSignal(draws=8), vocab_size=100)
    broken = data.copy()
    broken[-4:] = 0xFF
    with pytest.raises(DamagedRowsError, match="vocabulary"):
        decode([Piece(broken, 8, 0, 8)], signal=SampledSignal(draws=8), vocab_size=100)
