"""From a teacher's logits to the rows of a sparse signal: exact top-k with its tail, unbiased draws, or the top-1.

Scoring should cost little more than the teacher's own forward, and `torch.topk` or a cumulative sum over the whole vocabulary
would not. Both are therefore done on two levels, over blocks of 64 neighbouring ids:

* top-k: the k blocks with the greatest maxima hold the k greatest logits, so one small top-k over k x 64 candidates is exact;
* draws: inverse transform sampling. A cumulative sum (float64) over block masses finds the block of a draw, a second one
  inside that block finds the id. Block masses are sums of 64 float32 exponentials: the distribution drawn from is the
  softmax to a relative error of about 1e-7.

`sampled` is Random Sampling Knowledge Distillation (arXiv 2503.16870): draws with replacement, so that counts / draws is an
unbiased estimate of the teacher's distribution. Draws are counter based (splitmix64): they depend on the document, the position
and the seed alone, and scoring any subset of positions again gives the same rows. The plain twins, `torch.topk` and
`torch.multinomial` over a softmax, live in the tests.

Shapes: T positions, V vocabulary, K ids of a row, N draws of a row, B blocks of the vocabulary, W = 64 ids in a block, C
candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import SpecError, TeacherError
from limbeck.signals.rows import concatenate
from limbeck.signals.types import HardRows, SampledRows, SparseRows, TopKRows, hard_rows
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal

_BLOCK = 64
# Rows worked on at once on a CPU: 32 x 49152 float32 is 6 MiB, so that the passes over them stay in its caches.
_CPU_ROWS = 32
# Masked logits (-inf) are held here, so that 0 x logit is 0 in the entropy and they differ from the padding of a block.
_FLOOR = -1e30


def select(logits_TV: Tensor, signal: StoredSignal, *, document_id: str, positions_T: Tensor) -> SparseRows:
    """The rows of one signal, on the CPU; see `select_all`."""
    return select_all(logits_TV, (signal,), document_id=document_id, positions_T=positions_T)[0]


def select_all(
    logits_TV: Tensor, signals: Sequence[StoredSignal], *, document_id: str, positions_T: Tensor
) -> tuple[SparseRows, ...]:
    """The rows of several signals from the same logits (any float dtype), on the CPU; exponentials are shared.

    `positions_T` are the positions in the document, int64: row t speaks of the token after position `positions_T[t]`.
    Raises `TeacherError`, naming document and position, where the logits are not a distribution (NaN, +inf, or all -inf).
    """
    taken: dict[int, list[SparseRows]] = {index: [] for index in range(len(signals))}
    soft = {index: signal for index, signal in enumerate(signals) if not isinstance(signal, HardSignal)}
    for temperature in dict.fromkeys(signal.temperature for signal in soft.values()):
        for rows, panel in _panels(logits_TV, temperature=temperature):
            positions = positions_T[rows]
            _require_finite(panel.max_T, document_id=document_id, positions_T=positions)
            for index, signal in soft.items():
                if signal.temperature == temperature:
                    taken[index].append(_take(panel, signal, document_id=document_id, positions_T=positions))
    for index in taken.keys() - soft.keys():
        top = hard(logits_TV)
        max_T = logits_TV.gather(1, top.ids_T[:, None].to(logits_TV.device))[:, 0]
        _require_finite(max_T, document_id=document_id, positions_T=positions_T)
        taken[index] = [top]
    return tuple(concatenate(taken[index]) for index in range(len(signals)))


def top_k(logits_TV: Tensor, *, k: int, temperature: float) -> TopKRows:
    """The k most probable ids with log-probs at `temperature`, and the tail's mass. Rows with NaN logits give NaN.

    The tail is summed from the ids outside the head, not taken as 1 - head: it keeps its relative precision when tiny.
    """
    joined = concatenate([_top_k(panel, k=k) for _, panel in _panels(logits_TV, temperature=temperature)])
    assert isinstance(joined, TopKRows)
    return joined


def sample(logits_TV: Tensor, *, draws: int, temperature: float, uniforms_TN: Tensor) -> SampledRows:
    """`draws` draws with replacement from the softmax at `temperature`.

    By inverse transform of `uniforms_TN`, float64 in [0, 1): the order is that of the ids.
    Ids of a row ascend; K is the greatest number of distinct ids of any row. Rows with NaN logits give NaN entropy.
    """
    assert uniforms_TN.shape[1] == draws, (uniforms_TN.shape, draws)
    panels = _panels(logits_TV, temperature=temperature)
    joined = concatenate([_sample(panel, uniforms_TN=uniforms_TN[rows]) for rows, panel in panels])
    assert isinstance(joined, SampledRows)
    return joined


def hard(logits_TV: Tensor) -> HardRows:
    """The most probable id of each row."""
    return HardRows(logits_TV.argmax(-1).cpu())


def uniforms(document_id: str, positions_T: Tensor, *, draws: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [T, N], that depend on document, position, draw and seed alone.

    Counter based: splitmix64 (Steele, Lea & Flood, OOPSLA 2014) over a key and the position, then over that and the draw. The
    key is the first 64 bits of the document's id (a hash in hex) mixed with the seed. More draws begin with the fewer ones.
    """
    key = np.array([int(document_id[:16], 16) ^ int(_splitmix64(np.array([seed], dtype=np.uint64))[0])], dtype=np.uint64)
    state_T = _splitmix64(key + _GOLDEN * (positions_T.cpu().numpy().astype(np.uint64) + np.uint64(1)))
    bits_TN = _splitmix64(state_T[:, None] + _GOLDEN * np.arange(1, draws + 1, dtype=np.uint64))
    return torch.from_numpy((bits_TN >> np.uint64(11)).astype(np.float64) * 2.0**-53)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, on uint64 with wrap-around."""
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class _Panel:
    """A few rows in blocks, float32, at the temperature. Past the vocabulary logits are -inf and weights 0."""

    shifted_TBW: Tensor  # logits less their maximum
    weights_TBW: Tensor  # exp(shifted)
    products_TBW: Tensor  # room for weights x shifted: fresh memory would cost more than the product
    block_max_TB: Tensor  # of the logits before the shift
    block_mass_TB: Tensor  # sums of weights, float64
    max_T: Tensor
    total_T: Tensor  # sum of all weights, float64: exp(lse - max)
    vocab_size: int


def _panels(logits_TV: Tensor, *, temperature: float) -> Iterator[tuple[slice, _Panel]]:
    """Slices of rows with their panel. A panel is valid until the next one is asked for: they share buffers."""
    num_rows, vocab_size = logits_TV.shape
    num_blocks = -(-vocab_size // _BLOCK)
    step = _CPU_ROWS if logits_TV.device.type == "cpu" else max(num_rows, 1)
    size = (min(step, num_rows), num_blocks * _BLOCK)
    logits_buffer, weights_buffer, products_buffer = (
        torch.empty(size, dtype=torch.float32, device=logits_TV.device) for _ in range(3)
    )
    logits_buffer[:, vocab_size:] = -torch.inf
    for start in range(0, max(num_rows, 1), step):
        rows = slice(start, min(start + step, num_rows))
        shifted_TV, weights_TV, products_TV = (
            buffer[: rows.stop - start] for buffer in (logits_buffer, weights_buffer, products_buffer)
        )
        shifted_TV[:, :vocab_size].copy_(logits_TV[rows])
        if temperature != 1.0:
            shifted_TV.div_(temperature)
        shifted_TBW = shifted_TV.view(len(shifted_TV), num_blocks, _BLOCK)
        block_max_TB = shifted_TBW.amax(-1)
        max_T = block_max_TB.amax(-1)
        shifted_TV[:, :vocab_size].sub_(max_T[:, None]).clamp_(min=_FLOOR)
        weights_TBW = torch.exp(shifted_TV, out=weights_TV).view_as(shifted_TBW)
        block_mass_TB = weights_TBW.sum(-1).double()
        yield (
            rows,
            _Panel(
                shifted_TBW=shifted_TBW,
                weights_TBW=weights_TBW,
                products_TBW=products_TV.view_as(shifted_TBW),
                block_max_TB=block_max_TB,
                block_mass_TB=block_mass_TB,
                max_T=max_T,
                total_T=block_mass_TB.sum(-1),
                vocab_size=vocab_size,
            ),
        )


def _require_finite(max_T: Tensor, *, document_id: str, positions_T: Tensor) -> None:
    # The greatest logit is NaN if any logit is, so it alone tells whether lse is finite.
    broken_T = ~torch.isfinite(max_T)
    if broken_T.any():
        row = int(broken_T.int().argmax())
        raise TeacherError(
            f"document {document_id}, position {int(positions_T[row])}: the teacher's logits are not a distribution "
            f"(the greatest is {max_T[row].item()}); load the teacher in bfloat16 or float32, or leave the document out"
        )


def _take(panel: _Panel, signal: TopKSignal | SampledSignal, *, document_id: str, positions_T: Tensor) -> SparseRows:
    match signal:
        case TopKSignal():
            return _top_k(panel, k=signal.k)
        case SampledSignal():
            return _sample(panel, uniforms_TN=uniforms(document_id, positions_T, draws=signal.draws, seed=signal.seed))


def _top_k(panel: _Panel, *, k: int) -> TopKRows:
    """Exact top-k among the k blocks with the greatest maxima."""
    if k > panel.vocab_size:
        raise SpecError(f"signal.k={k} exceeds the teacher's vocabulary of {panel.vocab_size}; set k <= {panel.vocab_size}")
    num_blocks = panel.shifted_TBW.shape[1]
    best_TB = panel.block_max_TB.topk(min(k, num_blocks), sorted=False).indices
    candidates_TC = _gather_blocks(panel.shifted_TBW, best_TB).flatten(1)
    shifted_TK, places_TK = candidates_TC.topk(k)
    ids_TK = best_TB.gather(1, places_TK // _BLOCK) * _BLOCK + places_TK % _BLOCK
    outside_TB = panel.block_mass_TB.scatter(1, best_TB, 0.0)
    leftover_TC = _gather_blocks(panel.weights_TBW, best_TB).flatten(1).scatter_(1, places_TK, 0.0)
    tail_T = (outside_TB.sum(-1) + leftover_TC.sum(-1)) / panel.total_T
    log_probs_TK = shifted_TK - panel.total_T.log().float()[:, None]
    return TopKRows(ids_TK.cpu(), log_probs_TK.cpu(), tail_T.float().cpu())


def _sample(panel: _Panel, *, uniforms_TN: Tensor) -> SampledRows:
    """One id for each uniform number, by inverse transform over blocks and then inside one."""
    num_blocks = panel.shifted_TBW.shape[1]
    cumulative_TB = panel.block_mass_TB.cumsum(-1)
    mass_TN = uniforms_TN.to(cumulative_TB.device) * cumulative_TB[:, -1:]
    # u < 1, but the product may round up to the total.
    mass_TN = torch.minimum(mass_TN, torch.nextafter(cumulative_TB[:, -1:], cumulative_TB.new_zeros(())))
    block_TN = torch.searchsorted(cumulative_TB, mass_TN, right=True).clamp_(max=num_blocks - 1)
    block_mass_TN = panel.block_mass_TB.gather(1, block_TN)
    mass_TN = mass_TN - (cumulative_TB.gather(1, block_TN) - block_mass_TN)
    inside_TNW = _gather_blocks(panel.weights_TBW, block_TN).double().cumsum(-1)
    # The block's mass was summed in float32: rescale, so that what is left of the mass never runs past the block's end.
    inside_TN = mass_TN * (inside_TNW[:, :, -1] / block_mass_TN)
    inside_TN = torch.minimum(inside_TN, torch.nextafter(inside_TNW[:, :, -1], inside_TN.new_zeros(()))).clamp_(min=0.0)
    place_TN = (inside_TNW <= inside_TN[:, :, None]).sum(-1).clamp_(max=_BLOCK - 1)
    return _count((block_TN * _BLOCK + place_TN).cpu(), entropy_T=_entropy(panel).cpu())


def _entropy(panel: _Panel) -> Tensor:
    """Entropy of the softmax in nats: ln(sum w) - sum(w s) / sum(w), with s the shifted logits and w = exp(s)."""
    products_TV = torch.mul(panel.weights_TBW, panel.shifted_TBW, out=panel.products_TBW).flatten(1)
    # Padding is 0 x -inf: leave it out.
    mean_T = products_TV[:, : panel.vocab_size].sum(-1).double() / panel.total_T
    return (panel.total_T.log() - mean_T).float()


def _gather_blocks(values_TBW: Tensor, blocks_TK: Tensor) -> Tensor:
    """`values_TBW[t, blocks_TK[t, k]]` as [T, K, W]; `index_select` copies whole blocks, which fancy indexing does not."""
    num_rows, num_blocks, width = values_TBW.shape
    first_T1 = torch.arange(num_rows, device=blocks_TK.device)[:, None] * num_blocks
    chosen = values_TBW.reshape(-1, width).index_select(0, (first_T1 + blocks_TK).flatten())
    return chosen.view(*blocks_TK.shape, width)


def _count(ids_TN: Tensor, *, entropy_T: Tensor) -> SampledRows:
    """Draws as distinct ids, ascending, with counts."""
    num_rows, draws = ids_TN.shape
    sorted_TN = ids_TN.sort(-1).values
    is_first_TN = torch.ones_like(sorted_TN, dtype=torch.bool)
    is_first_TN[:, 1:] = sorted_TN[:, 1:] != sorted_TN[:, :-1]
    place_TN = is_first_TN.cumsum(-1) - 1
    width = int(place_TN.max()) + 1 if num_rows else 0
    ids_TK = sorted_TN.new_zeros(num_rows, width).scatter_(1, place_TN, sorted_TN)
    counts_TK = sorted_TN.new_zeros(num_rows, width).scatter_add_(1, place_TN, torch.ones_like(sorted_TN))
    return SampledRows(ids_TK=ids_TK, counts_TK=counts_TK, draws=draws, entropy_T=entropy_T)


def narrow(rows: SparseRows, signal: StoredSignal) -> SparseRows:
    """What `signal` asks for, out of rows that hold more: fewer of the top k, their mass added to the tail, or the top-1."""
    match rows, signal:
        case TopKRows(), TopKSignal(k=k):
            tail_T = rows.tail_T + rows.log_probs_TK[:, k:].exp().sum(-1)
            return TopKRows(ids_TK=rows.ids_TK[:, :k], log_probs_TK=rows.log_probs_TK[:, :k], tail_T=tail_T)
        case (TopKRows() | HardRows(), HardSignal()):
            return hard_rows(rows)
        case (SampledRows(), SampledSignal()):
            return rows
        case _:
            raise AssertionError(f"{type(rows).__name__} do not hold a {signal.kind} signal")
