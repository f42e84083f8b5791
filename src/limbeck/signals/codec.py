"""The rows of one document as bytes, and back.

Row t (0 <= t < n - 1 for a document of n tokens) speaks of token t + 1. Ids are packed at ceil(log2 V) bits. Every row carries
one byte computed from its two tokens: a row read for other tokens is found out (255 times in 256 each). Sections follow one
another without padding, little-endian, bits from the least significant one on:

| signal    | sections, for R rows                                                                                     |
|-----------|----------------------------------------------------------------------------------------------------------|
| `sampled` | checks R x u8, entropy R x f16, composition R x `draws` bits, ids                                        |
| `topk`    | checks R x u8, ln(tail) R x f16, log-probs R x k x f16, ids R x k                                          |
| `hard`    | checks R x u8, ids R                                                                                     |

The composition of a `sampled` row lines its draws up by id and sets a bit at the first draw of each distinct id: its popcount
is how many ids the row has, the distances between bits are their counts, and the popcount before a row says where its ids
begin. So any range of rows can be read without the others, and no offsets are stored.

Exact: ids and counts. float16 keeps 11 significant bits, so a log-prob (and ln(tail), and the entropy) is within 2^-11 of
its value, relatively; a probability p is within p |ln p| 2^-11 <= 1.8e-4, absolutely. Log-probs are held at -65504 from below.

Shapes: R rows, K ids of a row, N draws, M ids of all rows. Everything is numpy and vectorised over rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck.signals.types import HardRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal

_F16 = np.dtype("<f2")
_MOST_NEGATIVE = float(np.finfo(np.float16).min)


class DamagedRowsError(Exception):
    """Bytes that no rows encode to; the store adds where they are."""


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a document whose `num_rows` rows are `data`, uint8."""

    data: np.ndarray
    num_rows: int
    start: int
    stop: int


@dataclass(frozen=True)
class Decoded:
    """The rows of some pieces one after another, their checks (uint8), and how many bytes they were read from."""

    rows: SparseRows
    checks: np.ndarray
    num_bytes: int


def row_checks(tokens: np.ndarray) -> np.ndarray:
    """One byte for each row, uint8 [n - 1], from its token and the next (order matters); no rows for fewer than two tokens."""
    unsigned = np.asarray(tokens).astype(np.uint32)
    here, following = unsigned[:-1], unsigned[1:]
    # The two odd multipliers are those of xxHash32; the final product carries every bit of both tokens to the top byte.
    mixed = (here * np.uint32(0x9E3779B1)) ^ (following * np.uint32(0x85EBCA77) + np.uint32(0xC2B2AE3D))
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x27D4EB2F)
    return (mixed >> np.uint32(24)).astype(np.uint8)


def encode(rows: SparseRows, *, signal: StoredSignal, vocab_size: int, tokens: np.ndarray) -> bytes:
    """All rows of one document as bytes. `tokens` are all its tokens, one more than rows."""
    width = id_bits(vocab_size)
    num_rows = max(len(tokens) - 1, 0)
    checks = row_checks(tokens).tobytes()
    match rows, signal:
        case SampledRows(), SampledSignal(draws=draws):
            assert (rows.draws, len(rows.ids_TK)) == (draws, num_rows)
            counts_RK = rows.counts_TK.numpy()
            assert bool((counts_RK.sum(-1) == draws).all())
            stored_RK = counts_RK > 0
            first_RK = counts_RK.cumsum(-1) - counts_RK + np.arange(num_rows)[:, None] * draws
            composition = np.zeros(num_rows * draws, dtype=np.uint8)
            composition[first_RK[stored_RK]] = 1
            ids_M = rows.ids_TK.numpy()[stored_RK]
            sections = [_float16(rows.entropy_T.numpy()), np.packbits(composition, bitorder="little").tobytes()]
        case TopKRows(), TopKSignal(k=k):
            assert tuple(rows.ids_TK.shape) == (num_rows, k)
            with np.errstate(divide="ignore"):  # an empty tail is -inf, held at the most negative float16
                log_tail_R = np.log(rows.tail_T.numpy().astype(np.float64))
            ids_M = rows.ids_TK.numpy().reshape(-1)
            sections = [_float16(log_tail_R), _float16(rows.log_probs_TK.numpy())]
        case HardRows(), HardSignal():
            assert len(rows.ids_T) == num_rows
            ids_M = rows.ids_T.numpy()
            sections = []
        case _:
            raise AssertionError(f"{type(rows).__name__} are not rows of a {signal.kind} signal")
    assert ids_M.size == 0 or 0 <= ids_M.min() <= ids_M.max() < vocab_size
    return b"".join([checks, *sections, pack(ids_M, bits=width)])


