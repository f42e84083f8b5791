"""Exclusive attention: nothing of a position's own value is left in its output."""

import pytest
import torch

from limbeck.spec.layout import AttentionLayout
from limbeck.spec.parts import Rope
from limbeck.students.attend import attend
from limbeck.students.attention import Attention, AttentionInput, without_own_value

HEADS, KV_HEADS, LENGTH, CHANNELS = 4, 2, 7, 6


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, HEADS, LENGTH, CHANNELS), *[(2, KV_HEADS, LENGTH, CHANNELS)] * 2)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def test_outputs_are_orthogonal_to_the_values_of_their_own_position():
    q, k, v = tensors()
    y = without_own_value(attend(q, k, v, sees=None), v)
    for head in range(HEADS):
        inner_BT = (y[:, head] * v[:, head // (HEADS // KV_HEADS)]).sum(-1)
        assert inner_BT.abs().max() < 1e-14
    assert y[:, :, 1:].norm() > 1  # position 0 aside, something is left


def test_what_is_orthogonal_already_stays():
    """The part that goes is along the own value and has no other: y - out is a multiple of v."""
    _, _, v = tensors()
    y = torch.randn(2, HEADS, LENGTH, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    once = without_own_value(y, v)
    torch.testing.assert_close(without_own_value(once, v), once, rtol=0, atol=1e-14)
    own = v.repeat_interleave(2, 1)
    removed = y - once
    cosine = torch.nn.functional.cosine_similarity(removed, own, dim=-1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_position_zero_gives_exactly_nothing(dtype):
    q, k, v = tensors(dtype)
    y = without_own_value(attend(q, k, v, sees=None), v)
    assert (y[:, :, 0] == 0).all()
    assert y.dtype == dtype


def test_a_value_of_no_length_takes_nothing():
    y, v = torch.ones(1, 2, 1, 4), torch.zeros(1, 1, 1, 4, requires_grad=True)
    out = without_own_value(y, v)
    assert torch.equal(out, y)
    out.sum().backward()
    assert v.grad.isfinite().all()


def test_bfloat16_is_orthogonal_up_to_its_own_rounding():
    """Computed wide and rounded once: half a unit in the last place, 2**-9, of every channel."""
    q, k, v = tensors(torch.bfloat16)
    y = without_own_value(attend(q, k, v, sees=None), v)
    own = v.repeat_interleave(2, 1).float()
    inner = (y.float() * own).sum(-1).abs()
    assert (inner <= 2**-8 * (y.float().abs() * own.abs()).sum(-1) + 1e-6).all()


def test_gradients_are_those_of_the_function():
    q, _, v = tensors()
    y = q[:1].requires_grad_()
    assert torch.autograd.gradcheck(without_own_value, (y, v[:1].requires_grad_()))


def test_a_layer_is_exclusive_before_its_output_projection():
    layout = AttentionLayout(
        num_heads=2, num_kv_heads=1, head_dim=4, positions=Rope(), qk_norm="none", exclusive=True, value_embedding=True
    )
    attention = Attention(layout, hidden_size=8, eps=1e-6).double()
    with torch.no_grad():
        torch.nn.init.normal_(attention.value_scale)
        attention.o_proj.weight.copy_(torch.eye(8))
    x_BTD = torch.randn(1, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value_BTC = torch.randn(1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = attention(x_BTD, AttentionInput(lambda x: x, None, value_BTC)).view(1, 5, 2, 4)
    own = (x_BTD @ attention.v_proj.weight.T + attention.value_scale * value_BTC)[:, :, None]
    assert (y * own).sum(-1).abs().max() < 1e-14
    assert y[:, 1:].norm() > 0.1
