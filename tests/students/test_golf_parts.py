"""The golf student against its description written out in one function, and its sizes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.spec.golf_student import GolfStudent
from limbeck.students.build import build
from limbeck.students.decoder import Decoder

VOCAB = 37
EPS = 1.1920928955078125e-07


def small_spec(**changes) -> GolfStudent:
    """Every part there is; seven layers, so that three hand over, three take and one has nothing to take."""
    sizes = {
        "hidden_size": 24,
        "num_layers": 7,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "ntk_length": 16,
        "exclusive_layers": 3,
        "bigram_buckets": 13,
        "bigram_size": 6,
        "value_embedding_size": 5,
        "value_embedding_layers": (4, 6),
    }
    return GolfStudent(**{**sizes, **changes})


def random_student(spec: GolfStudent) -> Decoder:
    """No parameter is where it began, zeros and ones least of all."""
    student = build(spec, vocab_size=VOCAB, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return student


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def golf_logits(weights: dict[str, Tensor], spec: GolfStudent, tokens: list[int]) -> Tensor:
    """One row, as parameter-golf's pull request 1029 has it."""
    get = lambda name: weights[f"model.{name}"]  # noqa: E731
    length = len(tokens)
    heads, kv_heads, channels = spec.num_heads, spec.num_kv_heads, spec.head_dim
    buckets = [spec.bigram_buckets - 1]
    buckets += [((36313 * now) ^ (27191 * before)) % (spec.bigram_buckets - 1) for before, now in pairwise(tokens)]
    x = get("embed_tokens.weight")[tokens]
    x = x + get("bigram.scale") * get("bigram.table.weight")[buckets] @ get("bigram.proj.weight").T
    x = rms(x)
    gate = torch.sigmoid(get("smear.gate_D"))
    x = (1 - gate) * x + gate * torch.cat([torch.zeros(1, spec.hidden_size, dtype=x.dtype), x[:-1]])
    x0 = x
    value = get("value_embedding.scale") * get("value_embedding.table.weight")[tokens] @ get("value_embedding.proj.weight").T
    base = 1e4
    if length > spec.ntk_length:
        base = base * (length / spec.ntk_length) ** (channels / (channels - 2))
    rate_p = [base ** (-2 * i / channels) for i in range(channels // 2)]
    angle = torch.tensor([[t * rate for rate in rate_p] for t in range(length)], dtype=torch.float64)

    def rotated(z: Tensor) -> Tensor:
        z1, z2 = z[..., : channels // 2], z[..., channels // 2 :]
        return torch.cat([z1 * angle.cos() - z2 * angle.sin(), z1 * angle.sin() + z2 * angle.cos()], -1)

    handed, half = [], spec.num_layers // 2
    for index in range(spec.num_layers):
        layer = lambda name, index=index: get(f"layers.{index}.{name}")  # noqa: E731
        if half <= index < 2 * half:
            x = x + get("skip_SD")[index - half] * handed.pop()
        x = layer("mix_2D")[0] * x + layer("mix_2D")[1] * x0
        y = rms(x)
        v_TC = y @ layer("self_attn.v_proj.weight").T
        if index in spec.value_embedding_layers:
            v_TC = v_TC + layer("self_attn.value_scale") * value
        outputs = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            mine, shared = slice(head * channels, (head + 1) * channels), slice(group * channels, (group + 1) * channels)
            q = rotated(rms(y @ layer("self_attn.q_proj.weight")[mine].T)) * layer("self_attn.q_gain_H")[head]
            k, v = rotated(rms(y @ layer("self_attn.k_proj.weight")[shared].T)), v_TC[:, shared]
            score = (q @ k.T / math.sqrt(channels)).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            out = score.softmax(-1) @ v
            if index >= spec.num_layers - spec.exclusive_layers:
                unit = v / v.norm(dim=-1, keepdim=True)
                out = out - (out * unit).sum(-1, keepdim=True) * unit
            outputs.append(out)
        x = x + layer("attn_scale_D") * (torch.cat(outputs, -1) @ layer("self_attn.o_proj.weight").T)
        inner = (rms(x) @ layer("mlp.up_proj.weight").T).relu().square()
        x = x + layer("mlp_scale_D") * (inner @ layer("mlp.down_proj.weight").T)
        if index < half:
            handed.append(x)
    return spec.softcap * torch.tanh(rms(x) @ get("embed_tokens.weight").T / spec.softcap)


@pytest.mark.parametrize("length", [1, 9, 16, 23])  # 23 is beyond the length that rates were made for
@pytest.mark.parametrize("num_layers", [7, 8])
def test_logits_are_those_of_the_description(num_layers, length):
    spec = small_spec(num_layers=num_layers)
    student = random_student(spec)
    tokens_BT = torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(length))
    found = student.logits(student(tokens_BT).hidden_BTD)
    for row in range(2):
        expected = golf_logits(student.state_dict(), spec, tokens_BT[row].tolist())
        assert expected.std() > 0.5
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)


def test_the_published_student_has_its_published_size():
    with torch.device("meta"):
        student = Decoder(GolfStudent().layout, vocab_size=1024)
    assert sum(parameter.numel() for parameter in student.parameters()) == 27_354_201


def test_it_begins_as_a_plain_stream():
    """Branches give nothing at first: hidden states are the smeared embeddings after all skips have been added."""
    student = build(small_spec(), vocab_size=VOCAB, seed=0)
    tokens_BT = torch.arange(10)[None]
    embedded = rms(student.model.embed_tokens.weight[tokens_BT])
    smeared = 0.5 * embedded + 0.5 * torch.cat([torch.zeros(1, 1, 24), embedded[:, :-1]], 1)
    torch.testing.assert_close(student(tokens_BT).hidden_BTD, rms(smeared), rtol=0, atol=1e-5)


def test_tables_of_pairs_learn_from_the_first_step():
    """A table at zero learns through its projection; were both zero, neither ever would. Outputs of branches learn too."""
    student = build(small_spec(), vocab_size=VOCAB, seed=0)
    student.logits(student(torch.arange(12)[None]).hidden_BTD).square().sum().backward()
    assert student.model.bigram.table.weight.grad.norm() > 0
    assert student.model.bigram.proj.weight.grad.norm() == 0
    for block in student.model.layers:
        assert block.self_attn.o_proj.weight.grad.norm() > 0
        assert block.mlp.down_proj.weight.grad.norm() > 0


def test_documents_of_a_row_are_strangers():
    """Pairs, smears and attention stop at a document's beginning (rates don't change: the row is short)."""
    student = random_student(small_spec(ntk_length=64))
    first_T, second_T = torch.arange(9), torch.arange(12, 25)
    packed = student(
        torch.cat([first_T, second_T])[None],
        positions_BT=torch.cat([torch.arange(9), torch.arange(13)])[None],
        segments_BT=torch.tensor([[1] * 9 + [0] * 13]),
    ).hidden_BTD[0]
    torch.testing.assert_close(packed[:9], student(first_T[None]).hidden_BTD[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(packed[9:], student(second_T[None]).hidden_BTD[0], rtol=0, atol=1e-9)


def test_a_cache_continues_pairs_and_smears():
    student = random_student(small_spec(ntk_length=64))
    tokens_BT = torch.randint(0, VOCAB, (2, 14), generator=torch.Generator().manual_seed(0))
    cache = student.new_cache()
    parts = [student(part_BT, cache=cache).hidden_BTD for part_BT in tokens_BT.split([6, 1, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), student(tokens_BT).hidden_BTD, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_cache_is_refused_where_positions_begin_to_stretch():
    """Its keys were turned by other rates than those that all of the sequence has now."""
    student = random_student(small_spec(ntk_length=16))
    tokens_BT = torch.randint(0, VOCAB, (2, 18), generator=torch.Generator().manual_seed(0))
    cache = student.new_cache()
    for part_BT in tokens_BT[:, :16].split([15, 1], dim=1):
        found_BTD = student(part_BT, cache=cache).hidden_BTD
    torch.testing.assert_close(found_BTD[:, -1], student(tokens_BT[:, :16]).hidden_BTD[:, -1], rtol=0, atol=1e-9)
    with pytest.raises(LimbeckError, match=r"ntk_length=16 tokens.*read all 17 anew"):
        student(tokens_BT[:, 16:17], cache=cache)
    anew_BTD, shorter_BTD = student(tokens_BT).hidden_BTD, student(tokens_BT[:, :17]).hidden_BTD
    assert float((anew_BTD[:, :17] - shorter_BTD).abs().max()) > 1e-3  # not causal beyond it, as the field says