def decode(pieces: Sequence[Piece], *, signal: StoredSignal, vocab_size: int) -> Decoded:
    """The rows of all pieces, in order, padded to a common K. Raises `DamagedRowsError` where bytes cannot be rows."""
    width = id_bits(vocab_size)
    for piece in pieces:
        assert 0 <= piece.start <= piece.stop <= piece.num_rows
    checks = np.concatenate([piece.data[piece.start : piece.stop] for piece in pieces] or [np.empty(0, np.uint8)])
    if len(checks) != sum(piece.stop - piece.start for piece in pieces):
        raise DamagedRowsError("fewer bytes than rows")
    rows: SparseRows
    try:
        match signal:
            case SampledSignal(draws=draws):
                rows, num_bytes = _decode_sampled(pieces, draws=draws, width=width)
            case TopKSignal(k=k):
                rows, num_bytes = _decode_top_k(pieces, k=k, width=width)
            case HardSignal():
                ids_M, num_bytes = _ids(((piece, piece.num_rows, piece.start, piece.stop) for piece in pieces), width=width)
                rows = HardRows(torch.from_numpy(ids_M))
    except ValueError as error:
        raise DamagedRowsError(str(error)) from error
    ids = rows.ids_T if isinstance(rows, HardRows) else rows.ids_TK
    if ids.numel() and int(ids.max()) >= vocab_size:
        raise DamagedRowsError(f"an id is not below the vocabulary of {vocab_size}")
    return Decoded(rows=rows, checks=checks, num_bytes=len(checks) + num_bytes)


def encoded_size(data: np.ndarray, *, num_rows: int, signal: StoredSignal, vocab_size: int) -> int:
    """How many bytes a document of `num_rows` rows has; `data` must hold at least what comes before its ids."""
    match signal:
        case SampledSignal(draws=draws):
            begin = 3 * num_rows + _bytes(num_rows * draws)
            num_ids = int(np.bitwise_count(data[3 * num_rows : begin]).sum())
        case TopKSignal(k=k):
            begin, num_ids = 3 * num_rows + 2 * num_rows * k, num_rows * k
        case HardSignal():
            begin, num_ids = num_rows, num_rows
    return begin + _bytes(num_ids * id_bits(vocab_size))


def _decode_sampled(pieces: Sequence[Piece], *, draws: int, width: int) -> tuple[SampledRows, int]:
    compositions, entropies, wanted = [], [], []
    num_bytes = 0
    for piece in pieces:
        begin = 3 * piece.num_rows
        entropies.append(_read_float16(piece.data, piece.num_rows + 2 * piece.start, piece.stop - piece.start))
        before = _popcount(piece.data, begin=begin, bits=piece.start * draws)
        composition = _read_bits(piece.data, begin=begin, start=piece.start * draws, stop=piece.stop * draws)
        compositions.append(composition)
        wanted.append((piece, begin + _bytes(piece.num_rows * draws), before, before + int(np.count_nonzero(composition))))
        num_bytes += 2 * len(entropies[-1]) + _bytes(len(composition))
    composition_RN = np.concatenate(compositions or [np.empty(0, np.uint8)]).reshape(-1, draws)
    if not composition_RN[:, 0].all():
        raise DamagedRowsError("a row has no first id")
    ids_M, id_bytes = _ids(wanted, width=width)
    # The first bit of every row is set, so the distance to the next set bit is a count, across rows too.
    first_M = np.flatnonzero(composition_RN)
    counts_M = np.diff(first_M, append=composition_RN.size)
    row_M = first_M // draws
    num_ids_R = np.bincount(row_M, minlength=len(composition_RN))
    place_M = np.arange(len(first_M)) - (num_ids_R.cumsum() - num_ids_R)[row_M]
    ids_RK = np.zeros((len(composition_RN), int(num_ids_R.max(initial=0))), dtype=np.int64)
    counts_RK = np.zeros_like(ids_RK)
    ids_RK[row_M, place_M] = ids_M
    counts_RK[row_M, place_M] = counts_M
    entropy_R = np.concatenate(entropies or [np.empty(0, _F16)]).astype(np.float32)
    rows = SampledRows(torch.from_numpy(ids_RK), torch.from_numpy(counts_RK), draws, torch.from_numpy(entropy_R))
    return rows, num_bytes + id_bytes


