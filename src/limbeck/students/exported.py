"""Which class of transformers computes what a student computes, and its configuration: the layout alone decides.

* norms after, RMS over whole projections: `Olmo3ForCausalLM`, with windows, and YaRN on full layers alone if so laid out;
* norms before, RMS over heads: `Qwen3ForCausalLM`, with windows;
* norms before, no norm of queries and keys: `LlamaForCausalLM`, without windows.

All others have a part that none of these has; `foreign_part` names it. Parameter names are the classes' own, so nothing is
renamed on the way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.spec.layout import AttentionLayout, ExpertsLayout, Layout, MlpLayout
from limbeck.spec.parts import Rope

Architecture = Literal["Olmo3ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"]
MODEL_TYPES: dict[Architecture, str] = {
    "Olmo3ForCausalLM": "olmo3",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}
_ARCHITECTURES: dict[tuple[str, str], Architecture] = {
    ("after", "projection"): "Olmo3ForCausalLM",
    ("before", "head"): "Qwen3ForCausalLM",
    ("before", "none"): "LlamaForCausalLM",
}
_UNUSED_WINDOW = 4096
"""What `Olmo3Config` wants to hold where no layer slides."""
_UNUSED_STD = 0.02


@dataclass(frozen=True)
class Native:
    """A class of transformers and its configuration, but for vocabulary, context and special tokens."""

    architecture: Architecture
    values: dict[str, Any]
    """Every field explicit: the library's defaults changed between versions."""


def native(layout: Layout) -> Native | None:
    """None where `foreign_part` names a part."""
    if foreign_part(layout) is not None:
        return None
    first = layout.layers[0]
    attention, mlp = first.attention, first.mlp
    assert isinstance(mlp, MlpLayout)
    architecture = _ARCHITECTURES[layout.norms, attention.qk_norm]
    values = {
        "hidden_size": layout.hidden_size,
        "intermediate_size": mlp.size,
        "num_hidden_layers": len(layout.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": layout.tied_embeddings,
        "rms_norm_eps": layout.norm_eps,
        "initializer_range": layout.init.std if layout.init.kind == "normal" else _UNUSED_STD,
        **_positions(layout, architecture),
    }
    return Native(architecture, values)


def foreign_part(layout: Layout) -> str | None:
    """The first part that no class of transformers has, in words; None where there is one that has all."""
    return next(_foreign_parts(layout), None)


def layer_types(layout: Layout) -> list[str]:
    """Of each layer, in transformers' words."""
    return [_kind(layer.attention) for layer in layout.layers]


def window(layout: Layout) -> int | None:
    """Of the layers that slide; None where none does."""
    return next((layer.attention.window for layer in layout.layers if layer.attention.window is not None), None)


def rope(layout: Layout, kind: str) -> Rope:
    """Of the layers of one kind; where there are none, of the others without YaRN."""
    of_kind = [layer.attention.positions for layer in layout.layers if _kind(layer.attention) == kind]
    found = of_kind[0] if of_kind else layout.layers[0].attention.positions
    assert isinstance(found, Rope)
    return found if of_kind else found.model_copy(update={"yarn": None})


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """In transformers' words."""
    if rope.yarn is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    return {
        "rope_type": "yarn",
        "rope_theta": rope.theta,
        "factor": rope.yarn.factor,
        "original_max_position_embeddings": rope.yarn.original_length,
        "beta_fast": rope.yarn.beta_fast,
        "beta_slow": rope.yarn.beta_slow,
        "attention_factor": rope.yarn.attention_factor,
        "truncate": rope.yarn.truncate,
    }


def _kind(attention: AttentionLayout) -> str:
    return "full_attention" if attention.window is None else "sliding_attention"


def _positions(layout: Layout, architecture: Architecture) -> dict[str, Any]:
    """Rotary positions and windows."""
    slides = window(layout) is not None
    plain = rope_parameters(rope(layout, _kind(layout.layers[0].attention)))
    match architecture:
        case "Olmo3ForCausalLM":
            kinds = ("sliding_attention", "full_attention")
            return {
                "rope_parameters": {kind: rope_parameters(rope(layout, kind)) for kind in kinds},
                "sliding_window": window(layout) or _UNUSED_WINDOW,
                "layer_types": layer_types(layout),
            }
        case "Qwen3ForCausalLM":
            return {
                "rope_parameters": plain,
                "use_sliding_window": slides,
                "sliding_window": window(layout),
                "layer_types": layer_types(layout),
            }
        case "LlamaForCausalLM":
            return {"rope_parameters": plain, "mlp_bias": False}


def _foreign_parts(layout: Layout) -> Iterator[str]:
    attentions, mlps = [each.attention for each in layout.layers], [each.mlp for each in layout.layers]
    ropes = [each.positions for each in attentions if isinstance(each.positions, Rope)]
    there = {
        "experts": any(isinstance(mlp, ExpertsLayout) for mlp in mlps),
        "an activation other than swiglu": any(isinstance(mlp, MlpLayout) and mlp.activation != "swiglu" for mlp in mlps),
        "learned positions": len(ropes) < len(attentions),
        "positions that depend on the sequence's length (ntk_length)": any(each.ntk_length is not None for each in ropes),
        "attention sinks": any(each.sinks for each in attentions),
        "exclusive attention": any(each.exclusive for each in attentions),
        "value embeddings": any(each.value_embedding for each in attentions),
        "scales on branches": any(each.branch_scales for each in layout.layers),
        "norms without weights": not layout.norm_weights,
        "a norm on the embeddings": layout.embedding_norm,
        "softcapped logits": layout.softcap is not None,
        "hashed pairs of tokens": layout.bigram is not None,
        "smeared embeddings": layout.smear,
        "skips between layers": layout.skips,
        "layers of several sizes": len({(each.num_heads, each.num_kv_heads, each.head_dim) for each in attentions}) > 1
        or len(set(mlps)) > 1,
        "windows of several sizes": len({each.window for each in attentions} - {None}) > 1,
        "several norms of queries and keys": len({each.qk_norm for each in attentions}) > 1,
    }
    yield from (part for part, is_there in there.items() if is_there)
    qk_norm = attentions[0].qk_norm
    if (layout.norms, qk_norm) not in _ARCHITECTURES:
        yield f"qk_norm={qk_norm} with norms {layout.norms} branches"
    yield from _foreign_positions(layout)


def _foreign_positions(layout: Layout) -> Iterator[str]:
    """Olmo3 has positions by kind of layer, and rounds YaRN's ramp whatever is asked; the others have one for all layers."""
    attentions = [each.attention for each in layout.layers]
    ropes = {(_kind(each) if layout.norms == "after" else "any", each.positions) for each in attentions}
    if len(ropes) > len({kind for kind, _ in ropes}):
        yield "positions that differ from layer to layer"
    yarns = [each.positions.yarn for each in attentions if isinstance(each.positions, Rope) and each.positions.yarn]
    if layout.norms == "after" and any(not yarn.truncate for yarn in yarns):
        yield "yarn.truncate=false with norms after branches"
    if attentions[0].qk_norm == "none":
        if window(layout) is not None:
            yield "windows without norms of queries and keys"
        if layout.hidden_size % attentions[0].num_heads:
            yield f"a hidden size that is no multiple of num_heads={attentions[0].num_heads}, without norms of queries and keys"
