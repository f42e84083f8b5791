"""The decoder around its parts: what holds for every family, windows in any order, and packed rows."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.layout import AttentionLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import GrapeM, Rope, SharedExpert, Yarn
from limbeck.students.attend import visible
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise

VOCAB = 61
SIZES = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 48}
MOE = {
    "num_experts": 8,
    "experts_per_token": 3,
    "expert_size": 16,
    "sliding_window": 5,
    "full_attention_every": 2,
    "exclusive_layers": 1,
    "init_std": 0.3,
}
SPECS = {
    "olmo3": Olmo3Student(**SIZES, sliding_window=5, full_attention_every=2, init_std=0.3),
    "olmo3 with yarn": Olmo3Student(**SIZES, sliding_window=5, yarn=Yarn(factor=4, original_length=16), init_std=0.3),
    "ladder": LadderStudent(num_layers=2, hidden_size=32, num_heads=4),
    "moe": MoeStudent(**SIZES, **MOE, shared_expert=SharedExpert(size=16)),
    "moe with contextual positions": MoeStudent(**SIZES, **MOE, positions=GrapeM(form="contextual", theta=50.0)),
    "moe with planes": MoeStudent(**SIZES, **MOE, positions=GrapeM(form="rank2", yarn=Yarn(factor=4, original_length=16))),
    "golf": GolfStudent(**SIZES, bigram_buckets=13, value_embedding_size=6, value_embedding_layers=(1, 3)),
}
FAMILIES = pytest.mark.parametrize("name", SPECS)


def random_student(name: str) -> Decoder:
    """Float64, and with noise on everything, so that nothing that begins at zero hides."""
    student = build(SPECS[name], vocab_size=VOCAB, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return student


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def assert_same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@FAMILIES
def test_packed_documents_are_strangers(name):
    student, first_T, second_T = random_student(name), tokens(11, seed=3), tokens(8, seed=4)
    packed = student(
        torch.cat((first_T, second_T))[None],
        positions_BT=torch.cat((torch.arange(11), torch.arange(8)))[None],
        segments_BT=torch.tensor([[7] * 11 + [2] * 8]),
    ).hidden_BTD
    assert_same(packed[0, :11], student(first_T[None]).hidden_BTD[0])
    assert_same(packed[0, 11:], student(second_T[None]).hidden_BTD[0])


@FAMILIES
def test_rows_do_not_see_one_another(name):
    student, tokens_BT = random_student(name), tokens(3, 9)
    whole = student(tokens_BT).hidden_BTD
    for row in range(3):
        assert_same(whole[row], student(tokens_BT[row : row + 1]).hidden_BTD[0])


@FAMILIES
def test_a_cache_gives_what_the_whole_row_gives(name):
    student, tokens_BT = random_student(name), tokens(2, 17)
    cache = student.new_cache()
    parts = [student(part_BT, cache=cache).hidden_BTD for part_BT in tokens_BT.split([7, 1, 1, 3, 1, 4], dim=1)]
    assert_same(torch.cat(parts, 1), student(tokens_BT).hidden_BTD)
    assert cache.length == 17


@FAMILIES
def test_only_distances_of_positions_matter(name):
    student, tokens_BT = random_student(name), tokens(2, 12)
    assert_same(student(tokens_BT, positions_BT=torch.arange(1000, 1012)[None]).hidden_BTD, student(tokens_BT).hidden_BTD)


def influence(student: Decoder, position: int, length: int, segments_BT: Tensor | None = None) -> list[int]:
    """The positions whose token the hidden state of `position` depends on. Every token of the row is another one."""
    table = student.model.embed_tokens.weight
    hidden_TD = student(torch.arange(length)[None], segments_BT=segments_BT).hidden_BTD[0]
    weighted = (hidden_TD[position] * torch.linspace(-1, 2, hidden_TD.shape[1])).sum()
    (gradient_VD,) = torch.autograd.grad(weighted, table)
    # Learned steps of other documents shift a whole document, which leaves roundings.
    return (gradient_VD[:length].abs().amax(-1) > 1e-12 * gradient_VD.abs().max()).nonzero()[:, 0].tolist()


@FAMILIES
def test_a_token_influences_no_earlier_position_and_no_other_document(name):
    student = random_student(name)
    assert influence(student, 6, 12) == list(range(7))
    assert influence(student, 9, 12, torch.tensor([[0] * 4 + [1] * 8])) == list(range(4, 10))


@pytest.mark.parametrize(
    ("windows", "reach"), [((3,), 2), ((3, 2), 3), ((2, 1, 4), 4), ((1, 1), 0), ((2, None), 11), ((None, 2), 11)]
)
@pytest.mark.parametrize("sinks", [False, True])
def test_windows_may_come_in_any_order(windows, reach, sinks):
    """A window of W reaches W - 1 tokens back, and layers add up."""
    layers = tuple(
        LayerLayout(
            AttentionLayout(4, 2, 8, Rope(theta=100.0), qk_norm="none", window=window, sinks=sinks), MlpLayout("relu2", 24)
        )
        for window in windows
    )
    student = Decoder(Layout(16, layers, tied_embeddings=False, init=InitLayout("normal", std=0.3)), vocab_size=VOCAB)
    initialise(student, seed=0)
    student.double()
    assert influence(student, 11, 14) == list(range(11 - reach, 12))


def test_layers_with_and_without_sinks_may_share_a_window():
    """Documents and windows stay closed in both."""
    layers = tuple(
        LayerLayout(AttentionLayout(4, 2, 8, Rope(), qk_norm="none", window=window, sinks=sinks), MlpLayout("relu2", 24))
        for window, sinks in ((3, True), (3, False), (2, False), (2, True))
    )
    student = Decoder(Layout(16, layers, tied_embeddings=False, init=InitLayout("normal", std=0.3)), vocab_size=VOCAB)
    initialise(student, seed=0)
    student.double()
    assert influence(student, 11, 14) == list(range(11 - 6, 12))
    assert influence(student, 11, 14, torch.tensor([[0] * 8 + [1] * 6])) == [8, 9, 10, 11]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["olmo3", "moe"])
def test_flex_trains_the_whole_student_as_sdpa_does(name):
    """Packed rows; queries, keys and values of 16 channels, the least that flex takes. TF32 keeps ten bits."""
    spec = SPECS[name].model_copy(update={"head_dim": 16, "sliding_window": 40})
    student = build(spec, vocab_size=VOCAB, seed=0).cuda()
    tokens_BT = tokens(2, 200).cuda()
    segments_BT = torch.arange(200, device="cuda") // torch.tensor([[70], [110]], device="cuda")
    gradients = []
    for backend in ("sdpa", "auto"):
        student.model.attention_backend = backend
        hidden_BTD = student(tokens_BT, segments_BT=segments_BT).hidden_BTD
        found = torch.autograd.grad(
            student.logits(hidden_BTD).logsumexp(-1).mean(), list(student.parameters()), allow_unused=True
        )
        gradients.append(torch.cat([each.flatten() for each in found if each is not None]))
    assert (gradients[0] - gradients[1]).norm() < 2e-2 * gradients[0].norm()


@pytest.mark.parametrize("qk_norm", ["none", "head"])
def test_norms_before_are_llama_and_qwen(qk_norm):
    attention = AttentionLayout(4, 2, 8, Rope(theta=1e4), qk_norm=qk_norm)
    layers = (LayerLayout(attention, MlpLayout("swiglu", 48)),) * 3
    student = Decoder(Layout(32, layers, tied_embeddings=False, norm_eps=1e-5), vocab_size=VOCAB)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1))
    config_class, model_class = {"none": (LlamaConfig, LlamaForCausalLM), "head": (Qwen3Config, Qwen3ForCausalLM)}[qk_norm]
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    reference = model_class(config).eval()
    reference.load_state_dict(student.state_dict(), strict=True)
    tokens_BT = tokens(2, 19)
    with torch.no_grad():
        ours, theirs = student.logits(student(tokens_BT).hidden_BTD), reference(tokens_BT).logits
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_yarn_is_of_full_layers_alone():
    """Sliding layers turn as without; a student of sliding layers doesn't change."""
    spec = SPECS["olmo3 with yarn"].model_copy(update={"full_attention_every": 2})
    plain = spec.model_copy(update={"yarn": None})
    layouts = [layer.attention for layer in spec.layout.layers]
    assert [each.positions.yarn is not None for each in layouts] == [False, True, False, True]
    given = build(spec, vocab_size=VOCAB, seed=0).model._given(tokens(1, 4), torch.arange(4)[None], None, past=0)
    factor = 0.1 * math.log(4) + 1
    assert [float(each.turn.cos_B1Th[0, 0, 0, 0]) for each in given] == pytest.approx([1, factor, 1, factor])
    sliding = spec.model_copy(update={"full_attention_every": 9})
    student, other = (build(each, vocab_size=VOCAB, seed=0) for each in (sliding, sliding.model_copy(update={"yarn": None})))
    assert torch.equal(student(tokens(1, 40)).hidden_BTD, other(tokens(1, 40)).hidden_BTD)
    student, other = (build(each, vocab_size=VOCAB, seed=0) for each in (spec, plain))
    assert (student(tokens(1, 40)).hidden_BTD - other(tokens(1, 40)).hidden_BTD).abs().max() > 1e-3


