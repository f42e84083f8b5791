"""Statistics of the head's logits, with gradients, never holding [tokens, vocabulary] beyond one chunk.

Every objective that reads a few ids per position (cross-entropy, z-loss, KL to a sparse target) is a small function of
`lse = logsumexp_v(z_v / tau)` and the gathered `z_ids / tau`, where `z = hidden @ head.T`; KL to a dense teacher `p` adds
`sum_v p_v z_v / tau`. So the cost of any of them is that of fused cross-entropy plus O(K) per position.

Two doors to the same arithmetic (`_Chunks`):
- `head_loss`, for training: the gradient is formed while a chunk's softmax is still in its buffer, as in Liger Kernel's fused
  linear cross-entropy (arXiv 2410.10989), so that the head costs three matrix products and nothing is computed twice.
- `head_statistics`: the statistics themselves, differentiable in any way; backward computes each chunk's logits again.
Plain twin, which materialises the logits: `tests/objectives/reference.py`.

Precision: products run in the autocast dtype (without autocast, in the hidden states' own); softmax and its statistics are
float32 (float64 for float64 inputs), and so is the sum of the head's gradient over chunks.

Shapes: T positions, C positions of a chunk, V vocabulary, D student's width, E teacher's width, K ids of a position.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.signals.types import DenseRows

CHUNK_ELEMENTS = 2**25
"""Logits of one chunk. Fewer make the products thin and add up the head's gradient more often; more cost only memory."""

CPU_BLOCK_ELEMENTS = 2**21
"""Logits that elementwise passes visit together on a CPU: 8 MB in float32 stay in its cache from one pass to the next."""


@dataclass(frozen=True)
class HeadStatistics:
    """What an objective may know of the logits z at one temperature tau. float32 (float64 for float64 inputs), nats."""

    lse_T: Tensor
    """logsumexp over the vocabulary of z / tau."""
    gathered_TK: Tensor
    """z / tau at the ids."""
    expected_T: Tensor | None = None
    """sum_v p_v z_v / tau under the dense teacher's p; None without one."""
    teacher_entropy_T: Tensor | None = None
    """Entropy of the dense teacher's p; None without one."""


@dataclass(frozen=True)
class LossSums:
    """A sum over positions to differentiate, and detached sums by name to report."""

    loss: Tensor
    report: dict[str, Tensor]


PerToken = Callable[[tuple[HeadStatistics, ...], slice], LossSums]
"""The loss of the positions `slice`, from their statistics at each temperature."""


def head_loss(
    hidden_TD: Tensor,
    *,
    head_VD: Tensor,
    ids_TK: Tensor,
    per_token: PerToken,
    temperatures: tuple[float, ...] = (1.0,),
    teacher: DenseRows | None = None,
    chunk_tokens: int | None = None,
) -> LossSums:
    """Sum of `per_token` over all chunks; its gradients are formed here, and `backward` only scales them, once.

    `per_token` is called with the statistics of each chunk, one for each temperature, and the chunk's slice of positions. It
    may differentiate through nothing but the statistics. Under `torch.no_grad` the gradient work is left out.
    """
    options: dict[str, Any] = {
        "teacher": _in_product_dtype(teacher),
        "chunk_tokens": chunk_tokens,
        "dtype": _product_dtype(hidden_TD),
    }
    training = torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad)
    with torch.no_grad(), torch.autocast(hidden_TD.device.type, enabled=False):
        chunks = _Chunks(hidden_TD, head_VD, ids_TK=ids_TK, temperatures=temperatures, **options)
        gradients = _Gradients(hidden_TD, head_VD, chunks) if training else None
        sums = [_chunk_loss(chunks, rows, per_token, gradients) for rows in chunks.slices()]
    loss = torch.stack([chunk.loss for chunk in sums]).sum()
    if gradients is not None:
        loss = _StoredGradients.apply(hidden_TD, head_VD, loss, gradients)
    return LossSums(loss, {name: torch.stack([chunk.report[name] for chunk in sums]).sum() for name in sums[0].report})


