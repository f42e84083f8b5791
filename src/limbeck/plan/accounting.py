"""Parameters, FLOPs and bytes of students and teachers, from their sizes alone.

FLOPs per token follow arXiv 2502.08606, appendix H (eqs. 57-59): C = 2 N + 2 context layers (H h) + 2 V D. Conventions:

- One multiply-add is 2 FLOPs. A training step costs three times the forward pass (backward = 2 forward); recomputed
  activations aren't counted. The optimizer isn't either.
- N counts the parameters outside the embeddings that a token touches, norm weights and biases included (under 0.1 % of it).
  Looking up the input embedding is free; the output head costs 2 V D, tied or not.
- Attention is causal: over a document of `context` tokens a position sees context / 2 keys on average. Each costs 2 H (h + h')
  FLOPs in a layer, h channels in a query and h' in a value. In a sliding layer of window w < context the mean is
  w - w**2 / (2 context), the same integral. Both leave out half a key: the position itself counts as half seen.
- Softmax, norms, activations and the loss aren't counted.
- `context` is the length that attention reaches over: with intra-document attention the documents' mean, not the row's.

A mixture of experts touches its router, its shared experts and the top-k of the routed ones. Sizes of teachers are read from a
Hugging Face config.json (complete: `AutoConfig.from_pretrained(...).to_dict()` fills in what a file leaves out) or from the
catalogue, `limbeck.plan.teachers`. D hidden size, V vocabulary, H query heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import TeacherError
from limbeck.spec.student import Olmo3Student, Student

FLOPS_PER_MULTIPLY_ADD = 2
TRAINING_OVER_FORWARD = 3
BYTES_PER_FLOAT32 = 4


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has."""

    total: int
    embedding: int
    """The input embedding, and the output head where it isn't tied to it."""
    non_embedding: int
    active: int
    """Those that one token touches, embeddings included; all of them in a dense model."""


def student_parameters(spec: Student, *, vocab_size: int) -> Parameters:
    """The parameters of the student that `spec` describes."""
    return teacher_parameters(_config_of(spec, vocab_size=vocab_size))


def student_flops_per_token(spec: Student, *, vocab_size: int, context: float) -> float:
    """Forward FLOPs per token, averaged over documents of `context` tokens."""
    return teacher_flops_per_token(_config_of(spec, vocab_size=vocab_size), context=context)


def training_flops_per_token(spec: Student, *, vocab_size: int, context: float) -> float:
    """Forward and backward FLOPs per token: three times `student_flops_per_token`."""
    return TRAINING_OVER_FORWARD * student_flops_per_token(spec, vocab_size=vocab_size, context=context)


def training_bytes(spec: Student, *, vocab_size: int) -> int:
    """Bytes of parameters, gradients and AdamW's two moments, all float32. Activations come on top."""
    return 4 * BYTES_PER_FLOAT32 * student_parameters(spec, vocab_size=vocab_size).total


def teacher_parameters(config: Mapping[str, Any]) -> Parameters:
    """The parameters of the model of a config.json, or of an entry of the catalogue (which says `total` and `active`).

    Known types: llama, mistral, olmo, olmo2, olmo3, qwen2, qwen3, gemma, gemma2, gemma3_text, qwen3_moe, gpt_oss. Raises
    `TeacherError` for others without `total` and `active`, and where a size is missing.
    """
    tied = config.get("tie_word_embeddings", _size(config, "model_type").startswith("gemma"))
    matrix = _size(config, "vocab_size") * _size(config, "hidden_size")
    embedding = matrix if tied else 2 * matrix
    if "total" in config and "active" in config:
        return Parameters(config["total"], embedding, config["total"] - embedding, config["active"])
    outside = _size(config, "num_hidden_layers") * _layer_parameters(config, experts=_experts(config)) + _final_norm(config)
    touched = outside
    if _experts(config) > 1:
        one_token = _layer_parameters(config, experts=_size(config, "num_experts_per_tok"))
        touched = _size(config, "num_hidden_layers") * one_token + _final_norm(config)
    return Parameters(embedding + outside, embedding, outside, embedding + touched)


