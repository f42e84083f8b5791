"""Bytes of keys and values against counts by hand and the caches that transformers really fills."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from limbeck.plan.kv_cache import kv_bytes, kv_bytes_per_late_token, kv_bytes_per_token, of_config, of_layout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student

SIZES = {"hidden_size": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 80}


def test_an_olmo3_by_hand():
    layers = of_layout(Olmo3Student(**SIZES, sliding_window=5).layout)
    a_layer = 2 * 2 * 16 * 2  # keys and values, heads, channels, bytes of bfloat16
    assert kv_bytes_per_token(layers, bytes_per_number=2) == 4 * a_layer
    assert kv_bytes_per_late_token(layers, bytes_per_number=2) == a_layer, "one layer in four is full"
    assert kv_bytes(layers, tokens=4, bytes_per_number=2) == 4 * 4 * a_layer
    assert kv_bytes(layers, tokens=100, bytes_per_number=2) == (3 * 5 + 100) * a_layer


def test_olmo3_7b_by_hand():
    config = {
        "model_type": "olmo3",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_size": 4096,
        "sliding_window": 4096,
    }
    layers = of_config(config)
    assert kv_bytes_per_token(layers, bytes_per_number=2) == 524_288  # 32 layers * 32 heads * 128 channels * 2 * 2 bytes
    assert kv_bytes(layers, tokens=65_536, bytes_per_number=2) == 16_384 * (24 * 4096 + 8 * 65_536)


def test_latent_attention_remembers_the_latent():
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
    }
    assert kv_bytes_per_token(of_config(config), bytes_per_number=2) == 70_272  # 61 * 576 * 2: arXiv 2412.19437's 70 KB


def test_experts_do_not_matter():
    dense, sparse = (MoeStudent(**SIZES, dense_layers=layers, expert_size=16, num_experts=8) for layers in (4, 0))
    assert of_layout(dense.layout) == of_layout(sparse.layout)


@pytest.mark.parametrize(("config_class", "model_class"), [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)])
def test_transformers_caches_hold_as_much(config_class, model_class):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.arange(17)[None], use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
    assert kv_bytes(of_config(config.to_dict()), tokens=17, bytes_per_number=4) == held
