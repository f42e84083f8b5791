"""`check_optimizer`: what every optimizer must be, whatever its code.

On a toy model with a parameter of every role it checks that the state is plain data and a resumed run repeats an undisturbed
one bit for bit; that a learning rate of zero moves nothing and half a rate half as far; that parameters without gradient stay,
and so do experts that saw no token where the step is orthogonalised; that gradients of 1e-20, 1e15 and zero leave finite
weights; and that steps along the gradient of a loss lower it.

    from limbeck.testing import check_optimizer
    check_optimizer(NorMuon(lr=0.01))
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.optim.build import build_optimizer
from limbeck.optim.groups import ORTHOGONALISED, Row, table
from limbeck.optim.schedules import set_moment
from limbeck.roles import Placement, Role
from limbeck.spec.optim import Optimizer
from limbeck.testing.objectives import ConformanceError

SHAPES: dict[Role, tuple[int, ...]] = {
    "embedding": (13, 6),
    "matrix": (8, 6),
    "experts": (3, 8, 6),
    "router": (3, 8),
    "table": (7, 6),
    "vector": (6,),
    "head": (13, 6),
}
Builder = Callable[[Any, nn.Module], torch.optim.Optimizer]


class Toy(nn.Module):
    """A parameter of each role, named after it, and a loss that reads all: the mean square distance to fixed targets."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.targets: dict[str, Tensor] = {}
        for role, shape in SHAPES.items():
            self.register_parameter(role, nn.Parameter(0.1 * torch.randn(shape, generator=generator)))
            self.targets[role] = torch.randn(shape, generator=generator)

    def placements(self) -> dict[str, Placement]:
        """Each parameter has the role of its name."""
        return {role: Placement(role) for role in SHAPES}

    def weights(self) -> dict[str, Tensor]:
        """Copies of them."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def loss(self) -> Tensor:
        """Summed over roles."""
        pulls = [(parameter - self.targets[name]).square().mean() for name, parameter in self.named_parameters()]
        return torch.stack(pulls).sum()

    def random_gradients(self, *, step: int, scale: float = 1.0) -> None:
        """The same for the same step."""
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in self.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@dataclass(frozen=True)
class OptimizerReport:
    """What the check measured, for the reader."""

    table: tuple[Row, ...]
    """Of the toy model."""
    step_rms: dict[str, float]
    """Root mean square of the first step along a random gradient, by role, over the peak learning rate."""
    checks: tuple[str, ...]
    """Names of the properties that held."""


@dataclass(frozen=True)
class _Case:
    spec: Optimizer
    build: Builder

    def fresh(self) -> tuple[Toy, torch.optim.Optimizer]:
        model = Toy()
        return model, self.build(self.spec, model)


def check_optimizer(spec: Optimizer, *, build: Builder = build_optimizer) -> OptimizerReport:
    """Raise `ConformanceError` if the optimizer breaks a rule; otherwise report what was measured.

    `build(spec, model)` makes it: a `torch.optim.Optimizer` whose groups `set_moment` can set.
    """
    case = _Case(spec, build)
    checks: dict[str, Callable[[_Case], None]] = {
        "groups": _check_groups,
        "plain state": _check_plain_state,
        "resume": _check_resume,
        "learning rate": _check_learning_rate,
        "missing gradients": _check_missing_gradients,
        "idle experts": _check_idle_experts,
        "finite": _check_finite,
        "descent": _check_descent,
    }
    for check in checks.values():
        check(case)
    model, optimizer = case.fresh()
    rows = tuple(table(optimizer.param_groups))
    peaks = {role: group["peak_lr"] for group in optimizer.param_groups for role, each in _members(group, model)}
    before = model.weights()
    _step(model, optimizer, step=0)
    rms = {name: float((after - before[name]).square().mean().sqrt()) / peaks[name] for name, after in model.weights().items()}
    return OptimizerReport(table=rows, step_rms=rms, checks=tuple(checks))


def _check_groups(case: _Case) -> None:
    model, optimizer = case.fresh()
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    expected = [id(parameter) for parameter in model.parameters()]
    _require(sorted(grouped) == sorted(expected), "groups", "not every parameter is in exactly one group")
    for group in optimizer.param_groups:
        _require("peak_lr" in group, "groups", "a group has no 'peak_lr', from which set_moment makes its lr")


def _check_plain_state(case: _Case) -> None:
    model, optimizer = case.fresh()
    _step(model, optimizer, step=0)
    try:
        _through_a_file(optimizer.state_dict())
    except Exception as error:
        raise ConformanceError(f"plain state: torch.load(weights_only=True) refuses the state: {error}") from error


def _check_resume(case: _Case) -> None:
    """Three steps, a checkpoint, three more in fresh objects, at moments that change momentum and rate."""
    model, optimizer = case.fresh()
    for step in range(6):
        _step(model, optimizer, step=step)
    first, interrupted = case.fresh()
    for step in range(3):
        _step(first, interrupted, step=step)
    second, resumed = case.fresh()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(_through_a_file(interrupted.state_dict()))
    for step in range(3, 6):
        _step(second, resumed, step=step)
    _require_equal(model.weights(), second.weights(), "resume")


def _check_learning_rate(case: _Case) -> None:
    found = []
    for factor in (0.0, 0.5, 1.0):
        model, optimizer = case.fresh()
        before = model.weights()
        set_moment(optimizer, lr_factor=factor, fraction=0.5)
        model.random_gradients(step=0)
        optimizer.step()
        found.append({name: after - before[name] for name, after in model.weights().items()})
    still, half, full = found
    for name, moved in full.items():
        _require(not still[name].any(), "learning rate", f"{name} moves at lr 0")
        _require(bool(moved.any()), "learning rate", f"{name} does not move at its peak lr")
        error = float((2 * half[name] - moved).norm() / moved.norm())
        _require(error < 1e-3, "learning rate", f"half the rate moves {name} otherwise than half as far ({error:.1g})")


def _check_missing_gradients(case: _Case) -> None:
    """After steps with gradients, so that there is momentum."""
    for absent in SHAPES:
        model, optimizer = case.fresh()
        for step in range(2):
            _step(model, optimizer, step=step)
        before = model.weights()
        model.random_gradients(step=2)
        model.get_parameter(absent).grad = None
        optimizer.step()
        moved = sorted(name for name, after in model.weights().items() if not torch.equal(after, before[name]))
        expected = sorted(set(SHAPES) - {absent})
        _require(moved == expected, "missing gradients", f"without a gradient of {absent}, a step moves {moved}")


def _check_idle_experts(case: _Case) -> None:
    """Where a step's size does not shrink with its momentum, an expert without gradient must stay. AdamW's fade."""
    model, optimizer = case.fresh()
    orthogonalised = {row.role for row in table(optimizer.param_groups) if row.algorithm != "adamw"}
    if not orthogonalised.intersection(ORTHOGONALISED):
        return
    for step in range(2):
        _step(model, optimizer, step=step)
    experts = model.get_parameter("experts")
    before = experts.detach().clone()
    model.random_gradients(step=2)
    assert experts.grad is not None
    experts.grad[1] = 0
    optimizer.step()
    stayed = [torch.equal(after, was) for after, was in zip(experts.detach(), before, strict=True)]
    _require(stayed == [False, True, False], "idle experts", f"of three, the second had no gradient; stayed: {stayed}")


def _check_finite(case: _Case) -> None:
    for scales in ((1e-20, 1.0), (1e15, 1e-20), (0.0, 1.0)):
        model, optimizer = case.fresh()
        for step, scale in enumerate(scales):
            model.random_gradients(step=step, scale=scale)
            optimizer.step()
        broken = [name for name, weight in model.weights().items() if not weight.isfinite().all()]
        _require(not broken, "finite", f"gradients of sizes {scales} make {broken} NaN or infinite")


def _check_descent(case: _Case) -> None:
    model, optimizer = case.fresh()
    before = model.loss().item()
    for _ in range(5):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    after = model.loss().item()
    _require(after < before, "descent", f"five steps along the gradient bring a loss of {before:.6g} to {after:.6g}")


def _step(model: Toy, optimizer: torch.optim.Optimizer, *, step: int) -> None:
    set_moment(optimizer, lr_factor=1 - step / 10, fraction=step / 10)
    model.random_gradients(step=step)
    optimizer.step()


def _members(group: dict[str, Any], model: nn.Module) -> list[tuple[str, Tensor]]:
    inside = {id(parameter) for parameter in group["params"]}
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in inside]


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _require_equal(one: dict[str, Tensor], other: dict[str, Tensor], rule: str) -> None:
    differing = [name for name, weight in one.items() if not torch.equal(weight, other[name])]
    _require(not differing, rule, f"{differing} differ in at least one bit")


def _require(held: bool, rule: str, found: str) -> None:
    if not held:
        raise ConformanceError(f"{rule}: {found}")
