"""Attention sinks: the properties of a logit without a value, on both backends."""

from contextlib import nullcontext

import pytest
import torch
from plain_attention import flex_uncompiled
from torch import Tensor

from limbeck.students.attend import attend, visible

LENGTH, HEADS, KV_HEADS, CHANNELS = 6, 4, 2, 8
BACKENDS = pytest.mark.parametrize("backend", ["sdpa", "flex"])
WINDOWS = pytest.mark.parametrize("window", [None, 3])


def tensors(*, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, HEADS, LENGTH, CHANNELS), *[(2, KV_HEADS, LENGTH, CHANNELS)] * 2)
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_(grad) for s in shapes)


def attended(q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, *, window: int | None, backend="sdpa") -> Tensor:
    sees = visible(
        length=LENGTH, past=0, window=window, segments_BT=None, sinks=sink_H is not None, device=q.device, backend=backend
    )
    with flex_uncompiled() if backend == "flex" else nullcontext():
        return attend(q, k, v, sees=sees, sink_H=sink_H)


def scores(q: Tensor, k: Tensor, window: int | None) -> Tensor:
    """Scaled, and -inf where they are not seen."""
    score_BHTS = q @ k.repeat_interleave(HEADS // KV_HEADS, 1).transpose(-1, -2) * CHANNELS**-0.5
    distance_TS = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    hidden = (distance_TS < 0) | (distance_TS >= (window or LENGTH))
    return score_BHTS.masked_fill(hidden, -torch.inf)


def sinks(value: float) -> Tensor:
    return torch.full((HEADS,), value, dtype=torch.float64)


@BACKENDS
@WINDOWS
def test_a_sink_far_below_is_none_and_one_far_above_takes_everything(window, backend):
    q, k, v = tensors()
    none = attended(q, k, v, None, window=window, backend=backend)
    torch.testing.assert_close(attended(q, k, v, sinks(-80), window=window, backend=backend), none, rtol=0, atol=1e-12)
    # What is left beside a logit of 80 is at most e**-80 a key.
    assert attended(q, k, v, sinks(80), window=window, backend=backend).abs().max() < 1e-30


@BACKENDS
@WINDOWS
def test_rows_sum_to_what_the_sink_leaves(window, backend):
    q, k, v = tensors()
    sink_H = torch.tensor([-1.0, 0.3, 2.0, 5.0], dtype=torch.float64)
    sums_BHT = attended(q, k, torch.ones_like(v), sink_H, window=window, backend=backend)[..., 0]
    left_BHT = torch.sigmoid(scores(q, k, window).logsumexp(-1) - sink_H[:, None])
    torch.testing.assert_close(sums_BHT, left_BHT, rtol=0, atol=1e-6 if backend == "flex" else 1e-12)
    assert sums_BHT.max() < 1


@BACKENDS
@WINDOWS
def test_a_sink_of_zero_is_softmax_off_by_one(window, backend):
    q, k, v = tensors()
    weight_BHTS = scores(q, k, window).exp()
    off_by_one = (weight_BHTS / (1 + weight_BHTS.sum(-1, keepdim=True))) @ v.repeat_interleave(HEADS // KV_HEADS, 1)
    found = attended(q, k, v, sinks(0), window=window, backend=backend)
    torch.testing.assert_close(found, off_by_one, rtol=0, atol=1e-6 if backend == "flex" else 1e-12)


@WINDOWS
def test_gradients_are_those_of_the_function(window):
    q, k, v = tensors(grad=True)
    sink_H = torch.tensor([-1.0, 0.3, 2.0, -0.5], dtype=torch.float64, requires_grad=True)
    few = (q[:1, :, :, :].detach().requires_grad_(), k[:1].detach().requires_grad_(), v[:1].detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: attended(*given, window=window), (*few, sink_H))


@WINDOWS
def test_the_gradient_of_a_sink_is_its_formula(window):
    """dy/ds = -p_s y, with p_s the sink's part: the gradient is -sum p_s (g y)."""
    q, k, v = tensors()
    sink_H = torch.tensor([-1.0, 0.3, 2.0, -0.5], dtype=torch.float64, requires_grad=True)
    y = attended(q, k, v, sink_H, window=window)
    towards = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient_H,) = torch.autograd.grad((y * towards).sum(), sink_H)
    part_BHT = 1 - torch.sigmoid(scores(q, k, window).logsumexp(-1) - sink_H[:, None])
    expected_H = -(part_BHT * (y * towards).sum(-1)).sum((0, 2))
    torch.testing.assert_close(gradient_H, expected_H, rtol=0, atol=1e-12)
