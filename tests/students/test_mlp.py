"""The activations against their formulas, and what their degree says."""

import pytest
import torch
from torch import Tensor

from limbeck.spec.layout import MlpLayout
from limbeck.students.mlp import Mlp


def built(activation: str) -> tuple[Mlp, Tensor]:
    mlp = Mlp(MlpLayout(activation, 7), hidden_size=5).double()
    return mlp, torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["swiglu", "relu2", "leaky_relu2"])
def test_mlps_are_their_formulas(activation):
    mlp, x = built(activation)
    up = x @ mlp.up_proj.weight.T
    if activation == "swiglu":
        gate = x @ mlp.gate_proj.weight.T
        inner = gate / (1 + (-gate).exp()) * up
    else:
        inner = torch.where(up > 0, up**2, 0 if activation == "relu2" else up**2 / 4)
        assert mlp.gate_proj is None
    torch.testing.assert_close(mlp(x), inner @ mlp.down_proj.weight.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu2", "leaky_relu2"])
def test_squares_are_of_degree_two_and_have_their_gradient(activation):
    mlp, x = built(activation)
    before = mlp(x)
    torch.testing.assert_close(mlp(3 * x), 9 * before, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(mlp, x.requires_grad_())
