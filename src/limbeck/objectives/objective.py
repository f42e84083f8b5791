"""From a batch to a loss: the one place where weights, mask, temperature squared and the mean are applied.

loss = sum over parts and unmasked positions of factor * divergence / normaliser. The factor of a part (see
`limbeck.objectives.parts`) is its weight at this moment of the run, temperature squared where the term asks for it (Hinton et
al. 2015, arXiv 1503.02531, section 2), and over a divergence's scale beside the KL's where it asks for `scale: kl`.

Masked positions are taken out before the head: they cost nothing, and what they hold, were it NaN, reaches nothing.

Shapes: T positions, N unmasked ones, C of a chunk, K ids of a row, V vocabulary, D student's width, E teacher's width.
"""

import warnings
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from limbeck.errors import SpecError
from limbeck.objectives.across_loss import across_loss
from limbeck.objectives.across_prepared import Across
from limbeck.objectives.head import HeadStatistics, LossSums, head_loss
from limbeck.objectives.hidden import hidden_distance
from limbeck.objectives.parts import Seen, label_cross_entropy, parts_of, unused
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.objectives.teacher import TeacherView, check_rows, teacher_view
from limbeck.signals.types import ChunkRows, SignalRows
from limbeck.spec.objective import (
    ForwardKL,
    HiddenStates,
    JensenShannon,
    Objective,
    PairTerm,
    ReverseKL,
    SkewKL,
    crosses_tokenizers,
    needs_samples,
    terms,
)
from limbeck.spec.weight import Balanced

