"""The cut: a new model of the same kind, made of what stays of another's tensors.

Every dimension of every tensor lies along an axis (`limbeck.surgery.axes`), so one rule cuts all: keep the places that stay on
its axis. The new model is built from a new configuration, since modules read their layer's type and sizes when they are made.

**Fix-up.** An RMS norm over fewer channels divides by another number than its weights were trained with. They are multiplied by
sqrt(mean square of the channels that stay / mean square of all), measured in calibration, norm by norm. Where the channels that
go are exactly zero that restores the model's outputs (up to the norm's epsilon).

**Gemma** multiplies its embeddings by the square root of the width. The table is multiplied by what the new square root lacks,
and, where it is the output matrix too, the final norm divided by it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.plan.pruned import Sizes, resized
from limbeck.students.causal_lm import transformers_quiet
from limbeck.surgery.anatomy import Anatomy, anatomy_of
from limbeck.surgery.axes import Axis
from limbeck.surgery.keep import Kept
from limbeck.surgery.scores import Scores


@torch.no_grad()
def cut(model: Any, kept: Kept, *, scores: Scores | None = None) -> Any:
    """A new model of what stays, on the CPU in the old one's dtype and evaluation mode; the old one is left as it is.

    With `scores`, of the old model, norms are fixed up. Places need not be ascending: in another order they permute, which
    leaves the logits as they are where nothing goes.
    """
    anatomy = anatomy_of(model)
    new = build(resized(model.config.to_dict(), sizes_after(anatomy.sizes, kept), layers=kept.layers), dtype=anatomy.head.dtype)
    state = {}
    for name, axes in anatomy.axes.items():
        new_name, place = _renamed(name, anatomy, kept)
        if new_name is not None:
            state[new_name] = _cut_tensor(model.state_dict()[name].cpu(), axes, kept, anatomy.sizes, place=place)
    if scores is not None:
        _fix_norms(state, anatomy, kept, scores)
    _rescale_embedding(state, anatomy, new)
    for name, buffer in new.named_buffers():
        if name in state:
            buffer.data = buffer.data.to(state[name].dtype)
    new.load_state_dict(state)
    new.generation_config = model.generation_config
    return new.eval()


def sizes_after(before: Sizes, kept: Kept) -> Sizes:
    """The sizes of what stays."""
    named = {
        "intermediate_size": kept.neurons,
        "shared_size": kept.shared,
        "num_heads": kept.heads,
        "num_kv_heads": kept.groups,
        "num_experts": kept.experts,
        "expert_size": kept.expert_neurons,
    }
    counts = {key: {len(each) for each in places if each is not None} for key, places in named.items()}
    assert all(len(count) <= 1 for count in counts.values()), "as many stay in every layer"
    sizes = {key: count.pop() for key, count in counts.items() if count}
    if kept.hidden_D is not None:
        sizes["hidden_size"] = len(kept.hidden_D)
    return replace(before, num_layers=len(kept.layers), **sizes)


def build(config: Mapping[str, Any], *, dtype: torch.dtype) -> Any:
    """A model with that configuration, its weights in `dtype` and not yet those that it is to have.

    Buffers stay as they are made: rounded to bfloat16, the rates of positions would be others.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    import limbeck.students.registered  # noqa: F401 (so that transformers knows our own class)

    values = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    refusal = "student.prune: transformers refuses the pruned sizes"
    with transformers_quiet(refusal, error=SpecError), torch.random.fork_rng(devices=[]):
        made = AutoConfig.for_model(config["model_type"], **values)
        model = AutoModelForCausalLM.from_config(made)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model


def _renamed(name: str, anatomy: Anatomy, kept: Kept) -> tuple[str | None, int]:
    """The name in the new model (None where its layer goes), and the place of its layer there."""
    prefix = f"{anatomy.architecture.body}.layers."
    if not name.startswith(prefix):
        return name, 0
    layer, _, within = name.removeprefix(prefix).partition(".")
    if int(layer) not in kept.layers:
        return None, 0
    place = kept.layers.index(int(layer))
    return f"{anatomy.layer_prefix(place)}{within}", place


def _cut_tensor(x: Tensor, axes: tuple[Axis, ...], kept: Kept, sizes: Sizes, *, place: int) -> Tensor:
    for dimension, axis in enumerate(axes):
        indices = entries(axis, kept, sizes, place=place)
        if indices is not None:
            x = x.index_select(dimension, indices)
    return x.clone()


def entries(axis: Axis, kept: Kept, sizes: Sizes, *, place: int) -> Tensor | None:
    """Which entries of an axis stay in the layer at that place among those that stay; None: all."""
    match axis:
        case "whole":
            return None
        case "hidden":
            return kept.hidden_D
        case "queries":
            return _spread(kept.of("heads", place), sizes.head_dim)
        case "keys":
            return _spread(kept.of("groups", place), sizes.head_dim)
        case "expert_halves":
            neurons = kept.of("expert_neurons", place)
            return None if neurons is None else torch.cat([neurons, neurons + (sizes.expert_size or 0)])
        case "expert_turns":
            return _spread(kept.of("expert_neurons", place), 2)
        case _:
            return kept.of(axis, place)


def _spread(places: Tensor | None, each: int) -> Tensor | None:
    """All entries of places that have so many."""
    return None if places is None else (places[:, None] * each + torch.arange(each)).flatten()


def _fix_norms(state: dict[str, Tensor], anatomy: Anatomy, kept: Kept, scores: Scores) -> None:
    offset = anatomy.architecture.norm_offset
    for module, axis in anatomy.norms.items():
        name, place = _renamed(f"{module}.weight", anatomy, kept)
        if name is None:
            continue
        stay = entries(axis, kept, anatomy.sizes, place=place)
        square = scores.mean_squares[module].double()
        all_of_them = float(square.mean())
        if stay is not None and all_of_them > 0:
            factor = math.sqrt(float(square[stay].mean()) / all_of_them)
            state[name] = (state[name] + offset) * factor - offset


def _rescale_embedding(state: dict[str, Tensor], anatomy: Anatomy, new: Any) -> None:
    scale, new_scale = (getattr(model.get_input_embeddings(), "embed_scale", None) for model in (anatomy.model, new))
    if scale is None or new_scale is None or float(scale) == float(new_scale):
        return
    factor, body, offset = float(scale) / float(new_scale), anatomy.architecture.body, anatomy.architecture.norm_offset
    state[f"{body}.embed_tokens.weight"] *= factor
    if anatomy.is_tied:
        state["lm_head.weight"] = state[f"{body}.embed_tokens.weight"]
        state[f"{body}.norm.weight"] = (state[f"{body}.norm.weight"] + offset) / factor - offset
