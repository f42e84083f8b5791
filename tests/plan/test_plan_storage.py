"""Bytes against the codec, transformers' own cache and published checkpoints; cached against live by hand and at the limits."""

import math

import numpy as np
import pytest
import torch
import transformers

from limbeck.errors import LimbeckError, TeacherError
from limbeck.plan.storage import WEIGHT_BITS, cache_or_live, kv_cache_bytes_per_token, store_bytes_per_token, weight_bytes
from limbeck.plan.teachers import catalogue
from limbeck.signals.codec import encode
from limbeck.signals.types import HardRows, TopKRows
from limbeck.spec.signal import DenseSignal, HardSignal, SampledSignal, TopKSignal

GIB = 2**30


def test_a_full_distribution_is_what_the_distillation_scaling_laws_say():
    """arXiv 2502.08606: a float32 distribution over 32768 tokens is 131 kB, and 2e12 tokens of it are 2.6e17 bytes."""
    dense = store_bytes_per_token(DenseSignal(), vocab_size=32_768)
    assert dense == 131_072
    assert 2e12 * dense == pytest.approx(2.6e17, rel=0.01)


def test_rows_take_what_the_codec_writes():
    rows, vocab_size, k = 4000, 1000, 12
    tokens = np.arange(rows + 1) % vocab_size
    ids_TK = torch.rand(rows, vocab_size).topk(k).indices.sort(-1).values
    topk = TopKRows(ids_TK=ids_TK, log_probs_TK=torch.full((rows, k), -4.0), tail_T=torch.full((rows,), 0.5))
    written = encode(topk, signal=TopKSignal(k=k), vocab_size=vocab_size, tokens=tokens)
    assert store_bytes_per_token(TopKSignal(k=k), vocab_size=vocab_size) == pytest.approx(len(written) / rows, rel=1e-3)
    written = encode(HardRows(ids_T=ids_TK[:, 0]), signal=HardSignal(), vocab_size=vocab_size, tokens=tokens)
    assert store_bytes_per_token(HardSignal(), vocab_size=vocab_size) == pytest.approx(len(written) / rows, rel=1e-3)


def test_sampled_rows_by_hand():
    """50 draws, 19 distinct ids of 17 bits, a bit for each draw, an entropy of 16 bits and a check of 8: 49.6 bytes."""
    sampled = store_bytes_per_token(SampledSignal(draws=50), vocab_size=100_278)
    assert sampled == pytest.approx((19 * 17 + 50 + 16 + 8) / 8) == pytest.approx(49.625)


def test_weights_at_the_usual_formats():
    """Olmo-3-7B: 7 298 011 136 parameters."""
    olmo = catalogue()["Olmo-3-7B"]
    expected = {"float32": 29_192_044_544, "bfloat16": 14_596_022_272, "int8": 7_298_011_136, "int4": 3_649_005_568}
    for name, total in expected.items():
        assert weight_bytes(olmo, bits=WEIGHT_BITS[name]) == total
    # 32 numbers of 4 bits and a scale of 8 take 17 bytes.
    assert weight_bytes(olmo, bits=WEIGHT_BITS["mxfp4"]) == 7_298_011_136 / 32 * 17


def test_gpt_oss_checkpoints_are_as_large_as_published():
    """arXiv 2508.10925, table 1: 60.8 and 12.8 GiB, experts in MXFP4 and the rest, their biases too, in bfloat16."""
    for name, experts, gib in (("gpt-oss-120b", 36 * 128, 60.8), ("gpt-oss-20b", 24 * 32, 12.8)):
        expected = gib * GIB - experts * 3 * 2880 * (16 - 4.25) / 8
        assert weight_bytes(catalogue()[name], expert_bits=WEIGHT_BITS["mxfp4"]) == pytest.approx(expected, abs=0.05 * GIB)


def test_expert_bits_need_known_experts():
    with pytest.raises(TeacherError, match="mamba9"):
        weight_bytes({**catalogue()["Qwen3-30B-A3B"], "model_type": "mamba9"}, expert_bits=4)
    assert weight_bytes(catalogue()["Qwen3-32B"], expert_bits=4) == weight_bytes(catalogue()["Qwen3-32B"])


