"""Which axis of a model each dimension of each of its tensors is: all that cutting has to know of an architecture.

Names are those of transformers 5.23 (`models/<model_type>/modeling_*.py`) and of `limbeck.students`, within a layer or outside
them. A tensor that is not here belongs to a model that is not known, and is named as such.
"""

from dataclasses import dataclass
from typing import Literal

Axis = Literal[
    "whole",
    "hidden",
    "queries",
    "keys",
    "heads",
    "groups",
    "neurons",
    "shared",
    "experts",
    "expert_neurons",
    "expert_halves",
    "expert_turns",
]
"""`whole` stays. `queries` and `keys` are the channels of all query heads, and of all heads of keys and values; `heads` and
`groups` have one entry a head. `shared` are the neurons of a shared expert. `expert_halves` are an expert's neurons twice,
first the gates and then the ups (Qwen3); `expert_turns` a gate and an up in turn (GPT-OSS)."""
Axes = tuple[Axis, ...]

_HIDDEN: Axes = ("hidden",)
_PROJECTIONS: dict[str, Axes] = {
    "self_attn.q_proj.weight": ("queries", "hidden"),
    "self_attn.q_proj.bias": ("queries",),
    "self_attn.k_proj.weight": ("keys", "hidden"),
    "self_attn.k_proj.bias": ("keys",),
    "self_attn.v_proj.weight": ("keys", "hidden"),
    "self_attn.v_proj.bias": ("keys",),
    "self_attn.o_proj.weight": ("hidden", "queries"),
    "self_attn.o_proj.bias": _HIDDEN,
}
_MLP: dict[str, Axes] = {
    "mlp.gate_proj.weight": ("neurons", "hidden"),
    "mlp.gate_proj.bias": ("neurons",),
    "mlp.up_proj.weight": ("neurons", "hidden"),
    "mlp.up_proj.bias": ("neurons",),
    "mlp.down_proj.weight": ("hidden", "neurons"),
    "mlp.down_proj.bias": _HIDDEN,
}
_BEFORE: dict[str, Axes] = {"input_layernorm.weight": _HIDDEN, "post_attention_layernorm.weight": _HIDDEN}
_AFTER: dict[str, Axes] = {"post_attention_layernorm.weight": _HIDDEN, "post_feedforward_layernorm.weight": _HIDDEN}
_AROUND: dict[str, Axes] = _BEFORE | _AFTER | {"pre_feedforward_layernorm.weight": _HIDDEN}
_NORM_OF_HEADS: dict[str, Axes] = {"self_attn.q_norm.weight": ("whole",), "self_attn.k_norm.weight": ("whole",)}
_NORM_OF_PROJECTIONS: dict[str, Axes] = {"self_attn.q_norm.weight": ("queries",), "self_attn.k_norm.weight": ("keys",)}
_QWEN_EXPERTS: dict[str, Axes] = {
    "mlp.gate.weight": ("experts", "hidden"),
    "mlp.experts.gate_up_proj": ("experts", "expert_halves", "hidden"),
    "mlp.experts.down_proj": ("experts", "hidden", "expert_neurons"),
}
_GPT_OSS: dict[str, Axes] = {
    "self_attn.sinks": ("heads",),
    "mlp.router.weight": ("experts", "hidden"),
    "mlp.router.bias": ("experts",),
    "mlp.experts.gate_up_proj": ("experts", "hidden", "expert_turns"),
    "mlp.experts.gate_up_proj_bias": ("experts", "expert_turns"),
    "mlp.experts.down_proj": ("experts", "expert_neurons", "hidden"),
    "mlp.experts.down_proj_bias": ("experts", "hidden"),
}
_LIMBECK: dict[str, Axes] = {
    "self_attn.q_gain_H": ("heads",),
    "self_attn.sink_H": ("heads",),
    "positions.log_rate_p": ("whole",),
    "positions.step_proj.weight": ("whole", "hidden"),
    "positions.step_proj.bias": ("whole",),
    "positions.a_Kh": ("groups", "whole"),
    "positions.b_Kh": ("groups", "whole"),
    "mlp.router.weight": ("experts", "hidden"),
    "mlp.router.bias": ("experts",),
    "mlp.experts.gate_EDF": ("experts", "hidden", "expert_neurons"),
    "mlp.experts.up_EDF": ("experts", "hidden", "expert_neurons"),
    "mlp.experts.down_EFD": ("experts", "expert_neurons", "hidden"),
    "mlp.shared.gate_proj.weight": ("shared", "hidden"),
    "mlp.shared.up_proj.weight": ("shared", "hidden"),
    "mlp.shared.down_proj.weight": ("hidden", "shared"),
    "mlp.shared_share": (),
}


@dataclass(frozen=True)
class Architecture:
    """How the models of one type are made, where they differ."""

    layer: dict[str, Axes]
    """Of the tensors of a layer, by their names within it."""
    body: str = "model"
    """The module that holds the layers, the embedding and the final norm."""
    norm_offset: float = 0.0
    """A norm multiplies by its weight and so much more."""
    router: str = "mlp.gate"
    """The module that chooses experts."""

    @property
    def outside(self) -> dict[str, Axes]:
        """Of the tensors outside the layers. The vocabulary is never cut."""
        return {
            f"{self.body}.embed_tokens.weight": ("whole", "hidden"),
            f"{self.body}.norm.weight": _HIDDEN,
            "lm_head.weight": ("whole", "hidden"),
        }


_LLAMA = Architecture(_PROJECTIONS | _MLP | _BEFORE)
_OLMO = Architecture(_PROJECTIONS | _MLP | _AFTER | _NORM_OF_PROJECTIONS)
_QWEN = Architecture(_PROJECTIONS | _MLP | _BEFORE | _NORM_OF_HEADS)
_GEMMA = Architecture(_PROJECTIONS | _MLP | _AROUND | _NORM_OF_HEADS, norm_offset=1.0)
_OWN = _PROJECTIONS | _MLP | _AROUND | _LIMBECK
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "qwen3": _QWEN,
    "gemma3_text": _GEMMA,
    "qwen3_moe": Architecture(_QWEN.layer | _QWEN_EXPERTS),
    "gpt_oss": Architecture(_PROJECTIONS | _BEFORE | _GPT_OSS, router="mlp.router"),
}
"""By `model_type`."""


def own_architecture(qk_norm: str) -> Architecture:
    """Of a student that Limbeck built, by what its norms of queries and keys are over."""
    norms = _NORM_OF_PROJECTIONS if qk_norm == "projection" else _NORM_OF_HEADS
    return Architecture(_OWN | norms, body="model.body", router="mlp.router")
