"""Two signal stores compared position by position: how far is one teacher's word from the other's, in nats per token.

A is the reference p (a teacher in full precision, say) and B is q (the same one quantised). The stores are read for the
documents they share, and rows belong to the same tokens or there is an error. A store does not hold a whole distribution, so
neither can a KL be had whole. Which number is given depends on what A and B hold, and every one errs on the same side:

* both hold a head (`topk`, `topp`, `hybrid`): KL on the partition {every id in both heads, all others together}. By the
  data-processing inequality this is a lower bound of KL(p || q). `outside_mass` is p's mass in the bucket: where it is small,
  little can be hidden. Both sides are made to sum to one, so rounding of the log-probs enters squared.
* A `sampled`, B with a head: KL = cross-entropy less entropy. A's entropy is stored, and the cross-entropy is linear in p, so
  the draws estimate it without bias. An id outside B's head has at most the smaller of B's least head probability and B's tail;
  it is given that much, so the expectation is a lower bound.
* both `sampled`: no estimate of KL from samples is unbiased (it is no polynomial in p and q). The squared distance is one:
  S = Σ_i c_i (c_i - 1) / (N (N - 1)) + Σ_i d_i (d_i - 1) / (M (M - 1)) - 2 Σ_i c_i d_i / (N M), and by Pinsker
  KL >= ‖p - q‖₁² / 2 >= ‖p - q‖₂² / 2. Draws of the same seed are coupled: the n-th draws of both come from one uniform
  number, which document, position and seed tell (`limbeck.signals.draws`). By inverse transform both are in the order of
  those numbers, which so tell the two that belong together, however many more one has; these min(N, M) pairs are left out of
  the last sum, which is over the N M - min(N, M) others. Importance weights multiply their counts.
* otherwise no KL: only the top-1 is compared, where both hold one.

A single position's estimate from draws is mostly noise: median, p99, maximum and worst positions are given for heads alone.
Means carry a 95% bootstrap interval over documents; `standard_error` is what draws and positions together add to the mean.

Shapes: T positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from limbeck.errors import StoreError
from limbeck.report.statistics import Estimate, ratio_estimate
from limbeck.signals.distance import Floats, Ints, drawn_kl, head_of, partition_kl, squared_distance
from limbeck.signals.draws import uniforms
from limbeck.signals.manifest import differences
from limbeck.signals.store import SignalStore
from limbeck.signals.types import ChunkRows, HardRows, HybridRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import SampledSignal, StoredSignal

Measure = Literal["partition", "cross_entropy", "pinsker", "top1"]

MEANING: dict[Measure, str] = {
    "partition": "a lower bound of KL(A || B): the ids in both heads, all others as one",
    "cross_entropy": "an unbiased estimate, from A's draws, of a lower bound of KL(A || B)",
    "pinsker": "an unbiased estimate, from both's draws, of half the squared distance, a lower bound of KL(A || B)",
    "top1": "no KL: only the top-1 is in both",
}
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Position:
    """One position of a document, and the most probable token of A and of B there, with each one's own probability."""

    document: str
    position: int
    kl_nats: float
    top1: tuple[int, int]
    top1_probability: tuple[float, float]


@dataclass(frozen=True)
class StoreDiff:
    """What `diff` found. KL and entropy are in nats per token; `entropy_shift` is B's less A's."""

    measure: Measure
    documents: int
    positions: int
    only_in_a: int
    """Documents."""
    only_in_b: int
    differs: tuple[str, ...]
    """What differs between the identities, documents aside: the question that the numbers answer."""
    kl: Estimate | None
    standard_error: float | None
    median: float | None
    p99: float | None
    maximum: float | None
    outside_mass: float | None
    top1_flips: Estimate | None
    """Share of the positions."""
    entropy_shift: Estimate | None
    worst: tuple[Position, ...]


@dataclass(frozen=True)
class _Compared:
    """Position by position, float64 [T]; None where it cannot be had."""

    kl_T: Floats | None
    outside_T: Floats | None
    flips_T: Floats | None
    shift_T: Floats | None


