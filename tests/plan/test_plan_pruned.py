"""Configurations after pruning, and which layers may go, against cases by hand."""

import json

import pytest

from limbeck.errors import SpecError
from limbeck.plan.accounting import student_flops_per_token, student_parameters
from limbeck.plan.pretrained import student_config
from limbeck.plan.pruned import pruned_config, sizes_of
from limbeck.plan.pruned_layers import choice, evenly
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning
from limbeck.spec.upcycled_student import UpcycledStudent

S, F = "sliding_attention", "full_attention"
OLMO3 = {
    "model_type": "olmo3",
    "vocab_size": 100278,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}
"""OLMo-3 7B's, without the list of its layers' types and its heads' width."""
LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
QWEN3_MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "head_dim": 4,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
}
GPT_OSS = {
    **LLAMA,
    "model_type": "gpt_oss",
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "head_dim": 4,
    "sliding_window": 8,
}
MOE = {
    "hidden_size": 32,
    "num_layers": 6,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "num_experts": 8,
    "experts_per_token": 2,
    "expert_size": 16,
    "dense_layers": 2,
    "exclusive_layers": 3,
}


def own(student) -> dict:
    return {"model_type": "limbeck", "vocab_size": 50, "student": student.model_dump(mode="json")}


def test_what_old_sizes_implied_is_written_out():
    found = pruned_config(
        OLMO3, Pruning(hidden_size=3072, intermediate_size=8192, num_heads=24, num_layers=3), layers=(2, 3, 31)
    )
    assert found["head_dim"] == 128
    assert found["layer_types"] == [S, F, F]
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [found[key] for key in sizes] == [3072, 8192, 24, 24, 3]
    assert OLMO3["hidden_size"] == 4096 and "layer_types" not in OLMO3


def test_layers_of_experts_follow_the_layers_that_stay():
    """Of six layers every second has experts, but for layer 3 (from 0): dense are 0, 2, 3 and 4."""
    found = pruned_config(QWEN3_MOE, Pruning(num_layers=4, num_experts=4, expert_size=8), layers=(1, 2, 3, 5))
    assert (found["mlp_only_layers"], found["decoder_sparse_step"]) == ([1, 2], 1)
    assert (found["num_experts"], found["moe_intermediate_size"], found["intermediate_size"]) == (4, 8, 40)


def test_gpt_oss_calls_the_width_of_its_experts_intermediate():
    found = pruned_config(GPT_OSS, Pruning(num_experts=4, expert_size=8, layers=(0, 1, 5)))
    assert (found["num_local_experts"], found["intermediate_size"]) == (4, 8)
    assert found["layer_types"] == [S, F, F]


def test_a_llama_that_transformers_refuses_becomes_a_mistral_without_a_window():
    assert pruned_config(LLAMA, Pruning(hidden_size=18))["model_type"] == "llama"
    found = pruned_config({**LLAMA, "attention_bias": False}, Pruning(hidden_size=20))
    assert (found["model_type"], found["sliding_window"], found["head_dim"]) == ("mistral", None, 4)
    for biased in ({"attention_bias": True}, {"mlp_bias": True}, {"model_type": "gemma3_text"}):
        with pytest.raises(SpecError, match=r"hidden_size=20 is not a multiple of the 6 query heads, .* take 18"):
            pruned_config({**LLAMA, **biased}, Pruning(hidden_size=20))


def test_our_own_students_keep_dense_and_exclusive_layers():
    """Two dense layers at the front, three exclusive ones at the end, full attention in every fourth."""
    found = pruned_config(own(MoeStudent(**MOE)), Pruning(num_layers=3, num_experts=4, hidden_size=24), layers=(0, 3, 5))
    student = MoeStudent(**found["student"])
    assert (student.num_layers, student.dense_layers, student.exclusive_layers) == (3, 1, 2)
    assert (student.hidden_size, student.num_experts, student.intermediate_size) == (24, 4, 64)
    assert student.layer_types == (S, F, S) == tuple(student.kinds)
    whole = pruned_config(own(MoeStudent(**MOE)), Pruning(num_layers=4), layers=(0, 1, 2, 3))
    assert whole["student"]["layer_types"] is None, "the pattern says it already"


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        (LLAMA, {"hidden_size": 25}, "prune.hidden_size=25 is more than the model's 24"),
        (LLAMA, {"num_layers": 7}, "prune.num_layers=7 is more than the model's 6"),
        (LLAMA, {"layers": (0, 6)}, "names layer 6, but the model's 6 are 0 to 5"),
        (LLAMA, {"num_heads": 5}, "num_heads=5 is not a multiple of the 2 heads"),
        (LLAMA, {"num_heads": 4, "num_kv_heads": 1}, "num_heads=4 in 1 groups is 4 a group, more than the model's 3"),
        (LLAMA, {"num_experts": 2}, r"num_experts=2: the model \(llama\) has none"),
        (GPT_OSS, {"intermediate_size": 2}, r"intermediate_size=2: the model \(gpt_oss\) has none"),
        (QWEN3_MOE, {"num_experts": 2}, "num_experts=2 is fewer than the 3 that every token visits"),
        ({"model_type": "gpt2"}, {"num_layers": 2}, "of type 'gpt2' cannot be pruned .*: llama, .*gpt_oss"),
        (own(MoeStudent(**MOE, expert_groups=4, groups_per_token=2)), {"num_experts": 6}, "multiple of the model's 4 groups"),
        (own(MoeStudent(**MOE)), {"expert_size": 12}, "expert_size=12 is not a multiple of 8"),
        (own(GolfStudent()), {"num_layers": 2}, "golf cannot be pruned: its skips"),
        (own(LadderStudent(num_layers=4)), {"num_layers": 2}, "ladder cannot be pruned: its width follows"),
        (own(UpcycledStudent(dense=LadderStudent(num_layers=4))), {"num_layers": 2}, "upcycled cannot .* prune that one"),
    ],
)
def test_what_cannot_be(config, asked, message):
    with pytest.raises(SpecError, match=message):
        pruned_config(config, Pruning(**asked))