def _decode_top_k(pieces: Sequence[Piece], *, k: int, width: int) -> tuple[TopKRows, int]:
    tails, log_probs, wanted = [np.empty(0, _F16)], [np.empty(0, _F16)], []
    for piece in pieces:
        num_rows = piece.stop - piece.start
        tails.append(_read_float16(piece.data, piece.num_rows + 2 * piece.start, num_rows))
        log_probs.append(_read_float16(piece.data, 3 * piece.num_rows + 2 * piece.start * k, num_rows * k))
        wanted.append((piece, (3 + 2 * k) * piece.num_rows, piece.start * k, piece.stop * k))
    ids_M, id_bytes = _ids(wanted, width=width)
    rows = TopKRows(
        ids_TK=torch.from_numpy(ids_M.reshape(-1, k)),
        log_probs_TK=torch.from_numpy(np.concatenate(log_probs).astype(np.float32).reshape(-1, k)),
        tail_T=torch.from_numpy(np.exp(np.concatenate(tails).astype(np.float32))),
    )
    return rows, id_bytes + 2 * len(rows.ids_TK) * (1 + k)


def _ids(wanted: Iterable[tuple[Piece, int, int, int]], *, width: int) -> tuple[np.ndarray, int]:
    """Ids [start, stop) of each piece's id section, which begins at byte `begin`; int64 [M], and the bytes they lie in."""
    packed, bit_offsets, num_bytes = [], [], 0
    for piece, begin, start, stop in wanted:
        first, last = start * width // 8, _bytes(stop * width)
        section = piece.data[begin + first : begin + last]
        if len(section) != last - first:
            raise DamagedRowsError("fewer ids than its rows speak of")
        packed.append(section)
        bit_offsets.append(np.arange(start, stop, dtype=np.int64) * width + (num_bytes - first) * 8)
        num_bytes += last - first
    packed.append(np.zeros(4, dtype=np.uint8))  # a word may begin in the last byte
    return unpack(np.concatenate(packed), np.concatenate(bit_offsets or [np.empty(0, np.int64)]), bits=width), num_bytes


def id_bits(vocab_size: int) -> int:
    """Bits of one packed id: ceil(log2 V), at least 1."""
    return max((vocab_size - 1).bit_length(), 1)


def pack(ids_M: np.ndarray, *, bits: int) -> bytes:
    """Unsigned numbers below 2^bits, one after another, least significant bit first."""
    bits_MB = (ids_M.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)).astype(np.uint8) & np.uint8(1)
    return np.packbits(bits_MB, bitorder="little").tobytes()


def unpack(packed: np.ndarray, bit_offsets_M: np.ndarray, *, bits: int) -> np.ndarray:
    """The numbers of `bits` <= 25 bits at the given bit offsets, int64; `packed` ends 3 bytes or more past their first."""
    assert bits <= 25, "a number and the bits before it in its first byte share one 32-bit word"
    # Overlapping little-endian words, one beginning at every byte.
    words = np.ndarray(shape=len(packed) - 3, dtype="<u4", buffer=packed, strides=(1,))
    shifted_M = words[bit_offsets_M >> 3] >> (bit_offsets_M & 7).astype(np.uint32)
    return (shifted_M & np.uint32((1 << bits) - 1)).astype(np.int64)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _float16(values: np.ndarray) -> bytes:
    return np.clip(values, _MOST_NEGATIVE, None).astype(_F16).tobytes()


def _read_float16(data: np.ndarray, offset: int, count: int) -> np.ndarray:
    return data[offset : offset + 2 * count].view(_F16)


def _read_bits(data: np.ndarray, *, begin: int, start: int, stop: int) -> np.ndarray:
    """Bits [start, stop) of the section that begins at byte `begin`, one uint8 each."""
    bits = np.unpackbits(data[begin + start // 8 : begin + _bytes(stop)], bitorder="little")
    return bits[start % 8 : start % 8 + stop - start]


def _popcount(data: np.ndarray, *, begin: int, bits: int) -> int:
    """How many of the first `bits` bits of the section are set."""
    whole = int(np.bitwise_count(data[begin : begin + bits // 8]).sum())
    return whole + int(np.count_nonzero(_read_bits(data, begin=begin, start=bits - bits % 8, stop=bits)))
