"""A toy student, teacher and text in float64, and rows of every signal: what conformance checks run on.

The rows are made here, by plain code of their own, and not by `limbeck.signals.select`.

Shapes: T positions, V vocabulary, D student's width, E teacher's width, K ids of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.errors import SpecError
from limbeck.signals.types import DenseRows, HardRows, HybridRows, SampledRows, SignalRows, TopKRows
from limbeck.spec.signal import (
    ChunksSignal,
    DenseSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    TopKSignal,
    TopPSignal,
)


@dataclass(frozen=True)
class Toy:
    """A batch. All tensors are float64 but for the targets."""

    hidden_TD: Tensor
    head_VD: Tensor
    targets_T: Tensor
    teacher_hidden_TE: Tensor
    teacher_head_VE: Tensor
    projection_ED: Tensor | None
    """From the student's width to the teacher's, where the two differ."""
    sampled_log_probs_T: Tensor
    """What the student as it was made gives the targets: it drew them."""

    def teacher_probs(self, temperature: float) -> Tensor:
        """The teacher's distribution, [T, V]."""
        return torch.softmax(self.teacher_hidden_TE @ self.teacher_head_VE.T / temperature, -1)

    def at(self, positions: Tensor | slice) -> "Toy":
        """The same of some positions."""
        return replace(
            self,
            hidden_TD=self.hidden_TD[positions],
            targets_T=self.targets_T[positions],
            teacher_hidden_TE=self.teacher_hidden_TE[positions],
            sampled_log_probs_T=self.sampled_log_probs_T[positions],
        )


def make_toy(*, tokens: int = 17, vocabulary: int = 31, width: int = 6, teacher_width: int = 8, seed: int = 0) -> Toy:
    """A teacher and a student that know nothing of one another; the text is drawn from the teacher."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    teacher_hidden_TE, teacher_head_VE = normal(tokens, teacher_width), normal(vocabulary, teacher_width)
    probs_TV = torch.softmax(teacher_hidden_TE @ teacher_head_VE.T, -1)
    hidden_TD, head_VD = normal(tokens, width), normal(vocabulary, width)
    targets_T = torch.multinomial(probs_TV, 1, generator=draw).squeeze(1)
    return Toy(
        hidden_TD=hidden_TD,
        head_VD=head_VD,
        targets_T=targets_T,
        teacher_hidden_TE=teacher_hidden_TE,
        teacher_head_VE=teacher_head_VE,
        projection_ED=normal(teacher_width, width) if teacher_width != width else None,
        sampled_log_probs_T=_log_probs(hidden_TD, head_VD, targets_T),
    )


def taught(toy: Toy, *, noise: float, seed: int = 1) -> Toy:
    """The same with a student that is its teacher, but for some noise in its hidden states."""
    draw = torch.Generator().manual_seed(seed)
    hidden_TE = toy.teacher_hidden_TE
    noise_TE = torch.randn(hidden_TE.shape, generator=draw, dtype=hidden_TE.dtype)
    hidden_TD, head_VD = hidden_TE + noise * noise_TE, toy.teacher_head_VE.clone()
    sampled_T = _log_probs(hidden_TD, head_VD, toy.targets_T)
    return replace(toy, hidden_TD=hidden_TD, head_VD=head_VD, projection_ED=None, sampled_log_probs_T=sampled_T)


def _log_probs(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    return (hidden_TD @ head_VD.T).log_softmax(-1).gather(1, targets_T[:, None]).squeeze(1)


def toy_rows(signal: Signal, toy: Toy, *, seed: int = 2) -> SignalRows:
    """What the toy's teacher says, in the shape of a signal."""
    draw = torch.Generator().manual_seed(seed)
    probs_TV = toy.teacher_probs(getattr(signal, "temperature", 1.0))
    entropy_T = torch.special.entr(probs_TV).sum(-1)
    match signal:
        case DenseSignal(temperature=temperature):
            return DenseRows(toy.teacher_hidden_TE, toy.teacher_head_VE, temperature)
        case HardSignal():
            return HardRows(probs_TV.argmax(-1))
        case TopKSignal(k=k):
            return _top_rows(probs_TV, torch.full_like(toy.targets_T, k), entropy_T)
        case TopPSignal(p=p, cap=cap):
            before_TV = probs_TV.sort(-1, descending=True).values.cumsum(-1)
            return _top_rows(probs_TV, (1 + (before_TV < p).sum(-1)).clamp(max=cap), entropy_T)
        case SampledSignal(draws=draws, proposal_temperature=proposal):
            proposal_TV = probs_TV.pow(1 / proposal) / probs_TV.pow(1 / proposal).sum(-1, keepdim=True)
            ids_TK, counts_TK = _drawn(proposal_TV, draws, draw)
            weights_TK = (probs_TV / proposal_TV).gather(1, ids_TK) if proposal != 1 else None
            return SampledRows(ids_TK, counts_TK, entropy_T, weights_TK, probs_TV.argmax(-1) if signal.keep_top1 else None)
        case HybridSignal(k=k, draws=draws):
            head = _top_rows(probs_TV, torch.full_like(toy.targets_T, k), entropy_T)
            rest_TV = probs_TV.scatter(1, head.ids_TK, 0.0)
            return HybridRows(head.ids_TK, head.log_probs_TK, head.tail_T, *_drawn(rest_TV, draws, draw), entropy_T)
        case ChunksSignal():
            raise SpecError("signal chunks is about two vocabularies, and the toy has one: use another signal")


