"""The student against transformers' own OLMo-3, and the symmetries that its mathematics has."""

import math

import pytest
import torch
from torch import Tensor
from transformers import Olmo3Config, Olmo3ForCausalLM

from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.norms import RMSNorm

VOCAB = 61


def small_spec(**changes) -> Olmo3Student:
    """Attention wider than the residual stream, grouped heads, both layer kinds, a window shorter than the test's rows."""
    sizes = {
        "hidden_size": 48,
        "num_layers": 5,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 80,
        "sliding_window": 5,
        "init_std": 0.3,
    }
    return Olmo3Student(**{**sizes, **changes})


def random_student(spec: Olmo3Student) -> Decoder:
    """Norm weights random too, so that a norm that forgot its weight would show."""
    student = build(spec, vocab_size=VOCAB, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return student


def reference(student: Decoder, spec: Olmo3Student) -> Olmo3ForCausalLM:
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    config = Olmo3Config(
        vocab_size=VOCAB,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_norm_eps,
        sliding_window=spec.sliding_window,
        tie_word_embeddings=spec.tied_embeddings,
        rope_parameters={"sliding_attention": dict(rope), "full_attention": dict(rope)},
        pad_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = Olmo3ForCausalLM(config)
    missing, unexpected = model.load_state_dict(student.state_dict(), strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if spec.tied_embeddings else [])
    return model.eval()


def logits(student: Decoder, tokens_BT: Tensor, **others) -> Tensor:
    return student.logits(student(tokens_BT, **others).hidden_BTD)


def hidden(student: Decoder, tokens_BT: Tensor, **others) -> Tensor:
    return student(tokens_BT, **others).hidden_BTD


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("length", [5, 23])  # the window's length, and far beyond it
def test_logits_equal_transformers(tied, length):
    spec = small_spec(tied_embeddings=tied)
    student = random_student(spec)
    tokens_BT = random_tokens(3, length)
    with torch.no_grad():
        ours, theirs = logits(student, tokens_BT), reference(student, spec)(tokens_BT).logits
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_logits_equal_transformers_for_packed_positions():
    spec = small_spec()
    student = random_student(spec)
    tokens_BT, positions_BT = (
        random_tokens(2, 9),
        torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 5, 6, 9, 12, 40, 41, 42, 1000]]),
    )
    with torch.no_grad():
        theirs = reference(student, spec)(
            tokens_BT, position_ids=positions_BT, attention_mask=torch.ones_like(tokens_BT)
        ).logits
        ours = logits(student, tokens_BT, positions_BT=positions_BT)
        other = logits(student, tokens_BT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours[1] - other[1]).abs().max() > 0.1


def test_bfloat16_autocast_agrees_with_transformers_and_keeps_float32_parameters():
    spec = small_spec()
    student = random_student(spec)
    tokens_BT = random_tokens(2, 23)
    exact = logits(student, tokens_BT)
    theirs_model = reference(student, spec)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = logits(student, tokens_BT), theirs_model(tokens_BT).logits
    error, their_error = (ours - exact).abs().mean(), (theirs - exact).abs().mean()
    assert 1e-4 < error < 1.5 * their_error  # bfloat16 is really used, and rounds no worse than the reference
    ours.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in student.parameters())


def test_norms_round_once():
    """In bfloat16 (8 bits of significand) the norm is off by half a unit in the last place, 2**-8, and no more."""
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(48, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.1, 3, 48))
        ours = norm(x)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - exact) / exact).abs().max() < 2**-8 * 1.001


def double_student(**changes) -> Decoder:
    return random_student(small_spec(rms_norm_eps=1e-12, **changes)).double()


def assert_same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


def test_packed_documents_are_strangers():
    """A packed row gives the hidden states of each document alone, whatever the window, and gradients stay apart too."""
    student = double_student()
    first_T, second_T = random_tokens(11, seed=3), random_tokens(8, seed=4)
    packed = hidden(
        student,
        torch.cat((first_T, second_T))[None],
        positions_BT=torch.cat((torch.arange(11), torch.arange(8)))[None],
        segments_BT=torch.tensor([[7] * 11 + [2] * 8]),
    )
    assert_same(packed[0, :11], hidden(student, first_T[None])[0])
    assert_same(packed[0, 11:], hidden(student, second_T[None])[0])


def test_rows_may_hold_different_segments():
    student = double_student()
    tokens_BT = random_tokens(2, 9)
    segments_BT = torch.tensor([[0] * 9, [0] * 4 + [1] * 5])
    packed = hidden(student, tokens_BT, segments_BT=segments_BT)
    assert_same(packed[0], hidden(student, tokens_BT[:1])[0])
    # A later document's positions only shift, which changes nothing.
    assert_same(packed[1, 4:], hidden(student, tokens_BT[1:, 4:])[0])


@pytest.mark.parametrize("window", [9, 10, 4096])
def test_a_window_of_at_least_the_row_is_causal_attention(window):
    tokens_BT = random_tokens(2, 9)
    causal = hidden(double_student(full_attention_every=1), tokens_BT)
    assert_same(hidden(double_student(sliding_window=window), tokens_BT), causal)
    one_segment = hidden(double_student(sliding_window=window), tokens_BT, segments_BT=torch.zeros_like(tokens_BT))
    assert_same(one_segment, causal)
    assert (hidden(double_student(sliding_window=8), tokens_BT) - causal).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_the_scale_of_a_normed_projection_does_not_matter(name):
    student, tokens_BT = double_student(), random_tokens(2, 12)
    before = hidden(student, tokens_BT)
    with torch.no_grad():
        student.model.layers[2].get_submodule(name).weight.mul_(3.7)
    assert_same(hidden(student, tokens_BT), before)


