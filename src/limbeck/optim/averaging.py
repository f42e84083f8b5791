"""Averages of the weights along a run, held in float32 beside them: exponential (EMA), or of snapshots (SWA).

An average often measures better than the last weights of a run and costs one pass over them. The training loop calls `update`
after every step; evaluation and export happen inside `swapped`. Buffers are not averaged, nor is what
did not learn when the average began.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.spec.optim import Averaging, ExponentialAverage, NoAveraging, SnapshotAverage


class WeightAverage:
    """The average that `spec` asks for, of a model that has its initial weights now."""

    def __init__(self, spec: Averaging, model: nn.Module) -> None:
        self.spec = spec
        self.count = 0
        """Steps (EMA) or snapshots (SWA) that went in, the initial weights not counted."""
        self._highest = 0.0
        """The highest `lr_factor` so far: one that is no lower belongs to the warmup, or to the plateau."""
        self._fraction = 0.0
        self._average: dict[str, Tensor] = {}
        if not isinstance(spec, NoAveraging):
            learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
            self._average = {name: _wide(parameter).clone() for name, parameter in learning.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, *, lr_factor: float, fraction: float) -> None:
        """After a step, with the share of the peak learning rate that it had and the share of the budget spent by its end."""
        weight = self._weight(lr_factor=lr_factor, fraction=fraction)
        self._fraction, self._highest = fraction, max(lr_factor, self._highest)
        if weight is None:
            return
        self.count += 1
        parameters = dict(model.named_parameters())
        for name, average in self._average.items():
            average.lerp_(_wide(parameters[name]), weight)

    def _weight(self, *, lr_factor: float, fraction: float) -> float | None:
        """Of the weights now in the new average; None where they stay out."""
        match self.spec:
            case NoAveraging():
                return None
            case ExponentialAverage(decay=decay):
                return 1 - decay
            case SnapshotAverage(below=below, every=every):
                due = _multiples(fraction, of=every) > _multiples(self._fraction, of=every)
                return 1 / (self.count + 1) if due and lr_factor < min(below, self._highest) else None

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; afterwards its own again, bit for bit.

        Where nothing was averaged yet, or nothing is to be, it keeps its own.
        """
        if self.count == 0:
            yield
            return
        parameters = dict(model.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self._average}
        try:
            _copy(self._average, model)
            yield
        finally:
            _copy(own, model)

    def put_in_place(self, model: nn.Module) -> None:
        """At the end of a run: the average becomes the model's own weights, where there is one."""
        if self.count:
            _copy(self._average, model)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers; the tensors are not copied."""
        numbers = {"count": self.count, "highest": self._highest, "fraction": self._fraction}
        return {"kind": self.spec.kind, "average": self._average, **numbers}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken. Raises `ValueError` where it is of another model or kind."""
        if state["kind"] != self.spec.kind:
            raise ValueError(f"the saved average is of kind {state['kind']}, not {self.spec.kind}")
        saved, own = ({name: each.shape for name, each in held.items()} for held in (state["average"], self._average))
        if saved != own:
            raise ValueError("the saved average holds other parameters than the model")
        for name, average in self._average.items():
            average.copy_(state["average"][name])
        self.count, self._highest, self._fraction = state["count"], state["highest"], state["fraction"]


def _multiples(fraction: float, *, of: float) -> int:
    """How many were reached; 0.7 is the seventh of 0.1, though 0.7 / 0.1 is a last bit less than 7."""
    return math.floor(fraction / of + 1e-9)


def _wide(parameter: Tensor) -> Tensor:
    """In float32, or float64 where it is: 0.3 % of a bfloat16 weight is less than its last bit."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)
