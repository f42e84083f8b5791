"""A model's config.json after pruning, from that before: new sizes, and everything that stood for a layer beside its layer.

What the old sizes implied is written out: `head_dim`, which is the width over the heads no longer, and `layer_types`, which the
classes would otherwise make anew from the new depth. Types: llama, mistral, olmo2, olmo3, qwen3, gemma3_text, qwen3_moe,
gpt_oss, and limbeck (students that Limbeck built, but for golf's and upcycled ones). transformers' Llama refuses a width that
is no multiple of its heads; such a one becomes a Mistral without a window, which computes the same. Free of torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from limbeck.errors import SpecError
from limbeck.plan.config_sizes import head_dims, kv_heads, sparse_layers, windows
from limbeck.plan.pruned_layers import FULL, SLIDING, evenly
from limbeck.plan.saved_student import saved_student
from limbeck.spec.layout import ExpertsLayout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.prune import Pruning

Config = Mapping[str, Any]
DENSE = ("llama", "mistral", "olmo2", "olmo3", "qwen3", "gemma3_text")
TYPES = (*DENSE, "qwen3_moe", "gpt_oss", "limbeck")
"""That can be pruned."""
_WITH_LAYER_TYPES = ("olmo3", "qwen3", "gemma3_text", "gpt_oss")
"""Whose layers differ by `layer_types`."""
BY_HEADS = ("llama", "gemma3_text")
"""Whose width is a multiple of their heads."""
_EXPERT_COUNTS = ("num_experts", "num_local_experts")


@dataclass(frozen=True)
class Sizes:
    """What can be pruned of a model, and what divides it. None: it has no such part."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int | None = None
    """Neurons of the dense layers' MLPs."""
    num_experts: int | None = None
    expert_size: int | None = None
    shared_size: int | None = None
    """Neurons of the shared expert."""
    experts_per_token: int = 0
    expert_groups: int = 1
    """Each of as many experts."""

    @property
    def queries_per_group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.num_heads // self.num_kv_heads


