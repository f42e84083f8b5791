"""Students as they are asked for: what families lay out, and the line that says what cannot be."""

import dataclasses
import functools
import operator
import typing

import pytest

from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.layout import ExpertsLayout
from limbeck.spec.load import load_recipe, parse_overrides, read_yaml, shipped, shipped_files, shown_names
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import Rope, SharedExpert, Yarn
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import Student
from limbeck.spec.upcycled_student import UpcycledStudent

SIZES = {"hidden_size": 64, "num_layers": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96}


def windows(spec) -> list[int | None]:
    return [layer.attention.window for layer in spec.layout.layers]


def test_olmo_slides_in_three_layers_of_four_and_stretches_the_fourth():
    """transformers' `models/olmo3`: full where (i + 1) % 4 == 0, and YaRN in full layers alone."""
    spec = Olmo3Student(**SIZES, sliding_window=7, yarn=Yarn())
    assert windows(spec) == [7, 7, 7, None] * 2
    yarns = [layer.attention.positions.yarn for layer in spec.layout.layers]
    assert [yarn is not None for yarn in yarns] == [False, False, False, True] * 2
    assert yarns[3].attention_factor == pytest.approx(1.2079441541679836, rel=1e-15)
    assert (spec.layout.norms, spec.layout.norm_eps, spec.layout.init.std) == ("after", 1e-6, 0.02)
    assert {layer.attention.qk_norm for layer in spec.layout.layers} == {"projection"}


@pytest.mark.parametrize("family", [Olmo3Student, MoeStudent])
def test_layers_can_be_named_one_by_one(family):
    """What pruning leaves of a pattern: of eight layers the first, the third, the fourth and the last."""
    four = {**SIZES, "num_layers": 4, "sliding_window": 7}
    kinds = ("sliding_attention", "sliding_attention", "full_attention", "full_attention")
    assert windows(family(**four, layer_types=kinds)) == [7, 7, None, None]
    assert windows(family(**four)) == [7, 7, 7, None]
    with pytest.raises(SpecError, match="layer_types names 4 layers, not num_layers=8"):
        parse(family, {**SIZES, "layer_types": kinds}, source="test")


def test_the_ladder_is_a_column_of_its_table():
    """arXiv 2502.08606, appendix H: 128 channels a layer, 16 heads, every layer full, MLPs of 8/3 d up to 128."""
    for layers, mlp in ((8, 2816), (9, 3072), (10, 3456), (14, 4864), (21, 7168), (37, 12_800), (40, 13_696)):
        spec = LadderStudent(num_layers=layers)
        (layer,) = set(spec.layout.layers)
        attention = layer.attention
        assert (spec.layout.hidden_size, len(spec.layout.layers), layer.mlp.size) == (128 * layers, layers, mlp)
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (16, 16, 8 * layers)
        assert (attention.window, attention.qk_norm, spec.layout.norms) == (None, "head", "before")
        assert (spec.layout.tied_embeddings, spec.layout.lr_base) == (True, 256)
        # A row of the embedding has length 1, as its deviation times the root of its size.
        assert spec.layout.init.kind == "fan_in"
        assert spec.layout.init.embedding_std == pytest.approx((128 * layers) ** -0.5)
    assert LadderStudent(num_layers=8, mup=False).layout.lr_base is None


def test_a_mixture_begins_with_dense_layers():
    spec = MoeStudent(**SIZES, dense_layers=3, exclusive_layers=2, sliding_window=5)
    mixed = [isinstance(layer.mlp, ExpertsLayout) for layer in spec.layout.layers]
    assert mixed == [False] * 3 + [True] * 5
    assert [layer.attention.exclusive for layer in spec.layout.layers] == [False] * 6 + [True] * 2
    assert windows(spec) == [5, 5, 5, None] * 2
    assert windows(spec.model_copy(update={"full_attention_every": 1})) == [None] * 8
    dense = spec.model_copy(update={"dense_layers": 8})
    assert not any(isinstance(layer.mlp, ExpertsLayout) for layer in dense.layout.layers)


def test_the_router_is_deepseeks():
    """arXiv 2412.19437, section 4.2: gates that sum to 2.5, biases that move by 0.001, a balance loss of 1e-4."""
    experts = MoeStudent(**SIZES).layout.layers[-1].mlp
    assert isinstance(experts, ExpertsLayout)
    assert (experts.route_scale, experts.bias_step, experts.balance_weight) == (2.5, 1e-3, 1e-4)


def test_golf_is_its_entrys_defaults():
    layout = GolfStudent().layout
    assert [layer.attention.exclusive for layer in layout.layers] == [False] * 7 + [True] * 4
    assert (layout.hidden_size, layout.softcap, layout.init.embedding_std, layout.norm_weights) == (512, 30, 0.005, False)
    (layer,) = {dataclasses.replace(each, attention=layout.layers[0].attention) for each in layout.layers}
    assert (layer.mlp.activation, layer.mlp.size, layer.branch_scales) == ("relu2", 1536, True)
    assert layer.attention.positions == Rope(theta=10_000.0, ntk_length=1024)
    assert (layer.attention.qk_norm, layer.attention.qk_gain) == ("gain", 1.5)
    assert (layout.bigram.buckets, layout.bigram.size) == (6144, 128)
    assert layout.smear and layout.skips and layout.embedding_norm and layout.tied_embeddings
    values = GolfStudent(value_embedding_size=128, value_embedding_layers=(9, 10)).layout
    assert [layer.attention.value_embedding for layer in values.layers] == [False] * 9 + [True] * 2