@FAMILIES
def test_autocast_computes_in_bfloat16_and_learns_in_float32(name):
    student = build(SPECS[name], vocab_size=VOCAB, seed=0)
    tokens_BT = tokens(2, 23)
    exact = student(tokens_BT).hidden_BTD
    with torch.autocast("cpu", torch.bfloat16):
        reading = student(tokens_BT)
    error = (reading.hidden_BTD - exact).norm() / exact.norm()
    if name != "golf":  # whose branches give nothing at first
        assert error > 1e-4
    assert error < 0.25
    (
        student.logits(reading.hidden_BTD.float()).square().sum() + (reading.balance if reading.balance is not None else 0)
    ).backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), key


def test_a_reading_tells_what_each_expert_saw():
    student, tokens_BT = random_student("moe"), tokens(2, 9)
    reading = student(tokens_BT)
    assert reading.load_ME.shape == (3, 8)  # one of four layers is dense
    assert (reading.load_ME.sum(1) == 2 * 9 * 3).all()
    biases = [experts.router.bias.clone() for experts in student.experts()]
    student.rebalance(reading.load_ME)
    for experts, before, load_E in zip(student.experts(), biases, reading.load_ME, strict=True):
        step_E = 1e-3 * torch.sign(load_E.mean() - load_E)
        torch.testing.assert_close(experts.router.bias, before + step_E - step_E.mean(), rtol=0, atol=1e-9)
    dense = random_student("olmo3")(tokens_BT)
    assert dense.load_ME is None and dense.balance is None


