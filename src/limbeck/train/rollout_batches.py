"""Rollouts as batches: padded on the right, which no causal student sees, with a mask where the continuations are.

Experts would count padding and be balanced by it: for students that have some it is marked, as segment -1.

A sequence of n tokens is n - 1 positions; position t counts where the token that follows it was drawn, the stop token included.
Shapes: B sequences, T positions of the longest.
"""

from collections.abc import Sequence

import numpy as np
import torch

from limbeck.data.loader import Batch
from limbeck.signals.rows import rows_at
from limbeck.signals.types import SignalRows
from limbeck.train.rollouts import Rollout


def batches_from(
    rollouts: Sequence[Rollout], rows: SignalRows, *, micro_sequences: int, mask_truncated: bool, marks_padding: bool = False
) -> list[Batch]:
    """Micro-batches of the rollouts, the longest first. `rows` are the teacher's at all their positions, in their order.

    With `mask_truncated` those that did not stop count nowhere. With `marks_padding` segments say where it is.
    """
    first = np.cumsum([0, *(len(rollout.tokens) - 1 for rollout in rollouts)])
    order = sorted(range(len(rollouts)), key=lambda index: -len(rollouts[index].tokens))
    groups = [order[start : start + micro_sequences] for start in range(0, len(order), micro_sequences)]
    how = {"masked": mask_truncated, "marks_padding": marks_padding}
    return [
        _batch([rollouts[index] for index in group], rows, first=[int(first[index]) for index in group], **how)
        for group in groups
    ]


def _batch(rollouts: Sequence[Rollout], rows: SignalRows, *, first: Sequence[int], masked: bool, marks_padding: bool) -> Batch:
    sequences = [rollout.tokens for rollout in rollouts]
    shape = len(sequences), max(map(len, sequences)) - 1
    tokens_BT, targets_BT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask_BT, log_probs_BT = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.float32)
    row_BT = np.zeros(shape, dtype=np.int64)
    for place, (rollout, sequence) in enumerate(zip(rollouts, sequences, strict=True)):
        length = len(sequence) - 1
        drawn = slice(len(rollout.prompt_tokens) - 1, length)
        tokens_BT[place, :length], targets_BT[place, :length] = sequence[:-1], sequence[1:]
        log_probs_BT[place, drawn] = rollout.continuation.log_probs
        mask_BT[place, drawn] = rollout.continuation.stopped or not masked
        row_BT[place] = first[place] + np.minimum(np.arange(shape[1]), length - 1)  # padding gets the last one's: any would do
    real_BT = np.arange(shape[1]) < np.array([[len(sequence) - 1] for sequence in sequences])
    marked = marks_padding and not real_BT.all()
    return Batch(
        tokens_BT=torch.from_numpy(tokens_BT),
        targets_BT=torch.from_numpy(targets_BT),
        positions_BT=torch.arange(shape[1]).expand(shape),
        segments_BT=torch.from_numpy(np.where(real_BT, 0, -1)) if marked else None,
        rows=rows_at(rows, torch.from_numpy(row_BT.flatten())),
        pieces=(),
        mask_BT=torch.from_numpy(mask_BT),
        sampled_log_probs_BT=torch.from_numpy(log_probs_BT),
        padding=int((~real_BT).sum()),
    )