def diff(
    reference: SignalStore, other: SignalStore, *, worst: int = 5, progress: Callable[[int, int], None] | None = None
) -> StoreDiff:
    """Compare `other` (B) with `reference` (A) over the documents they share. `progress` is given (rows done, rows in all).

    Raises `StoreError` where they share nothing, were tokenised otherwise, or hold nothing that can be compared.
    """
    measure = _measure(reference, other)
    shared = [name for name in reference.document_ids if name in other and reference.num_rows(name) > 0]
    if not shared:
        raise StoreError(f"{reference.path} and {other.path} share no document; compare stores of the same texts")
    total = sum(reference.num_rows(name) for name in shared)
    found: list[_Compared] = []
    top: list[Position] = []
    lengths: list[int] = []
    done = 0
    for group in groups(reference, shared):
        rows_A, rows_B = _same_tokens(reference, other, group)
        sizes = [reference.num_rows(name) for name in group]
        uniforms_TN = _common_uniforms(reference.signal, other.signal, names=group, sizes=sizes)
        compared = _compare(rows_A, rows_B, measure=measure, uniforms_TN=uniforms_TN)
        found.append(compared)
        lengths += sizes
        if measure == "partition" and compared.kl_T is not None:
            top += _worst_of(compared.kl_T, rows_A, rows_B, names=group, sizes=sizes, at_most=worst)
            top = sorted(top, key=lambda position: -position.kl_nats)[:worst]
        done += sum(sizes)
        if progress is not None:
            progress(done, total)
    return _summary(reference, other, measure=measure, parts=found, lengths=np.array(lengths), worst=tuple(top))


def _measure(reference: SignalStore, other: SignalStore) -> Measure:
    """What can be compared, or why nothing can."""
    one, two = reference.identity, other.identity
    if one.tokenizer != two.tokenizer:
        raise StoreError(
            f"{reference.path} speaks of tokens of tokenizer {one.tokenizer} and {other.path} of {two.tokenizer}; only stores "
            "of the same tokenizer can be compared"
        )
    kinds = (reference.signal.kind, other.signal.kind)
    if "chunks" in kinds:
        raise StoreError(
            f"{reference.path} holds {kinds[0]} and {other.path} holds {kinds[1]}: chunks have no distribution over tokens to "
            "compare; `limbeck cache info` gives their mean log-prob"
        )
    if "hard" in kinds:
        if not (_has_top1(reference) and _has_top1(other)):
            raise StoreError(
                f"{reference.path} holds {kinds[0]} and {other.path} holds {kinds[1]}: draws have no top-1 to compare; write "
                "the sampled store with signal.keep_top1=true"
            )
        return "top1"
    match kinds:
        case ("sampled", "sampled"):
            for store in (reference, other):
                if fewest_draws(store.signal) < 2:
                    raise StoreError(
                        f"{store.path} has rows of a single draw, which tell no distance from other draws; compare a store of "
                        "signal.draws >= 2, and signal.min_draws >= 2 where it is set"
                    )
            return "pinsker"
        case ("sampled", _):
            return "cross_entropy"
        case (_, "sampled"):
            raise StoreError(
                f"{other.path} holds draws, which give no KL from {reference.path} ({kinds[0]}) to it; name it first to "
                "compare the other way round"
            )
        case _:
            return "partition"


def _has_top1(store: SignalStore) -> bool:
    return store.signal.keep_top1 if isinstance(store.signal, SampledSignal) else True


def fewest_draws(signal: StoredSignal) -> int:
    """Of a row, if draws are all that rows hold; else 0."""
    if not isinstance(signal, SampledSignal):
        return 0
    return signal.draws if signal.min_draws is None else signal.min_draws


def _common_uniforms(one: StoredSignal, two: StoredSignal, *, names: Sequence[str], sizes: Sequence[int]) -> Floats | None:
    """The numbers that the draws of both came from, float64 [T, N]; None where they came from different ones."""
    if not (isinstance(one, SampledSignal) and isinstance(two, SampledSignal) and one.seed == two.seed):
        return None
    most = max(one.draws, two.draws)
    numbers = [uniforms(name, torch.arange(size), draws=most, seed=one.seed) for name, size in zip(names, sizes, strict=True)]
    return torch.cat(numbers).numpy()


def groups(store: SignalStore, names: Sequence[str]) -> Iterator[list[str]]:
    """Documents of some thousand rows together."""
    group: list[str] = []
    rows = 0
    for name in names:
        group.append(name)
        rows += store.num_rows(name)
        if rows >= ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _same_tokens(reference: SignalStore, other: SignalStore, names: Sequence[str]) -> tuple[SparseRows, SparseRows]:
    for name in names:
        if reference.num_rows(name) != other.num_rows(name):
            raise StoreError(
                f"document {name} has {reference.num_rows(name)} rows in {reference.path} and {other.num_rows(name)} in "
                f"{other.path}; tokenise it once for both"
            )
    one, two = reference.whole(names), other.whole(names)
    wrong = np.flatnonzero(one.checks != two.checks)
    if wrong.size:
        name, position = locate(int(wrong[0]), names=names, sizes=[reference.num_rows(name) for name in names])
        raise StoreError(
            f"document {name}, position {position}: {reference.path} and {other.path} speak of different tokens; tokenise it "
            "once for both"
        )
    assert not isinstance(one.rows, ChunkRows) and not isinstance(two.rows, ChunkRows), "refused before"
    return one.rows, two.rows


