"""A causal language model taken apart: its layers, what each reads and gives, and which axis every dimension of a tensor is.

`anatomy_of` knows the architectures of `limbeck.surgery.axes` and refuses all others by the name of the module that it does not
know. Nothing is copied: modules are the model's own.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from limbeck.errors import SpecError
from limbeck.plan.pruned import TYPES, Sizes, layer_types, own_student, sizes_of
from limbeck.surgery.axes import ARCHITECTURES, Architecture, Axes, Axis, own_architecture


@dataclass(frozen=True)
class Anatomy:
    """What surgery knows of a model."""

    model: Any
    """A causal language model of transformers."""
    sizes: Sizes
    layer_types: tuple[str, ...]
    """'sliding_attention' or 'full_attention', one a layer."""
    architecture: Architecture
    axes: dict[str, Axes]
    """Of every entry of the model's state, which axis each of its dimensions is."""

    @property
    def body(self) -> nn.Module:
        """What holds embedding, layers and final norm."""
        module: nn.Module = self.model.get_submodule(self.architecture.body)
        return module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        layers = self.body.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def embedding(self) -> nn.Embedding:
        """The table of tokens."""
        embedding: nn.Embedding = self.model.get_input_embeddings()
        return embedding

    @property
    def head(self) -> Tensor:
        """The output matrix: the embedding's own where they are tied."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding."""
        return self.head is self.embedding.weight

    def layer_prefix(self, layer: int) -> str:
        """Of the names of a layer's tensors."""
        return f"{self.architecture.body}.layers.{layer}."

    def attention(self, layer: int) -> nn.Module:
        """The module whose input is what the projections of queries, keys and values read."""
        return self.layers[layer].get_submodule("self_attn")

    def mlp(self, layer: int) -> nn.Module:
        """The module whose input is what the MLP, or the router and the experts, read."""
        return self.layers[layer].get_submodule("mlp")

    def o_proj(self, layer: int) -> nn.Module:
        """Attention's output projection; it reads [heads * head_dim] channels."""
        return self.attention(layer).get_submodule("o_proj")

    def down_proj(self, layer: int) -> nn.Module | None:
        """What reads the neurons of a dense MLP; None in a layer of experts."""
        return None if self.has_experts(layer) else self.mlp(layer).get_submodule("down_proj")

    def shared_down_proj(self, layer: int) -> nn.Module | None:
        """What reads the neurons of a shared expert; None where there is none."""
        shared = getattr(self.mlp(layer), "shared", None)
        return None if shared is None else shared.get_submodule("down_proj")

    def router(self, layer: int) -> nn.Module | None:
        """What chooses experts; None in a dense layer."""
        return self.layers[layer].get_submodule(self.architecture.router) if self.has_experts(layer) else None

    def experts(self, layer: int) -> nn.Module | None:
        """What holds the experts' matrices, stacked; None in a dense layer."""
        return self.mlp(layer).get_submodule("experts") if self.has_experts(layer) else None

    def has_experts(self, layer: int) -> bool:
        """Whether the layer's MLP is a mixture of experts."""
        return hasattr(self.mlp(layer), "experts")

    @cached_property
    def norms(self) -> dict[str, Axis]:
        """The norms whose divisor changes when channels go, by their modules' names, and the axis that each is over."""
        return {
            name.removesuffix(".weight"): axes[0]
            for name, axes in self.axes.items()
            if name.endswith("norm.weight") and axes[0] in ("hidden", "queries", "keys")
        }


def anatomy_of(model: Any) -> Anatomy:
    """Take a model apart; `SpecError` names the first module that is not known, and the architectures that are."""
    config = model.config.to_dict()
    if config["model_type"] not in TYPES:
        raise unrecognised(model)
    sizes = sizes_of(config)
    student = own_student(config)
    if student is None:
        architecture = ARCHITECTURES[config["model_type"]]
    else:
        architecture = own_architecture(student.layout.layers[0].attention.qk_norm)
    axes = {name: _axes(name, tensor, architecture, sizes) for name, tensor in model.state_dict().items()}
    return Anatomy(model, sizes, tuple(layer_types(config)), architecture, axes)


def unrecognised(model: Any) -> SpecError:
    """The refusal of a model of a type that is not known, by its first block."""
    lists = ((name, each) for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each))
    name, blocks = next(lists, ("", [model]))
    place = f"{name}.0" if name else "the model"
    return SpecError(
        f"student.prune: {place} ({type(blocks[0]).__name__}) is not recognised: a model of "
        f"type {model.config.model_type!r} cannot be pruned (those that can: {', '.join(TYPES)})"
    )


def _axes(name: str, tensor: Tensor, architecture: Architecture, sizes: Sizes) -> Axes:
    prefix = f"{architecture.body}.layers."
    within = name.removeprefix(prefix).partition(".")[2] if name.startswith(prefix) else name
    known = architecture.layer if name.startswith(prefix) else architecture.outside
    axes = known.get(within)
    if axes is None or tensor.ndim != len(axes) or any(
        length not in (size, None) for length, size in zip((axis_size(axis, sizes) for axis in axes), tensor.shape, strict=True)
    ):  # fmt: skip
        raise SpecError(
            f"student.prune: {name.rpartition('.')[0] or name} is not recognised (its {name.rpartition('.')[2]} is "
            f"{' x '.join(map(str, tensor.shape))}): models can be pruned that are made as "
            f"{', '.join([*ARCHITECTURES, 'limbeck'])} of transformers 5 are"
        )
    return axes


def axis_size(axis: Axis, sizes: Sizes) -> int | None:
    """Entries along an axis; None for one that stays whole."""
    match axis:
        case "whole":
            return None
        case "hidden":
            return sizes.hidden_size
        case "queries":
            return sizes.num_heads * sizes.head_dim
        case "keys":
            return sizes.num_kv_heads * sizes.head_dim
        case "heads":
            return sizes.num_heads
        case "groups":
            return sizes.num_kv_heads
        case "neurons":
            return sizes.intermediate_size or 0
        case "shared":
            return sizes.shared_size or 0
        case "experts":
            return sizes.num_experts or 0
        case "expert_neurons":
            return sizes.expert_size or 0
        case "expert_halves" | "expert_turns":
            return 2 * (sizes.expert_size or 0)