def head_statistics(
    hidden_TD: Tensor,
    *,
    head_VD: Tensor,
    ids_TK: Tensor,
    temperatures: tuple[float, ...] = (1.0,),
    teacher: DenseRows | None = None,
    chunk_tokens: int | None = None,
) -> tuple[HeadStatistics, ...]:
    """The statistics of all positions at each temperature, differentiable with respect to hidden states and head."""
    options = temperatures, _in_product_dtype(teacher), chunk_tokens, _product_dtype(hidden_TD)
    *lse, logits_TK, expected_T, entropy_T = _Statistics.apply(hidden_TD, head_VD, ids_TK, *options)
    return _RawStatistics(tuple(lse), logits_TK, expected_T, entropy_T).at(temperatures)


@dataclass(frozen=True)
class _RawStatistics:
    """Statistics before the division by temperature: `lse` has one tensor per temperature, the others are of z itself."""

    lse: tuple[Tensor, ...]
    logits_TK: Tensor
    expected_T: Tensor | None
    teacher_entropy_T: Tensor | None

    def at(self, temperatures: tuple[float, ...]) -> tuple[HeadStatistics, ...]:
        expected = [None if self.expected_T is None else self.expected_T / temperature for temperature in temperatures]
        return tuple(
            HeadStatistics(lse_T, self.logits_TK / temperature, expected_T, self.teacher_entropy_T)
            for temperature, lse_T, expected_T in zip(temperatures, self.lse, expected, strict=True)
        )

    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that depend on the student, in the order that `_Chunks.logit_gradient` takes their gradients."""
        return (*self.lse, self.logits_TK) if self.expected_T is None else (*self.lse, self.logits_TK, self.expected_T)


class _Chunks:
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
    ) -> None:
        self.hidden_TD, self.head_VD = hidden_TD.detach().to(dtype), head_VD.detach().to(dtype)
        self.ids_TK, self.temperatures = ids_TK, temperatures
        self.total, vocabulary = len(hidden_TD), len(head_VD)
        self.chunk = min(chunk_tokens or _power_of_two(CHUNK_ELEMENTS // vocabulary), max(1, self.total))
        on_cpu = hidden_TD.device.type == "cpu"
        self.block = max(1, CPU_BLOCK_ELEMENTS // vocabulary) if on_cpu else self.chunk
        shape, device = (self.chunk, vocabulary), hidden_TD.device
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.softmaxes = [torch.empty(shape, dtype=self.dtype, device=device) for _ in temperatures]
        # With one temperature and no change of dtype, the softmax overwrites the logits.
        in_place = len(temperatures) == 1 and dtype == self.dtype
        self.logits_CV = self.softmaxes[0] if in_place else torch.empty(shape, dtype=dtype, device=device)
        self.teacher = teacher
        if teacher is not None:
            self.teacher_logits_CV = torch.empty(shape, dtype=teacher.hidden_TE.dtype, device=device)
            self.teacher_CV = torch.empty(shape, dtype=self.dtype, device=device)

    def slices(self) -> Iterator[slice]:
        """The chunks; a single empty one when there are no positions."""
        return (slice(start, min(start + self.chunk, self.total)) for start in range(0, max(1, self.total), self.chunk))

    def statistics(self, rows: slice) -> _RawStatistics:
        size = rows.stop - rows.start
        logits_CV = torch.mm(self.hidden_TD[rows], self.head_VD.T, out=self.logits_CV[:size])
        logits_CK = logits_CV.gather(1, self.ids_TK[rows]).to(self.dtype)
        expected_C, entropy_C = self._teacher_statistics(rows)
        lse = []
        for temperature, softmax_CV in zip(self.temperatures, self.softmaxes, strict=True):
            blocks = zip(logits_CV.split(self.block), softmax_CV[:size].split(self.block), strict=True)
            lse.append(torch.cat([_softmax(logits, temperature, out=softmax) for logits, softmax in blocks]))
        return _RawStatistics(tuple(lse), logits_CK, expected_C, entropy_C)

    def _teacher_statistics(self, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        """The dense teacher's probabilities, into their buffer; the expectation of z under them, and their entropy."""
        if self.teacher is None:
            return None, None
        size, temperature = rows.stop - rows.start, self.teacher.temperature
        torch.mm(self.teacher.hidden_TE[rows], self.teacher.head_VE.T, out=self.teacher_logits_CV[:size])
        expected, entropy = [], []
        for start in range(0, max(1, size), self.block):
            block = slice(start, min(start + self.block, size))
            probs, teacher_logits = self.teacher_CV[block], self.teacher_logits_CV[block]
            lse = _softmax(teacher_logits, temperature, out=probs)
            expected.append(_dot(probs, self.logits_CV[block]))
            entropy.append(lse - _dot(probs, teacher_logits) / temperature)
        return torch.cat(expected), torch.cat(entropy)

    def logit_gradient(self, rows: slice, gradients: tuple[Tensor | None, ...]) -> Tensor:
        """From gradients of the raw statistics' leaves to that of the chunk's logits, in the buffers. None means zero."""
        size = rows.stop - rows.start
        count = len(self.temperatures)
        # d lse / d z = softmax / tau, d expected / d z = p, d gathered / d z = 1 at its id.
        weighted = [
            (softmax_CV[:size], gradient[:, None] / temperature)
            for softmax_CV, gradient, temperature in zip(self.softmaxes, gradients[:count], self.temperatures, strict=True)
            if gradient is not None
        ]
        if self.teacher is not None and gradients[-1] is not None:
            weighted.append((self.teacher_CV[:size], gradients[-1][:, None]))
        if not weighted:
            weighted.append((self.softmaxes[0][:size], torch.zeros(size, 1, dtype=self.dtype, device=self.logits_CV.device)))
        ids_CK, gathered_CK = self.ids_TK[rows], gradients[count]
        for start in range(0, size, self.block):
            block = slice(start, min(start + self.block, size))
            (first_CV, scale_C1), *others = weighted
            gradient_CV = first_CV[block].mul_(scale_C1[block])
            for other_CV, scale_C1 in others:
                gradient_CV.addcmul_(other_CV[block], scale_C1[block])
            if gathered_CK is not None:
                gradient_CV.scatter_add_(1, ids_CK[block], gathered_CK[block])
            _copy(gradient_CV, out=self.logits_CV[block])
        return self.logits_CV[:size]


