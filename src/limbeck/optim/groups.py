"""Which parameter is stepped by which algorithm, with what learning rate and weight decay.

The whole rule is `_group`. A group is a dict as torch's optimizers take it, with three keys of our own: `role` and `algorithm`
(for people and for `MuonWithAdamW`) and `peak_lr` (from which `schedules.set_moment` makes `lr` at each step).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.errors import LimbeckError
from limbeck.roles import Placement, Role, placements
from limbeck.spec.optim import AdamW, AdamWNumbers, MomentumWarmup, Muon, NorMuon, Optimizer

DECAYING: tuple[Role, ...] = ("head", "matrix", "experts", "router")
ORTHOGONALISED: tuple[Role, ...] = ("matrix", "experts")
"""Magnitudes matter where rows are looked up (embedding, table) or scores are compared (head, router): those stay AdamW's."""
BYTES_PER_FLOAT32 = 4
DIMENSIONS = {"matrix": 2, "experts": 3}


@dataclass(frozen=True)
class Row:
    """A group of parameters, for people to read."""

    role: Role
    algorithm: str
    tensors: int
    parameters: int
    peak_lr: float
    """Of AdamW's step; of Muon's before the scale for the matrix's shape."""
    decay_per_step: float
    """The share of itself that a weight loses in a step at the peak learning rate."""


def parameter_groups(spec: Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """One group for each placement, in the order in which the model has them; each parameter is in exactly one.

    Raises `LimbeckError` where the model's own placements miss a parameter, name one that is not there, or give one a role that
    its shape cannot have.
    """
    placed = placements(model)
    members: dict[Placement, list[nn.Parameter]] = {}
    parameters = dict(model.named_parameters())
    for name in (*parameters, *placed):
        if name not in placed or name not in parameters:
            where = "names no parameter of the model" if name in placed else "is missing"
            raise LimbeckError(f"placements() of {type(model).__name__}: {name} {where}; use the names of named_parameters()")
    for name, parameter in parameters.items():
        placement = placed[name]
        if parameter.ndim != DIMENSIONS.get(placement.role, parameter.ndim):
            expected = DIMENSIONS[placement.role]
            raise LimbeckError(f"{name} has {parameter.ndim} dimensions, but role {placement.role!r} means {expected}")
        members.setdefault(placement, []).append(parameter)
    return [{"params": found, "role": placement.role, **_group(spec, placement)} for placement, found in members.items()]


def table(groups: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A row for each group, of an `optimizer.param_groups` or of `parameter_groups(spec, model)` (a meta model will do).

    What is frozen beside an adapter is not counted.
    """
    return [
        Row(
            role=group["role"],
            algorithm=group["algorithm"],
            tensors=len(learning),
            parameters=sum(parameter.numel() for parameter in learning),
            peak_lr=group["peak_lr"],
            decay_per_step=group["peak_lr"] * group["weight_decay"],
        )
        for group in groups
        if (learning := [parameter for parameter in group["params"] if parameter.requires_grad])
    ]


def training_bytes(groups: Iterable[Mapping[str, Any]]) -> int:
    """Of parameters, gradients and what the optimizer keeps, all float32. Activations come on top.

    AdamW keeps two numbers for each; Muon one; NorMuon one, and one for each output channel of a matrix.
    """
    numbers = 0
    for group in groups:
        kept = 2 if group["algorithm"] == "adamw" else 1
        for parameter in group["params"]:
            numbers += parameter.numel()
            if not parameter.requires_grad:
                continue
            numbers += (1 + kept) * parameter.numel()
            if "beta2" in group:
                numbers += parameter.numel() // parameter.shape[1]  # channels in: of [out, in] and of [E, in, out] alike
    return BYTES_PER_FLOAT32 * numbers


def _group(spec: Optimizer, placement: Placement) -> dict[str, Any]:
    """Everything by AdamW; but where the optimizer is Muon or NorMuon, hidden matrices and experts by that."""
    match spec:
        case AdamW():
            return _adamw(spec, placement)
        case Muon():
            return _muon(spec) if placement.role in ORTHOGONALISED else _adamw(spec.adamw, placement)
        case NorMuon(beta2=beta2):
            return {**_muon(spec), "beta2": beta2} if placement.role in ORTHOGONALISED else _adamw(spec.adamw, placement)


def _adamw(numbers: AdamWNumbers, placement: Placement) -> dict[str, Any]:
    peak_lr = numbers.lr * placement.lr_scale
    decay = numbers.weight_decay if placement.role in DECAYING else 0.0
    return {
        "algorithm": "adamw",
        "peak_lr": peak_lr,
        "lr": peak_lr,
        "betas": (numbers.beta1, numbers.beta2),
        "eps": numbers.eps,
        "fused": True,
        # AdamW multiplies the decay by lr = peak_lr * factor, so this leaves factor * decay.
        "weight_decay": decay / peak_lr if numbers.independent_weight_decay else decay,
    }


def _muon(spec: Muon | NorMuon) -> dict[str, Any]:
    """Without `lr_scale`: an orthogonal step has its width rule in `scale`, and muP's 1/width on top would be one too many."""
    warmup = spec.momentum_warmup or MomentumWarmup(start=spec.momentum)
    return {
        "algorithm": spec.kind,
        "peak_lr": spec.lr,
        "lr": spec.lr,
        "momentum": spec.momentum,
        "peak_momentum": spec.momentum,
        "start_momentum": warmup.start,
        "momentum_warmup": warmup.until,
        "nesterov": spec.nesterov,
        "orthogonaliser": spec.orthogonaliser,
        "steps": spec.steps,
        "scale": spec.scale,
        "weight_decay": spec.weight_decay,
    }
