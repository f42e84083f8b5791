"""Sizes that others have published or counted, of decoders built on the meta device."""

import math

import pytest
import torch

from limbeck.plan.accounting import student_parameters
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.load import load_recipe
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.student import Student
from limbeck.students.decoder import Decoder


def built(spec: Student, *, vocab_size: int) -> Decoder:
    with torch.device("meta"):
        return Decoder(spec.layout, vocab_size=vocab_size)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_nano():
    """OLMo-3 shrunk: 75,528,960 and two embeddings of 100,278 x 768."""
    spec = Olmo3Student(hidden_size=768, num_layers=12, num_heads=6, num_kv_heads=2, head_dim=128, intermediate_size=2048)
    student = built(spec, vocab_size=100_278)
    assert count(student.model.layers) + count(student.model.norm) == 75_528_960
    assert count(student) == 75_528_960 + 154_027_008
    assert spec == load_recipe("nano").student.model_copy(update={"vocab_size": None})


def test_olmo_3_7b():
    """32 layers of 4,096: the student of the published sizes has the published 7,298,011,136 parameters."""
    spec = Olmo3Student(hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, intermediate_size=11_008)
    assert count(built(spec, vocab_size=100_278)) == 7_298_011_136


def test_golf():
    """As the log of parameter-golf's pull request 1029 prints it."""
    assert count(built(GolfStudent(), vocab_size=1024)) == 27_354_201
    assert load_recipe("golf").student == GolfStudent(vocab_size=1024)


@pytest.mark.parametrize("layers", range(8, 41))
def test_every_row_of_table_13(layers):
    """arXiv 2502.08606: N counted matrix by matrix, N_total with one embedding of 32,768 rows."""
    d, mlp = 128 * layers, 12_800 if layers == 37 else 128 * math.ceil(8 * layers / 3)
    per_layer = 4 * d * d + 3 * d * mlp + 2 * d + 2 * (d // 16)
    student = built(LadderStudent(num_layers=layers), vocab_size=32_768)
    assert count(student) - count(student.model.embed_tokens) == layers * per_layer + d
    assert count(student) == layers * per_layer + d + 32_768 * d


# hidden size, layers, heads and key/value heads of 64, experts, of a token, of which channels, of the dense layer; then the
# totals that such a student was sized to: all, a token's outside the embeddings, and those with the head.
MIXTURES = [
    pytest.param(768, 21, 12, 4, 512, 12, 256, 3072, ("4.39", 148, 302), id="768x21"),
    pytest.param(768, 24, 12, 4, 448, 10, 256, 3072, ("4.42", 150, 304), id="768x24"),
    pytest.param(640, 32, 10, 2, 384, 10, 256, 2560, ("4.21", 154, 283), id="640x32"),
    pytest.param(1024, 20, 16, 4, 256, 5, 384, 4096, ("4.32", 156, 361), id="1024x20"),
]


@pytest.mark.parametrize(("d", "layers", "heads", "kv_heads", "experts", "chosen", "width", "dense", "sizes"), MIXTURES)
def test_mixtures(d, layers, heads, kv_heads, experts, chosen, width, dense, sizes):
    """Sized to 4.2B to 4.4B parameters of which a token passes 150M: matrices alone. Norms, sinks and rates are 0.03 % more."""
    spec = MoeStudent(
        hidden_size=d,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        intermediate_size=dense,
        dense_layers=1,
        num_experts=experts,
        experts_per_token=chosen,
        expert_size=width,
        shared_expert={"size": width},
        positions={"kind": "grape"},
    )
    attention = 2 * d * 64 * (heads + kv_heads)
    expert = 2 * d * width
    routed = layers - 1
    matrices = layers * attention + 2 * d * dense + routed * (experts * d + (chosen + 1) * expert)
    counted = student_parameters(spec, vocab_size=201_088)
    head = 201_088 * d
    assert counted.total == count(built(spec, vocab_size=201_088))
    extras = counted.active_non_embedding - matrices
    # Two norms of d a layer and a last one; a layer's two norms of 64, its sinks, and 32 rates.
    assert extras == (2 * layers + 1) * d + layers * (2 * 64 + heads + 32)
    assert 0 < extras < 4e-4 * matrices
    assert counted.total == matrices + extras + routed * (experts - chosen) * expert + 2 * head
    total, active, with_head = sizes
    assert f"{counted.total / 1e9:.2f}" == total
    # To a million. Of the last, 155.50M: one reads 156 with a router in the dense layer too.
    assert counted.active_non_embedding == pytest.approx(active * 1e6, abs=0.51e6)
    assert counted.active_non_embedding + head == pytest.approx(with_head * 1e6, abs=0.51e6)


def test_the_moe_recipe_is_the_first_mixture():
    spec = load_recipe("moe").student
    counted = student_parameters(spec, vocab_size=spec.vocab_size)
    assert (counted.total, counted.active_non_embedding) == (4_388_917_020, 147_885_852)