def test_a_changed_copy_is_laid_out_anew():
    """Not as the one that it was copied from, once that was laid out."""
    spec = LadderStudent(num_layers=8)
    assert len(spec.layout.layers) == 8
    assert len(spec.model_copy(update={"num_layers": 9}).layout.layers) == 9


EVERY_FAMILY = {
    "olmo3": Olmo3Student(**SIZES),
    "ladder": LadderStudent(num_layers=2),
    "moe": MoeStudent(**SIZES),
    "golf": GolfStudent(),
    "upcycled": UpcycledStudent(dense=LadderStudent(num_layers=2), granularity=2, weights="somewhere"),
    "huggingface": HuggingFaceStudent(model="smollm2"),
}


@pytest.mark.parametrize("spec", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_a_vocabulary_is_filled_in_where_its_key_says(spec):
    """And nowhere else; the key is one that a recipe may have."""
    filled = spec.with_vocab_size(77)
    assert (spec.vocab_size, filled.vocab_size) == (None, 77)
    expected = {"student": spec.model_dump()}
    *path, last = spec.vocab_size_key.split(".")
    functools.reduce(operator.getitem, path, expected)[last] = 77
    assert expected == {"student": filled.model_dump()}
    assert parse(type(spec), expected["student"], source="test") == filled


def test_every_family_is_among_them():
    members = typing.get_args(typing.get_args(Student)[0])
    assert {type(spec) for spec in EVERY_FAMILY.values()} == set(members)


MOE = ("student.kind=moe", *(f"student.{key}={value}" for key, value in SIZES.items()))
GOLF = ("student.kind=golf",)
LADDER = ("student.kind=ladder", "student.num_layers=2")
OLMO3 = "{kind: olmo3, hidden_size: 64, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 16, intermediate_size: 96}"
UPCYCLED = ("student.kind=upcycled", f"student.dense={OLMO3}")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("student.num_kv_heads=3",), "student: num_heads=4 is not a multiple of num_kv_heads=3"),
        (("student.head_dim=15",), "head_dim=15 must be even"),
        (("student.sliding_window=0",), "student.sliding_window=0: Input should be greater than 0"),
        (("student.full_attention_every=0",), "student.full_attention_every=0: Input should be greater than 0"),
        (("student.yarn={factor: 0.5}",), "student.yarn.factor=0.5: Input should be greater than or equal to 1"),
        (("student.vocab_size=0",), "student.vocab_size=0: Input should be greater than 0"),
        ((*LADDER, "student.hidden_size=100"), "hidden_size=100 is not a multiple of twice num_heads=16"),
        ((*LADDER, "student.num_layers=0"), "student.num_layers=0: Input should be greater than 0"),
        ((*MOE, "student.sliding_window=-1"), "student.sliding_window=-1: Input should be greater than 0"),
        ((*MOE, "student.num_experts=4"), "experts_per_token=8 is more than num_experts=4"),
        ((*MOE, "student.dense_layers=9"), "dense_layers=9 is more than num_layers=8"),
        ((*MOE, "student.exclusive_layers=9"), "exclusive_layers=9 is more than num_layers=8"),
        ((*MOE, "student.expert_groups=5"), "num_experts=64 is not a multiple of expert_groups=5"),
        ((*MOE, "student.groups_per_token=2"), "groups_per_token=2 is more than expert_groups=1"),
        ((*MOE, "student.expert_groups=16"), "experts_per_token=8 is more than the 4 experts of groups_per_token=1"),
        ((*MOE, "student.expert_size=12"), "expert_size=12 is not a multiple of 8"),
        ((*MOE, "student.hidden_size=50"), "hidden_size=50 is not a multiple of 8"),
        (
            (*UPCYCLED, "student.num_experts=16", "student.experts_per_token=8", "student.granularity=8"),
            "dense.intermediate_size / granularity=12 is not a multiple of 8",
        ),
        ((*UPCYCLED, "student.dense.hidden_size=50"), "the dense hidden size=50 is not a multiple of 8"),
        ((*MOE, "student.shared_expert={size: 0}"), "student.shared_expert.size=0: Input should be greater than 0"),
        ((*MOE, "student.activation=gelu"), "student.activation='gelu': Input should be 'swiglu', 'relu2' or 'leaky_relu2'"),
        ((*MOE, "student.positions={kind: alibi}"), "student.positions.kind=alibi is not a kind"),
        ((*GOLF, "student.exclusive_layers=12"), "exclusive_layers=12 is more than num_layers=11"),
        ((*GOLF, "student.value_embedding_size=8"), "value_embedding_size and value_embedding_layers go together"),
        ((*GOLF, "student.value_embedding_layers=[3]"), "value_embedding_size and value_embedding_layers go together"),
        (
            (*GOLF, "student.value_embedding_size=8", "student.value_embedding_layers=[11]"),
            "value_embedding_layers=(11,) are not all below 11",
        ),
        ((*GOLF, "student.bigram_buckets=1"), "student.bigram_buckets=1: Input should be greater than or equal to 2"),
        ((*GOLF, "student.head_dim=2"), "head_dim=2 leaves no rates for ntk_length to stretch"),
        (
            (*MOE, "student.head_dim=2", "student.positions={kind: rope, ntk_length: 8}"),
            "head_dim=2 leaves no rates for positions.ntk_length to stretch",
        ),
        (
            (*MOE, "student.positions={kind: rope, ntk_length: 8, yarn: {factor: 2}}"),
            "student.positions: ntk_length=8 and yarn both stretch positions",
        ),
        ((*UPCYCLED, "student.method=sparse", "student.drop_share=0.25"), "drop_share=0.25 is for method=drop alone"),
        ((*GOLF, "student.softcap=0"), "student.softcap=0: Input should be greater than 0"),
    ],
)
def test_a_student_that_cannot_be_is_refused_with_key_and_reason(overrides, expected):
    with pytest.raises(SpecError) as caught:
        load_recipe("quickstart", parse_overrides(overrides))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("quickstart: student")
    assert "\n" not in str(caught.value)


