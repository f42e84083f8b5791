"""Tiny random models of every architecture that can be pruned, every parameter moved so that nothing is 0 or 1 by chance."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import transformers
from tiny_students import moe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import limbeck.students.registered  # noqa: F401
from limbeck.spec.parts import GrapeM, SharedExpert
from limbeck.spec.student import Student
from limbeck.students.norms import RMSNorm

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-20,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""An epsilon of next to nothing: the fix-up of norms is exact but for it."""
LLAMA = SIZES | {"num_attention_heads": 4}
"""Its width must be a multiple of its heads."""
TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
WINDOWS: dict[str, Any] = {"sliding_window": 4, "layer_types": TYPES}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
FAR = {"rope_type": "default", "rope_theta": 1e6}


def own(student: Student) -> PreTrainedConfig:
    return AutoConfig.for_model("limbeck", student=student.model_dump(mode="json"), vocab_size=VOCABULARY)


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama, biases": lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=4),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "olmo3": lambda: transformers.Olmo3Config(
        **SIZES, **WINDOWS, rope_parameters={"sliding_attention": PLAIN, "full_attention": FAR}
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **WINDOWS, use_sliding_window=True, tie_word_embeddings=True),
    "gemma3": lambda: transformers.Gemma3TextConfig(**LLAMA, **WINDOWS, query_pre_attn_scalar=5, final_logit_softcapping=9.0),
    "gemma3, untied": lambda: transformers.Gemma3TextConfig(**LLAMA, **WINDOWS, tie_word_embeddings=False),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True, mlp_only_layers=[1]
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, **WINDOWS, num_local_experts=6, num_experts_per_tok=2, rope_parameters=PLAIN
    ),
    "own": lambda: own(
        moe(
            num_experts=16,
            shared_expert=SharedExpert(size=80, schedule="anneal"),
            activation="swiglu",
            exclusive_layers=2,
            rms_norm_eps=1e-20,
        )
    ),
    "own, grape": lambda: own(
        moe(
            num_experts=16,
            expert_groups=1,
            groups_per_token=1,
            positions=GrapeM(form="rank2"),
            qk_norm="projection",
            full_attention_every=2,
            rms_norm_eps=1e-20,
        )
    ),
    "own, contextual": lambda: own(
        moe(dense_layers=4, positions=GrapeM(form="contextual"), qk_norm="gain", tied_embeddings=True, rms_norm_eps=1e-20)
    ),
}


def model_of(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("router.bias"):
                    buffer.add_(0.1 * torch.randn_like(buffer))
    return eager(model.to(dtype))


def eager(model: Any) -> Any:
    """Experts one by one, since fused products know no float64; norms in the model's own precision, not in float32."""
    model.config._experts_implementation = "eager"
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, RMSNorm):
            module.forward = _norm(module)
    return model.eval()


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    def forward(x: Tensor) -> Tensor:
        return (module.weight + offset) * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    return forward


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return torch.softmax(x, dim)


def tokens(length: int = 21, *, rows: int = 3, seed: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, token_BT: Tensor) -> Tensor:
    with mock.patch("torch.nn.functional.softmax", _softmax):  # routers ask for float32
        found: Tensor = eager(model)(input_ids=token_BT, use_cache=False).logits
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())
