"""Schedules against hand-made numbers and torch's own; AdamW's groups."""

import pytest
import torch
from torch import nn

from limbeck.optim.build import build_optimizer
from limbeck.optim.schedules import lr_factor
from limbeck.spec.optim import AdamW, Cosine, WarmupStableDecay


def test_cosine_rises_linearly_and_falls_along_a_cosine() -> None:
    schedule = Cosine(warmup=0.2, final=0.1)
    assert lr_factor(schedule, 0.1) == pytest.approx(0.5)
    assert lr_factor(schedule, 0.2) == pytest.approx(1.0)
    assert lr_factor(schedule, 0.6) == pytest.approx(0.55)
    assert lr_factor(schedule, 1.0) == pytest.approx(0.1)
    # Against torch's own cosine over 100 steps, without warmup.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    for step in range(100):
        assert lr_factor(Cosine(warmup=0, final=0.1), step / 100) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_warmup_stable_decay_has_three_straight_parts() -> None:
    schedule = WarmupStableDecay(warmup=0.1, decay=0.5, final=0.0)
    expected = {0.05: 0.5, 0.1: 1.0, 0.49: 1.0, 0.75: 0.5, 1.0: 0.0, 1.2: 0.0}
    assert {at: pytest.approx(lr_factor(schedule, at)) for at in expected} == expected


def test_norms_and_embeddings_do_not_decay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.linear = nn.Linear(4, 4, bias=False)
            self.norm = nn.Parameter(torch.ones(4))

    model = Tied()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(AdamW(lr=0.1, weight_decay=0.5), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.embed.weight, before["embed.weight"])
    assert torch.equal(model.norm, before["norm"])
    torch.testing.assert_close(model.linear.weight, before["linear.weight"] * (1 - 0.1 * 0.5))


def test_warmup_and_decay_fit_the_budget() -> None:
    """0.2 + 0.8 is all of it, rounding aside; more would jump from one straight line to another."""
    WarmupStableDecay(warmup=0.2, decay=0.8)
    with pytest.raises(ValueError, match="more than the whole budget"):
        WarmupStableDecay(warmup=0.5, decay=0.8)


def test_an_independent_decay_is_said() -> None:
    with pytest.raises(ValueError, match="such as 1e-4"):
        AdamW(independent_weight_decay=True)
    assert AdamW(independent_weight_decay=True, weight_decay=1e-4).weight_decay == 1e-4
