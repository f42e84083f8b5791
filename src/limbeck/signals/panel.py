"""A teacher's logits, a few rows at a time, in blocks of 64 neighbouring ids; and what several signals need of them, once.

Scoring should cost little more than the teacher's own forward, and `torch.topk`, `argmax` or a cumulative sum over the whole
vocabulary would not. Everything here is therefore done on two levels, blocks first and then ids inside a few blocks:

* the most probable ids: the k blocks with the greatest maxima hold the k greatest logits, so a small top-k over k x 64
  candidates is exact. Equal logits, which are common in bfloat16, are ordered by id, as a stable sort would; so a shorter head
  is the beginning of a longer one.
* masses: sums of 64 float32 weights, added up in float64. `torch.softmax` passes over a row once, but the float32 sum that it
  divides by is off by 1e-5: its weights are divided by their own sum again, and are within 2e-7 of the softmax, relatively.

Logits are shifted by their maximum before they are divided by a temperature, so that signals of all temperatures share them.
Plain twins, in the tests: a stable sort and the float64 softmax.

Shapes: T rows, V vocabulary, B blocks of the vocabulary, W = 64 ids in a block, K ids of a row.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 64
# Rows worked on at once on a CPU: 16 x 49152 float32 is 3 MiB, so that the passes over them stay in its caches.
_CPU_ROWS = 16
# Masked logits (-inf) and what follows the last id in its block are held here, so that 0 x logit is 0 in the entropy.
_FLOOR = -1e30
_LOW_WORD = 0xFFFF_FFFF
# NumPy's partition takes a quarter of the time of torch.topk, but on one thread, where torch takes all.
_FEW_THREADS = 4


class Room:
    """Memory that panels share: fresh pages would cost more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        """Empty; buffers are made when they are first asked for, and grow."""
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The buffer of this name, with whatever is in it."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < math.prod(size):
            buffer = self._buffers[name] = torch.empty(math.prod(size), dtype=dtype, device=self._device)
        return buffer[: math.prod(size)].view(size)

    def blocks(self, values_TBW: Tensor, blocks_TK: Tensor) -> Tensor:
        """`values_TBW[t, blocks_TK[t, k]]` as [T, K, W], valid until blocks are asked for again.

        `index_select` copies whole blocks, which fancy indexing does not.
        """
        num_rows, num_blocks, width = values_TBW.shape
        first_T1 = torch.arange(num_rows, device=blocks_TK.device)[:, None] * num_blocks
        chosen_TKW = self.get("blocks", *blocks_TK.shape, width)
        torch.index_select(values_TBW.flatten(0, 1), 0, (first_T1 + blocks_TK).flatten(), out=chosen_TKW.flatten(0, 1))
        return chosen_TKW


@dataclass(frozen=True)
class Softmax:
    """A panel's distributions at one temperature, up to a factor for each row. Past the vocabulary weights are 0."""

    temperature: float
    weights_TBW: Tensor  # float32
    mass_TB: Tensor  # float64, sums of weights
    peak_T: Tensor  # float32, the greatest weights
    shifted_TBW: Tensor
    room: Room

    @cached_property
    def total_T(self) -> Tensor:
        """Sums of all weights, float64."""
        return self.mass_TB.sum(-1)

    @cached_property
    def log_sum_T(self) -> Tensor:
        """Log of the sum of exp(shifted / temperature), float64."""
        return (self.total_T / self.peak_T).log()

    @cached_property
    def entropy_T(self) -> Tensor:
        """Entropies in nats, float32: the log of the sum less the mean of shifted / temperature."""
        scratch_TBW = self.room.get("scratch", *self.weights_TBW.shape)
        products_TBW = torch.mul(self.weights_TBW, self.shifted_TBW, out=scratch_TBW)
        mean_T = products_TBW.sum(-1).double().sum(-1) / (self.total_T * self.temperature)
        return (self.log_sum_T - mean_T).float()

    @contextmanager
    def without(self, ids_TK: Tensor) -> Iterator["Softmax"]:
        """The weights of all other ids, as long as the context lasts: those of `ids_TK` (repeats allowed) are 0 in it.

        Masses of the blocks concerned are summed anew, not subtracted: a tiny rest keeps its relative precision.
        """
        weights_TV = self.weights_TBW.flatten(1)
        taken_TK = weights_TV.gather(1, ids_TK)
        weights_TV.scatter_(1, ids_TK, 0.0)
        blocks_TK = ids_TK // BLOCK
        left_TK = self.room.blocks(self.weights_TBW, blocks_TK).sum(-1).double()
        yield replace(self, mass_TB=self.mass_TB.scatter(1, blocks_TK, left_TK))
        weights_TV.scatter_(1, ids_TK, taken_TK)


