"""Which parameter gets what: roles, learning rates, decay, the table, and what is refused."""

import io
import re
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError, SpecError
from limbeck.optim import build_optimizer, parameter_groups, table
from limbeck.optim.groups import Row
from limbeck.optim.schedules import set_moment
from limbeck.roles import Placement
from limbeck.spec.base import Spec, parse
from limbeck.spec.optim import AdamW, AdamWNumbers, MomentumWarmup, Muon, NorMuon, Optimizer

SHAPES = {"embed": (11, 4), "out": (11, 4), "map": (4, 6), "experts": (3, 6, 4), "gate": (3, 4), "bank": (9, 4), "norm": (4,)}
ROLES: dict[str, Any] = {
    "embed": "embedding",
    "out": "head",
    "map": "matrix",
    "experts": "experts",
    "gate": "router",
    "bank": "table",
    "norm": "vector",
}


class Everything(nn.ParameterDict):
    """A parameter of each role; the matrices with muP's factor of learning rate."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})

    def placements(self) -> dict[str, Placement]:
        scaled = ("out", "map", "experts")
        return {name: Placement(role, lr_scale=0.25 if name in scaled else 1.0) for name, role in ROLES.items()}


def step_with_zero_gradients(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    """The factor by which each parameter shrank."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: float((parameter.detach() / before[name]).mean()) for name, parameter in model.named_parameters()}


def test_decay_by_role() -> None:
    model = Everything()
    shrunk = step_with_zero_gradients(build_optimizer(AdamW(lr=0.1, weight_decay=0.5), model), model)
    quarter, whole = pytest.approx(1 - 0.1 / 4 * 0.5), pytest.approx(1 - 0.1 * 0.5)
    assert shrunk == {"embed": 1, "out": quarter, "map": quarter, "experts": quarter, "gate": whole, "bank": 1, "norm": 1}


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_independent_decay_is_not_multiplied_by_any_learning_rate(factor: float) -> None:
    """Neither by the base nor by muP's factor: w <- w - factor * lambda * w."""
    model = Everything()
    optimizer = build_optimizer(AdamW(lr=3e-3, weight_decay=0.2, independent_weight_decay=True), model)
    set_moment(optimizer, lr_factor=factor, fraction=0.5)
    shrunk = step_with_zero_gradients(optimizer, model)
    expected = pytest.approx(1 - factor * 0.2)
    assert shrunk == {name: 1 if name in ("embed", "bank", "norm") else expected for name in SHAPES}


def test_adamw_moves_by_its_learning_rate_times_the_scale() -> None:
    """The first step of Adam is lr * sign(gradient)."""
    model = Everything()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(AdamW(lr=0.01, weight_decay=0), model)
    set_moment(optimizer, lr_factor=0.5, fraction=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: float((before[name] - parameter.detach()).mean()) for name, parameter in model.named_parameters()}
    scaled = ("out", "map", "experts")
    assert moved == {name: pytest.approx(0.01 / (8 if name in scaled else 2), rel=1e-4) for name in SHAPES}


@pytest.mark.parametrize(("spec", "kind"), [(Muon(), "muon"), (NorMuon(), "normuon")])
def test_the_table(spec: Muon | NorMuon, kind: str) -> None:
    rest = AdamWNumbers(lr=2e-3, weight_decay=1e-4, independent_weight_decay=True)
    spec = spec.model_copy(update={"lr": 0.03, "weight_decay": 0.1, "adamw": rest})
    expected = {
        "embedding": ("adamw", 44, 2e-3, 0),
        "head": ("adamw", 44, 5e-4, 1e-4),
        "matrix": (kind, 24, 0.03, 0.003),  # not a quarter of it: Muon has a width rule of its own
        "experts": (kind, 72, 0.03, 0.003),
        "router": ("adamw", 12, 2e-3, 1e-4),
        "table": ("adamw", 36, 2e-3, 0),
        "vector": ("adamw", 4, 2e-3, 0),
    }
    rows = table(build_optimizer(spec, Everything()).param_groups)
    assert len(rows) == len(expected)
    assert {row.role: row for row in rows} == {
        role: Row(role, algorithm, 1, numbers, pytest.approx(lr), pytest.approx(decay))  # type: ignore[arg-type]
        for role, (algorithm, numbers, lr, decay) in expected.items()
    }
    with torch.device("meta"):
        assert table(parameter_groups(spec, Everything())) == rows