def test_the_balance_loss_is_the_sum_over_layers():
    student, tokens_BT = random_student("moe"), tokens(2, 9)
    found = []
    hooks = [experts.register_forward_hook(lambda _, __, output: found.append(output.balance)) for experts in student.experts()]
    reading = student(tokens_BT)
    for hook in hooks:
        hook.remove()
    assert len(found) == 3
    torch.testing.assert_close(reading.balance, sum(found), rtol=1e-12, atol=0)


def test_recomputed_layers_count_their_tokens_once():
    student, tokens_BT = random_student("moe"), tokens(2, 9)
    plain = student(tokens_BT)
    for block in student.model.layers:
        inner = block.forward
        block.forward = lambda *given, inner=inner: checkpoint(inner, *given, use_reentrant=False)
    again = student(tokens_BT)
    again.hidden_BTD.square().sum().backward()
    assert torch.equal(again.load_ME, plain.load_ME)


def test_shared_experts_follow_the_budget():
    layout = MoeStudent(**SIZES, **MOE, shared_expert=SharedExpert(size=16, schedule="warmup", until=0.5)).layout
    student = Decoder(layout, vocab_size=VOCAB)
    initialise(student, seed=0)
    for fraction, share in ((0.0, 0.0), (0.25, 0.5), (0.9, 1.0)):
        student.set_fraction(fraction)
        assert [float(experts.shared_share) for experts in student.experts()] == [share] * 3


def test_logits_are_capped():
    student = random_student("golf")
    hidden = 1e3 * torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = hidden @ student.head_VD.T
    torch.testing.assert_close(student.logits(hidden), 30 * torch.tanh(raw / 30))
    assert student.logits(hidden).abs().max() <= 30
    assert student.softcap == 30 and random_student("olmo3").softcap is None


def test_equal_layers_share_what_they_see():
    """Four layers of two windows: two masks are built, whatever their number."""
    student = random_student("moe")
    given = student.model._given(tokens(1, 9), torch.arange(9)[None], None, past=0)
    assert given[0].sees is given[2].sees and given[0].sees is not given[1].sees
    assert given[0].turn is given[1].turn


def test_the_head_of_a_tied_student_is_its_embedding():
    tied, untied = random_student("golf"), random_student("olmo3")
    assert tied.head_VD is tied.model.embed_tokens.weight and tied.lm_head is None
    assert untied.head_VD is untied.lm_head.weight
    assert math.prod(untied.head_VD.shape) == VOCAB * 32


@pytest.mark.parametrize(("length", "masks"), [(5, 1), (6, 2)])
def test_a_window_as_long_as_the_row_is_no_second_mask(length, masks, monkeypatch):
    """Sliding layers, of 5 keys, then see what the full one sees: T x T numbers once."""
    asked = []

    def counted(**given):
        asked.append(given["window"])
        return visible(**given)

    monkeypatch.setattr("limbeck.students.decoder.visible", counted)
    student = build(Olmo3Student(**SIZES, sliding_window=5), vocab_size=VOCAB, seed=0)
    segments_BT = torch.tensor([[0, 0, 1, 1, 1, 1]])[:, :length]
    student(torch.arange(length)[None], segments_BT=segments_BT)
    assert len(asked) == len(set(asked)) == masks
