"""YaRN: by index for RoPE, as transformers has it; by the number of turns for learned rates."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from limbeck.spec.parts import Rope, Yarn
from limbeck.students.positions import plane_turn, rope_rates, stretch_by_turns

OLMO = Rope(theta=5e5, yarn=Yarn(factor=8.0, original_length=8192))
GPT_OSS = Rope(theta=1.5e5, yarn=Yarn(factor=32.0, original_length=4096, truncate=False))


def rates(spec: Rope, *, head_dim: int) -> Tensor:
    return rope_rates(spec, head_dim=head_dim, length=16, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(("spec", "head_dim"), [(OLMO, 128), (GPT_OSS, 64)], ids=["olmo", "gpt-oss"])
def test_rates_and_factor_equal_those_of_transformers(spec, head_dim):
    yarn = spec.yarn
    rope = {
        "rope_type": "yarn",
        "rope_theta": spec.theta,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_length,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "truncate": yarn.truncate,
    }
    length = int(yarn.factor * yarn.original_length)
    config = LlamaConfig(hidden_size=8 * head_dim, head_dim=head_dim, max_position_embeddings=length, rope_parameters=rope)
    rate_p, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    torch.testing.assert_close(rates(spec, head_dim=head_dim), rate_p, rtol=1e-6, atol=0)
    assert yarn.attention_factor == pytest.approx(factor, rel=1e-12)


def test_olmos_attention_factor():
    assert OLMO.yarn.attention_factor == 1.2079441541679836


def test_fast_planes_are_kept_and_slow_ones_slowed_down():
    """Worked out by hand for theta 5e5, h 128, 8,192 positions: plane i turns 8192 * 5e5**(-i / 64) / 2 pi times."""
    ratio_p = rates(OLMO, head_dim=128) / rates(Rope(theta=5e5), head_dim=128)
    turns_p = torch.tensor([8192 * 5e5 ** (-i / 64) / (2 * math.pi) for i in range(64)])
    low, high = int((turns_p > 32).sum()) - 1, int((turns_p > 1).sum())
    assert (low, high) == (18, 35)
    assert torch.equal(ratio_p[: low + 1], torch.ones(low + 1))
    torch.testing.assert_close(ratio_p[high:], torch.full((64 - high,), 1 / 8), rtol=1e-6, atol=0)
    straight = torch.linspace(1, 1 / 8, high - low + 1)
    torch.testing.assert_close(ratio_p[low : high + 1], straight, rtol=1e-5, atol=0)


def test_unrounded_ends_differ():
    rounded = GPT_OSS.model_copy(update={"yarn": GPT_OSS.yarn.model_copy(update={"truncate": True})})
    assert (rates(rounded, head_dim=64) / rates(GPT_OSS, head_dim=64) - 1).abs().max() > 0.01


def test_a_factor_of_one_is_rope():
    spec = Rope(theta=5e5, yarn=Yarn(factor=1.0))
    torch.testing.assert_close(rates(spec, head_dim=128), rates(Rope(theta=5e5), head_dim=128), rtol=2e-7, atol=0)
    assert spec.yarn.attention_factor == 1


def test_logits_grow_by_the_square_of_the_factor():
    x = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    rate_p, position_BT = torch.ones(4), torch.arange(5)[None]
    plain, scaled = plane_turn(position_BT, rate_p)(x), plane_turn(position_BT, rate_p, factor=1.25)(x)
    torch.testing.assert_close(scaled @ scaled.mT, 1.25**2 * plain @ plain.mT)


def test_learned_rates_are_stretched_by_how_often_they_turn():
    """The order of planes does not matter, and the three regions are where they should be."""
    yarn = Yarn(factor=4.0, original_length=1000, beta_fast=32.0, beta_slow=1.0)
    turns = torch.tensor([0.5, 40.0, 16.5, 1.0, 32.0, 8.75], dtype=torch.float64)
    found = stretch_by_turns(2 * math.pi * turns / 1000, yarn)
    expected = torch.tensor([0.25, 1.0, 0.625, 0.25, 1.0, 0.25 + 0.75 * 7.75 / 31], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(stretch_by_turns(turns, Yarn(factor=1.0)), torch.ones_like(turns), rtol=1e-12, atol=0)