def test_only_experts_need_rows_of_whole_16_bytes():
    """A shared expert and dense MLPs are products of their own, of any size."""
    dense = MoeStudent(**{**SIZES, "hidden_size": 50, "intermediate_size": 50}, dense_layers=8, expert_size=10)
    assert {layer.mlp.size for layer in dense.layout.layers} == {50}
    beside = MoeStudent(**{**SIZES, "intermediate_size": 50}, expert_size=8, shared_expert=SharedExpert(size=10))
    assert beside.layout.layers[-1].mlp.shared.size == 10
    cut = UpcycledStudent(
        dense=MoeStudent(**{**SIZES, "intermediate_size": 48}, dense_layers=8),
        num_experts=12,
        experts_per_token=6,
        granularity=6,
    )
    assert cut.layout.layers[0].mlp.expert.size == 8


# ---- members: recipes that share a file

LADDER_NAMES = (
    "103M 143M 198M 266M 340M 435M 546M 664M 810M 975M 1.15B 1.35B 1.59B 1.82B 2.1B 2.41B 2.72B 3.08B 3.48B 3.87B 4.33B 4.82B "
    "5.31B 5.87B 6.48B 7.07B 7.75B 8.47B 9.17B 10B 10.8B 11.7B 12.6B"
).split()
"""Three digits of N of Table 13's rows: 8 to 40 layers."""


def test_every_row_of_table_13_is_a_recipe():
    members = shipped("recipes")[len(shipped_files("recipes")) :]
    assert members == [f"ladder-{name.lower()}" for name in LADDER_NAMES]
    for layers, name in enumerate(members, start=8):
        recipe = load_recipe(name)
        digits, letter = name.removeprefix("ladder-")[:-1], name[-1]
        assert recipe.student == LadderStudent(num_layers=layers, vocab_size=32_768)
        assert recipe.budget.amount == pytest.approx(20 * float(digits) * {"m": 1e6, "b": 1e9}[letter], rel=0.006)
        base = load_recipe("laws")
        changed = {key for key, value in recipe.model_dump().items() if value != base.model_dump()[key]}
        assert changed <= {"name", "student", "budget"} and recipe.name == name


def test_members_are_overridden_as_any_recipe_and_share_nothing():
    wider = load_recipe("ladder-198m", {"student.num_layers": 11, "name": "between"})
    assert (wider.name, wider.student.num_layers) == ("between", 11)
    assert load_recipe("ladder-198m").student.num_layers == 10
    values = read_yaml("ladder-198m", folder="recipes")
    values["student"]["num_layers"] = 99
    values["data"]["train"]["path"] = "elsewhere"
    assert load_recipe("ladder-198m").student.num_layers == 10
    assert load_recipe("laws").data == load_recipe("ladder-103m").data


def test_a_file_of_ones_own_has_no_members(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nmembers: {a: {student.num_layers: 3}}\n", encoding="utf-8")
    with pytest.raises(SpecError, match="members is not a key"):
        load_recipe(str(path))


def test_an_unknown_recipe_is_told_of_the_members_at_the_ends():
    assert shown_names("recipes")[-1] == "ladder-103m to ladder-12.6b"
    with pytest.raises(
        SpecError, match=r"did you mean 'ladder-198m'\? \(valid: .*quickstart, upcycled-tiny, ladder-103m to ladder-12.6b\)"
    ):
        load_recipe("ladder-199m")
    assert shown_names("studies") == shipped("studies") == shipped_files("studies")
