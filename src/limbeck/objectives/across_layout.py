"""Which positions are scored together: chunks of text, chunks joined to whole words, and blocks of positions that cut neither.

A unit is a chunk or a run of joined ones. Everything about a unit stands at its last position. The logits of a block are formed
and forgotten together, so a unit never spans two; a block is as long as memory is meant for, or as one unit that is longer.

Shapes: N positions that count, C chunks in the order of the text, U joined runs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions that count, in the order of the text."""

    places_N: Tensor
    """int64, ascending: where each stands in the batch."""
    pieces_N: Tensor
    """int64: the piece of text that each belongs to."""

    def follow(self, first: Tensor, then: Tensor, *, by: Tensor | int = 1) -> Tensor:
        """bool: `then` is so many positions after `first`, in the batch as here, and in the same piece."""
        near = self.places_N[then] - self.places_N[first] == by
        return near & (self.pieces_N[then] == self.pieces_N[first])


@dataclass(frozen=True, eq=False)
class Units:
    """Of every position: the last position of the unit that it is in, itself where it is in none."""

    last_N: Tensor  # int64
    inside_N: Tensor  # bool
    scored_N: Tensor  # bool, at last positions: whether the unit counts
    tokens_N: Tensor  # int64, at last positions: the student's tokens
    log_prob_N: Tensor  # nats, at last positions: the teacher's

    @property
    def covered_N(self) -> Tensor:
        """bool: in a unit that counts."""
        return self.inside_N & self.scored_N[self.last_N]


def chunk_units(positions: Positions, *, tokens_N: Tensor, log_prob_N: Tensor) -> Units:
    """The chunks as the rows have them; one that reaches to a position that does not count is left out."""
    here_N = torch.arange(len(tokens_N), device=tokens_N.device)
    earlier_N = (tokens_N - 1).clamp(min=0)
    first_N = here_N - earlier_N
    whole_N = (tokens_N > 0) & (first_N >= 0)
    whole_N &= positions.follow(first_N.clamp(min=0), here_N, by=earlier_N)
    return _units(first_N, whole_N, whole_N, log_prob_N)


def joined_units(chunks: Units, positions: Positions, *, closes_N: Tensor, needs_next_N: Tensor) -> Units:
    """Chunks joined with those right after them, up to one that closes, and whose next position is there where it is needed.

    `closes_N` and `needs_next_N` are bool, at the last positions of chunks. A run that nothing closes does not count.
    """
    last_C = chunks.scored_N.nonzero().squeeze(1)
    if not len(last_C):
        return chunks
    first_C = last_C - chunks.tokens_N[last_C] + 1
    begins_C = torch.ones_like(last_C, dtype=torch.bool)
    begins_C[1:] = closes_N[last_C[:-1]] | ~positions.follow(last_C[:-1], first_C[1:])
    ends_C = begins_C.roll(-1).index_fill(0, torch.tensor([len(last_C) - 1], device=last_C.device), True)
    next_C = (last_C + 1).clamp(max=len(closes_N) - 1)
    counts_C = closes_N[last_C] & (~needs_next_N[last_C] | positions.follow(last_C, next_C))
    run_C = begins_C.cumsum(0) - 1
    log_prob_U = chunks.log_prob_N.new_zeros(len(last_C)).index_add(0, run_C, chunks.log_prob_N[last_C])
    last_U, first_U = last_C[ends_C], first_C[begins_C]
    first_N = torch.zeros_like(chunks.last_N).index_put((last_U,), first_U)
    whole_N = torch.zeros_like(chunks.scored_N).index_fill(0, last_U, True)
    scored_N = torch.zeros_like(chunks.scored_N).index_put((last_U,), counts_C[ends_C])
    log_prob_N = torch.zeros_like(chunks.log_prob_N).index_put((last_U,), log_prob_U[: len(last_U)])
    return _units(first_N, whole_N, scored_N, log_prob_N)


def single_units(scored_N: Tensor, log_prob_N: Tensor) -> Units:
    """Every position by itself."""
    here_N = torch.arange(len(scored_N), device=scored_N.device)
    return Units(here_N, scored_N, scored_N, torch.ones_like(here_N), torch.zeros_like(log_prob_N))


def _units(first_N: Tensor, whole_N: Tensor, scored_N: Tensor, log_prob_N: Tensor) -> Units:
    """From the first position of each unit, at its last, where `whole_N` says that there is one."""
    here_N = torch.arange(len(first_N), device=first_N.device)
    beyond = len(first_N)
    next_last_N = here_N.where(whole_N, beyond).flip(0).cummin(0).values.flip(0) if beyond else here_N
    owner_N = next_last_N.clamp(max=max(0, beyond - 1))
    inside_N = (next_last_N < beyond) & (first_N[owner_N] <= here_N)
    return Units(
        last_N=owner_N.where(inside_N, here_N),
        inside_N=inside_N,
        scored_N=scored_N & whole_N,
        tokens_N=(here_N - first_N + 1).where(whole_N, 0),
        log_prob_N=log_prob_N.where(whole_N, 0.0),
    )


@dataclass(frozen=True)
class Block:
    """Positions whose logits are formed together: its own, and perhaps the one after them, to be looked at alone."""

    own: slice
    """Of the N positions."""
    rows: slice
    """Of all blocks' rows, one after another."""

    @property
    def size(self) -> int:
        return self.own.stop - self.own.start


def blocks_of(units: Sequence[Units], *, total: int, tokens: int, with_next: bool) -> list[Block]:
    """Blocks of at most so many tokens that cut no unit, or of one unit where that is longer; at least one block."""
    uncut = torch.zeros(max(0, total - 1), dtype=torch.bool)
    for each in units:
        uncut |= (each.inside_N[:-1] & (each.last_N[:-1] > torch.arange(len(uncut), device=each.last_N.device))).cpu()
    cuts = [*(1 + (~uncut).nonzero().squeeze(1)).tolist(), total]
    blocks: list[Block] = []
    start = row = 0
    while not blocks or start < total:
        place = bisect_right(cuts, start + tokens) - 1
        stop = cuts[place] if place >= 0 and cuts[place] > start else cuts[min(bisect_right(cuts, start), len(cuts) - 1)]
        stop_row = row + stop - start + (1 if with_next and stop < total else 0)
        blocks.append(Block(slice(start, stop), slice(row, stop_row)))
        start, row = stop, stop_row
    return blocks


def rows_of(blocks: Sequence[Block], *, device: torch.device) -> Tensor:
    """int64: the position of each row."""
    ranges = [torch.arange(block.own.start, block.own.start + block.rows.stop - block.rows.start) for block in blocks]
    return torch.cat(ranges).to(device)