class _Gradients:
    """Gradients of hidden states and head, added up chunk by chunk; None for what needs none."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, chunks: _Chunks) -> None:
        self.chunks = chunks
        self.hidden_TD = torch.empty_like(chunks.hidden_TD) if hidden_TD.requires_grad else None
        self.head_VD = torch.zeros_like(chunks.head_VD, dtype=chunks.dtype) if head_VD.requires_grad else None
        self.part_VD = None
        if self.head_VD is not None and chunks.head_VD.dtype != chunks.dtype:
            self.part_VD = torch.empty_like(chunks.head_VD)

    def add(self, rows: slice, logits_CV: Tensor) -> None:
        """`logits_CV` is the gradient of the logits of `rows`."""
        hidden_CD = self.chunks.hidden_TD[rows]
        if self.hidden_TD is not None:
            torch.mm(logits_CV, self.chunks.head_VD, out=self.hidden_TD[rows])
        if self.head_VD is None:
            return
        if self.part_VD is None:
            self.head_VD.addmm_(logits_CV.T, hidden_CD)
            return
        torch.mm(logits_CV.T, hidden_CD, out=self.part_VD)
        # By parts: adding bfloat16 to float32 on a CPU makes a float32 copy of the addend, which must stay small.
        rows_per_part = CPU_BLOCK_ELEMENTS // 2 // hidden_CD.shape[1] if hidden_CD.device.type == "cpu" else len(self.head_VD)
        for total, part in zip(self.head_VD.split(rows_per_part), self.part_VD.split(rows_per_part), strict=True):
            total.add_(part)


def _chunk_loss(chunks: _Chunks, rows: slice, per_token: PerToken, gradients: _Gradients | None) -> LossSums:
    raw = chunks.statistics(rows)
    if gradients is None:
        return per_token(raw.at(chunks.temperatures), rows)
    leaves = tuple(leaf.requires_grad_() for leaf in raw.leaves())
    with torch.enable_grad():
        sums = per_token(raw.at(chunks.temperatures), rows)
    gradients.add(rows, chunks.logit_gradient(rows, torch.autograd.grad(sums.loss, leaves, allow_unused=True)))
    return LossSums(sums.loss.detach(), sums.report)


class _StoredGradients(torch.autograd.Function):
    """The identity on a loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, loss: Tensor, gradients: _Gradients) -> Tensor:
        ctx.dtypes = hidden_TD.dtype, head_VD.dtype
        ctx.gradients = gradients.hidden_TD, gradients.head_VD
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, and so given away once: a second copy of the head's gradient would cost more than it is worth.
        assert ctx.gradients is not None, "head_loss can be backpropagated once; compute it again, or use head_statistics"
        (hidden_TD, head_VD), ctx.gradients = ctx.gradients, None
        return (
            None if hidden_TD is None else hidden_TD.mul_(scale).to(ctx.dtypes[0]),
            None if head_VD is None else head_VD.mul_(scale).to(ctx.dtypes[1]),
            None,
            None,
        )


