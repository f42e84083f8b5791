"""Upcycled students begin as the dense one where theory says so, differ where it does not, and refuse cuts that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.upcycle import upcycle

VOCAB = 50
TOKENS_BT = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


def dense_spec(activation: str = "relu2") -> MoeStudent:
    sizes = {"hidden_size": 32, "num_layers": 2, "dense_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    return parse(MoeStudent, {**sizes, "intermediate_size": 64, "activation": activation, "init_std": 0.2}, source="test")


def spec(activation: str = "relu2", **changes: Any) -> UpcycledStudent:
    values = {"dense": dense_spec(activation).model_dump(), "num_experts": 16, "experts_per_token": 4, "route_scale": 2.5}
    return parse(UpcycledStudent, {**values, **changes}, source="test")


def hidden(student: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return student(TOKENS_BT).hidden_BTD


@pytest.mark.parametrize("activation", ["relu2", "leaky_relu2", "swiglu"])
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "virtual_groups", "granularity": 4},
        {"method": "virtual_groups", "granularity": 2, "first_layer": 1},
        {"method": "virtual_groups"},
        {"method": "sparse"},
        {"method": "drop", "drop_share": 0.0},
    ],
    ids=str,
)
def test_it_begins_as_the_dense_student(activation: str, changes: dict[str, Any]) -> None:
    dense = build(dense_spec(activation), vocab_size=VOCAB, seed=1)
    for router_seed in (1, 2):
        student = upcycle(dense, spec(activation, **changes), seed=router_seed)
        torch.testing.assert_close(hidden(student), hidden(dense), rtol=0, atol=1e-5)
        assert len(student.experts()) == 2 - changes.get("first_layer", 0)


def test_shards_without_their_whole_copy_are_another_function() -> None:
    """What the multiple of granularity is for: routers that split copies do not give the dense output."""
    dense = build(dense_spec(), vocab_size=VOCAB, seed=1)
    student = upcycle(dense, spec(granularity=4), seed=1)
    for experts in student.experts():
        experts.router.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    assert float((hidden(student) - hidden(dense)).abs().max()) > 1e-2


def test_shards_are_cut_along_the_channels() -> None:
    dense = build(dense_spec("swiglu"), vocab_size=VOCAB, seed=1)
    (experts, _) = upcycle(dense, spec("swiglu", granularity=4), seed=1).experts()
    mlp = dense.model.layers[0].mlp
    for expert in range(16):
        channels = slice(16 * (expert % 4), 16 * (expert % 4) + 16)
        torch.testing.assert_close(experts.experts.up_EDF[expert].T, mlp.up_proj.weight[channels])
        torch.testing.assert_close(experts.experts.gate_EDF[expert].T, mlp.gate_proj.weight[channels])
        torch.testing.assert_close(experts.experts.down_EFD[expert].T, 4 / 2.5 * mlp.down_proj.weight[:, channels])
    rows = experts.router.weight.view(4, 4, -1)
    assert (rows == rows[:, :1]).all() and len(rows[:, 0].unique(dim=0)) == 4


@torch.no_grad()
def test_noise_is_in_every_matrix() -> None:
    dense = build(dense_spec("swiglu"), vocab_size=VOCAB, seed=1)
    (plain, _), (noisy, _) = (upcycle(dense, spec("swiglu", noise=noise), seed=1).experts() for noise in (0.0, 0.05))
    for (name, before), after in zip(plain.experts.named_parameters(), noisy.experts.parameters(), strict=True):
        moved = after - before
        assert float(moved.std() / before.std()) == pytest.approx(0.05, rel=0.05), name
        assert len(moved.unique(dim=0)) == 16, name


@torch.no_grad()
def test_dropped_channels_begin_with_the_mean_and_deviation_of_the_old_ones() -> None:
    """The same channels of all three matrices, other ones in every expert. Old means are far from zero."""
    dense = build(dense_spec("swiglu"), vocab_size=VOCAB, seed=1)
    mlp = dense.model.layers[0].mlp
    for shift, projection in enumerate((mlp.gate_proj, mlp.up_proj, mlp.down_proj), start=1):
        projection.weight += shift
    (plain, _), (dropped, _) = (
        upcycle(dense, spec("swiglu", method="drop", drop_share=share), seed=1).experts() for share in (0.0, 0.25)
    )
    kept = []
    for (name, before), after in zip(plain.experts.named_parameters(), dropped.experts.parameters(), strict=True):
        old_EFD, new_EFD = (each if name == "down_EFD" else each.transpose(1, 2) for each in (before, after))
        kept.append((old_EFD == new_EFD).all(2))
        anew_ND = new_EFD[~kept[-1]]
        assert float(anew_ND.mean()) == pytest.approx(float(before.mean()), rel=0.02), name
        assert float(anew_ND.std()) == pytest.approx(float(before.std()), rel=0.05), name
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])
    assert (kept[0].sum(1) == 48).all() and len(kept[0].unique(dim=0)) > 8


def test_only_routers_learn_at_first() -> None:
    student = build(spec(router_warmup=0.1), vocab_size=VOCAB, seed=1)
    for fraction, learns in ((0.05, "routers"), (0.1, "all")):
        student.set_fraction(fraction)
        student.zero_grad(set_to_none=True)
        student(TOKENS_BT).hidden_BTD.square().sum().backward()
        with_gradient = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
        routers = {name for name, _ in student.named_parameters() if ".router." in name}
        assert with_gradient == routers if learns == "routers" else routers < with_gradient


def test_it_begins_with_a_trained_students_weights(tmp_path: Path) -> None:
    trained = build(dense_spec(), vocab_size=VOCAB, seed=5)
    hf.save(trained, spec=dense_spec(), folder=tmp_path / "run" / "student", max_positions=16)
    student = build(spec(weights=str(tmp_path / "run")), vocab_size=VOCAB, seed=1)
    torch.testing.assert_close(hidden(student), hidden(trained), rtol=0, atol=1e-5)
    other = {**dense_spec().model_dump(), "rope_theta": None, "num_layers": 3, "dense_layers": 3}
    del other["rope_theta"]
    with pytest.raises(SpecError, match=r"student\.weights=.* vocab_size is 50 there and 51 in the recipe"):
        build(spec(weights=str(tmp_path / "run")), vocab_size=VOCAB + 1, seed=1)
    with pytest.raises(SpecError, match="holds another student"):
        build(spec(weights=str(tmp_path / "run"), dense=other), vocab_size=VOCAB, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": 3}, "does not divide dense.intermediate_size=64"),
        ({"granularity": 8, "num_experts": 12, "experts_per_token": 8}, "num_experts=12 is not a multiple"),
        ({"granularity": 4, "experts_per_token": 2}, "experts_per_token=2 is not a multiple of granularity=4"),
        ({"experts_per_token": 17}, "more than num_experts=16"),
        ({"first_layer": 2}, "leaves none"),
        ({"method": "sparse", "granularity": 2}, "virtual_groups alone"),
    ],
)
def test_cuts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**changes)
