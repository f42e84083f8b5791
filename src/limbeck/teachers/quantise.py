"""Quantising a loaded teacher, or loading one quantised: which matrices, and what became of each.

The weights of all linear layers are quantised, those of experts among them. What stays as it is: the head and the embedding,
unless the scheme says otherwise, because the head's error goes into every logit; the routers of a mixture of experts, because
an expert chosen wrongly is no rounding error; norms and biases, which are few. A model that keeps many weights where none of
this tells what they are is refused, and so is one whose weights are packed already.

Simulated schemes write the rounded weights over the loaded ones, some rows at a time, in the teacher's own dtype: in bfloat16
they are rounded once more, as a kernel that multiplies in bfloat16 would.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from limbeck.errors import TeacherError
from limbeck.spec.quantisation import GGUFQuantisation, Quantisation, Simulated
from limbeck.teachers.gguf_blocks import gguf_type_for
from limbeck.teachers.rounding import bits_per_weight, rounded

WEIGHTS_AT_ONCE = 2**22
"""Rounded together: 16 MiB in float32, and some twenty times that while they are."""
PLAIN_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
TRANSPOSED = {
    "Llama4TextExperts": True,
    "RecurrentGemmaRglru": True,
    "LongcatFlashExperts": False,
    "JetMoeParallelExperts": False,
    "InklingSharedExperts": False,
}
"""Classes of transformers with parameters [matrices, output, input], or [matrices, input, output] where transposed, that do not
say which, as other experts do by `is_transposed`."""
GATES = {"gate", "shared_expert_gate"}
"""What linear layers that choose experts are called beside `router`; other layers are too."""
MOST_LEFT_OUT = 0.01
"""Of all parameters: position embeddings of several dimensions are less, matrices that were not recognised are more."""


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
    """Round a loaded model's weights in place. `TeacherError` as `check_quantisable`, and where a result is not finite."""
    return tuple(_round_in_place(matrices, scheme) for matrices in _checked_matrices(model, scheme))


def check_quantisable(model: Any, scheme: Simulated) -> None:
    """`TeacherError` where the scheme can't take the model, whose weights may be absent (on the device `meta`).

    It has no linear layer, or rows of no whole blocks, or weights packed already, or many weights of unknown orientation.
    """
    _checked_matrices(model, scheme)


def summary(matrices: Sequence[QuantisedMatrix]) -> str:
    """Which matrices, layers counted: `int4-g128: 30 of model.layers.*.mlp.down_proj, ...`."""
    patterns = Counter((matrix.scheme, re.sub(r"\.\d+(?=\.|$)", ".*", matrix.name)) for matrix in matrices)
    parts: dict[str, list[str]] = {}
    for (scheme, pattern), count in patterns.items():
        parts.setdefault(scheme, []).append(f"{count} of {pattern}" if count > 1 else pattern)
    return "; ".join(f"{scheme}: {', '.join(named)}" for scheme, named in parts.items())


def routers(model: Any) -> frozenset[str]:
    """Names of linear layers that choose experts, or weigh a shared one: in a router, or a gate with one output for each.

    Outputs alone say nothing: some projections of Qwen3-Next have as many as there are experts.
    """
    widths = _gate_widths(model)
    within = tuple(f"{name}." for name, module in model.named_modules() if "Router" in type(module).__name__)
    return frozenset(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and ("router" in name or name.startswith(within) or (module.out_features in widths and GATES & {*name.split(".")}))
    )