def test_heads_that_share_nothing_go_with_their_keys():
    alone = {**LLAMA, "num_key_value_heads": 6}
    found = pruned_config(alone, Pruning(num_heads=4, hidden_size=20))
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (4, 4)
    found = pruned_config(LLAMA, Pruning(num_kv_heads=1))
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (3, 1)
    assert sizes_of(found).head_dim == 4


def test_parameters_and_flops_are_those_of_what_stays():
    """SmolLM2 at width 448 and MLPs of 1152: 30 layers of 2 * 448 * 64 (9 + 3) + 3 * 448 * 1152 + 2 * 448, and so on."""
    spec = HuggingFaceStudent(model="smollm2", prune=Pruning(hidden_size=448, intermediate_size=1152))
    layer = 2 * 448 * 64 * (9 + 3) + 3 * 448 * 1152 + 2 * 448
    assert student_parameters(spec, vocab_size=49152).total == 49152 * 448 + 30 * layer + 448
    flops = 2 * (30 * layer + 448 + 49152 * 448 + 30 * 2 * 9 * 64 * 512 / 2)
    assert student_flops_per_token(spec, vocab_size=49152, context=512) == pytest.approx(flops)
    assert json.dumps(student_config(spec))


def test_first_and_last_layers_stay():
    found = choice([F] * 6, Pruning(num_layers=3, keep_first=2, keep_last=1))
    assert found.units == ((2,), (3,), (4,)) and found.going == 3
    assert found.without([(2,), (4,)]) == (0, 1, 3, 5)
    assert found.blocks() == [(2, 3, 4)]
    assert choice([F] * 6, Pruning(num_layers=4, keep_first=0, keep_last=0)).blocks()[0] == (0, 1)
    assert evenly([F] * 6, Pruning(num_layers=4)) == (0, 1, 3, 5)


def test_kinds_of_layers_that_may_go():
    kinds = [S, S, S, F] * 3
    sliding = choice(kinds, Pruning(num_layers=8, drop_types="sliding"))
    assert [layer for (layer,) in sliding.units] == [1, 2, 4, 5, 6, 8, 9, 10]
    full = choice(kinds, Pruning(num_layers=10, drop_types="full"))
    assert full.units == ((3,), (7,))
    groups = choice(kinds, Pruning(num_layers=8, drop_types="proportional"))
    assert (groups.units, groups.going) == (((4, 5, 6, 7),), 1), "the first and the last group hold layers that stay"
    free = choice(kinds, Pruning(num_layers=4, drop_types="proportional", keep_first=0, keep_last=0))
    assert free.going == 2 and free.blocks() == [tuple(range(8)), tuple(range(4, 12))]
    uneven = choice([*kinds, S, S], Pruning(num_layers=10, drop_types="proportional", keep_first=0))
    assert uneven.units == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))


@pytest.mark.parametrize(
    ("kinds", "asked", "message"),
    [
        ([F] * 4, {"num_layers": 1}, "takes 3 of 4 layers, but only 2 may go"),
        ([S, F] * 4, {"num_layers": 4, "drop_types": "full"}, "takes 4 of 8 layers, but only 3 may go"),
        ([S, S, S, F] * 4, {"num_layers": 13, "drop_types": "proportional"}, "no whole number of groups of 4"),
        ([F] * 4, {"num_layers": 3, "drop_types": "sliding"}, "all of the model's layers are of one kind"),
    ],
)
def test_more_layers_than_may_go(kinds, asked, message):
    with pytest.raises(SpecError, match=message):
        choice(kinds, Pruning(**asked))


def test_no_block_where_the_kinds_alternate():
    with pytest.raises(SpecError, match="no 2 neighbouring layers may go together"):
        choice([S, F] * 4, Pruning(num_layers=6, drop_types="full")).blocks()