class Panel:
    """A few rows of logits less their maxima. Valid until the next panel is asked for."""

    def __init__(self, shifted_TBW: Tensor, *, max_T: Tensor, block_max_TB: Tensor, widest_head: int, room: Room) -> None:
        """See `panels`; `block_max_TB` is of the shifted logits."""
        self.max_T = max_T
        self._shifted_TBW, self._block_max_TB, self._widest_head, self._room = shifted_TBW, block_max_TB, widest_head, room
        self._softmaxes: dict[float, Softmax] = {}

    def softmax(self, temperature: float) -> Softmax:
        """The softmax of logits / temperature."""
        if temperature not in self._softmaxes:
            self._softmaxes[temperature] = self._softmax(temperature)
        return self._softmaxes[temperature]

    def _softmax(self, temperature: float) -> Softmax:
        size = self._shifted_TBW.shape
        weights_TBW = self._room.get(f"weights at {temperature!r}", *size)
        divided_TBW = self._shifted_TBW
        if temperature != 1.0:
            divided_TBW = torch.div(divided_TBW, temperature, out=self._room.get("scratch", *size))
        torch.softmax(divided_TBW.flatten(1), -1, out=weights_TBW.flatten(1))
        return Softmax(
            temperature,
            weights_TBW,
            mass_TB=weights_TBW.sum(-1).double(),
            peak_T=weights_TBW.flatten(1).gather(1, self.top1_T[:, None])[:, 0],
            shifted_TBW=self._shifted_TBW,
            room=self._room,
        )

    @cached_property
    def top1_T(self) -> Tensor:
        """The id of the greatest logit, the lowest where several are."""
        block_T1 = self._block_max_TB.argmax(-1, keepdim=True)
        return block_T1[:, 0] * BLOCK + self._room.blocks(self._shifted_TBW, block_T1)[:, 0].argmax(-1)

    def head(self, k: int) -> tuple[Tensor, Tensor]:
        """The ids [T, k] of the k greatest logits, greatest first, equal ones by id; and their shifted logits."""
        ids_TK, shifted_TK = self._head
        assert k <= self._widest_head, (k, self._widest_head)
        return ids_TK[:, :k], shifted_TK[:, :k]

    @cached_property
    def _head(self) -> tuple[Tensor, Tensor]:
        """Bits of floats of one sign ascend with their magnitude: above an id they make one number to sort by."""
        _, num_blocks, width = self._shifted_TBW.shape
        numbers_B = torch.arange(num_blocks, device=self.max_T.device)
        keys_TB = self._block_max_TB.abs().view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(numbers_B)
        best_TB = _smallest(keys_TB, k=min(self._widest_head, num_blocks)) & _LOW_WORD
        magnitudes_TBW = self._room.blocks(self._shifted_TBW, best_TB).abs_().view(torch.int32)
        keys_TBW = self._room.get("keys", *magnitudes_TBW.shape, dtype=torch.int64).copy_(magnitudes_TBW)
        keys_TBW.bitwise_left_shift_(32).bitwise_or_((best_TB * width)[:, :, None])
        keys_TBW.bitwise_or_(torch.arange(width, device=self.max_T.device))
        keys_TK = _smallest(keys_TBW.flatten(1), k=self._widest_head)
        return keys_TK & _LOW_WORD, -(keys_TK >> 32).int().view(torch.float32)

    def shifted(self, ids_TK: Tensor) -> Tensor:
        """Logits of some ids less the row's maximum."""
        return self._shifted_TBW.flatten(1).gather(1, ids_TK)


def _smallest(keys_TC: Tensor, *, k: int) -> Tensor:
    """The k smallest of each row's distinct keys, ascending; `keys_TC` is overwritten."""
    if keys_TC.device.type != "cpu" or torch.get_num_threads() > _FEW_THREADS:
        return keys_TC.topk(k, largest=False).values
    keys_TC.numpy().partition(k - 1, axis=-1)
    return keys_TC[:, :k].sort(-1).values


def log_probs(shifted_TK: Tensor, *, temperature: float, log_sum_T: Tensor) -> Tensor:
    """Log-probs, float64, from shifted logits and the softmax's `log_sum_T`; -inf where the logit was."""
    log_probs_TK = shifted_TK.double() / temperature - log_sum_T[:, None]
    return log_probs_TK.masked_fill_(shifted_TK <= _FLOOR, -torch.inf)


def panels(logits_TV: Tensor, *, widest_head: int = 0) -> Iterator[tuple[slice, Panel]]:
    """Slices of rows with their panel, from logits of any float dtype; `widest_head` is the greatest k of a `Panel.head`."""
    num_rows, vocab_size = logits_TV.shape
    num_blocks = -(-vocab_size // BLOCK)
    step = _CPU_ROWS if logits_TV.device.type == "cpu" else max(num_rows, 1)
    room = Room(logits_TV.device)
    for start in range(0, max(num_rows, 1), step):
        rows = slice(start, min(start + step, num_rows))
        shifted_TBW = room.get("shifted", rows.stop - start, num_blocks, BLOCK)
        shifted_TV = shifted_TBW.flatten(1)
        shifted_TV[:, :vocab_size].copy_(logits_TV[rows])
        shifted_TV[:, vocab_size:] = -torch.inf
        block_max_TB = shifted_TBW.amax(-1)
        max_T = block_max_TB.amax(-1)
        shifted_TV.sub_(max_T[:, None]).clamp_(min=_FLOOR)
        block_max_TB.sub_(max_T[:, None]).clamp_(min=_FLOOR)
        yield rows, Panel(shifted_TBW, max_T=max_T, block_max_TB=block_max_TB, widest_head=widest_head, room=room)
