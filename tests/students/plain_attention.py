"""Attention written out: one query at a time, the keys it may see in a list. The twin of `limbeck.students.attend`."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention


def attend_reference(
    q_BHTh: Tensor,
    k_BKTh: Tensor,
    v_BKTh: Tensor,
    *,
    window: int | None = None,
    segments_BT: Tensor | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    rows, heads, length, channels = q_BHTh.shape
    serves = heads // k_BKTh.shape[1]
    outputs = []
    for b in range(rows):
        for h in range(heads):
            for i in range(length):
                seen = [
                    j
                    for j in range(i + 1)
                    if (window is None or i - j < window) and (segments_BT is None or segments_BT[b, i] == segments_BT[b, j])
                ]
                weight_S = torch.stack([q_BHTh[b, h, i] @ k_BKTh[b, h // serves, j] / channels**0.5 for j in seen]).exp()
                total = weight_S.sum() + (0 if sink_H is None else sink_H[h].exp())
                outputs.append(weight_S / total @ v_BKTh[b, h // serves, seen])
    return torch.stack(outputs).view(rows, heads, length, channels)


@contextmanager
def flex_uncompiled() -> Iterator[None]:
    """FlexAttention runs as plain Python: without gradients, and without a minute of compilation."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield
