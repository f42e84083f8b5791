"""Students: parameters against the decoder counted by name, FLOPs against PyTorch's counter and a published table."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from limbeck.plan.accounting import (
    Parameters,
    student_flops_per_token,
    student_parameters,
    teacher_flops_per_token,
    teacher_parameters,
    training_flops_per_token,
)
from limbeck.plan.family import FAMILY
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.layout import AttentionLayout, BigramLayout, ExpertsLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import GrapeM, Rope, SharedExpert
from limbeck.students.build import build
from limbeck.students.decoder import Decoder

NANO = Olmo3Student(hidden_size=768, num_layers=12, num_heads=6, num_kv_heads=2, head_dim=128, intermediate_size=2048)
NANO_VOCAB = 100_278


def test_the_nano_student_has_the_published_counts():
    expected = Parameters(total=229_555_968, embedding=154_027_008, non_embedding=75_528_960, active=229_555_968)
    assert student_parameters(NANO, vocab_size=NANO_VOCAB) == expected


def test_a_tied_head_is_counted_once():
    tied = NANO.model_copy(update={"tied_embeddings": True})
    count = student_parameters(tied, vocab_size=NANO_VOCAB)
    assert (count.total, count.embedding, count.non_embedding) == (75_528_960 + 77_013_504, 77_013_504, 75_528_960)
    # The head's product is done all the same.
    flops = student_flops_per_token(tied, vocab_size=NANO_VOCAB, context=512)
    assert flops == student_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=512)


def test_tables_are_counted_with_the_embeddings():
    """Rows of hashed pairs (6,144 x 128) are looked up as tokens are (1,024 x 512), and cost no product."""
    count = student_parameters(GolfStudent(), vocab_size=1024)
    assert (count.total, count.embedding) == (27_354_201, 1024 * 512 + 6144 * 128)
    twice = GolfStudent(bigram_buckets=2 * 6144)
    assert student_parameters(twice, vocab_size=1024).non_embedding == count.non_embedding
    flops = student_flops_per_token(GolfStudent(), vocab_size=1024, context=64)
    assert student_flops_per_token(twice, vocab_size=1024, context=64) == flops


# ---- parameters: any layout


def counted_by_name(layout: Layout, *, vocab_size: int) -> Parameters:
    """Of the decoder on the meta device: what is looked up, and of stacks of experts those that a token goes to."""
    with torch.device("meta"):
        student = Decoder(layout, vocab_size=vocab_size)
    total, embedding, active = 0, 0, 0
    for name, parameter in student.named_parameters():
        looked_up = name.endswith("table.weight") or name in ("model.embed_tokens.weight", "lm_head.weight")
        total += parameter.numel()
        embedding += parameter.numel() if looked_up else 0
        touched = parameter.numel()
        if ".experts." in name:
            mlp = layout.layers[int(name.split(".")[2])].mlp
            assert isinstance(mlp, ExpertsLayout) and parameter.shape[0] == mlp.num_experts
            touched = parameter[0].numel() * mlp.per_token
        active += touched
    return Parameters(total, embedding, total - embedding, active)


small = st.integers(1, 4)
activations = st.sampled_from(["swiglu", "relu2", "leaky_relu2"])
mlps = st.builds(MlpLayout, activations, st.integers(1, 40))
positions = st.one_of(
    st.just(Rope()), st.builds(GrapeM, form=st.sampled_from(["frequencies", "rank2", "contextual"])), st.just(Rope(theta=1e4))
)


@st.composite
def experts(draw) -> ExpertsLayout:
    number = draw(st.integers(1, 9))
    shared = draw(st.one_of(st.none(), st.builds(SharedExpert, size=st.integers(1, 30))))
    return ExpertsLayout(number, draw(st.integers(1, number)), draw(mlps), shared=shared)


@st.composite
def layouts(draw) -> Layout:
    """Any layers beside each other; those that take the shared value embedding have one width."""
    value_embedding = draw(st.one_of(st.none(), st.integers(1, 9)))
    shared_width = (draw(small), draw(small))
    layers = []
    for index in range(draw(small)):
        takes_value = value_embedding is not None and (index == 0 or draw(st.booleans()))
        kv_heads, half = shared_width if takes_value else (draw(small), draw(small))
        attention = AttentionLayout(
            num_heads=kv_heads * draw(small),
            num_kv_heads=kv_heads,
            head_dim=2 * half,
            positions=draw(positions),
            qk_norm=draw(st.sampled_from(["none", "projection", "head", "gain"])),
            window=draw(st.one_of(st.none(), small)),
            sinks=draw(st.booleans()),
            exclusive=draw(st.booleans()),
            value_embedding=takes_value,
        )
        layers.append(LayerLayout(attention, draw(st.one_of(mlps, experts())), branch_scales=draw(st.booleans())))
    return Layout(
        hidden_size=draw(st.integers(1, 24)),
        layers=tuple(layers),
        tied_embeddings=draw(st.booleans()),
        norms=draw(st.sampled_from(["before", "after"])),
        norm_weights=draw(st.booleans()),
        embedding_norm=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 30.0])),
        bigram=draw(st.one_of(st.none(), st.builds(BigramLayout, st.integers(2, 30), st.integers(1, 9)))),
        smear=draw(st.booleans()),
        skips=draw(st.booleans()),
        value_embedding=value_embedding,
    )


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), vocab_size=st.integers(1, 50))
def test_any_layout_has_the_parameters_of_its_decoder(layout, vocab_size):
    spec = SimpleNamespace(layout=layout)
    count = student_parameters(spec, vocab_size=vocab_size)
    assert count == counted_by_name(layout, vocab_size=vocab_size)
    assert count.active_non_embedding == count.active - count.embedding


# ---- FLOPs


SIZES = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 24, "intermediate_size": 96}
MOE = MoeStudent(
    **SIZES,
    dense_layers=1,
    num_experts=8,
    experts_per_token=3,
    expert_size=40,
    shared_expert=SharedExpert(size=24),
    sliding_window=20,
    exclusive_layers=2,
)
GOLF = GolfStudent(**SIZES, bigram_buckets=30, bigram_size=12, value_embedding_size=10, value_embedding_layers=(2, 3))
OF_EVERY_FAMILY = {
    "olmo3": Olmo3Student(**SIZES, sliding_window=20),
    "olmo3, wide window": Olmo3Student(**SIZES, sliding_window=400, tied_embeddings=True),
    "ladder": LadderStudent(num_layers=2, hidden_size=64, num_heads=4),
    "moe": MOE,
    "moe, grape": MOE.model_copy(update={"positions": GrapeM(form="contextual"), "qk_norm": "none", "sinks": False}),
    "moe, planes": MOE.model_copy(update={"positions": GrapeM(form="rank2"), "activation": "swiglu", "shared_expert": None}),
    "golf": GOLF,
    "golf, plain": GOLF.model_copy(update={"bigram_buckets": None, "value_embedding_size": None, "value_embedding_layers": ()}),
}


def plain_attend(q: Tensor, k: Tensor, v: Tensor, *, sees: Tensor | None, sink_H: Tensor | None = None) -> Tensor:
    """All length**2 products, and no others. What a mask or a sink does to their sums costs none."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    return (q @ k.transpose(-2, -1)) @ v


def not_products(student: Decoder) -> int:
    """Norms, biases, gains, scales, rates and planes, which multiply channel by channel; we count them as if they were."""
    vectors = ("mix_2D", "skip_SD", "a_Kh", "b_Kh")
    found = (each for name, each in student.named_parameters() if each.ndim < 2 or name.endswith(vectors))
    return sum(each.numel() for each in found)


def visible_keys(layout: Layout, length: int) -> list[float]:
    """Mean over positions, in each layer; the position itself counts as half."""
    index = torch.arange(length)
    distance = index[:, None] - index
    means = []
    for layer in layout.layers:
        window = layer.attention.window or length
        seen = ((distance >= 0) & (distance < window)).double()
        # A window's oldest key, like the newest, is half in it: what is counted is an integral.
        means.append((seen.sum() / length).item() - 0.5 * min(window, length) / length)
    return means


@pytest.mark.parametrize("family", OF_EVERY_FAMILY)
def test_flops_agree_with_pytorchs_counter(family, monkeypatch):
    """To the last FLOP: products as the counter sees them, with the keys that are seen in place of all, and vectors' part.

    In float64, where the experts' matrices are multiplied one by one: the counter does not know the product of all at once.
    """
    spec, length, vocab_size = OF_EVERY_FAMILY[family], 64, 50
    monkeypatch.setattr("limbeck.students.attention.attend", plain_attend)
    student = build(spec, vocab_size=vocab_size, seed=0).double()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _ = student(torch.arange(2 * length).view(2, length) % vocab_size).hidden_BTD @ student.head_VD.T
    expected = counter.get_total_flops() / (2 * length) + 2 * not_products(student)
    for layer, keys in zip(spec.layout.layers, visible_keys(spec.layout, length), strict=True):
        expected -= 4 * layer.attention.num_heads * layer.attention.head_dim * (length - keys)
        if isinstance(layer.mlp, ExpertsLayout):  # the sum of a token's experts by their gates; we count none
            expected -= 2 * layer.mlp.per_token * spec.layout.hidden_size
    assert student_flops_per_token(spec, vocab_size=vocab_size, context=length) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["nano", "golf", "moe"])
def test_what_is_no_product_is_a_thousandth_at_most(name):
    """The price of counting norms, gains and scales as products, at the sizes that are shipped."""
    from limbeck.spec.load import load_recipe

    spec = load_recipe(name).student
    with torch.device("meta"):
        vectors = not_products(Decoder(spec.layout, vocab_size=spec.vocab_size))
    flops = student_flops_per_token(spec, vocab_size=spec.vocab_size, context=2048)
    assert 0 < 2 * vectors < 1e-3 * flops


@pytest.mark.parametrize("layers", [8, 21, 37, 40])
def test_flops_of_the_family_are_those_of_its_equations(layers):
    """Eqs. 57-59 of arXiv 2502.08606 with N counted here: 2 N + 2 context layers d + 2 V d."""
    d, mlp = 128 * layers, 12_800 if layers == 37 else 128 * math.ceil(8 * layers / 3)
    params = layers * (4 * d * d + 3 * d * mlp + 2 * d + 2 * d // 16) + d
    flops = student_flops_per_token(LadderStudent(num_layers=layers), vocab_size=32_768, context=4096)
    assert flops == 2 * params + 2 * 4096 * layers * d + 2 * 32_768 * d
    assert flops == FAMILY[layers - 8].flops_per_token


def test_flops_match_a_row_of_the_distillation_scaling_laws_table():
    """arXiv 2502.08606, Table 13, row 103M: 3.411e8 at context 4096 and vocabulary 32768, softmax (2.5 H context) included."""
    softmax = 2.5 * 16 * 4096 * 8
    flops = student_flops_per_token(LadderStudent(num_layers=8), vocab_size=32_768, context=4096)
    assert flops + softmax == pytest.approx(3.411e8, rel=3e-4)


def test_training_costs_three_forward_passes():
    forward = student_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=2048)
    assert training_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=2048) == 3 * forward


# ---- students as teachers


def test_a_student_costs_what_its_saved_config_costs():
    config = transformers.Olmo3Config(
        vocab_size=NANO_VOCAB,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=2048,
        sliding_window=4096,
    ).to_dict()
    for context in (512, 16_384):
        assert teacher_flops_per_token(config, context=context) == student_flops_per_token(
            NANO, vocab_size=NANO_VOCAB, context=context
        )


def test_a_student_of_no_class_of_transformers_costs_what_its_spec_costs():
    config = {"model_type": "limbeck", "vocab_size": 300, "student": MOE.model_dump(mode="json")}
    assert teacher_parameters(config) == student_parameters(MOE, vocab_size=300)
    flops = student_flops_per_token(MOE, vocab_size=300, context=64)
    assert teacher_flops_per_token(config, context=64) == flops
