"""From a batch to a loss: the one place where weights, mask, temperature squared and the mean are applied.

loss = sum over terms and unmasked positions of weight * scale * divergence / normaliser, where scale is temperature squared for
a forward KL that asks for it (Hinton et al. 2015, arXiv 1503.02531, section 2) and 1 otherwise.

Masked positions are taken out before the head: they cost nothing, and what they hold, were it NaN, reaches nothing.

Shapes: T positions, N unmasked ones, C of a chunk, K ids of a row, V vocabulary, D student's width.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import overload

import torch
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.objectives.divergences import cross_entropy, dense_forward_kl, forward_kl, renormalised_forward_kl, z_loss
from limbeck.objectives.head import HeadStatistics, LossSums, head_loss
from limbeck.signals.types import DenseRows, HardRows, SignalRows, SparseTarget, TopKRows, sparse_target
from limbeck.spec.objective import CrossEntropy, ForwardKL, HardLabels, Objective, terms

Signal = SparseTarget | DenseRows


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, and what it is made of."""

    loss: Tensor
    """Scalar to differentiate: the weighted sum over the normaliser."""
    per_term: dict[str, Tensor]
    """Detached nats per token by name (`ce` always), unweighted, without temperature squared, over the same normaliser."""
    tokens: int
    """Unmasked positions of this batch."""


def objective_loss(
    objective: Objective,
    *,
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    rows: SignalRows | None = None,
    temperature: float = 1.0,
    mask_T: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    chunk_tokens: int | None = None,
) -> LossOutput:
    """The loss of `objective` where hidden_TD[t] predicts targets_T[t] and `rows[t]` is the teacher's view of it.

    `temperature` is the signal's; `mask_T` is True where a position counts. `normaliser` is the number of counted positions of
    the whole global batch, so that the losses of its micro-batches and ranks add up to its mean; None: of this batch.
    `chunk_tokens` bounds the memory and changes nothing else.
    """
    _check(objective, rows)
    weights = _weights(objective, rows, temperature)
    signal = rows if rows is None or isinstance(rows, DenseRows) else sparse_target(rows)
    if mask_T is not None:
        keep_N = mask_T.nonzero().squeeze(1)
        hidden_TD, targets_T, signal = hidden_TD[keep_N], targets_T[keep_N], _select(signal, keep_N)
    target = signal if isinstance(signal, SparseTarget) else None

    def per_token(statistics: tuple[HeadStatistics, ...], chunk: slice) -> LossSums:
        losses = _losses(weights, statistics, _select(target, chunk))
        loss = torch.stack([weight * losses[name].sum() for name, weight in weights.items()]).sum()
        return LossSums(loss, {name: loss_C.detach().sum() for name, loss_C in losses.items()})

    sums = head_loss(
        hidden_TD,
        head_VD=head_VD,
        ids_TK=targets_T[:, None] if target is None else torch.cat([targets_T[:, None], target.ids_TK], 1),
        per_token=per_token,
        # Cross-entropy and z-loss are those of the model as it is used: at temperature 1, whatever the signal's.
        temperatures=(1.0, temperature) if temperature != 1.0 and rows is not None else (1.0,),
        teacher=signal if isinstance(signal, DenseRows) else None,
        chunk_tokens=chunk_tokens,
    )
    tokens = len(targets_T)
    over = normaliser if normaliser is not None else max(1, tokens)
    return LossOutput(sums.loss / over, {name: total / over for name, total in sums.report.items()}, tokens)


def _weights(objective: Objective, rows: SignalRows | None, temperature: float) -> dict[str, float]:
    """The factor of each loss by name: the term's weight, and temperature squared where it applies."""
    weights: dict[str, float] = {}
    for weighted in terms(objective):
        term = weighted.term
        name: str = term.kind
        scale = 1.0
        if isinstance(term, ForwardKL):
            scale = temperature**2 if term.temperature_squared else 1.0
            if term.tail == "renormalised" and isinstance(rows, TopKRows):
                _warn_renormalised()
                name = "forward_kl_renormalised"
        weights[name] = weights.get(name, 0.0) + weighted.weight * scale
    if objective.z_loss_weight > 0:
        weights["z_loss"] = objective.z_loss_weight
    return weights


def _losses(
    weights: Mapping[str, float], statistics: tuple[HeadStatistics, ...], target: SparseTarget | None
) -> dict[str, Tensor]:
    """Nats of each position by name. Gathered ids are the text's own, then the signal's, most probable first."""
    plain, tempered = statistics[0], statistics[-1]
    of_signal = replace(tempered, gathered_TK=tempered.gathered_TK[:, 1:])
    losses = {"ce": cross_entropy(plain.lse_T, plain.gathered_TK[:, 0])}
    for name in weights:
        match name:
            case "hard":
                losses[name] = cross_entropy(plain.lse_T, plain.gathered_TK[:, 1])
            case "forward_kl":
                losses[name] = dense_forward_kl(of_signal) if target is None else forward_kl(of_signal, target)
            case "forward_kl_renormalised":
                assert target is not None
                losses[name] = renormalised_forward_kl(of_signal, target)
            case "z_loss":
                losses[name] = z_loss(plain.lse_T)
    return losses


def _check(objective: Objective, rows: SignalRows | None) -> None:
    for weighted in terms(objective):
        kind = weighted.term.kind
        if rows is None and not isinstance(weighted.term, CrossEntropy):
            raise SpecError(f"objective {kind} needs a teacher's signal: name a teacher, or use objective ce")
        if isinstance(weighted.term, HardLabels) and not isinstance(rows, TopKRows | HardRows):
            raise SpecError("objective hard needs the teacher's most probable token: use signal hard or topk")


@overload
def _select(signal: SparseTarget | None, positions: Tensor | slice) -> SparseTarget | None: ...
@overload
def _select(signal: Signal | None, positions: Tensor | slice) -> Signal | None: ...
def _select(signal: Signal | None, positions: Tensor | slice) -> Signal | None:
    match signal:
        case SparseTarget(ids_TK, probs_TK, tail_T, entropy_T):
            tail_T = None if tail_T is None else tail_T[positions]
            return SparseTarget(ids_TK[positions], probs_TK[positions], tail_T, entropy_T[positions])
        case DenseRows(hidden_TE):
            return replace(signal, hidden_TE=hidden_TE[positions])
        case None:
            return None


@cache
def _warn_renormalised() -> None:
    warnings.warn(
        "forward_kl with tail=renormalised is biased: its optimum scales the teacher's top-k up to mass 1, so students become "
        "over-confident; tail=bucket is not",
        stacklevel=4,
    )
