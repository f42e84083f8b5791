"""Specs of tiny students: every family, and every part at least once. Windows and lengths are shorter than the tests' rows."""

from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import GrapeM, Rope, SharedExpert, Yarn
from limbeck.spec.student import Student
from limbeck.spec.upcycled_student import UpcycledStudent

SIZES = {"hidden_size": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 80}
YARN = Yarn(factor=4.0, original_length=64, beta_fast=8.0)


def olmo3(**changes) -> Olmo3Student:
    return Olmo3Student(**{**SIZES, "sliding_window": 5, "init_std": 0.3, **changes})


def ladder(**changes) -> LadderStudent:
    return LadderStudent(**{"num_layers": 2, "hidden_size": 64, "num_heads": 4, **changes})


def moe(**changes) -> MoeStudent:
    experts = {"num_experts": 8, "experts_per_token": 3, "expert_size": 16, "expert_groups": 4, "groups_per_token": 2}
    return MoeStudent(**{**SIZES, **experts, "sliding_window": 5, "init_std": 0.2, **changes})


def dense(**changes) -> MoeStudent:
    """A moe without experts and sinks."""
    return moe(**{"dense_layers": 4, "activation": "swiglu", "sinks": False, **changes})


def golf(**changes) -> GolfStudent:
    tables = {"bigram_buckets": 32, "bigram_size": 8, "value_embedding_size": 8, "value_embedding_layers": (1, 2)}
    return GolfStudent(**{**SIZES, **tables, "exclusive_layers": 2, "ntk_length": 24, **changes})


NATIVE: dict[str, tuple[Student, str]] = {
    "olmo3": (olmo3(), "Olmo3ForCausalLM"),
    "olmo3, tied": (olmo3(tied_embeddings=True), "Olmo3ForCausalLM"),
    "olmo3, one head per key, plain width": (olmo3(num_heads=3, num_kv_heads=3), "Olmo3ForCausalLM"),
    "olmo3, other constants": (
        olmo3(rope_theta=1234.0, rms_norm_eps=1e-2, full_attention_every=3, sliding_window=7),
        "Olmo3ForCausalLM",
    ),
    "olmo3, no full layer": (olmo3(full_attention_every=5), "Olmo3ForCausalLM"),
    "olmo3, all full": (olmo3(full_attention_every=1), "Olmo3ForCausalLM"),
    "olmo3, yarn": (olmo3(yarn=YARN), "Olmo3ForCausalLM"),
    "ladder": (ladder(), "Qwen3ForCausalLM"),
    "ladder, untied": (ladder(tied_embeddings=False, rope_theta=500.0, rms_norm_eps=1e-3), "Qwen3ForCausalLM"),
    "dense, windows": (dense(), "Qwen3ForCausalLM"),
    "dense, yarn": (dense(positions=Rope(theta=500.0, yarn=YARN), full_attention_every=1), "Qwen3ForCausalLM"),
    "dense, yarn untruncated": (
        dense(positions=Rope(theta=500.0, yarn=YARN.model_copy(update={"truncate": False})), full_attention_every=1),
        "Qwen3ForCausalLM",
    ),
    "dense, no qk-norm": (dense(qk_norm="none", full_attention_every=1), "LlamaForCausalLM"),
    "dense, no qk-norm, yarn": (
        dense(qk_norm="none", full_attention_every=1, positions=Rope(theta=500.0, yarn=YARN)),
        "LlamaForCausalLM",
    ),
}
"""Those that a class of transformers computes, and which."""

FOREIGN: dict[str, tuple[Student, str]] = {
    "moe": (moe(), "experts"),
    "moe, annealed shared expert": (moe(shared_expert=SharedExpert(size=24, schedule="anneal")), "experts"),
    "moe, grape": (moe(positions=GrapeM(), qk_norm="projection"), "experts"),
    "dense, relu2": (dense(activation="relu2"), "swiglu"),
    "dense, sinks": (dense(sinks=True), "sinks"),
    "dense, exclusive": (dense(exclusive_layers=2), "exclusive"),
    "dense, contextual": (dense(positions=GrapeM(form="contextual")), "learned positions"),
    "dense, rank 2": (dense(positions=GrapeM(form="rank2"), qk_norm="gain"), "learned positions"),
    "dense, ntk": (dense(positions=Rope(ntk_length=24)), "ntk_length"),
    "dense, projection": (dense(qk_norm="projection"), "qk_norm=projection with norms before"),
    "dense, windows, no qk-norm": (dense(qk_norm="none"), "windows without norms"),
    "dense, five heads, no qk-norm": (
        dense(qk_norm="none", full_attention_every=1, num_heads=5, num_kv_heads=1),
        "no multiple of num_heads=5",
    ),
    "olmo3, yarn untruncated": (olmo3(yarn=YARN.model_copy(update={"truncate": False})), "truncate"),
    "upcycled ladder": (
        UpcycledStudent(dense=ladder(), num_experts=4, granularity=2, experts_per_token=2, first_layer=1),
        "experts",
    ),
    "golf": (golf(), "swiglu"),
    "golf, swiglu": (golf(activation="swiglu", exclusive_layers=0, ntk_length=None), "value embeddings"),
}
"""The others, and what is said of the part."""