def teacher_flops_per_token(config: Mapping[str, Any], *, context: float) -> float:
    """Forward FLOPs per token of a config.json or an entry of the catalogue, averaged over documents of `context` tokens.

    Errors as `teacher_parameters`.
    """
    count = teacher_parameters(config)
    head = _size(config, "vocab_size") * _size(config, "hidden_size")
    channels = _size(config, "num_attention_heads") * sum(_head_dims(config))
    keys = sum(_mean_visible_keys(context, window=window) for window in _windows(config))
    return FLOPS_PER_MULTIPLY_ADD * (count.active - count.embedding + head + channels * keys)


def _config_of(spec: Student, *, vocab_size: int) -> dict[str, Any]:
    """A student as the config.json it would have."""
    match spec:
        case Olmo3Student():
            return {
                "model_type": "olmo3",
                "vocab_size": vocab_size,
                "hidden_size": spec.hidden_size,
                "num_hidden_layers": spec.num_layers,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": spec.num_kv_heads,
                "head_dim": spec.head_dim,
                "intermediate_size": spec.intermediate_size,
                "tie_word_embeddings": spec.tied_embeddings,
                "sliding_window": spec.sliding_window,
                "layer_types": spec.layer_types,
            }


def _mean_visible_keys(context: float, *, window: int | None) -> float:
    if window is None or window >= context:
        return context / 2
    return window - window**2 / (2 * context)


def _windows(config: Mapping[str, Any]) -> list[int | None]:
    """Each layer's window, None where it attends fully."""
    layers, window = _size(config, "num_hidden_layers"), config.get("sliding_window")
    if window is None:
        return [None] * layers
    if config.get("layer_types") is not None:
        return [window if kind == "sliding_attention" else None for kind in config["layer_types"]]
    match config["model_type"]:
        case "olmo3":
            full_every = 4
        case "gpt_oss" | "gemma2":
            full_every = 2
        case "gemma3_text":
            full_every = 6
        case "mistral":
            full_every = layers + 1
        case _:
            full_every = 1
    return [None if (layer + 1) % full_every == 0 else window for layer in range(layers)]


def _head_dims(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of a head in the product of query and key, and in the value; they differ in multi-head latent attention."""
    if "qk_nope_head_dim" in config:
        return config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
    head_dim = config.get("head_dim") or _size(config, "hidden_size") // _size(config, "num_attention_heads")
    return head_dim, head_dim


def _experts(config: Mapping[str, Any]) -> int:
    match config["model_type"]:
        case "qwen3_moe":
            return config.get("num_local_experts") or _size(config, "num_experts")  # transformers has renamed it
        case "gpt_oss":
            return _size(config, "num_local_experts")
        case _:
            return 1


def _layer_parameters(config: Mapping[str, Any], *, experts: int) -> int:
    """One layer with its first `experts` experts: projections, MLP or experts with their router, norms, biases, sinks."""
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _head_dims(config)[0]
    queries = heads * head_dim
    keys = (config.get("num_key_value_heads") or heads) * head_dim
    projections = 2 * hidden * (queries + keys)
    biases = queries + 2 * keys + hidden if config.get("attention_bias") else 0
    width = _size(config, "moe_intermediate_size" if config["model_type"] == "qwen3_moe" else "intermediate_size")
    mlp = 3 * hidden * width
    match config["model_type"]:
        case "llama" | "mistral" | "gemma":
            others = 2 * hidden
        case "olmo":
            others = 0  # its layer norms have no weights
        case "olmo2" | "olmo3":
            others = 2 * hidden + queries + keys
        case "qwen2":
            others = 2 * hidden + queries + 2 * keys  # biases that its config doesn't mention
        case "qwen3":
            others = 2 * hidden + 2 * head_dim
        case "gemma2":
            others = 4 * hidden
        case "gemma3_text":
            others = 4 * hidden + 2 * head_dim
        case "qwen3_moe":
            others = 2 * hidden + 2 * head_dim + _experts(config) * hidden
        case "gpt_oss":
            mlp += 2 * width + hidden
            others = 2 * hidden + heads + _experts(config) * (hidden + 1)
        case unknown:
            raise TeacherError(
                f"teacher's model_type={unknown!r} cannot be counted from its sizes: add 'total' and 'active' parameters to it"
            )
    return projections + biases + experts * mlp + others


def _final_norm(config: Mapping[str, Any]) -> int:
    return 0 if config["model_type"] == "olmo" else _size(config, "hidden_size")


def _size(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise TeacherError(f"teacher's config lacks {key!r}: pass the complete config.json")
    return config[key]
