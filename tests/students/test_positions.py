"""Rotary positions: against complex numbers and transformers, and the law that distances alone matter."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from limbeck.spec.parts import Rope
from limbeck.students.positions import plane_turn, rope_rates

CPU = torch.device("cpu")


def rates(spec: Rope, *, head_dim: int, length: int = 16, dtype=torch.float64) -> Tensor:
    return rope_rates(spec, head_dim=head_dim, length=length, dtype=dtype, device=CPU)


def drawn(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def test_a_turn_is_a_product_of_complex_numbers():
    rate_p = rates(Rope(theta=1000.0), head_dim=8)
    position_BT = torch.tensor([[0, 1, 5, 9], [3, 3, 100, 7]])
    x = drawn(2, 3, 4, 8)
    expected = torch.empty_like(x)
    for i in range(4):
        angle_B1T = position_BT[:, None].double() * 1000.0 ** (-2 * i / 8)
        z = torch.complex(x[..., i], x[..., i + 4]) * torch.exp(1j * angle_B1T)
        expected[..., i], expected[..., i + 4] = z.real, z.imag
    torch.testing.assert_close(plane_turn(position_BT, rate_p)(x), expected, rtol=0, atol=1e-12)


def test_turns_equal_those_of_transformers():
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    position_BT = torch.arange(3000)[None, ::7]
    q, k = drawn(1, 2, 429, 32, dtype=torch.float32), drawn(1, 1, 429, 32, dtype=torch.float32)
    turn = plane_turn(position_BT, rates(Rope(theta=5e5), head_dim=32, dtype=torch.float32))
    cos, sin = LlamaRotaryEmbedding(config)(q, position_BT)
    for mine, theirs in zip((turn(q), turn(k)), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_distances_alone_matter():
    rate_p = rates(Rope(theta=10_000.0), head_dim=16, dtype=torch.float32)
    q, k = drawn(1, 1, 40, 16, dtype=torch.float32), drawn(1, 2, 40, 16, dtype=torch.float32)[:, :1]
    near, far = (plane_turn(start + torch.arange(40)[None], rate_p) for start in (0, 10_000))
    torch.testing.assert_close(near(q) @ near(k).mT, far(q) @ far(k).mT, rtol=0, atol=5e-3)
    stretched = plane_turn(2 * torch.arange(40)[None], rate_p)
    assert (stretched(q) @ stretched(k).mT - near(q) @ near(k).mT).abs().max() > 0.1


def test_angles_are_wide_where_queries_are_not():
    """In bfloat16 position 257 would be 256, a radian away in the fastest plane."""
    x = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)
    x[..., 0] = 1
    turned = plane_turn(torch.tensor([[257]]), torch.ones(1))(x)
    assert turned.dtype == torch.bfloat16
    assert turned[0, 0, 0].tolist() == pytest.approx([math.cos(257), math.sin(257)], abs=2**-8)


def test_long_sequences_turn_by_a_larger_base():
    """The NTK rule of parameter-golf: base 1e4 (T / 1024)**(h / (h - 2)) beyond 1,024 tokens."""
    spec = Rope(theta=10_000.0, ntk_length=1024)
    plain = rates(Rope(theta=10_000.0), head_dim=64)
    for length in (1, 500, 1024):
        assert torch.equal(rates(spec, head_dim=64, length=length), plain)
    base = 10_000.0 * (3000 / 1024) ** (64 / 62)
    expected = torch.tensor([base ** (-i / 32) for i in range(32)], dtype=torch.float64)
    torch.testing.assert_close(rates(spec, head_dim=64, length=3000), expected, rtol=1e-12, atol=0)
    # What the rule is for: the slowest plane turns over T tokens as far as it did over 1,024.
    assert float(expected[-1]) * 3000 == pytest.approx(float(plain[-1]) * 1024, rel=1e-9)
    assert expected[0] == 1