def test_the_scale_of_the_values_norm_does_matter():
    """QK-norm is over queries and keys alone, and post-norm removes only a common scale."""
    student, tokens_BT = double_student(), random_tokens(2, 12)
    before = hidden(student, tokens_BT)
    with torch.no_grad():
        student.model.layers[2].self_attn.v_proj.weight[:16].mul_(3.7)  # one of two heads
    assert (hidden(student, tokens_BT) - before).abs().max() > 1e-3


def test_only_distances_of_positions_matter():
    student, tokens_BT = double_student(), random_tokens(2, 12)
    positions_BT = torch.arange(12)[None]
    before = hidden(student, tokens_BT, positions_BT=positions_BT)
    assert_same(before, hidden(student, tokens_BT))
    assert_same(hidden(student, tokens_BT, positions_BT=positions_BT + 1000), before)
    assert (hidden(student, tokens_BT, positions_BT=2 * positions_BT) - before).abs().max() > 1e-3


def influence(student: Decoder, position: int, length: int, segments_BT: Tensor | None = None) -> list[int]:
    """The positions whose token the hidden state of `position` depends on. Every token of the row is another one."""
    student.zero_grad()
    hidden_TD = hidden(student, torch.arange(length)[None], segments_BT=segments_BT)[0]
    (hidden_TD[position] * torch.linspace(-1, 2, hidden_TD.shape[1])).sum().backward()
    gradient_VD = student.model.embed_tokens.weight.grad
    return gradient_VD[:length].abs().amax(-1).nonzero()[:, 0].tolist()


def test_a_token_influences_no_earlier_position_and_no_other_document():
    student = double_student()
    assert influence(student, 6, 12) == [0, 1, 2, 3, 4, 5, 6]
    segments_BT = torch.tensor([[0] * 4 + [1] * 8])
    assert influence(student, 6, 12, segments_BT) == [4, 5, 6]
    assert influence(student, 2, 12, segments_BT) == [0, 1, 2]


def test_a_sliding_layer_sees_as_many_keys_as_its_window():
    student = double_student(num_layers=1, tied_embeddings=False)
    assert influence(student, 9, 12) == [5, 6, 7, 8, 9]
    assert influence(student, 9, 12, torch.tensor([[0] * 7 + [1] * 5])) == [7, 8, 9]


def test_the_same_seed_gives_the_same_weights():
    spec = small_spec()
    first = build(spec, vocab_size=VOCAB, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second, other = build(spec, vocab_size=VOCAB, seed=5), build(spec, vocab_size=VOCAB, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert weight.ndim == 1 or not torch.equal(weight, other.state_dict()[name])


def test_matrices_start_truncated_normal_and_norms_at_one():
    student = build(small_spec(init_std=0.02), vocab_size=4000, seed=0)
    # A normal cut at three deviations has variance 1 - 6 phi(3) / erf(3 / sqrt 2).
    cut_std = 0.02 * math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
    for name, weight in student.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.abs().max() <= 0.06
            assert weight.std().item() == pytest.approx(cut_std, rel=5 / math.sqrt(2 * weight.numel())), name
    assert student.head_VD.abs().max() > 0.055


def test_tied_students_have_one_matrix():
    tied, untied = (build(small_spec(tied_embeddings=tied), vocab_size=VOCAB, seed=0) for tied in (True, False))
    assert tied.head_VD is tied.model.embed_tokens.weight
    assert untied.head_VD is not untied.model.embed_tokens.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == VOCAB * 48


@torch.no_grad()
def test_groups_of_heads_have_no_order() -> None:
    """Key/value heads permuted with the query heads that they serve, and the norms' weights with both: the same function.

    Queries permuted without their keys are another one.
    """
    spec = small_spec(num_heads=6, num_kv_heads=3)
    student = random_student(spec).double()
    tokens_BT = torch.randint(VOCAB, (2, 13), generator=torch.Generator().manual_seed(4))
    before = logits(student, tokens_BT)
    order = torch.tensor([2, 0, 1])

    def permuted(x: Tensor, *, dim: int = 0) -> Tensor:
        return x.unflatten(dim, (3, -1)).index_select(dim, order).flatten(dim, dim + 1)

    for layer in student.blocks():
        attention = layer.self_attn
        for part in (attention.q_proj, attention.q_norm):
            part.weight.copy_(permuted(part.weight))
        attention.o_proj.weight.copy_(permuted(attention.o_proj.weight, dim=1))
    assert float((logits(student, tokens_BT) - before).abs().max()) > 1e-2
    for layer in student.blocks():
        attention = layer.self_attn
        for part in (attention.k_proj, attention.k_norm, attention.v_proj):
            part.weight.copy_(permuted(part.weight))
    torch.testing.assert_close(logits(student, tokens_BT), before, rtol=0, atol=1e-10)
