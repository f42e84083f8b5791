"""Muon against torch's, NorMuon against its formula with singular value decompositions; steps that must not happen."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.optim.build import build_optimizer
from limbeck.optim.muon import shape_scale
from limbeck.roles import Placement
from limbeck.spec.optim import AdamWNumbers, Muon, MuonNumbers, NorMuon


class Stack(nn.Module):
    """Experts [E, in, out] and a plain map of another shape."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for index, shape in enumerate(shapes):
            self.register_parameter(f"w{index}", nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)))

    def placements(self) -> dict[str, Placement]:
        return {name: Placement("experts" if each.ndim == 3 else "matrix") for name, each in self.named_parameters()}


def gradients(model: nn.Module, *, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    for step in range(steps):
        gradients(model, step=step)
        optimizer.step()


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs(scale: Any, nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's orthogonalises in bfloat16; here it is made to keep float64, so that the two may be held to 1e-9."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    shapes = ((64, 24), (24, 64), (32, 32))
    ours, theirs = Stack(*shapes), Stack(*shapes)
    spec = Muon(lr=0.03, momentum=0.9, nesterov=nesterov, scale=scale, weight_decay=0.2)
    train(ours, build_optimizer(spec, ours, dtype=torch.float64), steps=5)
    oracle = torch.optim.Muon(
        theirs.parameters(), lr=0.03, momentum=0.9, nesterov=nesterov, adjust_lr_fn=scale, weight_decay=0.2
    )
    train(theirs, oracle, steps=5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)  # their norm has no 1e-7 added


def test_muon_in_bfloat16_is_torchs() -> None:
    ours, theirs = Stack((64, 256), dtype=torch.float32), Stack((64, 256), dtype=torch.float32)
    before = ours.w0.detach().clone()
    train(ours, build_optimizer(Muon(lr=0.02, weight_decay=0), ours, dtype=torch.bfloat16), steps=1)
    train(theirs, torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0), steps=1)
    difference = torch.linalg.norm(ours.w0 - theirs.w0) / torch.linalg.norm(theirs.w0 - before)
    assert difference < 2e-2


@pytest.mark.parametrize(("scale", "rms"), [("original", 0.053), ("match_rms_adamw", 0.172)])
def test_the_size_of_a_step(scale: Any, rms: float) -> None:
    """Of a random 64 x 256 matrix at lr 1; published numbers, which torch's Muon has too."""
    model = Stack((64, 256))
    before = model.w0.detach().clone()
    train(model, build_optimizer(Muon(lr=1.0, scale=scale, weight_decay=0), model), steps=1)
    assert (model.w0.detach() - before).square().mean().sqrt().item() == pytest.approx(rms, abs=1e-3)


def test_scales_by_shape() -> None:
    """Rows are `out`: a map from 16 to 64 channels is tall."""
    assert shape_scale("original", out=64, into=16) == 2
    assert shape_scale("original", out=16, into=64) == 1
    assert shape_scale("match_rms_adamw", out=16, into=64) == pytest.approx(1.6)
    assert shape_scale("spectral", out=16, into=64) == 0.5


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def plain_normuon(weight: Tensor, grads: list[Tensor], *, lr: float, beta: float, beta2: float, decay: float) -> Tensor:
    """The paper's algorithm with an exact polar factor, for one [out, in] matrix."""
    momentum, second = torch.zeros_like(weight), torch.zeros(len(weight), 1, dtype=weight.dtype)
    for grad in grads:
        momentum = beta * momentum + (1 - beta) * grad
        orthogonal = polar((1 - beta) * grad + beta * momentum)
        second = beta2 * second + (1 - beta2) * (orthogonal**2).mean(1, keepdim=True)
        level = orthogonal / second.sqrt()
        level = level * orthogonal.norm() / level.norm()
        weight = (1 - lr * decay) * weight - lr * math.sqrt(max(1, weight.shape[0] / weight.shape[1])) * level
    return weight


def test_normuon_is_its_formula_for_matrices_and_for_each_expert() -> None:
    """Eight steps of Polar Express are exact to 1e-6 or so on matrices of a good condition."""
    model = Stack((12, 5), (5, 12), (3, 5, 12))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    spec = NorMuon(lr=0.05, momentum=0.9, beta2=0.8, weight_decay=0.1, steps=9)
    optimizer = build_optimizer(spec, model, dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {name: [] for name in start}
    for step in range(4):
        gradients(model, step=step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            seen[name].append(parameter.grad.clone())
        optimizer.step()
    numbers = {"lr": 0.05, "beta": 0.9, "beta2": 0.8, "decay": 0.1}
    for name in ("w0", "w1"):
        expected = plain_normuon(start[name], seen[name], **numbers)
        torch.testing.assert_close(getattr(model, name).detach(), expected, rtol=1e-5, atol=1e-6)
    for expert in range(3):  # [in, out] in the stack, [out, in] in the formula
        expected = plain_normuon(start["w2"][expert].T, [grad[expert].T for grad in seen["w2"]], **numbers)
        torch.testing.assert_close(model.w2[expert].detach().T, expected, rtol=1e-5, atol=1e-6)


def first_step(spec: Muon | NorMuon, gradient: Tensor) -> Tensor:
    model = Stack(tuple(gradient.shape))
    before = model.w0.detach().clone()
    model.w0.grad = gradient.clone()
    build_optimizer(spec, model, dtype=torch.float64).step()
    return before - model.w0.detach()


def test_the_first_step_of_normuon_has_equal_rows_and_muons_norm() -> None:
    gradient = torch.randn(10, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    muon = first_step(Muon(weight_decay=0, orthogonaliser="polar_express"), gradient)
    normuon = first_step(NorMuon(weight_decay=0), gradient)
    rows = normuon.square().mean(1)
    torch.testing.assert_close(rows, rows.mean().expand_as(rows), rtol=1e-6, atol=0)
    assert muon.square().mean(1).std() > 0.1 * rows.mean()
    assert normuon.norm().item() == pytest.approx(muon.norm().item(), rel=1e-9)


def test_normuon_is_muon_where_rows_are_level() -> None:
    """A wide matrix's polar factor has orthonormal rows."""
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = {"weight_decay": 0, "steps": 9}
    muon = first_step(Muon(**exact, orthogonaliser="polar_express"), gradient)
    torch.testing.assert_close(first_step(NorMuon(**exact), gradient), muon, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spec", [Muon(weight_decay=0.5), NorMuon(weight_decay=0.5)], ids=lambda spec: spec.kind)
def test_each_expert_steps_as_if_alone(spec: Muon | NorMuon) -> None:
    """Also when others saw no token: those take no step, do not decay and keep their state."""
    stack = Stack((4, 6, 5))
    alone = [Stack((1, 6, 5)) for _ in range(4)]
    with torch.no_grad():
        for expert, model in enumerate(alone):
            model.w0.copy_(stack.w0[expert : expert + 1])
    optimizers = [build_optimizer(spec, model, dtype=torch.float64) for model in (stack, *alone)]
    for step, idle in enumerate([{2}, {1, 3}, set(), {0, 1}]):
        gradients(stack, step=step)
        assert stack.w0.grad is not None
        stack.w0.grad[list(idle)] = 0
        before = stack.w0.detach().clone()
        for expert, model in enumerate(alone):
            model.w0.grad = None if expert in idle else stack.w0.grad[expert : expert + 1].clone()
        for optimizer in optimizers:
            optimizer.step()
        for expert, model in enumerate(alone):
            assert torch.equal(stack.w0[expert], before[expert]) == (expert in idle)
            torch.testing.assert_close(stack.w0[expert], model.w0[0], rtol=0, atol=1e-12)


def test_a_stack_is_not_one_matrix() -> None:
    """One expert's gradient is a thousand times the others': as one matrix its singular values would drown theirs."""
    model = Stack((3, 8, 6))
    before = model.w0.detach().clone()
    gradients(model, step=0)
    assert model.w0.grad is not None
    model.w0.grad[0] *= 1000
    build_optimizer(Muon(lr=1.0, weight_decay=0, steps=9, orthogonaliser="polar_express"), model, dtype=torch.float64).step()
    values = torch.linalg.svdvals(before - model.w0.detach())
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_matrix_without_gradient_takes_no_step_along_stale_momentum(gradient: float | None) -> None:
    model = Stack((6, 5))
    optimizer = build_optimizer(NorMuon(), model)
    train(model, optimizer, steps=2)
    before = model.w0.detach().clone()
    state = {name: value.clone() for name, value in optimizer.state[model.w0].items()}
    model.w0.grad = None if gradient is None else torch.zeros_like(model.w0)
    optimizer.step()
    assert torch.equal(model.w0, before)
    assert state.keys() == {"momentum", "second_moment"}
    assert all(torch.equal(optimizer.state[model.w0][name], value) for name, value in state.items())
    gradients(model, step=2)
    optimizer.step()
    assert not torch.equal(model.w0, before)


def test_the_rest_is_torchs_adamw() -> None:
    """Bit for bit, on parameters that Muon does not take."""

    class Rest(Stack):
        def placements(self) -> dict[str, Placement]:
            return {"w0": Placement("router"), "w1": Placement("vector"), "w2": Placement("embedding", lr_scale=0.25)}

    ours, theirs = (Rest((8, 3), (4,), (6, 3), dtype=torch.float32) for _ in range(2))
    train(ours, build_optimizer(Muon(adamw=AdamWNumbers(lr=3e-3, beta1=0.8, weight_decay=0.2, eps=1e-6)), ours), steps=4)
    groups = [
        {"params": [theirs.w0], "weight_decay": 0.2},
        {"params": [theirs.w1], "weight_decay": 0},
        {"params": [theirs.w2], "weight_decay": 0, "lr": 3e-3 / 4},
    ]
    train(theirs, torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-6, fused=True), steps=4)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_and_normuon_share_their_numbers() -> None:
    assert set(NorMuon.model_fields) - set(Muon.model_fields) == {"beta2"}
    assert set(MuonNumbers.model_fields) < set(Muon.model_fields)
    assert (Muon().orthogonaliser, NorMuon().orthogonaliser) == ("newton_schulz", "polar_express")
