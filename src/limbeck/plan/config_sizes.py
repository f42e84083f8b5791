"""What a Hugging Face config.json says of a model's layers: parameters, experts, windows, channels of a head.

Free of torch and transformers. Where a file leaves a field out, it means the default of its type in transformers (`DEFAULTS`);
sizes that every file holds are not guessed. Source of each shape: transformers 5.23, `models/<model_type>/modeling_*.py`, as it
builds them: the routing bias of DeepSeek-V3 and GLM (`e_score_correction_bias`) is a buffer there and the layers that predict
several tokens ahead (`num_nextn_predict_layers`) are not built, so neither is counted.

Attention is of one of two kinds. Grouped: queries of H heads, keys and values of G heads, of `head_dim` channels each.
Latent (DeepSeek-V2, arXiv 2405.04434): keys and values are projected from a latent of `kv_lora_rank` channels beside
`qk_rope_head_dim` that carry the position, queries from `q_lora_rank` or directly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import TeacherError

Config = Mapping[str, Any]

DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "olmo3": {"sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma": {"num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8},
    "qwen2_moe": {"num_key_value_heads": 16, "qkv_bias": True},
    "qwen3_moe": {"num_key_value_heads": 4},
    "gpt_oss": {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "attention_bias": True},
    "deepseek_v2": {"q_lora_rank": 1536, "n_shared_experts": 2, "first_k_dense_replace": 0},
    "deepseek_v3": {"q_lora_rank": 1536, "n_shared_experts": 1, "first_k_dense_replace": 3},
    "glm4_moe": {"num_key_value_heads": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "glm4_moe_lite": {"q_lora_rank": 768, "n_shared_experts": 1},
}
"""What transformers takes for a field that a file leaves out, where it is neither None nor False nor worked out of others."""

FULL_EVERY = {"olmo3": 4, "gpt_oss": 2, "gemma2": 2, "gemma3_text": 6}
"""Layer i (from 0) attends fully iff i + 1 is divisible by this, where a file has no `layer_types`."""


@dataclass(frozen=True)
class Layer:
    """One layer, in parameters."""

    common: int
    """Those that every token touches: attention, norms, router, shared experts, or a dense MLP."""
    expert: int = 0
    """Those of one routed expert; 0 in a dense layer."""
    num_experts: int = 0
    experts_per_token: int = 0

    @property
    def routed(self) -> int:
        """All its routed experts."""
        return self.num_experts * self.expert

    @property
    def active(self) -> int:
        """Those that one token touches."""
        return self.common + self.experts_per_token * self.expert


def size(config: Config, key: str) -> Any:
    """A field that must be there. Raises `TeacherError` where it is not."""
    found = value(config, key)
    if found is None:
        raise TeacherError(f"teacher's config lacks {key!r}: pass the complete config.json")
    return found


def value(config: Config, key: str) -> Any:
    """A field, or what transformers takes where it is left out."""
    return config[key] if key in config else DEFAULTS.get(config.get("model_type", ""), {}).get(key)


def is_tied(config: Config) -> bool:
    """Whether the output head is the input embedding."""
    return bool(config.get("tie_word_embeddings", size(config, "model_type").startswith("gemma")))


def final_norm(config: Config) -> int:
    """Parameters of the norm after the last layer."""
    return 0 if config["model_type"] == "olmo" else size(config, "hidden_size")  # OLMo's layer norms have no weights


def is_latent(config: Config) -> bool:
    """Whether attention is multi-head latent attention."""
    latent_types = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
    return config.get("model_type") in latent_types or config.get("qk_nope_head_dim") is not None


def head_dims(config: Config) -> tuple[int, int]:
    """Channels of a head in the product of query and key, and in the value; they differ in latent attention."""
    if is_latent(config):
        return size(config, "qk_nope_head_dim") + size(config, "qk_rope_head_dim"), size(config, "v_head_dim")
    head_dim = value(config, "head_dim") or size(config, "hidden_size") // size(config, "num_attention_heads")
    return head_dim, head_dim


def kv_heads(config: Config) -> int:
    """Heads of keys and values in grouped attention."""
    return value(config, "num_key_value_heads") or size(config, "num_attention_heads")


def windows(config: Config) -> list[int | None]:
    """Each layer's window in tokens, the position itself being one; None where it attends fully."""
    layers, window = size(config, "num_hidden_layers"), value(config, "sliding_window")
    if not window:
        return [None] * layers
    return [window if slides else None for slides in _sliding_layers(config, layers)]


def _sliding_layers(config: Config, layers: int) -> list[bool]:
    model_type, types = config.get("model_type", ""), config.get("layer_types")
    if model_type in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe") and not config.get("use_sliding_window"):
        return [False] * layers
    if model_type in ("mistral", "mixtral", "qwen3_moe"):
        return [True] * layers
    if types is not None:
        return [kind == "sliding_attention" for kind in types]
    last_full = config.get("max_window_layers", 28)
    match model_type:
        case "qwen2" | "qwen3":
            return [layer >= last_full for layer in range(layers)]
        case "qwen2_moe":
            return [layer % 2 == 0 and layer < last_full for layer in range(layers)]
        case _:
            full_every = config.get("sliding_window_pattern") or FULL_EVERY.get(model_type, 1)
            return [(layer + 1) % full_every != 0 for layer in range(layers)]


