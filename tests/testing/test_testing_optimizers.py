"""Every optimizer passes `check_optimizer`, and a planted fault of each sort is found and named."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.optim.build import build_optimizer
from limbeck.spec.base import kind_of, spec_classes
from limbeck.spec.optim import AdamW, AdamWNumbers, MomentumWarmup, Muon, NorMuon, Optimizer
from limbeck.testing.objectives import ConformanceError
from limbeck.testing.optimizers import SHAPES, check_optimizer

SPECS: dict[str, Any] = {
    "adamw": AdamW(),
    "adamw, independent decay": AdamW(weight_decay=1e-3, independent_weight_decay=True),
    "muon": Muon(),
    "muon, warming up": Muon(momentum_warmup=MomentumWarmup(start=0.5, until=0.4), nesterov=False),
    "muon, Polar Express in 7": Muon(orthogonaliser="polar_express", steps=7, adamw=AdamWNumbers(lr=3e-3)),
    "normuon": NorMuon(),
    "normuon, Newton-Schulz": NorMuon(orthogonaliser="newton_schulz", beta2=0.5),
}


@pytest.mark.parametrize("name", SPECS)
def test_every_optimizer_passes(name: str) -> None:
    report = check_optimizer(SPECS[name])
    assert {row.role for row in report.table} == set(SHAPES)
    assert len(report.checks) == 8


def test_no_kind_is_left_out() -> None:
    assert {spec.kind for spec in SPECS.values()} == {kind_of(spec) for spec in spec_classes(Optimizer)}


def test_the_size_of_a_step_is_reported() -> None:
    """Adam's first step is its lr; an orthogonal [8, 6] matrix has the RMS 8**-0.5, times sqrt(8/6) or 0.2 sqrt(8)."""
    adamw = check_optimizer(AdamW(weight_decay=0)).step_rms
    assert adamw == {role: pytest.approx(1.0, rel=1e-3) for role in SHAPES}
    exact: dict[str, Any] = {"weight_decay": 0, "orthogonaliser": "polar_express", "steps": 9}
    assert check_optimizer(Muon(**exact)).step_rms["matrix"] == pytest.approx(6**-0.5, rel=1e-3)
    assert check_optimizer(Muon(**exact, scale="match_rms_adamw")).step_rms["matrix"] == pytest.approx(0.2, rel=1e-3)
    # Experts are [in, out]: from 8 to 6 channels, so the scale is 1.
    assert check_optimizer(Muon(**exact)).step_rms["experts"] == pytest.approx(8**-0.5, rel=1e-3)


def before_each_step(change: Callable[[torch.optim.Optimizer], None]) -> Callable[[Any, nn.Module], torch.optim.Optimizer]:
    def build(spec: Any, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = build_optimizer(spec, model)
        optimizer.register_step_pre_hook(lambda optimizer, arguments, named: change(optimizer))
        return optimizer

    return build


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def fills_in_gradients(optimizer: torch.optim.Optimizer) -> None:
    for parameter in parameters(optimizer):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def sees_gradients_everywhere(optimizer: torch.optim.Optimizer) -> None:
    for parameter in parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad += 1e-30


def goes_uphill(optimizer: torch.optim.Optimizer) -> None:
    for parameter in parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad.neg_()


def divides_by_a_norm(optimizer: torch.optim.Optimizer) -> None:
    for parameter in parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad /= parameter.grad.norm()


def is_deaf_to_the_schedule(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]


def squares_the_schedule(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] ** 2 / group["peak_lr"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fills_in_gradients, "^missing gradients: without a gradient of embedding"),
        (sees_gradients_everywhere, r"^idle experts: .*\[False, False, False\]"),
        (goes_uphill, "^descent"),
        (divides_by_a_norm, "^finite"),
        (is_deaf_to_the_schedule, "^learning rate: embedding moves at lr 0"),
        (squares_the_schedule, "^learning rate: half the rate"),
    ],
)
def test_a_faulty_step_is_named(fault: Callable[[torch.optim.Optimizer], None], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_optimizer(NorMuon(), build=before_each_step(fault))


def forgets_its_state(spec: Any, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer(spec, model)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: optimizer.state.clear())
    return optimizer


def saves_an_object(spec: Any, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer(spec, model)
    optimizer.register_state_dict_post_hook(lambda optimizer, state: {**state, "steps": Fraction(1, 3)})
    return optimizer


def leaves_the_norms_out(spec: Any, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer(spec, model)
    optimizer.param_groups = [group for group in optimizer.param_groups if group["role"] != "vector"]
    return optimizer


def lacks_peaks(spec: Any, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (forgets_its_state, "^resume"),
        (saves_an_object, "^plain state"),
        (leaves_the_norms_out, "^groups: not every"),
        (lacks_peaks, "^groups: a group has no 'peak_lr'"),
    ],
)
def test_a_faulty_object_is_named(build: Callable[[Any, nn.Module], torch.optim.Optimizer], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_optimizer(Muon(), build=build)