def test_parameters_of_one_placement_share_a_group() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    rows = table(build_optimizer(AdamW(), model).param_groups)
    assert [(row.role, row.tensors, row.parameters) for row in rows] == [("matrix", 2, 32), ("vector", 2, 9)]


class Claims(nn.Module):
    def __init__(self, claims: dict[str, Placement]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.claims = claims

    def placements(self) -> dict[str, Placement]:
        return self.claims


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"linear.weight": "matrix"}, "linear.bias is missing"),
        ({"linear.weight": "matrix", "linear.bias": "vector", "tied": "head"}, "tied names no parameter"),
        ({"linear.weight": "experts", "linear.bias": "vector"}, "linear.weight has 2 dimensions, but role 'experts' means 3"),
        ({"linear.weight": "matrix", "linear.bias": "matrix"}, "linear.bias has 1 dimensions, but role 'matrix' means 2"),
    ],
)
def test_placements_that_do_not_fit_are_refused(claims: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=re.escape(message)):
        build_optimizer(Muon(), Claims({name: Placement(role) for name, role in claims.items()}))


def test_momentum_warms_up_with_the_budget_and_lr_with_its_factor() -> None:
    spec = Muon(lr=0.02, momentum=0.95, momentum_warmup=MomentumWarmup(start=0.85, until=0.2), adamw=AdamWNumbers(lr=1e-3))
    optimizer = build_optimizer(spec, Everything())
    matrix, vector = (next(group for group in optimizer.param_groups if group["role"] == role) for role in ("matrix", "vector"))
    found = []
    for fraction in (0.0, 0.1, 0.2, 0.9):
        set_moment(optimizer, lr_factor=1 - fraction, fraction=fraction)
        found.append(matrix["momentum"])
        assert matrix["lr"] == pytest.approx(0.02 * (1 - fraction))
        assert vector["lr"] == pytest.approx(1e-3 * (1 - fraction))
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert "momentum" not in vector
    constant = build_optimizer(Muon(momentum=0.9), Everything())
    set_moment(constant, lr_factor=1.0, fraction=0.01)
    assert {group["momentum"] for group in constant.param_groups if "momentum" in group} == {0.9}


@pytest.mark.parametrize("spec", [AdamW(), Muon(), NorMuon()], ids=lambda spec: spec.kind)
def test_a_state_is_plain_enough_to_be_read_without_trust(spec: Any) -> None:
    model = Everything()
    optimizer = build_optimizer(spec, model)
    step_with_zero_gradients(optimizer, model)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert [group["role"] for group in state["param_groups"]] == [group["role"] for group in optimizer.param_groups]


class Holder(Spec):
    optimizer: Optimizer = AdamW()


def test_optimizers_as_people_write_them() -> None:
    found = parse(Holder, {"optimizer": {"kind": "normuon", "lr": 0.03, "adamw": {"lr": 2e-3}}}, source="test").optimizer
    assert found == NorMuon(lr=0.03, adamw=AdamWNumbers(lr=2e-3))
    assert found.orthogonaliser == "polar_express"
    assert parse(Holder, {"optimizer": {"lr": 3e-4}}, source="test").optimizer == AdamW(lr=3e-4)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "muno"}, "optimizer.kind=muno is not a kind; did you mean 'muon'"),
        ({"kind": "muon", "beta2": 0.9}, "optimizer.beta2 is not a key"),
        ({"kind": "muon", "adamw": {"clip_norm": 1}}, "optimizer.adamw.clip_norm is not a key"),
        ({"kind": "muon", "momentum_warmup": {"until": 0}}, "optimizer.momentum_warmup.until=0"),
        ({"kind": "adamw", "momentum": 0.9}, "optimizer.momentum is not a key"),
    ]
    for values, message in wrong:
        with pytest.raises(SpecError, match=re.escape(message)):
            parse(Holder, {"optimizer": values}, source="test")
