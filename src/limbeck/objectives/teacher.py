"""What a batch's rows tell an objective of the teacher: a target on a few ids, its exact head, its top-1, or hidden states.

Shapes: T positions, K ids of a row.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from limbeck.errors import SpecError
from limbeck.signals.types import (
    ChunkRows,
    DenseRows,
    HardRows,
    HybridRows,
    SampledRows,
    SignalRows,
    SparseTarget,
    TopKRows,
    sparse_target,
)
from limbeck.spec.objective import Objective, needs_teacher, serving_signals, terms

Positions = Tensor | slice


@dataclass(frozen=True)
class TeacherView:
    """The teacher at some positions. Everything is None without a teacher."""

    target: SparseTarget | None = None
    """Of a sparse signal, all its ids."""
    head: SparseTarget | None = None
    """The most probable ids and their tail: the first ids of `target`, of topk, topp and hybrid."""
    top1_T: Tensor | None = None
    dense: DenseRows | None = None

    def at(self, positions: Positions) -> "TeacherView":
        """The same of some positions."""
        return TeacherView(
            target=_target_at(self.target, positions),
            head=_target_at(self.head, positions),
            top1_T=None if self.top1_T is None else self.top1_T[positions],
            dense=None if self.dense is None else replace(self.dense, hidden_TE=self.dense.hidden_TE[positions]),
        )


def teacher_view(rows: SignalRows | None) -> TeacherView:
    """The rows of any signal, as objectives see them."""
    match rows:
        case None | ChunkRows():  # of chunks there is nothing to say about a position
            return TeacherView()
        case DenseRows():
            return TeacherView(dense=rows)
        case TopKRows(ids_TK=ids_TK):
            target = sparse_target(rows)
            return TeacherView(target, head=target, top1_T=ids_TK[:, 0])
        case HybridRows(ids_TK=ids_TK):
            head = sparse_target(TopKRows(ids_TK, rows.log_probs_TK, rows.tail_T, rows.entropy_T))
            return TeacherView(sparse_target(rows), head=head, top1_T=ids_TK[:, 0])
        case SampledRows(top1_T=top1_T):
            return TeacherView(sparse_target(rows), top1_T=top1_T)
        case HardRows(ids_T=ids_T):
            return TeacherView(sparse_target(rows), top1_T=ids_T)


def check_rows(objective: Objective, rows: SignalRows | None) -> None:
    """Refuse rows that do not hold what the objective reads, as `limbeck.spec.objective.check_signal` refuses a signal."""
    if not needs_teacher(objective):
        return
    if rows is None:
        raise SpecError(f"objective {objective.kind} needs a teacher's signal: name a teacher, or use objective ce")
    for weighted in terms(objective):
        kinds = serving_signals(weighted.term)
        if weighted.term.kind == "hard":
            served = teacher_view(rows).top1_T is not None
        else:  # the hard label as a distribution is what a forward KL on it means
            served = bool(set(_kinds(rows)) & set(kinds)) or (weighted.term.kind == "forward_kl" and isinstance(rows, HardRows))
        if not served:
            raise SpecError(
                f"objective {weighted.term.kind} cannot read {type(rows).__name__}: use signal {' or '.join(kinds)}"
            )
        if weighted.entropy is not None and isinstance(rows, HardRows):
            raise SpecError("signal hard keeps no entropy, so terms cannot be shared out by it: use another signal")


def _kinds(rows: SignalRows) -> tuple[str, ...]:
    """The kinds of signal whose rows these may be."""
    kinds: dict[type, tuple[str, ...]] = {
        TopKRows: ("topk", "topp"),
        HybridRows: ("hybrid",),
        SampledRows: ("sampled",),
        HardRows: ("hard",),
        ChunkRows: ("chunks",),
        DenseRows: ("dense",),
    }
    return kinds[type(rows)]


def _target_at(target: SparseTarget | None, positions: Positions) -> SparseTarget | None:
    if target is None:
        return None
    tail_T, entropy_T = target.tail_T, target.teacher_entropy_T
    return SparseTarget(
        target.ids_TK[positions],
        target.probs_TK[positions],
        None if tail_T is None else tail_T[positions],
        target.entropy_T[positions],
        None if entropy_T is None else entropy_T[positions],
    )