def locate(row: int, *, names: Sequence[str], sizes: Sequence[int]) -> tuple[str, int]:
    """Document and position of a row among those of several documents."""
    ends = np.cumsum(sizes)
    place = int(np.searchsorted(ends, row, side="right"))
    return names[place], row - int(ends[place] - sizes[place])


def _compare(rows_A: SparseRows, rows_B: SparseRows, *, measure: Measure, uniforms_TN: Floats | None) -> _Compared:
    kl_T = outside_T = None
    match rows_A, rows_B:
        case (SampledRows(), SampledRows()) if measure == "pinsker":
            kl_T = squared_distance(rows_A, rows_B, uniforms_TN=uniforms_TN) / 2
        case (SampledRows(), TopKRows() | HybridRows()):
            kl_T = drawn_kl(rows_A, head_of(rows_B))
        case (TopKRows() | HybridRows(), TopKRows() | HybridRows()):
            kl_T, outside_T = partition_kl(head_of(rows_A), head_of(rows_B))
    one, two = _top1(rows_A), _top1(rows_B)
    flips_T = (one != two).astype(np.float64) if one is not None and two is not None else None
    shift_T = None
    if not isinstance(rows_A, HardRows) and not isinstance(rows_B, HardRows):
        shift_T = rows_B.entropy_T.double().numpy() - rows_A.entropy_T.double().numpy()
    return _Compared(kl_T, outside_T, flips_T, shift_T)


def _top1(rows: SparseRows) -> Ints | None:
    match rows:
        case HardRows():
            return rows.ids_T.numpy()
        case SampledRows():
            return rows.top1_T.numpy() if rows.top1_T is not None else None
        case _:
            return rows.ids_TK[:, 0].numpy()


def _worst_of(
    kl_T: Floats, rows_A: SparseRows, rows_B: SparseRows, *, names: Sequence[str], sizes: Sequence[int], at_most: int
) -> list[Position]:
    assert isinstance(rows_A, (TopKRows, HybridRows)) and isinstance(rows_B, (TopKRows, HybridRows))
    found = []
    for row in np.argsort(-kl_T, kind="stable")[:at_most].tolist():
        name, position = locate(row, names=names, sizes=sizes)
        ids = (int(rows_A.ids_TK[row, 0]), int(rows_B.ids_TK[row, 0]))
        probabilities = (float(rows_A.log_probs_TK[row, 0].exp()), float(rows_B.log_probs_TK[row, 0].exp()))
        found.append(Position(name, position, float(kl_T[row]), ids, probabilities))
    return found


def _summary(
    reference: SignalStore,
    other: SignalStore,
    *,
    measure: Measure,
    parts: Sequence[_Compared],
    lengths: Ints,
    worst: tuple[Position, ...],
) -> StoreDiff:
    kl_T, outside_T, flips_T, shift_T = (_joined([getattr(part, name) for part in parts]) for name in _Compared.__annotations__)
    is_exact = measure == "partition"
    held, asked = reference.identity.as_json(), other.identity.as_json()
    for identity in (held, asked):
        identity.pop("documents")
        if reference.signal.kind != other.signal.kind:  # the fields of one kind mean nothing for another
            identity["signal"] = {name: identity["signal"].get(name) for name in ("kind", "temperature")}
    quantiles = np.quantile(kl_T, [0.5, 0.99, 1.0]).tolist() if is_exact and kl_T is not None else [None] * 3
    return StoreDiff(
        measure=measure,
        documents=len(lengths),
        positions=int(lengths.sum()),
        only_in_a=sum(name not in other for name in reference.document_ids),
        only_in_b=sum(name not in reference for name in other.document_ids),
        differs=tuple(differences(held, asked, words=("in A", "in B"))),
        kl=_mean(kl_T, lengths),
        standard_error=float(kl_T.std() / len(kl_T) ** 0.5) if kl_T is not None and not is_exact else None,
        median=quantiles[0],
        p99=quantiles[1],
        maximum=quantiles[2],
        outside_mass=float(outside_T.mean()) if outside_T is not None else None,
        top1_flips=_mean(flips_T, lengths),
        entropy_shift=_mean(shift_T, lengths),
        worst=worst,
    )


def _joined(parts: Sequence[Floats | None]) -> Floats | None:
    held = [part for part in parts if part is not None]
    return np.concatenate(held) if held else None


def _mean(values_T: Floats | None, lengths: Ints) -> Estimate | None:
    """The mean over positions, with its interval over documents."""
    if values_T is None:
        return None
    sums = np.add.reduceat(values_T, np.cumsum(lengths) - lengths)
    return ratio_estimate(sums, lengths.astype(np.float64))
