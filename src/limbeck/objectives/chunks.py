"""One chunk of logits at a time, in buffers allocated once: the arithmetic behind both doors of `limbeck.objectives.head`.

Memory beside the inputs and their gradients, in chunks of float32 logits: the student's softmax at each temperature (1, or 2
where cross-entropy is at another temperature than the signal), 1/2 for its logits in bfloat16 or with two temperatures 1 in
float32; a dense teacher adds 1 for its probabilities and 1/2 (bfloat16) or 1 (float32) for its logits, whatever the divergence,
whose passes work in blocks of at most `PAIR_BLOCK_ELEMENTS`. A softcap adds 1 for float32 logits at one temperature, which else
the softmax overwrites.

Shapes: C positions of a chunk, B of a block, V vocabulary, D student's width, E teacher's width, K ids of a position.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.objectives.pairs import Pair, divergence, gradient
from limbeck.signals.types import DenseRows
from limbeck.spec.objective import PairTerm

CHUNK_ELEMENTS = 2**25
"""Logits of one chunk. Fewer make the products thin and add up the head's gradient more often; more cost only memory."""

CPU_BLOCK_ELEMENTS = 2**21
"""Logits that elementwise passes visit together on a CPU: 8 MB in float32 stay in its cache from one pass to the next."""

_HEAD_PARTS = 4
"""The head's gradient is added up in so many parts where products are narrower than sums: each part is formed beside it."""

PAIR_BLOCK_ELEMENTS = 2**22
"""Logits whose divergence from a dense teacher is taken at once: its half dozen intermediate results are this large each."""


Reader = Callable[[Tensor, slice], Tensor]
"""What an objective reads off the softmax [B, V] of the positions `slice`, at the first temperature: [B, ...], by autograd."""