def _top_rows(probs_TV: Tensor, kept_T: Tensor, entropy_T: Tensor) -> TopKRows:
    top = probs_TV.topk(min(int(kept_T.max()), probs_TV.shape[1]))
    real_TK = torch.arange(top.indices.shape[1]) < kept_T[:, None]
    probs_TK = torch.where(real_TK, top.values, 0.0)
    tail_T = (1 - probs_TK.sum(-1)).clamp(min=0)
    return TopKRows(torch.where(real_TK, top.indices, 0), probs_TK.log(), tail_T, entropy_T)


def _drawn(probs_TV: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct ids and their counts, padded with id 0, count 0; all padding where there is no mass to draw from."""
    some_T = probs_TV.sum(-1) > 0
    drawn_TN = torch.multinomial(torch.where(some_T[:, None], probs_TV, 1.0), draws, replacement=True, generator=generator)
    counted = [row.unique(return_counts=True) for row in drawn_TN]
    width = max(len(ids) for ids, _ in counted)
    ids_TK = torch.stack([pad(ids, (0, width - len(ids))) for ids, _ in counted]) * some_T[:, None]
    return ids_TK, torch.stack([pad(counts, (0, width - len(counts))) for _, counts in counted]) * some_T[:, None]


def rows_at(rows: SignalRows | None, positions: Tensor | slice) -> SignalRows | None:
    """The rows of some positions."""
    return None if rows is None else _each(rows, lambda name, tensor: tensor if name == "head_VE" else tensor[positions])


def in_float32(rows: SignalRows | None) -> SignalRows | None:
    """The rows as a store gives them: float32 numbers."""
    return None if rows is None else _each(rows, lambda _, tensor: tensor.float() if tensor.is_floating_point() else tensor)


def _each(rows: SignalRows, change: Callable[[str, Tensor], Tensor]) -> SignalRows:
    tensors = {name: value for name, value in vars(rows).items() if isinstance(value, Tensor)}
    changed: dict[str, Any] = {name: change(name, tensor) for name, tensor in tensors.items()}
    return replace(rows, **changed)


def padded(rows: SignalRows | None, *, by: int = 3) -> SignalRows | None:
    """The rows with ids that were never said: id 0, log-prob -inf or count 0. Hard and dense rows have no padding."""
    match rows:
        case TopKRows():
            ids_TK, log_probs_TK = pad(rows.ids_TK, (0, by)), pad(rows.log_probs_TK, (0, by), value=-torch.inf)
            return replace(rows, ids_TK=ids_TK, log_probs_TK=log_probs_TK)
        case SampledRows():
            weights_TK = None if rows.weights_TK is None else pad(rows.weights_TK, (0, by))
            ids_TK, counts_TK = pad(rows.ids_TK, (0, by)), pad(rows.counts_TK, (0, by))
            return replace(rows, ids_TK=ids_TK, counts_TK=counts_TK, weights_TK=weights_TK)
        case HybridRows():
            ids_TM, counts_TM = pad(rows.drawn_ids_TM, (0, by)), pad(rows.counts_TM, (0, by))
            return replace(rows, drawn_ids_TM=ids_TM, counts_TM=counts_TM)
        case _:
            return rows