def test_keys_and_values_by_hand():
    """Qwen3-32B: 64 layers of 8 heads, a key and a value of 128 each, 2 bytes. GLM: 47 layers of 512 + 64 channels, once."""
    assert kv_cache_bytes_per_token(catalogue()["Qwen3-32B"], context=4096) == 64 * 8 * 2 * 128 * 2 == 262_144
    assert kv_cache_bytes_per_token(catalogue()["GLM-4.7-Flash"], context=4096) == 47 * (512 + 64) * 2 == 54_144
    # Half of gpt-oss's layers remember 128 tokens.
    oss, a_layer = catalogue()["gpt-oss-20b"], 8 * 2 * 64 * 2
    assert kv_cache_bytes_per_token(oss, context=8192) * 8192 == 12 * a_layer * (8192 + 128)
    assert kv_cache_bytes_per_token(oss, context=100) == 24 * a_layer


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
LATENT = {"q_lora_rank": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
ROUTED = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(
    ("config", "slides"),
    [
        (transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=12), 0),
        (transformers.Olmo3Config(**SMALL, num_key_value_heads=2, sliding_window=10, eos_token_id=None, pad_token_id=None), 3),
        (transformers.DeepseekV3Config(**SMALL, **LATENT, **ROUTED, num_key_value_heads=4), 0),
    ],
    ids=["grouped", "sliding", "latent"],
)
def test_keys_and_values_are_those_that_transformers_remembers(config, slides):
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(torch.randint(50, (1, 40)), use_cache=True).past_key_values
    remembered = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None)
    # Between two tokens transformers drops the oldest of a window, which the next no longer sees: 2 heads, 8 + 8 channels.
    remembered += slides * 2 * (8 + 8) * 4
    assert kv_cache_bytes_per_token(config.to_dict(), context=40, bits=32) * 40 == remembered


# In seconds for a pass over all tokens: T = 400 (scoring), S = 300 (training), W = 50 (writing), R = 20 (reading).
FAST_DISK = {
    "teacher_flops_per_token": 4e9,
    "training_flops_per_token": 3e9,
    "unique_tokens": 1e8,
    "store_bytes_per_token": 50.0,
    "write_bytes_per_second": 1e8,
    "read_bytes_per_second": 2.5e8,
    "flops_per_second": 1e15,
}


def test_cached_and_live_by_hand():
    told = cache_or_live(passes=5, **FAST_DISK)
    assert told.live_seconds == pytest.approx(5 * 700) and told.cached_seconds == pytest.approx(400 + 5 * 300)
    assert told.live_flops == pytest.approx(5 * 7e17) and told.cached_flops == pytest.approx(4e17 + 5 * 3e17)
    assert told.store_bytes == 5e9
    assert told.break_even_passes == pytest.approx(1)
    assert told.recommendation == "cache"


def test_without_overlap_the_times_add_up():
    told = cache_or_live(passes=5, overlapped=False, **FAST_DISK)
    assert told.cached_seconds == pytest.approx((400 + 50) + 5 * (300 + 20))
    assert told.break_even_passes == pytest.approx(450 / (700 - 320))


def test_one_pass_is_better_live_even_on_the_fastest_disk():
    told = cache_or_live(passes=1, **{**FAST_DISK, "write_bytes_per_second": math.inf, "read_bytes_per_second": math.inf})
    assert told.cached_seconds == told.live_seconds and told.recommendation == "live"


def test_with_many_passes_the_store_saves_the_teachers_share():
    told = cache_or_live(passes=1e6, **FAST_DISK)
    assert told.recommendation == "cache"
    assert told.live_seconds / told.cached_seconds == pytest.approx(700 / 300, rel=1e-5)


def test_a_disk_slower_than_teacher_and_student_is_never_worth_it():
    """Reading a pass takes 1000 s, live training of one 700 s."""
    told = cache_or_live(passes=1e6, **{**FAST_DISK, "read_bytes_per_second": 5e6})
    assert told.break_even_passes == math.inf and told.recommendation == "live"


@pytest.mark.parametrize("overlapped", [True, False])
def test_the_recommendation_changes_at_break_even(overlapped):
    slow = {**FAST_DISK, "write_bytes_per_second": 2.5e6, "overlapped": overlapped}
    turn = cache_or_live(passes=1, **slow).break_even_passes
    assert turn > 1
    assert cache_or_live(passes=turn * 1.001, **slow).recommendation == "cache"
    assert cache_or_live(passes=turn * 0.999, **slow).recommendation == "live"


@pytest.mark.parametrize(
    "name", ["unique_tokens", "passes", "write_bytes_per_second", "read_bytes_per_second", "flops_per_second"]
)
def test_amounts_must_be_positive(name):
    with pytest.raises(LimbeckError, match=f"{name}=0"):
        cache_or_live(**{**FAST_DISK, "passes": 2, name: 0})
