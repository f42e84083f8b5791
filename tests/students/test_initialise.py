"""How parameters begin: deviations of each kind, zeros and ones where they belong, and the same for the same seed."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.layout import AttentionLayout, ExpertsLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import GrapeM, Rope, SharedExpert
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise

SIZES = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "intermediate_size": 96}
MOE = {"num_experts": 8, "experts_per_token": 2, "expert_size": 64, "shared_expert": SharedExpert(size=64)}
SPECS = {
    "olmo3": Olmo3Student(**SIZES, init_std=0.02),
    "ladder": LadderStudent(num_layers=2, num_heads=4),
    "moe": MoeStudent(**SIZES, **MOE, init_std=0.02),
    "contextual": MoeStudent(**SIZES, **MOE, activation="swiglu", positions=GrapeM(form="contextual")),
    "rank2": MoeStudent(**SIZES, **MOE, positions=GrapeM(form="rank2")),
    "golf": GolfStudent(**SIZES, exclusive_layers=2, value_embedding_size=64, value_embedding_layers=(2,)),
}
CUT = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
"""The deviation of a normal number of deviation 1 that is cut at three."""


def built(name: str, *, seed: int = 0, vocab_size: int = 500) -> dict[str, Tensor]:
    student = build(SPECS[name], vocab_size=vocab_size, seed=seed)
    return {name: parameter.detach() for name, parameter in student.named_parameters()}


def assert_normal(weight: Tensor, std: float) -> None:
    assert weight.abs().max() <= 3 * std * (1 + 1e-6)
    assert weight.abs().max() > 2.5 * std
    assert weight.std().item() == pytest.approx(std * CUT, rel=5 / math.sqrt(2 * weight.numel()))
    assert weight.mean().abs() < 5 * std / math.sqrt(weight.numel())


@pytest.mark.parametrize("name", SPECS)
def test_everything_is_filled(name):
    """Buffers too; nothing is left of what was there."""
    student = Decoder(SPECS[name].layout, vocab_size=500)
    with torch.no_grad():
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.fill_(math.nan)
    initialise(student, seed=0)
    for key, tensor in student.state_dict().items():
        assert tensor.isfinite().all(), key


@pytest.mark.parametrize("name", SPECS)
def test_the_seed_decides_and_nothing_else_does(name):
    first = built(name, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second, other = built(name, seed=5), built(name, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    for key, weight in first.items():
        assert torch.equal(weight, second[key]), key
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert not torch.equal(first["model.layers.1.self_attn.q_proj.weight"], other["model.layers.1.self_attn.q_proj.weight"])


@pytest.mark.parametrize("name", ["olmo3", "moe"])
def test_normal_matrices_have_one_deviation(name):
    for key, weight in built(name).items():
        if weight.ndim == 1:
            assert (weight == (0 if "sink" in key else 1)).all(), key
        else:
            assert_normal(weight, 0.02)


def test_fan_in_matrices_keep_their_variance():
    """The embedding's deviation is d**-0.5, as is that of matrices that read d channels."""
    for key, weight in built("ladder").items():
        if weight.ndim == 1:
            assert (weight == 1).all(), key
        else:
            assert_normal(weight, (256 if "embed" in key else weight.shape[1]) ** -0.5)


def test_stacks_of_experts_are_matrices_of_their_own():
    """Deviation and orthogonality are those of each expert's matrix, which reads D channels or F."""
    attention = AttentionLayout(4, 2, 32, Rope(), qk_norm="none")
    layer = LayerLayout(attention, ExpertsLayout(8, 2, MlpLayout("relu2", 144)))
    for kind in ("fan_in", "orthogonal"):
        layout = Layout(64, (layer,), tied_embeddings=True, init=InitLayout(kind, embedding_std=0.1))
        student = Decoder(layout, vocab_size=50)
        initialise(student, seed=0)
        stack = student.experts()[0].experts
        up_EDF, down_EFD = stack.up_EDF.detach(), stack.down_EFD.detach()
        if kind == "fan_in":
            assert_normal(up_EDF, 64**-0.5)
            assert_normal(down_EFD, 144**-0.5)
        else:
            torch.testing.assert_close(up_EDF @ up_EDF.mT, torch.eye(64).expand(8, -1, -1), rtol=0, atol=1e-5)
            assert (down_EFD == 0).all()


def test_orthogonal_matrices_are_orthogonal_and_branches_give_nothing():
    weights = built("golf")
    for key, weight in weights.items():
        if key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight", "bigram.proj.weight")):
            short = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5)
        elif key.endswith(("o_proj.weight", "down_proj.weight", "bigram.table.weight", "value_embedding.proj.weight")):
            assert (weight == 0).all(), key
    assert_normal(weights["model.embed_tokens.weight"], 0.005)
    assert_normal(weights["model.value_embedding.table.weight"], 0.01)


def test_small_parts_of_golf_begin_where_the_challenge_has_them():
    weights = built("golf")
    assert float(weights["model.bigram.scale"]) == pytest.approx(0.05)
    assert float(weights["model.value_embedding.scale"]) == pytest.approx(0.1)
    assert weights["model.layers.2.self_attn.value_scale"] == 1
    assert (weights["model.smear.gate_D"] == 0).all()
    assert (weights["model.skip_SD"] == 1).all()
    for index in range(3):
        assert (weights[f"model.layers.{index}.self_attn.q_gain_H"] == 1.5).all()
        assert (weights[f"model.layers.{index}.attn_scale_D"] == 1).all()
        assert (weights[f"model.layers.{index}.mlp_scale_D"] == 1).all()
        assert weights[f"model.layers.{index}.mix_2D"].tolist() == [[1.0] * 64, [0.0] * 64]


def test_mixtures_begin_even_and_whole():
    student = build(SPECS["moe"], vocab_size=50, seed=0)
    for experts in student.experts():
        assert (experts.router.bias == 0).all()
        assert experts.shared_share == 1
    stack = student.experts()[0].experts.up_EDF
    assert not torch.equal(stack[0], stack[1])


def test_routed_and_shared_experts_begin_about_as_loud():
    """k = 8 gates that sum to 2.5 over experts as wide as the shared one: sqrt(8) * 2.5 / 8 = 0.88 of it."""
    spec = MoeStudent(**SIZES, num_experts=64, expert_size=64, shared_expert=SharedExpert(size=64))
    experts = build(spec, vocab_size=50, seed=0).experts()[0]
    x_BTD = torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both, shared = experts(x_BTD).x_BTD, experts.shared(x_BTD)
    assert float((both - shared).norm() / shared.norm()) == pytest.approx(0.88, rel=0.1)


def test_contextual_steps_begin_at_one():
    student = build(SPECS["contextual"], vocab_size=50, seed=0)
    for block in student.model.layers:
        assert (block.positions.step_proj.weight == 0).all()
        assert float(torch.nn.functional.softplus(block.positions.step_proj.bias.detach())) == pytest.approx(1.0, abs=1e-6)