def _gate_widths(model: Any) -> set[int]:
    """Outputs of a layer that chooses experts, or weighs a shared one; none where there are no experts."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")]
    counts = {count for each in found for count in (each if isinstance(each, list | tuple) else [each])}  # by layer in some
    experts = {count for count in counts if isinstance(count, int)}
    return experts | {1} if experts else set()


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


def _checked_matrices(model: Any, scheme: Simulated) -> list[_Matrices]:
    found = list(_matrices(model, everything=scheme.embeddings_and_head))
    place, kind = f"teacher.quantisation={scheme.slug}", type(model).__name__
    for matrices in found:
        weight = matrices.views[0]
        if not _is_plain(weight):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise TeacherError(f"{place}: {matrices.name} of {kind} is packed already, as {dtype}: leave the setting out")
        _written_as(scheme, weight.shape[-1])
    unknown = _unknown(model, found)
    share = sum(unknown.values()) / max(1, sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers())))
    if share > MOST_LEFT_OUT:
        largest = max(unknown, key=lambda name: unknown[name])
        raise TeacherError(
            f"{place}: {kind} keeps {share:.0%} of its weights in {largest} and the like, whose layout is not known here: "
            "leave the setting out"
        )
    if not found:
        raise TeacherError(f"{place}: {kind} has no linear layer to quantise")
    return found


def _is_plain(weight: Tensor) -> bool:
    """Floats, one for each weight: no packed ones, also not where a tensor's class unpacks them as it is read."""
    return weight.dtype in PLAIN_DTYPES and not hasattr(weight, "__tensor_flatten__")


def _unknown(model: Any, found: Sequence[_Matrices]) -> dict[str, int]:
    """Weights by name in modules of no known kind: those of three dimensions, of experts, and packed ones, also in buffers."""
    taken = {matrices.name for matrices in found}
    unknown = {}
    for name, module in model.named_modules():
        known = isinstance(module, nn.Linear | nn.Embedding | _ConvNd) and isinstance(module.weight, Tensor)
        if known or name in taken:
            continue
        packed = ((own, buffer) for own, buffer in module.named_buffers(recurse=False) if "weight" in own)
        for own, tensor in chain(module.named_parameters(recurse=False), packed):
            path = f"{name}.{own}" if name else own
            matrix = "Expert" in type(module).__name__ or not _is_plain(tensor)
            if tensor.ndim >= (2 if matrix else 3) and "bias" not in own and path not in taken:
                unknown[path] = tensor.numel()
    return unknown


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
        if isinstance(weight, Tensor) and (isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and at_end)):
            seen.add(id(weight))  # tied to another module's
            yield _Matrices(name, (weight,))
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer of transformers: [input, output]
            assert isinstance(weight, Tensor)
            yield _Matrices(name, (weight.T,))
        elif (transposed := _transposed(module)) is not None:
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    experts = parameter.transpose(-1, -2) if transposed else parameter
                    yield _Matrices(f"{name}.{own}", tuple(experts))


def _transposed(module: nn.Module) -> bool | None:
    """Whether a module's parameters are [experts, input, output]; None of one that is not known to hold experts."""
    stated = getattr(module, "is_transposed", None)
    return stated if isinstance(stated, bool) else TRANSPOSED.get(type(module).__name__)


def _round_in_place(matrices: _Matrices, scheme: Simulated) -> QuantisedMatrix:
    width = matrices.views[0].shape[-1]
    rows_at_once = max(1, WEIGHTS_AT_ONCE // width)
    for weight_RI in matrices.views:
        for rows_RI in weight_RI.split(rows_at_once):
            new_RI = rounded(rows_RI, scheme).to(rows_RI.dtype)
            if not new_RI.isfinite().all():
                raise TeacherError(_not_finite(matrices.name, rows_RI, scheme))
            rows_RI.copy_(new_RI)
    weights = sum(view.numel() for view in matrices.views)
    return QuantisedMatrix(matrices.name, _written_as(scheme, width), weights, bits_per_weight(scheme, width))


def _not_finite(name: str, weight_RI: Tensor, scheme: Simulated) -> str:
    place, largest = f"teacher.quantisation={scheme.slug}", float(weight_RI.abs().max())
    if not math.isfinite(largest):
        return f"{place}: {name} holds weights that are not finite before they are rounded; use another teacher or dtype"
    return f"{place}: {name} holds weights up to {largest:.3g}, too large for the scheme's scales; use kind=integer"


def _written_as(scheme: Quantisation, width: int) -> str:
    """The scheme's slug, or the type that it falls back to for rows of this width."""
    if isinstance(scheme, GGUFQuantisation):
        return f"gguf-{gguf_type_for(scheme.type, width)}"
    return scheme.slug.removesuffix("-all")
