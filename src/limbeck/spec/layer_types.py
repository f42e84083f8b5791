"""Which layers of a student slide and which attend fully.

Every so many layers one attends fully, as in OLMo-3, unless each layer is named.
"""

from typing import Literal

LayerType = Literal["sliding_attention", "full_attention"]


def sliding_pattern(num_layers: int, *, full_every: int) -> tuple[LayerType, ...]:
    """Layer i (from 0) attends fully iff (i + 1) is divisible by `full_every`."""
    return tuple("full_attention" if (layer + 1) % full_every == 0 else "sliding_attention" for layer in range(num_layers))


def check_layer_types(kinds: tuple[LayerType, ...] | None, *, num_layers: int) -> None:
    """Raises `ValueError` where kinds are named, and not one for each layer."""
    if kinds is not None and len(kinds) != num_layers:
        raise ValueError(f"layer_types names {len(kinds)} layers, not num_layers={num_layers}")
