"""What each parameter of a model is for, so that optimizers and reports need not know any architecture.

A model that knows says so itself, by a method `placements() -> dict[str, Placement]`; of all others a rule on modules and
shapes decides. Optimizers choose an algorithm and a weight decay by role (`limbeck.optim.groups`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Role = Literal["embedding", "head", "matrix", "experts", "router", "table", "vector"]
"""matrix: [out, in] of a linear map; experts: [E, in, out], a matrix for each of E experts; table: looked up, not multiplied
(hashed n-grams, value embeddings); vector: norms, biases, gains, sinks and whatever is nothing else."""


@dataclass(frozen=True)
class Placement:
    """The role of a parameter, and its learning rate beside the optimizer's."""

    role: Role
    lr_scale: float = 1.0
    """Factor of AdamW's learning rate, such as muP's base width over width. Muon has a width rule of its own."""


def placements(model: nn.Module) -> dict[str, Placement]:
    """The placement of every parameter, under its name in `named_parameters()` (a shared parameter has its first name only).

    The outermost modules that have a method `placements` speak for all inside them; `_by_rule` decides on the rest.
    """
    told: dict[str, Placement] = {}
    spoken_for: set[int] = set()
    for prefix, module in _speakers(model, prefix=""):
        told |= {prefix + name: placement for name, placement in module.placements().items()}  # type: ignore[operator]
        spoken_for |= {id(parameter) for parameter in module.parameters()}
    rest = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in spoken_for}
    return told | _by_rule(model, rest)


def _speakers(module: nn.Module, *, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # Asked of the class: `torch.compile`'s wrapper lends its model's methods, but not its parameters' names.
    if hasattr(type(module), "placements"):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _speakers(child, prefix=f"{prefix}{name}.")


def _by_rule(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, Placement]:
    """Embeddings (tied heads with them), then heads, then linear maps, then anything with three dimensions, then vectors."""
    modules = list(model.modules())
    embeddings = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    heads = {id(weight) for module in modules for weight in _heads(module)}
    matrices = {id(module.weight) for module in modules if isinstance(module, nn.Linear)}

    def role(parameter: nn.Parameter) -> Role:
        if id(parameter) in embeddings:
            return "embedding"
        if id(parameter) in heads:
            return "head"
        if id(parameter) in matrices:
            return "matrix"
        return "experts" if parameter.ndim == 3 else "vector"

    return {name: Placement(role(parameter)) for name, parameter in parameters.items()}


def _heads(module: nn.Module) -> Iterator[Tensor]:
    """The output matrix of a language model, by the name that all use or by transformers' method."""
    named = getattr(module, "lm_head", None)
    method = getattr(type(module), "get_output_embeddings", None)
    for head in (named, method(module) if method is not None else None):
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            yield weight
