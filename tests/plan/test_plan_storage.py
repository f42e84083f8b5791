"""Bytes against measured rows, transformers' cache and published checkpoints; cached against live by hand and at the limits."""

import math

import numpy as np
import pytest
import torch
import transformers

from limbeck.errors import LimbeckError, TeacherError
from limbeck.plan.storage import WEIGHT_BITS, cache_or_live, kv_cache_bytes_per_token, store_bytes_per_token, weight_bytes
from limbeck.plan.teachers import catalogue
from limbeck.spec.signal import DenseSignal, HardSignal, HybridSignal, SampledSignal, TopKSignal, TopPSignal

GIB = 2**30


def test_a_full_distribution_is_what_the_distillation_scaling_laws_say():
    """arXiv 2502.08606: a float32 distribution over 32768 tokens is 131 kB, and 2e12 tokens of it are 2.6e17 bytes."""
    dense = store_bytes_per_token(DenseSignal(), vocab_size=32_768)
    assert dense == 131_072
    assert 2e12 * dense == pytest.approx(2.6e17, rel=0.01)


def stored(signal, vocab_size=49_152):
    return store_bytes_per_token(signal, vocab_size=vocab_size)


MEASURED = [  # bytes of a token in a store of SmolLM2-135M-Instruct on 16,480 tokens of English prose (benchmarks/codec.py)
    (SampledSignal(draws=12), 10.85),
    (SampledSignal(draws=50), 24.60),
    (SampledSignal(draws=50, keep_top1=True), 24.61),
    (SampledSignal(draws=50, proposal_temperature=0.8), 28.70),
    (SampledSignal(draws=50, min_draws=10, full_entropy_nats=3.0), 23.79),
    (TopKSignal(k=12), 27.09),
    (TopKSignal(k=50), 94.68),
    (TopKSignal(k=128), 233.01),
    (TopKSignal(k=12, values="uint8"), 20.27),
    (TopKSignal(k=128, values="uint8"), 163.27),
    (TopPSignal(values="uint8"), 91.56),
    (HybridSignal(values="uint8"), 38.49),
    (HardSignal(), 2.35),
]


@pytest.mark.parametrize(("signal", "measured"), MEASURED, ids=lambda value: str(value).replace(" ", ","))
def test_stores_take_what_was_measured(signal, measured):
    assert stored(signal) == pytest.approx(measured, rel=0.08)


def test_draws_take_what_their_entropy_allows():
    # A Zipf-like teacher of 3.3 nats: what 200 draws name, coded evenly, is no less than what the estimate says for less.
    weights = np.arange(1, 49_153) ** -1.45
    probs = weights / weights.sum()
    for draws in (12, 50, 200):
        distinct = (1 - (1 - probs) ** draws).sum()
        evenly = sum(math.log2((49_152 - index) / (index + 1)) for index in range(round(distinct))) / 8
        assert 0.6 * evenly < stored(SampledSignal(draws=draws)) < 1.15 * evenly


def test_heads_by_hand():
    """128 ids of 49,152 chosen evenly take log2(C) = 1278 bits, of which one half are 79.9 bytes."""
    assert math.log2(math.comb(49_152, 128)) == pytest.approx(1278.47, abs=0.01)
    assert stored(TopKSignal(k=128, values="uint8")) == pytest.approx(3 + 79.90 + 0.62 * 128, abs=0.1)
    assert stored(TopKSignal(k=128)) == pytest.approx(3 + 79.90 + 1.14 * 128, abs=0.1)
    assert stored(HardSignal()) == pytest.approx(1.5 + 0.5 * math.log2(49_152) / 8)
    # 67 ids of at most 100 reach 0.95 of SmolLM2-135M's distributions in the mean.
    assert stored(TopPSignal(p=0.95, cap=100)) == pytest.approx(stored(TopKSignal(k=67)), rel=0.02)
    assert stored(HybridSignal(k=12, draws=16)) > stored(TopKSignal(k=12))
    assert stored(TopKSignal(k=100), vocab_size=100) == pytest.approx(3 + 114)  # all of them: nothing to tell


def test_what_is_kept_besides_is_paid_for():
    plain = stored(SampledSignal(draws=50))
    assert stored(SampledSignal(draws=50, keep_top1=True)) == pytest.approx(plain + 0.14)
    adaptive = [stored(SampledSignal(draws=50, min_draws=10, full_entropy_nats=full)) for full in (0.1, 3.0, 1e9)]
    assert plain == pytest.approx(adaptive[0])
    assert plain > adaptive[1] > adaptive[2] == pytest.approx(stored(SampledSignal(draws=10)))
    # 0.78 of the positions' way to full_entropy_nats=3 of SmolLM2-135M: 41.2 draws in the mean.
    assert adaptive[1] == pytest.approx(stored(SampledSignal(draws=41)), rel=0.01)


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
