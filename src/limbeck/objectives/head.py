"""Statistics of the head's logits, with gradients, never holding [tokens, vocabulary] beyond one chunk.

Every objective that reads a few ids per position (cross-entropy, z-loss, KL to a sparse target) is a small function of
`lse = logsumexp_v(z_v / tau)` and the gathered `z_ids / tau`, where `z = hidden @ head.T`; KL to a dense teacher `p` adds
`sum_v p_v z_v / tau`. So the cost of any of them is that of fused cross-entropy plus O(K) per position. Other divergences from
a dense teacher (`limbeck.objectives.pairs`) are read off both softmaxes block by block, in value and in gradient.

Two doors to the same arithmetic:
- `head_loss`, for training: the gradient is formed while a chunk's softmax is still in its buffer, as in Liger Kernel's fused
  linear cross-entropy (arXiv 2410.10989), so that the head costs three matrix products and nothing is computed twice.
- `head_statistics`: the statistics themselves, differentiable in any way; backward computes each chunk's logits again.
Plain twin, which materialises the logits: `tests/objectives/reference.py`.

Precision: products run in the autocast dtype (without autocast, in the hidden states' own); softmax and its statistics are
float32 (float64 for float64 inputs), and so is the sum of the head's gradient over chunks.

Buffers and memory: `limbeck.objectives.chunks`.

Shapes: T positions, C positions of a chunk, V vocabulary, D student's width, E teacher's width, K ids of a position.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.objectives.chunks import Chunks, Gradients, RawStatistics, Reader
from limbeck.signals.types import DenseRows
from limbeck.spec.objective import PairTerm


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
    divergences: tuple[Tensor, ...] = ()
    """Those asked for, between the dense teacher's p and the student at the last temperature."""
    teacher_log_prob_T: Tensor | None = None
    """log p of a position's first id; None without a dense teacher, and from `head_statistics`."""
    read: tuple[Tensor, ...] = ()
    """What the readers made of the softmax at the first temperature; empty from `head_statistics`."""


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
    divergences: tuple[PairTerm, ...] = (),
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    readers: tuple[Reader, ...] = (),
    slices: tuple[slice, ...] = (),
) -> LossSums:
    """Sum of `per_token` over all chunks; its gradients are formed here, and `backward` only scales them, once.

    `divergences` from a dense teacher are taken at the last temperature; their label share goes to the first id of a position.

    `softcap` c makes the student's logits z into c tanh(z / c), before any temperature.

    `readers` are given the softmax at the first temperature, which must be 1, and what they make of it is a statistic like the
    others. `slices` are the chunks, where they cannot be cut anywhere; they cover all positions in order.

    `per_token` is called with the statistics of each chunk, one for each temperature, and the chunk's slice of positions. It
    may differentiate through nothing but the statistics. Under `torch.no_grad` the gradient work is left out.
    """
    options: dict[str, Any] = {
        "teacher": _in_product_dtype(teacher),
        "divergences": divergences,
        "softcap": softcap,
        "chunk_tokens": chunk_tokens,
        "dtype": _product_dtype(hidden_TD),
        "readers": readers,
        "slices": slices,
    }
    assert not readers or temperatures[0] == 1.0, "what is read off the softmax is that of the model as it is used"
    training = torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad)
    with torch.no_grad(), torch.autocast(hidden_TD.device.type, enabled=False):
        chunks = Chunks(hidden_TD, head_VD, ids_TK=ids_TK, temperatures=temperatures, **options)
        gradients = Gradients(hidden_TD, head_VD, chunks) if training else None
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
    softcap: float | None = None,
    chunk_tokens: int | None = None,
) -> tuple[HeadStatistics, ...]:
    """The statistics of all positions at each temperature, differentiable with respect to hidden states and head."""
    options = temperatures, _in_product_dtype(teacher), softcap, chunk_tokens, _product_dtype(hidden_TD)
    *lse, logits_TK, expected_T, entropy_T = _Statistics.apply(hidden_TD, head_VD, ids_TK, *options)
    return _at(RawStatistics(tuple(lse), logits_TK, expected_T, entropy_T), temperatures)


def _at(raw: RawStatistics, temperatures: tuple[float, ...]) -> tuple[HeadStatistics, ...]:
    expected = [None if raw.expected_T is None else raw.expected_T / temperature for temperature in temperatures]
    return tuple(
        HeadStatistics(
            lse_T,
            raw.logits_TK / temperature,
            expected_T,
            raw.teacher_entropy_T,
            raw.divergences,
            raw.teacher_log_prob_T,
            raw.read,
        )
        for temperature, lse_T, expected_T in zip(temperatures, raw.lse, expected, strict=True)
    )


def _chunk_loss(chunks: Chunks, rows: slice, per_token: PerToken, gradients: Gradients | None) -> LossSums:
    raw = chunks.statistics(rows)
    if gradients is None:
        return per_token(_at(raw, chunks.temperatures), rows)
    leaves = tuple(leaf.requires_grad_() for leaf in raw.leaves())
    with torch.enable_grad():
        sums = per_token(_at(raw, chunks.temperatures), rows)
    gradients.add(rows, chunks.logit_gradient(rows, torch.autograd.grad(sums.loss, leaves, allow_unused=True)))
    return LossSums(sums.loss.detach(), sums.report)


class _StoredGradients(torch.autograd.Function):
    """The identity on a loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, loss: Tensor, gradients: Gradients) -> Tensor:
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
        softcap: float | None,
        chunk_tokens: int | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(hidden_TD, head_VD)
        ctx.options = {
            "ids_TK": ids_TK,
            "temperatures": temperatures,
            "teacher": teacher,
            "softcap": softcap,
            "chunk_tokens": chunk_tokens,
            "dtype": dtype,
        }
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            chunks = Chunks(hidden_TD, head_VD, **ctx.options)
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
            chunks = Chunks(hidden_TD, head_VD, **ctx.options)
            gradients = Gradients(hidden_TD, head_VD, chunks)
            for rows in chunks.slices():
                chunks.statistics(rows)
                parts = tuple(None if grad is None else grad[rows] for grad in leaf_grads)
                gradients.add(rows, chunks.logit_gradient(rows, parts))
        d_hidden_TD = None if gradients.hidden_TD is None else gradients.hidden_TD.to(hidden_TD.dtype)
        d_head_VD = None if gradients.head_VD is None else gradients.head_VD.to(head_VD.dtype)
        return d_hidden_TD, d_head_VD, None, None, None, None, None, None


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