def layers(config: Config) -> list[Layer]:
    """Every layer of a model of a known type (they are listed at `limbeck.plan.accounting.teacher_parameters`).

    Raises `TeacherError` for another type, and where a size is missing.
    """
    norms = _norms(config)  # first: an unknown type is told apart from a missing size
    common = norms + (_latent_attention(config) if is_latent(config) else _grouped_attention(config))
    sparse = sparse_layers(config)
    dense = Layer(common + _mlp(config, size(config, "intermediate_size"))) if not all(sparse) else None
    routed = _routed_layer(config, common) if any(sparse) else None
    chosen = [routed if is_sparse else dense for is_sparse in sparse]
    return [layer for layer in chosen if layer is not None]


def _norms(config: Config) -> int:
    """The norms beside attention and MLP."""
    hidden = size(config, "hidden_size")
    match size(config, "model_type"):
        case "olmo":
            return 0  # its layer norms have no weights
        case "gemma2" | "gemma3_text":
            return 4 * hidden
        case "llama" | "mistral" | "olmo2" | "olmo3" | "qwen2" | "qwen3" | "gemma" | "mixtral" | "olmoe" | "gpt_oss":
            return 2 * hidden
        case "qwen2_moe" | "qwen3_moe" | "glm4_moe" | "glm4_moe_lite" | "deepseek_v2" | "deepseek_v3":
            return 2 * hidden
        case unknown:
            raise TeacherError(
                f"teacher's model_type={unknown!r} cannot be counted from its sizes: add 'total' and 'active' parameters to it"
            )


def _grouped_attention(config: Config) -> int:
    """Projections, their biases, norms of queries and keys, sinks."""
    hidden, heads, head_dim = size(config, "hidden_size"), size(config, "num_attention_heads"), head_dims(config)[0]
    queries, keys = heads * head_dim, kv_heads(config) * head_dim
    inner = queries + 2 * keys
    biased = value(config, "attention_bias")
    match config["model_type"]:
        case "mistral" | "mixtral":
            others = 0
        case "olmo2" | "olmo3":
            others = queries + keys + (inner + hidden if biased else 0)
        case "olmoe":  # its norms are as wide as the model, whatever head_dim says
            others = hidden + hidden // heads * kv_heads(config) + (inner + hidden if biased else 0)
        case "qwen2":
            others = inner  # its config doesn't mention them
        case "qwen2_moe":
            others = inner if value(config, "qkv_bias") else 0
        case "qwen3" | "qwen3_moe" | "gemma3_text":
            others = 2 * head_dim + (inner + hidden if biased else 0)
        case "glm4_moe":
            others = (2 * head_dim if config.get("use_qk_norm") else 0) + (inner if biased else 0)
        case "gpt_oss":
            others = heads + (inner + hidden if biased else 0)
        case _:
            others = inner + hidden if biased else 0
    return 2 * hidden * (queries + keys) + others


def _latent_attention(config: Config) -> int:
    """Down- and up-projections of queries and of keys with values, norms of the latents, output."""
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    (queries, values), rank, query_rank = head_dims(config), size(config, "kv_lora_rank"), value(config, "q_lora_rank")
    position = size(config, "qk_rope_head_dim")
    into_queries = hidden * heads * queries
    if query_rank is not None:
        into_queries = hidden * query_rank + query_rank + query_rank * heads * queries
    into_latent = hidden * (rank + position) + rank
    out_of_latent = rank * heads * (queries - position + values)
    biases = (query_rank or 0) + rank + position + hidden if value(config, "attention_bias") else 0
    return into_queries + into_latent + out_of_latent + heads * values * hidden + biases


def _mlp(config: Config, width: int) -> int:
    """A gated MLP: gate, up, down."""
    hidden = size(config, "hidden_size")
    biased = config["model_type"] in ("llama", "deepseek_v2") and config.get("mlp_bias")
    return 3 * hidden * width + (2 * width + hidden if biased else 0)


def sparse_layers(config: Config) -> list[bool]:
    """Which layers hold a mixture of experts."""
    layers = size(config, "num_hidden_layers")
    match config["model_type"]:
        case "mixtral" | "olmoe" | "gpt_oss":
            return [True] * layers
        case "qwen2_moe" | "qwen3_moe":
            dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
            return [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
        case "deepseek_v2" | "deepseek_v3" | "glm4_moe":
            return [layer >= size(config, "first_k_dense_replace") for layer in range(layers)]
        case "glm4_moe_lite":
            kinds = config.get("mlp_layer_types") or ["dense"] + ["sparse"] * (layers - 1)
            return [kind == "sparse" for kind in kinds]
        case _:
            return [False] * layers


def _routed_layer(config: Config, common: int) -> Layer:
    """A layer whose attention and norms are `common`, with its router, shared and routed experts."""
    hidden, experts = size(config, "hidden_size"), _num_experts(config)
    expert_width = "intermediate_size" if config["model_type"] in ("mixtral", "olmoe", "gpt_oss") else "moe_intermediate_size"
    width = size(config, expert_width)
    expert, shared, router = 3 * hidden * width, 0, experts * hidden
    match config["model_type"]:
        case "gpt_oss":
            expert += 2 * width + hidden
            router += experts
        case "qwen2_moe":
            shared = _mlp(config, size(config, "shared_expert_intermediate_size")) + hidden  # and its gate
        case "deepseek_v2" | "deepseek_v3" | "glm4_moe" | "glm4_moe_lite":
            shared = _mlp(config, width * size(config, "n_shared_experts"))
    return Layer(common + router + shared, expert, experts, size(config, "num_experts_per_tok"))


def _num_experts(config: Config) -> int:
    """Routed experts of a layer: the field has another name in most types, and transformers renames it on saving some."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return size(config, next((name for name in names if config.get(name) is not None), "num_experts"))
