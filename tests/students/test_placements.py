"""What each parameter is for, name by name: an optimizer's algorithm, weight decay and µP's rates depend on nothing else."""

from typing import Any

import pytest
from tiny_students import golf, ladder, moe

from limbeck.roles import Placement, Role
from limbeck.spec.parts import GrapeM, SharedExpert
from limbeck.spec.student import Student
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.build import build_empty
from limbeck.students.decoder import Decoder

Roles = dict[str, Role]
NORMS: Roles = {"input_layernorm.weight": "vector", "post_attention_layernorm.weight": "vector"}
QK_NORMS: Roles = {"self_attn.q_norm.weight": "vector", "self_attn.k_norm.weight": "vector"}
PROJECTIONS: Roles = {f"self_attn.{name}_proj.weight": "matrix" for name in "qkvo"}
MLP: Roles = {"mlp.up_proj.weight": "matrix", "mlp.down_proj.weight": "matrix"}
SWIGLU: Roles = {"mlp.gate_proj.weight": "matrix", **MLP}
EXPERTS: Roles = {"mlp.router.weight": "router", "mlp.experts.up_EDF": "experts", "mlp.experts.down_EFD": "experts"}
SHARED: Roles = {"mlp.shared.up_proj.weight": "matrix", "mlp.shared.down_proj.weight": "matrix"}
SINKS: Roles = {"self_attn.sink_H": "vector"}
SCALES: Roles = {"mix_2D": "vector", "attn_scale_D": "vector", "mlp_scale_D": "vector", "self_attn.q_gain_H": "vector"}
ENDS: Roles = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "vector"}
HEAD: Roles = {"lm_head.weight": "head"}
RATES: Roles = {"positions.log_rate_p": "vector"}
CONTEXTUAL: Roles = {**RATES, "positions.step_proj.weight": "vector", "positions.step_proj.bias": "vector"}
PLANES: Roles = {"positions.a_Kh": "vector", "positions.b_Kh": "vector"}
TABLES: Roles = {
    "model.embed_tokens.weight": "embedding",
    "model.bigram.table.weight": "table",
    "model.bigram.proj.weight": "matrix",
    "model.bigram.scale": "vector",
    "model.smear.gate_D": "vector",
    "model.value_embedding.table.weight": "table",
    "model.value_embedding.proj.weight": "matrix",
    "model.value_embedding.scale": "vector",
    "model.skip_SD": "vector",
}


def model(*layers: Roles, ends: Roles) -> Roles:
    return {
        **ends,
        **{f"model.layers.{index}.{name}": role for index, each in enumerate(layers) for name, role in each.items()},
    }


PLAIN: Roles = {**NORMS, **QK_NORMS, **PROJECTIONS, **SINKS}
UNNORMED: Roles = {**PROJECTIONS, **MLP, **SCALES}
VALUED: Roles = {**UNNORMED, "self_attn.value_scale": "vector"}
TWO: dict[str, Any] = {"num_layers": 2}
CASES: dict[str, tuple[Student, Roles]] = {
    "moe": (
        moe(**TWO, shared_expert=SharedExpert(size=24)),
        model({**PLAIN, **MLP}, {**PLAIN, **EXPERTS, **SHARED}, ends={**ENDS, **HEAD}),
    ),
    "moe, swiglu": (
        moe(**TWO, activation="swiglu", tied_embeddings=True),
        model({**PLAIN, **SWIGLU}, {**PLAIN, **EXPERTS, "mlp.experts.gate_EDF": "experts"}, ends=ENDS),
    ),
    "moe, contextual": (
        moe(**TWO, dense_layers=2, positions=GrapeM(form="contextual")),
        model(*[{**PLAIN, **MLP, **CONTEXTUAL}] * 2, ends={**ENDS, **HEAD}),
    ),
    "moe, rank 2": (
        moe(**TWO, dense_layers=2, positions=GrapeM(form="rank2")),
        model(*[{**PLAIN, **MLP, **PLANES}] * 2, ends={**ENDS, **HEAD}),
    ),
    "golf": (
        golf(num_layers=3, tied_embeddings=False, exclusive_layers=1, value_embedding_layers=(1,)),
        model(UNNORMED, VALUED, UNNORMED, ends={**TABLES, **HEAD}),
    ),
}


def placed(spec: Student) -> dict[str, Placement]:
    student = build_empty(spec, vocab_size=50)
    assert isinstance(student, Decoder)
    return student.placements()


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_the_role_of_its_part(name: str) -> None:
    spec, roles = CASES[name]
    assert placed(spec) == {parameter: Placement(role, 1.0) for parameter, role in roles.items()}


LADDER: Roles = {**NORMS, **QK_NORMS, **PROJECTIONS, **SWIGLU}
MIXED: Roles = {**NORMS, **QK_NORMS, **PROJECTIONS, **EXPERTS, "mlp.experts.gate_EDF": "experts"}
SLOWED = {"matrix", "experts", "router"}
"""Those whose fan-in grows with the width (arXiv 2309.14322); the head is one of them if the recipe says so."""


@pytest.mark.parametrize("upcycled", [False, True])
@pytest.mark.parametrize("changes", [{"head_is_hidden": True}, {"head_is_hidden": False}, {"mup": False}], ids=str)
def test_matrices_of_a_ladder_learn_at_base_over_width(changes: dict[str, bool], upcycled: bool) -> None:
    """Four times as wide as where the learning rate means what it says, they learn at a quarter of it."""
    dense = ladder(base_width=16, tied_embeddings=False, **changes)
    spec = UpcycledStudent(dense=dense, num_experts=4, first_layer=1) if upcycled else dense
    roles = model(LADDER, MIXED if upcycled else LADDER, ends={**ENDS, **HEAD})
    slowed = set() if changes.get("mup") is False else SLOWED | ({"head"} if changes["head_is_hidden"] else set())
    assert placed(spec) == {name: Placement(role, 0.25 if role in slowed else 1.0) for name, role in roles.items()}


def test_a_tied_head_learns_as_the_embedding_it_is() -> None:
    found = placed(ladder(base_width=16))
    assert found["model.embed_tokens.weight"] == Placement("embedding", 1.0) and "lm_head.weight" not in found
