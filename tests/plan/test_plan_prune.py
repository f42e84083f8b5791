"""Targets, shapes and steps of pruning: counted on modules that are built, and by formulas written out here."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import SpecError
from limbeck.plan.prune_shapes import (
    Caps,
    GivenCaps,
    Shape,
    _counted,
    candidates,
    find_shapes,
    grid_step,
    model_sizes,
    shaped,
    taken,
)
from limbeck.plan.prune_steps import in_steps
from limbeck.plan.prune_target import Costs, Target, Workload, costs_of, parse_target
from limbeck.plan.pruned import pruned_config
from limbeck.spec.base import parse
from limbeck.spec.prune import Pruning

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
QWEN_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 300,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "intermediate_size": 256,
    "tie_word_embeddings": False,
}
WORK = Workload(context=64, batch_size=2)


@cache
def _built(config: str) -> int:
    values = json.loads(config)
    kind = values.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    return sum(parameter.numel() for parameter in model.parameters())


def counted(config: dict[str, Any]) -> int:
    """The parameters of the model, built without weights."""
    return _built(json.dumps(config))


def near(config: dict[str, Any], share: float, values: dict[str, Any] | None = None, **changes: Any):
    wanted = share * counted(config)
    asked = {"tolerance": 0.05, "top": 8, "workload": WORK, **changes}
    return wanted, find_shapes(config, values or {}, wanted=wanted, amount_of=lambda _, costs: float(costs.parameters), **asked)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters=0.5", Target("parameters", share=0.5)),
        ("active_parameters=30%", Target("active_parameters", share=0.3)),
        ("parameters=70M", Target("parameters", amount=70e6)),
        ("parameters=3.5B", Target("parameters", amount=3.5e9)),
        ("memory=2GB", Target("memory", amount=2e9)),
        ("memory=100b", Target("memory", amount=100.0)),
        ("flops=1e9", Target("flops", amount=1e9)),
        ("flops=2GFLOPs", Target("flops", amount=2e9)),
        ("latency=12.5ms", Target("latency", amount=12.5)),
        ("latency=0.5ms", Target("latency", amount=0.5)),
        ("latency=0.5", Target("latency", share=0.5)),
    ],
)
def test_targets_are_shares_or_amounts(text: str, expected: Target):
    found = parse_target(text)
    assert (found.quantity, found.share) == (expected.quantity, pytest.approx(expected.share))
    assert found.amount == pytest.approx(expected.amount)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("parameters=12ms", "ms is no unit of parameters: write 70M"),
        ("active_parameters=2GB", "GB is no unit of active_parameters"),
        ("flops=2GB", "GB is no unit of flops: write 2G or 2GFLOPs"),
        ("memory=12ms", "ms is no unit of memory: write bytes, such as 2GB"),
        ("latency=2GB", "GB is no unit of latency: write milliseconds, such as 12ms"),
        ("latency=2k", "k is no unit of latency"),
    ],
)
def test_a_unit_belongs_to_its_quantity(text: str, unit: str):
    with pytest.raises(SpecError, match=unit):
        parse_target(text)


@pytest.mark.parametrize("text", ["parameters", "size=0.5", "parameters=", "parameters=half", "parameters=0", "parameters=-1"])
def test_what_is_no_target_is_refused(text: str):
    with pytest.raises(SpecError, match="--target"):
        parse_target(text)


def test_a_target_is_less_than_the_model():
    assert parse_target("parameters=0.25").of(400, name="it") == 100
    for text in ("parameters=400", "parameters=100%"):
        with pytest.raises(SpecError, match="is no less than the 400 of it"):
            parse_target(text).of(400, name="it")


def test_costs_are_counted_by_hand():
    """Per layer 128 * 16 * (2 * 8 + 2 * 4) of attention, 3 * 128 * 256 of MLP, two norms; a tied table of 300 tokens."""
    costs = costs_of(LLAMA, WORK)
    outside = 10 * (128 * 16 * 24 + 3 * 128 * 256 + 2 * 128) + 128
    assert costs.parameters == costs.active_parameters == outside + 300 * 128 == counted(LLAMA)
    assert costs.flops == 2 * outside + 2 * 300 * 128 + 2 * 64 * 10 * 128  # products, head, keys and values at half the context
    assert costs.memory == 2 * costs.parameters + 2 * 64 * 10 * 2 * 4 * 16 * 2  # and keys and values of two texts
    moe = costs_of(QWEN_MOE, WORK)
    assert moe.parameters == counted(QWEN_MOE)
    assert moe.parameters - moe.active_parameters == 6 * 12 * 3 * 128 * 64  # 12 of 16 experts stay away from a token


def test_our_own_students_have_costs_too():
    from tiny_students import olmo3

    student = olmo3(vocab_size=300)
    config = {"model_type": "limbeck", "vocab_size": 300, "student": student.model_dump(mode="json")}
    one, three = (costs_of(config, Workload(context=8, batch_size=each)) for each in (1, 3))
    # two bytes a number, keys and values
    held = sum(
        2 * 2 * layer.attention.num_kv_heads * layer.attention.head_dim * min(8, layer.attention.window or 8)
        for layer in student.layout.layers
    )
    assert three.memory - one.memory == 2 * held


@pytest.mark.parametrize(("config", "share"), [(LLAMA, 0.7), (LLAMA, 0.5), (QWEN_MOE, 0.6)])
def test_shapes_are_as_large_as_asked_and_within_the_caps(config: dict[str, Any], share: float):
    """Sizes of built modules; 40 % of a width and 20 % of the depth, but for kinds that cannot do without more."""
    wanted, found = near(config, share)
    own = model_sizes(config)
    assert 3 <= len(found.shapes) <= 8 <= found.near <= found.counted
    for shape in found.shapes:
        assert counted(dict(shape.config)) == shape.costs.parameters == shape.amount
        assert abs(counted(dict(shape.config)) / wanted - 1) <= 0.05
        assert shape.departure == pytest.approx(shape.amount / wanted - 1)
        gone = {name: 1 - size / own[name] for name, size in shape.sizes.items()}
        assert all(each > 0 for each in gone.values())
        within = gone.get("num_layers", 0) <= 0.2 and all(each <= 0.4 for name, each in gone.items() if name != "num_layers")
        assert within != shape.beyond_caps
        heads = {**own, **shape.sizes}
        assert heads["num_heads"] % heads["num_kv_heads"] == 0
        assert heads.get("num_experts", 99) >= 4
    assert {shape.kind for shape in found.shapes} >= {"width", "mixed"}
    assert config is QWEN_MOE or any(shape.kind == "depth" for shape in found.shapes)


def test_a_kind_goes_beyond_the_caps_only_where_it_must():
    _, found = near(LLAMA, 0.85, top=50)
    assert not any(shape.beyond_caps for shape in found.shapes)
    assert any(shape.kind == "depth" and shape.sizes == {"num_layers": 8} for shape in near(LLAMA, 0.82, top=50)[1].shapes)
    _, far = near(LLAMA, 0.6, top=50)
    assert {shape.kind for shape in far.shapes if shape.beyond_caps} >= {"depth"}


def test_caps_that_are_given_are_kept():
    _, found = near(LLAMA, 0.6, top=50, caps=GivenCaps(depth=0.1))
    assert found.shapes and all(shape.sizes.get("num_layers", 10) >= 9 for shape in found.shapes)
    with pytest.raises(SpecError, match="or a cap that is given"):
        near(LLAMA, 0.4, caps=GivenCaps(width=0.1, depth=0.1))


def test_no_shape_is_counted_twice(monkeypatch):
    """Where the second pass goes over kinds that the first had no member of."""
    counts: list[dict[str, int]] = []

    def spied(config: Any, values: Any, sizes: dict[str, int], **others: Any) -> Any:
        counts.append(sizes)
        return _counted(config, values, sizes, **others)

    monkeypatch.setattr("limbeck.plan.prune_shapes._counted", spied)
    _, found = near(LLAMA, 0.6, top=50)
    assert any(shape.beyond_caps for shape in found.shapes)
    assert len({tuple(sorted(sizes.items())) for sizes in counts}) == len(counts)


def test_layers_that_cannot_go_as_asked_are_refused():
    for how, reason in (
        ({"drop_types": "sliding"}, "all of the model's layers are of one kind"),
        ({"keep_first": 6, "keep_last": 4}, "only 0 may go"),
        ({"num_layers": 4, "contiguous": True, "keep_first": 5}, "only 4 may go"),
    ):
        with pytest.raises(SpecError, match=reason):
            near(LLAMA, 0.6, how)


def test_sizes_that_are_set_stay_in_every_shape():
    _, found = near(LLAMA, 0.6, {"num_layers": 8, "contiguous": True}, top=20)
    assert found.shapes and all(shape.sizes["num_layers"] == 8 for shape in found.shapes)
    _, named = near(LLAMA, 0.6, {"layers": [0, 1, 2, 3, 4, 5, 6, 9]}, top=20)
    assert named.shapes and all("num_layers" not in shape.sizes for shape in named.shapes)
    assert all(shape.config["num_hidden_layers"] == 8 for shape in named.shapes)


def test_what_cannot_be_met_is_refused():
    with pytest.raises(
        SpecError, match=r"no shape on the grid comes within 5% .*; the nearest is \+\d+\.\d% off \(num_layers="
    ):
        near(LLAMA, 0.01)
    with pytest.raises(SpecError, match="num_layers=12 is more than the model's 10"):
        near(LLAMA, 0.5, {"num_layers": 12})
    with pytest.raises(SpecError, match="hiden_size is not a key"):
        near(LLAMA, 0.5, {"hiden_size": 12})


def test_how_layers_go_is_no_matter_to_shapes_that_keep_them_all():
    """Beside a size that is set, and without one."""
    how = {"contiguous": True, "hidden_scores": "raw_sum", "depth": {"kind": "loss"}}
    for values in (how, {**how, "num_kv_heads": 2, "num_heads": 4}):
        _, found = near(LLAMA, 0.7, values, top=50, tolerance=0.1)
        assert {shape.kind for shape in found.shapes} >= {"width", "mixed"}
        for shape in found.shapes:
            pruning = shaped(values, shape.sizes)
            assert pruning.contiguous == ("num_layers" in shape.sizes)
            assert (pruning.hidden_scores == "raw_sum") == ("hidden_size" in shape.sizes)


def test_layers_go_as_the_pattern_allows():
    """Of twelve layers, three sliding to one full, whole groups of four alone."""
    types = ["sliding_attention"] * 3 + ["full_attention"]
    config = {**LLAMA, "model_type": "olmo3", "num_hidden_layers": 12, "layer_types": types * 3, "sliding_window": 16}
    values = {"drop_types": "proportional", "keep_first": 0, "keep_last": 0}
    _, found = near(config, 0.6, values, top=200, tolerance=0.2, caps=GivenCaps(width=0.4, depth=0.7))
    depths = {shape.sizes["num_layers"] for shape in found.shapes if "num_layers" in shape.sizes}
    assert depths and depths <= {4, 8}
    assert all(len(shape.config["layer_types"]) == shape.config["num_hidden_layers"] for shape in found.shapes)


def test_the_grid_is_nvidias_at_its_sizes():
    """256 of 4,096 channels and 512 of 12,288 neurons (Model Optimizer); 64 where a model is small."""
    assert (grid_step(4096), grid_step(12_288), grid_step(576), grid_step(1536), grid_step(32)) == (256, 512, 64, 64, 2)
    wide = candidates({**LLAMA, "hidden_size": 576, "head_dim": 64}, None, caps=Caps())
    assert {each.get("hidden_size", 576) for each in wide} == {576, 512, 448, 384}


def test_kinds_are_taken_in_turn_and_widths_before_repeats():
    def shape(departure: float, **sizes: int) -> Shape:
        return Shape(sizes, {}, Costs(0, 0, 0, 0), 0, departure)

    widths = [shape(0.01, hidden_size=64), shape(0.02, hidden_size=64, num_heads=2), shape(-0.03, hidden_size=32)]
    depths = [shape(0.05, num_layers=5)]
    mixed = [shape(0.04, num_layers=5, hidden_size=64)]
    assert list(taken([*widths, *depths, *mixed], top=5)) == [widths[0], depths[0], mixed[0], widths[2], widths[1]]
    assert list(taken([*widths, *depths], top=2)) == [widths[0], depths[0]]


def asked(config: dict[str, Any], **values: Any) -> list[Pruning]:
    return in_steps(config, parse(Pruning, values, source="test"))


def test_steps_are_of_equal_ratio_and_end_at_the_sizes():
    steps = asked(LLAMA, hidden_size=32, num_layers=5, num_kv_heads=1, num_heads=2, steps=2)
    assert [step.hidden_size for step in steps] == [64, 32]
    assert [step.num_layers for step in steps] == [7, 5]  # 10 / sqrt(2)
    assert [(step.num_heads, step.num_kv_heads) for step in steps] == [(4, 2), (2, 1)]
    assert all(step.steps == 1 for step in steps)
    one = asked(LLAMA, hidden_size=32)
    assert len(one) == 1 and one[0].hidden_size == 32
    many = asked(LLAMA, num_layers=8, steps=9)
    assert [step.num_layers for step in many] == [9, 8]


def test_every_step_can_be_taken_upon_the_one_before():
    """Groups stay equal, experts enough for a token, whole groups of a pattern go."""
    for config, values in (
        (LLAMA, {"num_heads": 4, "intermediate_size": 100, "steps": 3}),
        (QWEN_MOE, {"num_experts": 4, "expert_size": 16, "num_kv_heads": 1, "steps": 4}),
        (
            {**LLAMA, "model_type": "olmo3", "num_hidden_layers": 12, "sliding_window": 16},
            {"num_layers": 4, "drop_types": "proportional", "keep_first": 0, "keep_last": 0, "steps": 3},
        ),
    ):
        current = dict(config)
        for step in asked(config, **values):
            current = pruned_config(current, step)
        whole = pruned_config(dict(config), parse(Pruning, {**values, "steps": 1}, source="test"))
        assert {key: current[key] for key in whole} == whole


@pytest.mark.parametrize(
    ("model_type", "values", "between"),
    [
        ("gemma3_text", {"hidden_size": 4096}, [4704, 4096]),  # sqrt(5376 * 4096) = 4693 = 146.6 * 32
        ("llama", {"hidden_size": 3072}, [4064, 3072]),  # sqrt(5376 * 3072) = 4063.9
        ("llama", {"hidden_size": 4608, "num_heads": 24}, [4984, 4608]),  # 28 heads, lcm(8, 28) = 56: 4977.3 = 88.9 * 56
    ],
)
def test_widths_between_are_whole_heads(model_type, values, between):
    """As transformers wants it of these two; a Llama stays a Llama."""
    config = {**LLAMA, "model_type": model_type, "hidden_size": 5376, "num_attention_heads": 32, "num_key_value_heads": 1}
    config |= {"head_dim": 128, "num_key_value_heads": 1}
    steps = asked(config, **values, steps=2)
    assert [step.hidden_size for step in steps] == between
    assert [step.num_heads for step in steps] == ([28, 24] if "num_heads" in values else [None, None])
    current = dict(config)
    for step in steps:
        current = pruned_config(current, step)
        assert current["model_type"] == model_type
        made = AutoConfig.for_model(**current)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(made)


def test_a_step_that_cannot_be_is_refused_before_the_first():
    """Of 7 heads 32 channels are no multiple, and no size between 40 and 32 is one."""
    config = {**LLAMA, "model_type": "gemma3_text", "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 7}
    with pytest.raises(SpecError, match="hidden_size=32 is not a multiple of the 7 query heads"):
        asked(config, hidden_size=32, steps=3)


def test_named_layers_go_in_the_first_step():
    first, last = asked(LLAMA, layers=[0, 4, 9], hidden_size=32, steps=2)
    assert (first.layers, first.hidden_size) == ((0, 4, 9), 64)
    assert (last.layers, last.hidden_size) == (None, 32)
    assert len(asked(LLAMA, layers=[0, 4, 9], steps=3)) == 1
