"""What a calibration pass leaves: a score for everything that can be pruned, saved so that other sizes need no new pass.

Shapes: L layers, H hooks (two a layer), D hidden size, and in tuples of one tensor a layer, empty where the layer has no such
part: neurons, query heads, groups of them, experts, neurons of experts.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from limbeck.paths import write_atomically

_BY_LAYER = ("neurons", "shared", "heads", "groups", "experts", "routed", "expert_neurons")


@dataclass(frozen=True)
class Scores:
    """On the CPU."""

    tokens: int
    """That were read."""
    hidden_HD: Tensor
    """Of each channel of the residual stream, as attention and the MLP of each layer read it, in this order."""
    neurons: tuple[Tensor, ...]
    """Of dense MLPs."""
    shared: tuple[Tensor, ...]
    """Neurons of shared experts."""
    heads: tuple[Tensor, ...]
    """Query heads."""
    groups: tuple[Tensor, ...]
    """Query heads that share keys and values."""
    experts: tuple[Tensor, ...]
    routed: tuple[Tensor, ...]
    """How many tokens visited each expert: the score of one that few visited says little."""
    expert_neurons: tuple[Tensor, ...]
    """One ranking for all experts of a layer."""
    influence_L: Tensor
    """1 - mean cosine of a layer's input and output: 0 for one that changes nothing."""
    mean_squares: dict[str, Tensor]
    """By a norm's module: the mean square of each channel that it reads."""

    def save(self, path: Path) -> None:
        """As safetensors, whole or not at all."""
        named = {"tokens": torch.tensor(self.tokens), "hidden_HD": self.hidden_HD, "influence_L": self.influence_L}
        named |= {f"{name}.{layer}": x for name in _BY_LAYER for layer, x in enumerate(getattr(self, name))}
        named |= {f"mean_squares.{name}": x for name, x in self.mean_squares.items()}
        write_atomically(path, [save({name: x.contiguous() for name, x in named.items()})])

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """What `save` wrote."""
        named = load_file(path)
        by_layer = {name: tuple(named[f"{name}.{layer}"] for layer in range(len(named["influence_L"]))) for name in _BY_LAYER}
        squares = {name.removeprefix("mean_squares."): x for name, x in named.items() if name.startswith("mean_squares.")}
        return cls(int(named["tokens"]), named["hidden_HD"], influence_L=named["influence_L"], mean_squares=squares, **by_layer)
