"""A pretrained model's architecture in other shapes of equal size: deeper and thinner, or shallower and wider.

As `limbeck.plan.shapes` has them for students of our own.

Heads keep their channels and the ratio of queries to keys, their number goes with the width, and the MLP takes what is left of
the parameters. A pruned model's width, which may be no multiple of its heads, goes to the nearest multiple of 8. Layer types
repeat the model's own list. Free of torch; weights are none of its business.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.errors import SpecError
from limbeck.plan.accounting import teacher_parameters
from limbeck.plan.config_sizes import head_dims, is_latent, kv_heads, layers, size
from limbeck.plan.shapes import TOLERANCE

Config = Mapping[str, Any]
_STEP = 8
_WIDEST = 8
"""Widths are tried up to so many times the model's own."""


def equal_config_shapes(config: Config, *, depths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What of a config.json is other at each depth and, within 2 %, the same number of parameters; by `12x256`.

    `SpecError` where no width comes that close, and for experts and latent attention.
    """
    config = {key: value for key, value in config.items() if key not in ("total", "active")}
    if is_latent(config) or any(layer.num_experts for layer in layers(config)):
        raise SpecError(f"model_type={config['model_type']}: shapes of equal size are for dense MLPs and grouped attention")
    target = teacher_parameters(config).total
    shapes = {}
    for depth in depths:
        found = [each for each in _candidates(config, depth, target=target) if _is_close(config, each, target=target)]
        if not found:
            raise SpecError(f"no width gives {depth} layers {target:,} parameters within {TOLERANCE:.0%}: try another depth")
        best = min(found, key=lambda changes: _departure(config, changes))
        shapes[f"{depth}x{best['hidden_size']}"] = best
    return shapes


def _candidates(config: Config, depth: int, *, target: int) -> Iterator[dict[str, Any]]:
    """What changes, one for each width."""
    own_heads, groups = size(config, "num_attention_heads"), kv_heads(config)
    per_group = own_heads // groups
    for heads in range(per_group, _WIDEST * own_heads + 1, per_group):
        width = size(config, "hidden_size") * heads / own_heads
        if size(config, "hidden_size") % own_heads:
            width = max(_STEP, _STEP * round(width / _STEP))
        if width % _STEP:
            continue
        changes = {
            "num_hidden_layers": depth,
            "hidden_size": int(width),
            "num_attention_heads": heads,
            "num_key_value_heads": heads // per_group,
            "head_dim": head_dims(config)[0],
            **_layer_types(config, depth),
        }
        least = _parameters(config, {**changes, "intermediate_size": _STEP})
        per_step = _parameters(config, {**changes, "intermediate_size": 2 * _STEP}) - least
        steps = 1 + round((target - least) / per_step)
        if steps < 1:
            return  # wider ones have too many parameters without an MLP
        yield {**changes, "intermediate_size": steps * _STEP}


def _layer_types(config: Config, depth: int) -> dict[str, Any]:
    types = config.get("layer_types")
    return {"layer_types": [types[layer % len(types)] for layer in range(depth)]} if types else {}


def _is_close(config: Config, changes: Config, *, target: int) -> bool:
    return abs(_parameters(config, changes) / target - 1) <= TOLERANCE


def _departure(config: Config, changes: Config) -> float:
    """How far the MLP's proportion is from the model's."""
    own = size(config, "intermediate_size") / size(config, "hidden_size")
    return abs(math.log(changes["intermediate_size"] / changes["hidden_size"] / own))


def _parameters(config: Config, changes: Config) -> int:
    return teacher_parameters({**config, **changes}).total