START = Moment()


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, and what it is made of."""

    loss: Tensor
    """Scalar to differentiate: the weighted sum over the normaliser."""
    per_term: dict[str, Tensor]
    """Detached nats per token by name (`ce` always), without their factors, over the same normaliser."""
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
    moment: Moment = START,
    projection: nn.Module | None = None,
    mask_T: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    sampled_log_probs_T: Tensor | None = None,
    across: Across | None = None,
    pieces_T: Tensor | None = None,
) -> LossOutput:
    """The loss of `objective` where hidden_TD[t] predicts targets_T[t] and `rows[t]` is the teacher's view of it.

    `temperature` is the signal's; `moment` is what scheduled weights depend on; `projection` takes the student's hidden states
    to the teacher's width (`limbeck.objectives.hidden`). `mask_T` is True where a position counts. `normaliser` is the number
    of counted positions of the whole global batch, so that the losses of its micro-batches and ranks add up to its mean; None:
    of this batch. `softcap` is the student's (`head_loss`). `chunk_tokens` bounds the memory and changes nothing else.
    `sampled_log_probs_T` are what the targets had of the student that drew them, where it did. `across` is what terms across
    tokenizers know of the two vocabularies; `pieces_T` numbers the pieces of text that positions belong to
    (`limbeck.objectives.across_loss.pieces_of`), beyond whose ends such terms do not look; None: all are one piece.
    """
    check_rows(objective, rows)
    if needs_samples(objective) and sampled_log_probs_T is None:
        raise SpecError("objective sampled_reverse_kl reads tokens that the student drew: set on_policy")
    if crosses_tokenizers(objective):
        if across is None or not isinstance(rows, ChunkRows):
            raise SpecError(f"objective {objective.kind} compares two vocabularies: make them ready with prepare_across")
        sums = across_loss(
            objective,
            hidden_TD,
            head_VD=head_VD,
            targets_T=targets_T,
            rows=rows,
            across=across,
            mask_T=mask_T,
            pieces_T=pieces_T,
            moment=moment,
            softcap=softcap,
            chunk_tokens=chunk_tokens,
        )
        return _output(sums, tokens=len(targets_T) if mask_T is None else int(mask_T.sum()), normaliser=normaliser)
    _warn_of_biases(objective)
    teacher = teacher_view(rows)
    if mask_T is not None:
        keep_N = mask_T.nonzero().squeeze(1)
        hidden_TD, targets_T, teacher = hidden_TD[keep_N], targets_T[keep_N], teacher.at(keep_N)
        sampled_log_probs_T = None if sampled_log_probs_T is None else sampled_log_probs_T[keep_N]
    sums = _logit_loss(
        objective,
        hidden_TD,
        head_VD=head_VD,
        targets_T=targets_T,
        sampled_log_probs_T=sampled_log_probs_T,
        teacher=teacher,
        temperature=temperature if rows is not None else 1.0,
        moment=moment,
        softcap=softcap,
        chunk_tokens=chunk_tokens,
    )
    sums = _with_hidden_states(objective, sums, hidden_TD=hidden_TD, teacher=teacher, moment=moment, projection=projection)
    return _output(sums, tokens=len(targets_T), normaliser=normaliser)


def _output(sums: LossSums, *, tokens: int, normaliser: float | Tensor | None) -> LossOutput:
    over = normaliser if normaliser is not None else max(1, tokens)
    return LossOutput(sums.loss / over, {name: total / over for name, total in sums.report.items()}, tokens)


def _logit_loss(
    objective: Objective,
    hidden_TD: Tensor,
    *,
    head_VD: Tensor,
    targets_T: Tensor,
    sampled_log_probs_T: Tensor | None,
    teacher: TeacherView,
    temperature: float,
    moment: Moment,
    softcap: float | None,
    chunk_tokens: int | None,
) -> LossSums:
    """The sum over positions of all parts that read logits."""
    parts = parts_of(objective, temperature=temperature, moment=moment)
    asked = _dense_divergences(objective) if teacher.dense is not None else ()

    def per_token(statistics: tuple[HeadStatistics, ...], chunk: slice) -> LossSums:
        sampled_C = None if sampled_log_probs_T is None else sampled_log_probs_T[chunk]
        seen = _seen(statistics, teacher.at(chunk), targets_T[chunk], asked, sampled_C)
        losses = {"ce": label_cross_entropy(seen)} | {part.name: part.per_token(seen) for part in parts}
        weighted = [part.factor * losses[part.name].sum() for part in parts]
        loss = torch.stack(weighted).sum() if weighted else 0 * losses["ce"].sum()
        return LossSums(loss, {name: loss_C.detach().sum() for name, loss_C in losses.items()})

    return head_loss(
        hidden_TD,
        head_VD=head_VD,
        ids_TK=_gathered_ids(targets_T, teacher),
        per_token=per_token,
        # Cross-entropy and z-loss are those of the model as it is used: at temperature 1, whatever the signal's.
        temperatures=(1.0, temperature) if temperature != 1.0 else (1.0,),
        teacher=teacher.dense,
        divergences=asked,
        softcap=softcap,
        chunk_tokens=chunk_tokens,
    )


def _gathered_ids(targets_T: Tensor, teacher: TeacherView) -> Tensor:
    """The text's own token, the teacher's top-1 where there is one, and the ids of its target."""
    singles = [targets_T] if teacher.top1_T is None else [targets_T, teacher.top1_T]
    target = [] if teacher.target is None else [teacher.target.ids_TK]
    return torch.cat([torch.stack(singles, 1), *target], 1)


def _seen(
    statistics: tuple[HeadStatistics, ...],
    teacher: TeacherView,
    labels_T: Tensor,
    asked: tuple[PairTerm, ...],
    sampled_log_prob_T: Tensor | None,
) -> Seen:
    plain, tempered = statistics[0], statistics[-1]
    singles = 1 if teacher.top1_T is None else 2
    return Seen(
        plain=plain,
        tempered=replace(tempered, gathered_TK=tempered.gathered_TK[:, singles:]),
        labels_T=labels_T,
        label_logit_T=tempered.gathered_TK[:, 0],
        teacher=teacher,
        dense=dict(zip(asked, tempered.divergences, strict=True)),
        sampled_log_prob_T=sampled_log_prob_T,
    )


def _dense_divergences(objective: Objective) -> tuple[PairTerm, ...]:
    """The divergences that the head reads off a dense teacher, each once."""
    found = [term for weighted in terms(objective) if isinstance(term := weighted.term, ReverseKL | JensenShannon | SkewKL)]
    return tuple(dict.fromkeys(found))


def _with_hidden_states(
    objective: Objective,
    sums: LossSums,
    *,
    hidden_TD: Tensor,
    teacher: TeacherView,
    moment: Moment,
    projection: nn.Module | None,
) -> LossSums:
    """The sums with those of the hidden-state terms; balanced ones last, each as large as all that are not balanced."""
    report = dict(sums.report)
    plain: list[tuple[float, Tensor]] = []
    balanced: list[tuple[float, Tensor]] = []
    for weighted in terms(objective):
        if not isinstance(weighted.term, HiddenStates):
            continue
        distance = _distance(weighted.term, hidden_TD=hidden_TD, teacher=teacher, projection=projection)
        report[unused(f"hidden_{weighted.term.distance}", report)] = distance.detach()
        group = balanced if isinstance(weighted.weight, Balanced) else plain
        group.append((weight_at(weighted.weight, moment), distance))
    loss = sums.loss
    for weight, distance in plain:
        loss = loss + weight * distance
    others = loss.detach()
    for share, distance in balanced:
        loss = loss + share * _ratio(others, distance.detach()) * distance
    return LossSums(loss, report)


def _distance(term: HiddenStates, *, hidden_TD: Tensor, teacher: TeacherView, projection: nn.Module | None) -> Tensor:
    """The sum over positions."""
    assert teacher.dense is not None
    hidden_TE = hidden_TD if projection is None else projection(hidden_TD)
    return hidden_distance(term, hidden_TE=hidden_TE, teacher_TE=teacher.dense.hidden_TE).sum()


def _ratio(others: Tensor, distance: Tensor) -> Tensor:
    """The sizes of the two: where the others are negative, a ratio of that sign would drive student and teacher apart."""
    return (others.abs() / distance.clamp(min=torch.finfo(distance.dtype).tiny)).where(distance > 0, 0.0)


def _warn_of_biases(objective: Objective) -> None:
    for weighted in terms(objective):
        match weighted.term:
            case ForwardKL(tail="renormalised"):
                _warn(
                    "forward_kl with tail=renormalised is biased: its optimum scales the teacher's top-k up to mass 1, so "
                    "students become over-confident; tail=bucket is not"
                )
            case ReverseKL(form="renormalised"):
                _warn(
                    "reverse_kl with form=renormalised is blind outside the teacher's ids: a student may put any mass there "
                    "at no cost; form=tail is not"
                )


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