def pruned_config(config: Config, pruning: Pruning, *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """The configuration with the sizes that are asked for.

    `layers`: those that stay, where that is known; otherwise the recipe's, or a guess that spreads what goes (parameters are
    then exact where all layers are alike). `SpecError` for sizes larger than the model's or that cannot divide.
    """
    sizes = target_sizes(config, pruning)
    if layers is None:
        layers = _stated_layers(config, pruning)
    return resized(config, replace(sizes, num_layers=len(layers)), layers=layers)


def _stated_layers(config: Config, pruning: Pruning) -> Sequence[int]:
    if pruning.layers is not None:
        return pruning.layers
    if pruning.num_layers is None:
        return range(sizes_of(config).num_layers)
    return evenly(layer_types(config), pruning)


def layer_types(config: Config) -> list[str]:
    """'sliding_attention' or 'full_attention' for each layer."""
    if student := own_student(config):
        return [FULL if layer.attention.window is None else SLIDING for layer in student.layout.layers]
    if config["model_type"] in _WITH_LAYER_TYPES and config.get("layer_types"):
        return list(config["layer_types"])
    return [FULL if window is None else SLIDING for window in windows(config)]


def own_student(config: Config) -> Olmo3Student | MoeStudent | None:
    """The student in a configuration of Limbeck's own class; None in others. `SpecError` where it cannot be pruned."""
    student = saved_student(config)
    if student is None or isinstance(student, Olmo3Student | MoeStudent):
        return student
    reasons = {
        "golf": "its skips, mixed inputs and tables belong to places in the model",
        "upcycled": "its experts are those of a dense student; prune that one, and upcycle it then",
    }
    reason = reasons.get(student.kind, "its width follows from its depth")
    raise SpecError(f"student.prune: a student of family {student.kind} cannot be pruned: {reason}")


def sizes_of(config: Config) -> Sizes:
    """The sizes of a model; `SpecError` for a type that cannot be pruned."""
    model_type = config.get("model_type")
    if model_type not in TYPES:
        raise SpecError(f"student.prune: a model of type {model_type!r} cannot be pruned (those that can: {', '.join(TYPES)})")
    if student := own_student(config):
        return _own_sizes(student)
    sizes = Sizes(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=kv_heads(config),
        head_dim=head_dims(config)[0],
    )
    sparse = sparse_layers(config)
    if not all(sparse):
        sizes = replace(sizes, intermediate_size=config["intermediate_size"])
    if any(sparse):
        width = "intermediate_size" if model_type == "gpt_oss" else "moe_intermediate_size"
        sizes = replace(
            sizes,
            num_experts=config[_expert_count(config)],
            expert_size=config[width],
            experts_per_token=config["num_experts_per_tok"],
        )
    return sizes


def _own_sizes(student: Olmo3Student | MoeStudent) -> Sizes:
    layout = student.layout
    attention, mlps = layout.layers[0].attention, [layer.mlp for layer in layout.layers]
    sizes = Sizes(len(mlps), layout.hidden_size, attention.num_heads, attention.num_kv_heads, attention.head_dim)
    for mlp in mlps:
        if isinstance(mlp, ExpertsLayout):
            sizes = replace(
                sizes,
                num_experts=mlp.num_experts,
                expert_size=mlp.expert.size,
                shared_size=None if mlp.shared is None else mlp.shared.size,
                experts_per_token=mlp.per_token,
                expert_groups=mlp.groups,
            )
        else:
            sizes = replace(sizes, intermediate_size=mlp.size)
    return sizes


def target_sizes(config: Config, pruning: Pruning) -> Sizes:
    """The sizes after pruning; `SpecError` for those that are larger than before, and for what cannot divide."""
    before = sizes_of(config)
    for key, asked in pruning.sizes.items():
        has = getattr(before, key)
        if has is None:
            raise SpecError(f"student.prune.{key}={asked}: the model ({config['model_type']}) has none: remove it")
        if asked > has:
            raise SpecError(f"student.prune.{key}={asked} is more than the model's {has}")
    if pruning.layers is not None and pruning.layers[-1] >= before.num_layers:
        raise SpecError(f"student.prune.layers names layer {pruning.layers[-1]}, but the model's {before.num_layers} are 0 to "
                        f"{before.num_layers - 1}")  # fmt: skip
    after = replace(before, **(pruning.sizes | _heads(before, pruning)))
    if pruning.layers is not None:
        after = replace(after, num_layers=len(pruning.layers))
    if before.shared_size is not None and before.shared_size == before.intermediate_size:
        after = replace(after, shared_size=after.intermediate_size)
    _check_experts(before, after)
    return after


def _heads(before: Sizes, pruning: Pruning) -> dict[str, int]:
    """Query heads go with their groups; where every head is a group of its own, the two counts are one."""
    alone = before.queries_per_group == 1
    groups = pruning.num_kv_heads or (pruning.num_heads if alone and pruning.num_heads else before.num_kv_heads)
    heads = pruning.num_heads or groups * before.queries_per_group
    if heads % groups:
        raise SpecError(
            f"student.prune.num_heads={heads} is not a multiple of the {groups} heads of keys and values (num_kv_heads): as "
            "many query heads stay in every group"
        )
    if heads // groups > before.queries_per_group:
        raise SpecError(
            f"student.prune.num_heads={heads} in {groups} groups is {heads // groups} a group, more than the model's "
            f"{before.queries_per_group}"
        )
    return {"num_heads": heads, "num_kv_heads": groups}


def _check_experts(before: Sizes, after: Sizes) -> None:
    if after.num_experts is None:
        return
    if after.num_experts < after.experts_per_token:
        raise SpecError(
            f"student.prune.num_experts={after.num_experts} is fewer than the {after.experts_per_token} that every token visits"
        )
    if after.num_experts % before.expert_groups:
        raise SpecError(
            f"student.prune.num_experts={after.num_experts} is not a multiple of the model's {before.expert_groups} groups of "
            "experts"
        )


def resized(config: Config, sizes: Sizes, *, layers: Sequence[int]) -> dict[str, Any]:
    """The configuration of a model of those sizes, made of those layers. `SpecError` where no class has such ones."""
    # The catalogue's `total` and `active` count the whole model; a spec that was saved along is of the model before.
    new = {key: value for key, value in config.items() if key not in ("total", "active", "limbeck_student", "_name_or_path")}
    if student := own_student(config):
        return new | {"student": _resized_student(student, sizes, layers=layers).model_dump(mode="json")}
    new |= {
        "num_hidden_layers": len(layers),
        "hidden_size": sizes.hidden_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
    }
    if config["model_type"] in _WITH_LAYER_TYPES:
        kinds = layer_types(config)
        new["layer_types"] = [kinds[layer] for layer in layers]
    elif config.get("layer_types"):
        new["layer_types"] = [config["layer_types"][layer] for layer in layers]
    new |= _resized_mlps(config, sizes, layers=layers)
    return _of_a_class(new)


def _resized_mlps(config: Config, sizes: Sizes, *, layers: Sequence[int]) -> dict[str, Any]:
    if sizes.num_experts is None:
        return {"intermediate_size": sizes.intermediate_size}
    experts = {_expert_count(config): sizes.num_experts}
    if config["model_type"] == "gpt_oss":
        return experts | {"intermediate_size": sizes.expert_size}
    sparse = sparse_layers(config)
    dense = [place for place, layer in enumerate(layers) if not sparse[layer]]
    new = experts | {"moe_intermediate_size": sizes.expert_size, "decoder_sparse_step": 1, "mlp_only_layers": dense}
    return new if sizes.intermediate_size is None else new | {"intermediate_size": sizes.intermediate_size}


def _of_a_class(config: dict[str, Any]) -> dict[str, Any]:
    """Llama and Gemma refuse a width that is no multiple of the heads."""
    hidden, heads, model_type = config["hidden_size"], config["num_attention_heads"], config["model_type"]
    if model_type not in BY_HEADS or hidden % heads == 0:
        return config
    if model_type == "gemma3_text" or config.get("attention_bias") or config.get("mlp_bias"):
        raise SpecError(
            f"student.prune.hidden_size={hidden} is not a multiple of the {heads} query heads, as transformers wants it of "
            f"{model_type}: take {max(hidden // heads, 1) * heads}, or prune heads as well"
        )
    new = {key: value for key, value in config.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")}
    return new | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def _resized_student(student: Olmo3Student | MoeStudent, sizes: Sizes, *, layers: Sequence[int]) -> Olmo3Student | MoeStudent:
    """Through its validators."""
    changes: dict[str, Any] = {
        name: getattr(sizes, name) for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads")
    } | {"num_layers": len(layers)}
    if sizes.intermediate_size is not None:
        changes["intermediate_size"] = sizes.intermediate_size
    kinds = student.kinds
    stay = tuple(kinds[layer] for layer in layers)
    if isinstance(student, MoeStudent):
        changes |= _resized_experts(student, sizes, layers=layers)
    values = student.model_dump(mode="json") | changes | {"layer_types": None}
    try:
        new = type(student).model_validate(values)
        return new if new.kinds == stay else type(student).model_validate(values | {"layer_types": stay})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpecError(f"student.prune: the pruned student cannot be: {reason}") from None


def _resized_experts(student: MoeStudent, sizes: Sizes, *, layers: Sequence[int]) -> dict[str, Any]:
    """Dense and exclusive layers are the first and the last ones: so many of them stay."""
    first_exclusive = student.num_layers - student.exclusive_layers
    changes: dict[str, Any] = {
        "dense_layers": sum(layer < student.dense_layers for layer in layers),
        "exclusive_layers": sum(layer >= first_exclusive for layer in layers),
    }
    if sizes.num_experts is not None:
        changes |= {"num_experts": sizes.num_experts, "expert_size": sizes.expert_size}
    if student.shared_expert is not None and sizes.shared_size is not None:
        changes["shared_expert"] = student.shared_expert.model_copy(update={"size": sizes.shared_size}).model_dump(mode="json")
    return changes


def _expert_count(config: Config) -> str:
    return next(name for name in _EXPERT_COUNTS if config.get(name) is not None)