@dataclass(frozen=True)
class RawStatistics:
    """Statistics before the division by temperature: `lse` has one tensor per temperature, the others are of z itself."""

    lse: tuple[Tensor, ...]
    logits_TK: Tensor
    expected_T: Tensor | None
    teacher_entropy_T: Tensor | None
    divergences: tuple[Tensor, ...] = ()
    """Of the last temperature."""
    teacher_log_prob_T: Tensor | None = None
    """Of a position's first id, at the dense teacher's temperature."""
    read: tuple[Tensor, ...] = ()
    """By the readers."""

    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that depend on the student, in the order that `Chunks.logit_gradient` takes their gradients."""
        expected = () if self.expected_T is None else (self.expected_T,)
        return (*self.lse, self.logits_TK, *expected, *self.divergences, *self.read)


@dataclass(frozen=True)
class _Reading:
    """Of a block of positions: the softmax as a leaf, in the buffer of its chunk, and what was read off it."""

    softmax_BV: Tensor
    read: list[Tensor] = field(default_factory=list)

    def gradient(self, of_read: Sequence[Tensor | None]) -> Tensor | None:
        """Of the logits u, where q = softmax(u) has the gradient g: q (g - sum q g), in a tensor of its own."""
        asked = [(read, given) for read, given in zip(self.read, of_read, strict=True) if given is not None]
        if not asked:
            return None
        (slope_BV,) = torch.autograd.grad([read for read, _ in asked], self.softmax_BV, [given for _, given in asked])
        q_BV = self.softmax_BV.detach()
        return slope_BV.sub(torch.linalg.vecdot(q_BV, slope_BV)[:, None]).mul_(q_BV)


class Chunks:
    """One chunk of logits at a time, in buffers that are allocated once per call.

    `statistics(rows)` leaves the chunk's softmax in the buffers, `logit_gradient(rows, ...)` turns it into the loss's gradient
    with respect to the logits. The head is cast once, not per chunk.
    """

    def __init__(
        self,
        hidden_TD: Tensor,
        head_VD: Tensor,
        *,
        ids_TK: Tensor,
        temperatures: tuple[float, ...],
        teacher: DenseRows | None,
        chunk_tokens: int | None,
        dtype: torch.dtype,
        divergences: tuple[PairTerm, ...] = (),
        softcap: float | None = None,
        readers: tuple[Reader, ...] = (),
        slices: tuple[slice, ...] = (),
    ) -> None:
        self.hidden_TD, self.head_VD = hidden_TD.detach().to(dtype), head_VD.detach().to(dtype)
        self.ids_TK, self.temperatures = ids_TK, temperatures
        self.total, vocabulary = len(hidden_TD), len(head_VD)
        self.chunk = min(chunk_tokens or tokens_of_chunk(vocabulary), max(1, self.total))
        self.readers, self.given_slices = readers, slices
        if slices:
            self.chunk = max(1, *(rows.stop - rows.start for rows in slices))
        on_cpu = hidden_TD.device.type == "cpu"
        self.block = max(1, CPU_BLOCK_ELEMENTS // vocabulary) if on_cpu else self.chunk
        shape, device = (self.chunk, vocabulary), hidden_TD.device
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.softmaxes = [torch.empty(shape, dtype=self.dtype, device=device) for _ in temperatures]
        # With one temperature and no change of dtype, the softmax overwrites the logits; a softcap's slope is read off them.
        in_place = len(temperatures) == 1 and dtype == self.dtype and softcap is None
        self.logits_CV = self.softmaxes[0] if in_place else torch.empty(shape, dtype=dtype, device=device)
        self.teacher, self.divergences, self.softcap = teacher, divergences, softcap
        self.pair_block = max(1, min(self.block, PAIR_BLOCK_ELEMENTS // vocabulary))
        assert teacher is not None or not divergences, "without a dense teacher there is nothing to diverge from"
        if teacher is not None:
            self.teacher_logits_CV = torch.empty(shape, dtype=teacher.hidden_TE.dtype, device=device)
            self.teacher_CV = torch.empty(shape, dtype=self.dtype, device=device)

    def slices(self) -> Iterator[slice]:
        """The chunks: those asked for, or of one size; a single empty one when there are no positions."""
        if self.given_slices:
            return iter(self.given_slices)
        return (slice(start, min(start + self.chunk, self.total)) for start in range(0, max(1, self.total), self.chunk))

    def statistics(self, rows: slice) -> RawStatistics:
        size = rows.stop - rows.start
        logits_CV = torch.mm(self.hidden_TD[rows], self.head_VD.T, out=self.logits_CV[:size])
        if self.softcap is not None:
            for block_BV in logits_CV.split(self.block):
                block_BV.div_(self.softcap).tanh_().mul_(self.softcap)
        logits_CK = logits_CV.gather(1, self.ids_TK[rows]).to(self.dtype)
        expected_C, entropy_C = self._teacher_statistics(rows)
        lse: list[Tensor] = []
        for temperature, softmax_CV in zip(self.temperatures, self.softmaxes, strict=True):
            blocks = zip(logits_CV.split(self.block), softmax_CV[:size].split(self.block), strict=True)
            lse.append(torch.cat([_softmax(logits, temperature, out=softmax) for logits, softmax in blocks]))
        divergences, log_prob_C = self._divergences(rows), self._teacher_log_prob(rows)
        return RawStatistics(tuple(lse), logits_CK, expected_C, entropy_C, divergences, log_prob_C, self._read(rows))

    def _read(self, rows: slice) -> tuple[Tensor, ...]:
        """Block by block, each with an autograd graph of its own, which `logit_gradient` goes back through."""
        size = rows.stop - rows.start
        self.readings: list[_Reading] = []
        if not self.readers:
            return ()
        for start in range(0, max(1, size), self.block):
            block = slice(start, min(start + self.block, size))
            # `.data` has a version of its own: other blocks are overwritten before this one is gone back through.
            softmax_BV = self.softmaxes[0][block].data.requires_grad_()
            positions = slice(rows.start + block.start, rows.start + block.stop)
            with torch.enable_grad():
                self.readings.append(_Reading(softmax_BV, [reader(softmax_BV, positions) for reader in self.readers]))
        columns = zip(*(reading.read for reading in self.readings), strict=True)
        return tuple(torch.cat([part.detach() for part in column]) for column in columns)

    def _teacher_statistics(self, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        """The dense teacher's probabilities, into their buffer; the expectation of z under them, and their entropy."""
        if self.teacher is None:
            return None, None
        size, temperature = rows.stop - rows.start, self.teacher.temperature
        torch.mm(self.teacher.hidden_TE[rows], self.teacher.head_VE.T, out=self.teacher_logits_CV[:size])
        expected, entropy, self.teacher_lse_C = [], [], torch.empty(size, dtype=self.dtype, device=self.teacher_CV.device)
        for start in range(0, max(1, size), self.block):
            block = slice(start, min(start + self.block, size))
            probs, teacher_logits = self.teacher_CV[block], self.teacher_logits_CV[block]
            self.teacher_lse_C[block] = _softmax(teacher_logits, temperature, out=probs)
            expected.append(_dot(probs, self.logits_CV[block]))
            entropy.append(self.teacher_lse_C[block] - _dot(probs, teacher_logits) / temperature)
        return torch.cat(expected), torch.cat(entropy)

    def _teacher_log_prob(self, rows: slice) -> Tensor | None:
        """What the dense teacher gives a position's first id."""
        if self.teacher is None:
            return None
        logit_C1 = self.teacher_logits_CV[: rows.stop - rows.start].gather(1, self.ids_TK[rows, :1]).to(self.dtype)
        return logit_C1.squeeze(1) / self.teacher.temperature - self.teacher_lse_C

    def _divergences(self, rows: slice) -> tuple[Tensor, ...]:
        blocks = self._pair_blocks(slice(0, rows.stop - rows.start))
        values = [[divergence(term, self._pair(term, rows, block)) for term in self.divergences] for block in blocks]
        return tuple(map(torch.cat, zip(*values, strict=True)))

    def _pair_blocks(self, within: slice) -> Iterator[slice]:
        """Parts of a chunk's positions; a single empty one when there are none."""
        starts = range(within.start, max(within.start + 1, within.stop), self.pair_block)
        return (slice(start, min(start + self.pair_block, within.stop)) for start in starts)

    def _pair(self, term: PairTerm, rows: slice, block: slice) -> Pair:
        """Both distributions at the positions `block` of the chunk `rows`, from the buffers, with the term's label share in."""
        assert self.teacher is not None
        q_BV, p_BV = self.softmaxes[-1][block], self.teacher_CV[block]
        log_p_BV = self.teacher_logits_CV[block].to(self.dtype, copy=True).div_(self.teacher.temperature)
        log_p_BV.sub_(self.teacher_lse_C[block, None])
        if term.label_share:
            labels_B1 = self.ids_TK[rows][block, :1]
            p_BV = p_BV * (1 - term.label_share)
            p_BV.scatter_add_(1, labels_B1, torch.full_like(labels_B1, term.label_share, dtype=self.dtype))
            log_p_BV.add_(math.log1p(-term.label_share)).scatter_(1, labels_B1, p_BV.gather(1, labels_B1).log_())
        return Pair(p_BV, log_p_BV, q_BV, q_BV.clamp(min=torch.finfo(self.dtype).tiny).log_())

    def logit_gradient(self, rows: slice, gradients: tuple[Tensor | None, ...]) -> Tensor:
        """From gradients of the raw statistics' leaves to that of the chunk's logits, in the buffers. None means zero."""
        size = rows.stop - rows.start
        *lse, gathered_CK = gradients[: len(self.temperatures) + 1]
        others = gradients[len(self.temperatures) + 1 : len(gradients) - len(self.readers)]
        of_read = gradients[len(gradients) - len(self.readers) :]
        # d lse / d z = softmax / tau, d expected / d z = p, d gathered / d z = 1 at its id.
        weighted = [
            (softmax_CV[:size], gradient_C[:, None] / temperature)
            for softmax_CV, gradient_C, temperature in zip(self.softmaxes, lse, self.temperatures, strict=True)
            if gradient_C is not None
        ]
        if self.teacher is not None and others[0] is not None:
            weighted.append((self.teacher_CV[:size], others[0][:, None]))
        if not weighted:
            weighted.append((self.softmaxes[0][:size], torch.zeros(size, 1, dtype=self.dtype, device=self.logits_CV.device)))
        for start in range(0, size, self.block):
            block = slice(start, min(start + self.block, size))
            through_read_BV = self._through_read(block, of_read)  # before the softmax, its own leaf, is overwritten
            self._add_block_gradient(weighted, rows, block, others[1:])
            if through_read_BV is not None:
                weighted[0][0][block].add_(through_read_BV)
            if gathered_CK is not None:
                weighted[0][0][block].scatter_add_(1, self.ids_TK[rows][block], gathered_CK[block])
            if self.softcap is not None:  # d c tanh(z / c) / d z = 1 - tanh^2
                slope_BV = (self.logits_CV[block].to(self.dtype) / self.softcap).square_().neg_().add_(1)
                weighted[0][0][block].mul_(slope_BV)
            _copy(weighted[0][0][block], out=self.logits_CV[block])
        return self.logits_CV[:size]

    def _through_read(self, block: slice, of_read: tuple[Tensor | None, ...]) -> Tensor | None:
        """The gradient of the block's logits through what was read off their softmax."""
        if not self.readers:
            return None
        parts = [None if given is None else given[block] for given in of_read]
        return self.readings[block.start // self.block].gradient(parts)

    def _add_block_gradient(
        self, weighted: list[tuple[Tensor, Tensor]], rows: slice, block: slice, divergences: tuple[Tensor | None, ...]
    ) -> None:
        """The weighted buffers added up in the first of them, with the gradients of the divergences, on some positions."""
        (first_CV, first_scale_C1), *others = weighted
        asked = [pair for pair in zip(self.divergences, divergences, strict=True) if pair[1] is not None]
        # Where no divergence is asked for, the block is one part: a pass over it is as long as the cache allows.
        for part in self._pair_blocks(block) if asked else [block]:
            # Before the first buffer, which may be the softmax that they are formed from, is overwritten.
            slopes = [
                gradient(term, self._pair(term, rows, part)).mul_(scale_C[part, None] / self.temperatures[-1])
                for term, scale_C in asked
                if scale_C is not None
            ]
            gradient_CV = first_CV[part].mul_(first_scale_C1[part])
            for other_CV, scale_C1 in others:
                gradient_CV.addcmul_(other_CV[part], scale_C1[part])
            for slope_BV in slopes:
                gradient_CV.add_(slope_BV)


class Gradients:
    """Gradients of hidden states and head, added up chunk by chunk; None for what needs none."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, chunks: Chunks) -> None:
        self.chunks = chunks
        self.hidden_TD = torch.empty_like(chunks.hidden_TD) if hidden_TD.requires_grad else None
        self.head_VD = torch.empty_like(chunks.head_VD, dtype=chunks.dtype) if head_VD.requires_grad else None
        self.is_empty = True
        self.part_vocabulary = -(-len(head_VD) // _HEAD_PARTS)
        self.part_PD = None
        if self.head_VD is not None and chunks.head_VD.dtype != chunks.dtype:
            self.part_PD = torch.empty_like(chunks.head_VD[: self.part_vocabulary])

    def add(self, rows: slice, logits_CV: Tensor) -> None:
        """`logits_CV` is the gradient of the logits of `rows`."""
        hidden_CD = self.chunks.hidden_TD[rows]
        if self.hidden_TD is not None:
            torch.mm(logits_CV, self.chunks.head_VD, out=self.hidden_TD[rows])
        if self.head_VD is None:
            return
        if self.part_PD is None:
            self.head_VD.addmm_(logits_CV.T, hidden_CD, beta=0 if self.is_empty else 1)
        else:
            for start in range(0, len(self.head_VD), self.part_vocabulary):
                self._add_part(slice(start, start + self.part_vocabulary), logits_CV, hidden_CD)
        self.is_empty = False

    def _add_part(self, vocabulary: slice, logits_CV: Tensor, hidden_CD: Tensor) -> None:
        """The product in bfloat16, on a part of the vocabulary, into the float32 sum."""
        assert self.head_VD is not None and self.part_PD is not None
        total_PD = self.head_VD[vocabulary]
        part_PD = torch.mm(logits_CV[:, vocabulary].T, hidden_CD, out=self.part_PD[: len(total_PD)])
        if self.is_empty:
            total_PD.copy_(part_PD)
            return
        # By blocks: adding bfloat16 to float32 on a CPU makes a float32 copy of the addend, which must stay small.
        rows = CPU_BLOCK_ELEMENTS // 2 // hidden_CD.shape[1] if hidden_CD.device.type == "cpu" else len(total_PD)
        for total, part in zip(total_PD.split(rows), part_PD.split(rows), strict=True):
            total.add_(part)


def tokens_of_chunk(vocabulary: int) -> int:
    """As many positions as memory is meant for, a power of two: batches are multiples of it, so no thin chunk is left over."""
    return 1 << max(0, (CHUNK_ELEMENTS // vocabulary).bit_length() - 1)


def _softmax(logits_CV: Tensor, temperature: float, *, out: Tensor) -> Tensor:
    """softmax(logits / temperature) into `out`, which may be the logits themselves; returns the logsumexp.

    One pass over the row in cache gives the softmax; the logsumexp follows from its largest entry: log p_max = z_max - lse.
    """
    _copy(logits_CV, out=out)
    if temperature != 1.0:
        out.div_(temperature)
    max_C = out.amax(-1)
    torch.softmax(out, -1, out=out)
    return max_C - out.amax(-1).log()


def _copy(source: Tensor, *, out: Tensor) -> None:
    if source.data_ptr() != out.data_ptr():
        out.copy_(source)


def _dot(probs_CV: Tensor, logits_CV: Tensor) -> Tensor:
    return torch.linalg.vecdot(probs_CV, logits_CV.to(probs_CV.dtype))