class _Statistics(torch.autograd.Function):
    """Raw statistics of all positions; backward computes each chunk's softmax again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        ids_TK: Tensor,
        temperatures: tuple[float, ...],
        teacher: DenseRows | None,
        chunk_tokens: int | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(hidden_TD, head_VD)
        ctx.options = {
            "ids_TK": ids_TK,
            "temperatures": temperatures,
            "teacher": teacher,
            "chunk_tokens": chunk_tokens,
            "dtype": dtype,
        }
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            chunks = _Chunks(hidden_TD, head_VD, **ctx.options)
            raw = [chunks.statistics(rows) for rows in chunks.slices()]
        lse = [torch.cat(parts) for parts in zip(*(chunk.lse for chunk in raw), strict=True)]
        logits_TK = torch.cat([chunk.logits_TK for chunk in raw])
        if teacher is None:
            return *lse, logits_TK, None, None
        expected_T = torch.cat([chunk.expected_T for chunk in raw if chunk.expected_T is not None])
        entropy_T = torch.cat([chunk.teacher_entropy_T for chunk in raw if chunk.teacher_entropy_T is not None])
        ctx.mark_non_differentiable(entropy_T)
        return *lse, logits_TK, expected_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, head_VD = ctx.saved_tensors
        leaf_grads = grads[:-1] if ctx.options["teacher"] is not None else grads[:-2]
        with torch.autocast(hidden_TD.device.type, enabled=False):
            chunks = _Chunks(hidden_TD, head_VD, **ctx.options)
            gradients = _Gradients(hidden_TD, head_VD, chunks)
            for rows in chunks.slices():
                chunks.statistics(rows)
                parts = tuple(None if grad is None else grad[rows] for grad in leaf_grads)
                gradients.add(rows, chunks.logit_gradient(rows, parts))
        d_hidden_TD = None if gradients.hidden_TD is None else gradients.hidden_TD.to(hidden_TD.dtype)
        d_head_VD = None if gradients.head_VD is None else gradients.head_VD.to(head_VD.dtype)
        return d_hidden_TD, d_head_VD, None, None, None, None, None


def _power_of_two(bound: int) -> int:
    """The largest one within the bound: batches are multiples of it, so that no thin chunk is left over."""
    return 1 << max(0, bound.bit_length() - 1)


def _product_dtype(hidden_TD: Tensor) -> torch.dtype:
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device) and hidden_TD.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_TD.dtype


def _in_product_dtype(teacher: DenseRows | None) -> DenseRows | None:
    if teacher is None:
        return None
    dtype = _product_dtype(teacher.hidden_TE)
    return DenseRows(teacher.hidden_TE.to(dtype), teacher.head_VE.to(dtype), teacher.temperature)


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
