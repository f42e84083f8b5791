"""A short training of a pruned model on its parent's words, to rank shapes by what they come to and not by what they start at.

Rankings flip after distillation (NVIDIA Model-Optimizer, `examples/pruning`: of two Nemotrons pruned to the same memory, the
one that scored 0.591 before came to 0.692 after, the one at 0.508 to 0.730), so a few hundred steps are worth more than any
score of the pruned model. Cross-entropy plus forward KL from the parent, on rows of the calibration texts that the ranking is
not measured on; AdamW. Meant for ranking alone: `limbeck train` heals in earnest. Shapes: B rows, T positions, D and E widths
of the pruned model and its parent.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from limbeck.compute import autocast, pick_dtype
from limbeck.errors import DivergedError, SpecError
from limbeck.objectives.objective import objective_loss
from limbeck.progress import progress
from limbeck.signals.types import DenseRows
from limbeck.spec.objective import CrossEntropy, ForwardKL, Mixture, WeightedTerm
from limbeck.students.causal_lm import head_of
from limbeck.students.pretrained import PretrainedStudent

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Of a step, at most."""
PEAK_LR = 3e-4
WARMUP = 0.1
"""The share of the steps until the peak."""
OBJECTIVE = Mixture(terms=(WeightedTerm(weight=1.0, term=CrossEntropy()), WeightedTerm(weight=1.0, term=ForwardKL())))


def heal(model: Any, parent: Any, rows: Sequence[Tensor], *, steps: int, title: str) -> None:
    """Train `model` in place for so many steps on rows [T] of equal length; both models are on one device, float32.

    The same rows come in the same order to every model. `SpecError` where the logits of either are more than a product with a
    matrix, `DivergedError` where the loss is not finite.
    """
    student, teacher = with_head(model), with_head(parent)
    per_step = max(1, BATCH_TOKENS.get(model.device.type, 2048) // len(rows[0]))
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps=steps))
    with progress(title, total=steps) as advance:
        for step in range(steps):
            token_BT = torch.stack([rows[(step * per_step + at) % len(rows)] for at in range(per_step)]).long()
            loss = _loss(student, teacher, token_BT.to(model.device))
            nats = float(loss.detach())
            if not isfinite(nats):
                raise DivergedError(f"{title}: the loss is {nats} at step {step}: leave --heal-steps out, or prune less")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            advance(1, note=f"loss {nats:.3f}")
    student.requires_grad_(False)


def with_head(model: Any) -> PretrainedStudent:
    """The model as a student; `SpecError` where its logits are more than a product with a matrix."""
    head = head_of(model)
    if head is None or not head.is_plain:
        raise SpecError(
            f"{type(model).__name__} makes its logits of more than a matrix, which is not healed here: leave --heal-steps "
            "out and train with `limbeck train`"
        )
    return PretrainedStudent(model, head)


def _rate(step: int, *, steps: int) -> float:
    """Up over the first tenth, then down to nothing."""
    done = (step + 1) / (steps + 1)
    return min(done / WARMUP, (1 - done) / (1 - WARMUP))


def _loss(student: PretrainedStudent, teacher: PretrainedStudent, token_BT: Tensor) -> Tensor:
    """Nats per token."""
    read_BT = token_BT[:, :-1]
    with autocast(pick_dtype("auto", token_BT.device), token_BT.device):
        hidden_BTD = student(read_BT).hidden_BTD
        with torch.no_grad():
            theirs_BTE = teacher(read_BT).hidden_BTD
        found = objective_loss(
            OBJECTIVE,
            hidden_TD=hidden_BTD.flatten(0, 1),
            head_VD=student.head_VD,
            targets_T=token_BT[:, 1:].flatten(),
            rows=DenseRows(theirs_BTE.flatten(0, 1), teacher.head_VD.detach(), 1.0),
        )
    return found.loss
