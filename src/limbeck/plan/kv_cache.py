"""What a model has to remember of the tokens before: keys and values, in bytes, from its configuration or its layout alone.

Each layer remembers a key and a value a head of keys and values, of at most as many tokens as its window holds. Multi-head
latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) remembers the latent and the position's channels in their place;
software that expands it first (transformers does) takes more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.plan.config_sizes import Config, head_dims, is_latent, kv_heads, size, windows
from limbeck.spec.layout import Layout


@dataclass(frozen=True)
class RememberedLayer:
    """One layer."""

    numbers_per_token: int
    window: int | None
    """Tokens it remembers at most, the present one being one; None: all."""


def of_layout(layout: Layout) -> tuple[RememberedLayer, ...]:
    """Of a student."""
    layers = [layer.attention for layer in layout.layers]
    return tuple(RememberedLayer(2 * each.num_kv_heads * each.head_dim, each.window) for each in layers)


def of_config(config: Config) -> tuple[RememberedLayer, ...]:
    """Of a Hugging Face config.json; `TeacherError` where a size is missing."""
    if is_latent(config):
        numbers = size(config, "kv_lora_rank") + size(config, "qk_rope_head_dim")
    else:
        numbers = kv_heads(config) * sum(head_dims(config))
    return tuple(RememberedLayer(numbers, window) for window in windows(config))


def kv_bytes(layers: Sequence[RememberedLayer], *, tokens: int, bytes_per_number: float) -> float:
    """Bytes after so many tokens of one text."""
    held = [layer.numbers_per_token * min(tokens, layer.window or tokens) for layer in layers]
    return sum(held) * bytes_per_number


def kv_bytes_per_token(layers: Sequence[RememberedLayer], *, bytes_per_number: float) -> float:
    """What the next token adds while no window is full."""
    return kv_bytes(layers, tokens=1, bytes_per_number=bytes_per_number)


def kv_bytes_per_late_token(layers: Sequence[RememberedLayer], *, bytes_per_number: float) -> float:
    """What the next token adds once every window is full."""
    return sum(layer.numbers_per_token for layer in layers if layer.window is None) * bytes_per_number
