"""Pruning in several steps of equal ratio: which sizes stand between a model's and those that are asked for. Free of torch.

Importance is measured anew before each step, on the model that the step before left.
"""

from collections.abc import Mapping
from math import lcm
from typing import Any

from limbeck.plan.pruned import BY_HEADS, Sizes, layer_types, pruned_config, sizes_of, target_sizes
from limbeck.plan.pruned_layers import choice
from limbeck.spec.prune import Pruning

_MULTIPLE = 8
"""Grouped products of experts want rows of whole 16 bytes: sizes between are multiples where both ends are."""
_PLAIN = ("hidden_size", "intermediate_size", "expert_size")


def in_steps(config: Mapping[str, Any], pruning: Pruning) -> list[Pruning]:
    """What each step asks for; the last one has the sizes of `pruning`. Steps that would change nothing are left out.

    Layers that are named by their places go in the first. `SpecError` where sizes that are asked for, or that stand between,
    cannot be.
    """
    found = [pruning] if pruning.steps == 1 else _in_several(config, pruning)
    if pruning.contiguous and found[0].num_layers is not None:
        first = choice(layer_types(config), found[0])
        if first.going:
            first.blocks()  # refuses where there is none
    for step in found:
        pruned_config(config, step.model_copy(update={"layers": pruning.layers}))
    return found


def _in_several(config: Mapping[str, Any], pruning: Pruning) -> list[Pruning]:
    before, after = sizes_of(config), target_sizes(config, pruning)
    layers_at_once = 1
    if pruning.num_layers is not None and pruning.num_layers < before.num_layers:
        layers_at_once = len(choice(layer_types(config), pruning).units[0])
    found: list[Pruning] = []
    reached = {name: getattr(before, name) for name in pruning.sizes}
    for at in range(1, pruning.steps + 1):
        sizes = _between(before, after, at / pruning.steps, layers_at_once=layers_at_once)
        if config["model_type"] in BY_HEADS and at < pruning.steps:
            sizes["hidden_size"] = _whole_heads(before, after, sizes, most=reached.get("hidden_size") or before.hidden_size)
        asked = {name: sizes[name] for name in pruning.sizes} | _heads(pruning, sizes)
        places = pruning.layers if at == 1 else None
        if asked != reached or places is not None:
            found.append(pruning.model_copy(update={**asked, "layers": places, "steps": 1}))
        reached = asked
    return found or [pruning.model_copy(update={"steps": 1})]


def _between(before: Sizes, after: Sizes, share: float, *, layers_at_once: int) -> dict[str, int | None]:
    """All sizes after this share of the way, in ratios."""
    groups = _geometric(before.num_kv_heads, after.num_kv_heads, share)
    per_group = _geometric(before.queries_per_group, after.queries_per_group, share)
    layers = _geometric(before.num_layers, after.num_layers, share)
    gone = before.num_layers - layers
    sizes = {name: _maybe(getattr(before, name), getattr(after, name), share) for name in _PLAIN}
    experts = _maybe(before.num_experts, after.num_experts, share)
    return {
        **sizes,
        "num_layers": before.num_layers - round(gone / layers_at_once) * layers_at_once,
        "num_kv_heads": groups,
        "num_heads": groups * per_group,
        "num_experts": None if experts is None else -(-experts // before.expert_groups) * before.expert_groups,
    }


def _whole_heads(before: Sizes, after: Sizes, sizes: Mapping[str, int | None], *, most: int) -> int | None:
    """The nearest width that the class has with so many heads, no more than `most`; the plain one where there is none."""
    wanted, heads = sizes["hidden_size"], sizes["num_heads"]
    assert wanted is not None and heads is not None
    even = _MULTIPLE if before.hidden_size % _MULTIPLE == 0 and after.hidden_size % _MULTIPLE == 0 else 1
    for multiple in (lcm(even, heads), heads):
        widths = range(-(-after.hidden_size // multiple) * multiple, most + 1, multiple)
        if widths:
            return min(widths, key=lambda width: abs(width - wanted))
    return wanted


def _heads(pruning: Pruning, sizes: Mapping[str, int | None]) -> dict[str, int | None]:
    """Both counts, where either is asked for: one follows from the other only at the ends."""
    asked = pruning.num_heads is not None or pruning.num_kv_heads is not None
    return {name: sizes[name] for name in ("num_heads", "num_kv_heads")} if asked else {}


def _maybe(before: int | None, after: int | None, share: float) -> int | None:
    if before is None or after is None:
        return None
    multiple = _MULTIPLE if before % _MULTIPLE == 0 and after % _MULTIPLE == 0 else 1
    return multiple * _geometric(before // multiple, after // multiple, share)


def _geometric(before: int, after: int, share: float) -> int:
    return round(before * (after / before) ** share)
