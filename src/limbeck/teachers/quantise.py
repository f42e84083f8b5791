"""Quantising a loaded teacher, or loading one quantised: which matrices, and what became of each.

The weights of all linear layers are quantised, those of experts among them. What stays as it is: the head and the embedding,
unless the scheme says otherwise, because the head's error goes into every logit; the routers of a mixture of experts, because
an expert chosen wrongly is no rounding error; norms and biases, which are few.

Simulated schemes write the rounded weights over the loaded ones, some rows at a time, in the teacher's own dtype: in bfloat16
they are rounded once more, as a kernel that multiplies in bfloat16 would.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import TeacherError
from limbeck.spec.quantisation import GGUFQuantisation, Quantisation, Simulated
from limbeck.teachers.gguf_blocks import gguf_type_for
from limbeck.teachers.rounding import bits_per_weight, rounded

WEIGHTS_AT_ONCE = 2**22
"""Rounded together: 16 MiB in float32, and some twenty times that while they are."""


@dataclass(frozen=True)
class QuantisedMatrix:
    """A parameter that holds quantised weights."""

    name: str
    """Of its module, or of the parameter where a module has several."""
    scheme: str
    weights: int
    bits_per_weight: float
    """Scales included."""


@dataclass(frozen=True)
class _Matrices:
    """Matrices [rows, input] that share a parameter, as views: one, or one for each expert."""

    name: str
    views: tuple[Tensor, ...]


@torch.no_grad()
def quantise(model: Any, scheme: Simulated) -> tuple[QuantisedMatrix, ...]:
    """Round a loaded model's weights in place. `TeacherError` where it has none that the scheme could take."""
    found = [_round_in_place(matrices, scheme) for matrices in _matrices(model, everything=scheme.embeddings_and_head)]
    if not found:
        raise TeacherError(f"teacher.quantisation={scheme.slug}: {type(model).__name__} has no linear layer to quantise")
    return tuple(found)


def summary(matrices: Sequence[QuantisedMatrix]) -> str:
    """Which matrices, layers counted: `int4-g128: 30 of model.layers.*.mlp.down_proj, ...`."""
    patterns = Counter((matrix.scheme, re.sub(r"\.\d+(?=\.|$)", ".*", matrix.name)) for matrix in matrices)
    parts: dict[str, list[str]] = {}
    for (scheme, pattern), count in patterns.items():
        parts.setdefault(scheme, []).append(f"{count} of {pattern}" if count > 1 else pattern)
    return "; ".join(f"{scheme}: {', '.join(named)}" for scheme, named in parts.items())


def routers(model: Any) -> frozenset[str]:
    """Names of linear layers that choose experts, or weigh a shared one."""
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = {getattr(config, name, None) for name in names} - {None}
    if not experts:
        return frozenset()
    return frozenset(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features in experts | {1}
    )


def weights_bytes(model: Any, matrices: Sequence[QuantisedMatrix]) -> float:
    """Bytes of all parameters, each once: what quantised ones take when packed, what the others take now."""
    packed = sum(matrix.weights * matrix.bits_per_weight / 8 for matrix in matrices)
    return packed + sum(parameter.nbytes for parameter in _others(model, matrices))


def quantised_share(model: Any, matrices: Sequence[QuantisedMatrix]) -> float:
    """Quantised weights over all parameters."""
    weights = sum(matrix.weights for matrix in matrices)
    return weights / (weights + sum(parameter.numel() for parameter in _others(model, matrices)))


def _others(model: Any, matrices: Sequence[QuantisedMatrix]) -> Iterator[Tensor]:
    """The parameters that are not quantised, each once."""
    names = {matrix.name for matrix in matrices}
    for name, parameter in model.named_parameters():
        if names.isdisjoint({name, name.removesuffix(".weight")}):
            yield parameter


def _matrices(model: Any, *, everything: bool) -> Iterator[_Matrices]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = {id(module.weight) for module in (embedding, head) if module is not None}
    kept = routers(model)
    seen: set[int] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        at_end = id(weight) in ends
        if name in kept or id(weight) in seen or (at_end and not everything):
            continue
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and at_end):
            assert isinstance(weight, Tensor)
            seen.add(id(weight))  # tied to another module's
            yield _Matrices(name, (weight,))
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer of transformers: [input, output]
            assert isinstance(weight, Tensor)
            yield _Matrices(name, (weight.T,))
        elif hasattr(module, "is_transposed"):  # experts of transformers: parameters [experts, output, input] or transposed
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    experts = parameter.transpose(-1, -2) if module.is_transposed else parameter
                    yield _Matrices(f"{name}.{own}", tuple(experts))


def _round_in_place(matrices: _Matrices, scheme: Simulated) -> QuantisedMatrix:
    width = matrices.views[0].shape[-1]
    rows_at_once = max(1, WEIGHTS_AT_ONCE // width)
    for weight_RI in matrices.views:
        for rows_RI in weight_RI.split(rows_at_once):
            rows_RI.copy_(rounded(rows_RI, scheme))
    weights = sum(view.numel() for view in matrices.views)
    return QuantisedMatrix(matrices.name, _written_as(scheme, width), weights, bits_per_weight(scheme, width))


def _written_as(scheme: Quantisation, width: int) -> str:
    """The scheme's slug, or the type that it falls back to for rows of this width."""
    if isinstance(scheme, GGUFQuantisation):
        return f"gguf-{gguf_type_for(scheme.type, width)}"
    return scheme.slug.removesuffix("-all")
