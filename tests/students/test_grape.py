"""GRAPE-M: the group law, the closed form against the matrix exponential, what each form begins as, YaRN, and the cache."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.spec.layout import AttentionLayout, InitLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import GrapeM, Rope, Yarn
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise
from limbeck.students.positions import GrapePlane, GrapeRates, Rank2Turn, plane_turn, rope_rates

HEAD_DIM, HIDDEN = 8, 12
FORMS = pytest.mark.parametrize("form", ["frequencies", "rank2", "contextual"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def learned(form: str, *, yarn: Yarn | None = None, dtype=torch.float64) -> GrapeRates | GrapePlane:
    """With parameters as training might leave them. Two key/value heads."""
    spec = GrapeM(form=form, theta=100.0, yarn=yarn)
    if form == "rank2":
        module = GrapePlane(spec, kv_heads=2, head_dim=HEAD_DIM)
    else:
        module = GrapeRates(spec, head_dim=HEAD_DIM, hidden_size=HIDDEN)
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * drawn(*parameter.shape, seed=seed))
    return module.to(dtype)


def matrix(form: str, position: int) -> Tensor:
    """G(position) of every key/value head, read off from what it does to unit vectors."""
    unit_hhTh = torch.eye(HEAD_DIM, dtype=torch.float64)[:, None, None, :].expand(-1, 2, 1, -1)
    turn = learned(form)(torch.zeros(1, 1, HIDDEN, dtype=torch.float64), torch.tensor([[position]]))
    return turn(unit_hhTh)[:, :, 0].permute(1, 2, 0)


@pytest.mark.parametrize("form", ["frequencies", "rank2"])
def test_positions_are_a_group_of_rotations(form):
    for m, n in ((3, 5), (-2, 9), (100, 41)):
        torch.testing.assert_close(matrix(form, m) @ matrix(form, n), matrix(form, m + n), rtol=0, atol=1e-12)
        torch.testing.assert_close(matrix(form, m).mT @ matrix(form, n), matrix(form, n - m), rtol=0, atol=1e-12)
    identity = torch.eye(HEAD_DIM, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(matrix(form, 37).mT @ matrix(form, 37), identity, rtol=0, atol=1e-12)
    assert (torch.linalg.det(matrix(form, 37)) - 1).abs().max() < 1e-12
    assert (matrix(form, 37) - identity).abs().max() > 0.1


@pytest.mark.parametrize("form", ["frequencies", "rank2"])
def test_distances_alone_matter_far_away(form):
    module = learned(form, dtype=torch.float32)
    x_BTD = torch.zeros(1, 6, HIDDEN)
    q, k = (torch.nn.functional.normalize(drawn(1, 2, 6, HEAD_DIM, seed=seed), dim=-1).float() for seed in (4, 5))
    near, far = (module(x_BTD, start + torch.arange(6)[None]) for start in (0, 10_000))
    torch.testing.assert_close(far(q) @ far(k).mT, near(q) @ near(k).mT, rtol=0, atol=1e-3)


def test_the_closed_form_is_the_matrix_exponential():
    a, b, x = 0.3 * drawn(2, HEAD_DIM, seed=1), 0.3 * drawn(2, HEAD_DIM, seed=2), drawn(1, 4, 5, HEAD_DIM, seed=3)
    position_BT = torch.tensor([[0, 1, 2, 17, 300]])
    found = Rank2Turn(a, b, position_BT)(x)
    for head in range(4):
        plane = torch.outer(a[head // 2], b[head // 2]) - torch.outer(b[head // 2], a[head // 2])
        for t, position in enumerate(position_BT[0]):
            exact = torch.matrix_exp(position * plane) @ x[0, head, t]
            torch.testing.assert_close(found[0, head, t], exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_that_hardly_turns_is_nearly_the_identity(dtype):
    """Vectors almost or wholly parallel: the closed form divides by the plane's area."""
    a = torch.ones(3, HEAD_DIM, dtype=dtype)
    b = a.clone()
    b[0] *= 3  # parallel
    b[1, 0] += 1e-3
    b[2], a[2] = 0, 1e-8
    a.requires_grad_()
    turned = Rank2Turn(a, b, torch.tensor([[2]]))(torch.ones(1, 3, 1, HEAD_DIM, dtype=dtype))
    turned.sum().backward()
    assert a.grad.isfinite().all()
    torch.testing.assert_close(turned[0, [0, 2], 0], torch.ones(2, HEAD_DIM, dtype=dtype), rtol=0, atol=1e-5)
    plane = torch.outer(a[1], b[1]) - torch.outer(b[1], a[1])
    exact = torch.matrix_exp(2 * plane.detach().double()) @ torch.ones(HEAD_DIM, dtype=torch.float64)
    torch.testing.assert_close(turned[0, 1, 0].detach().double(), exact, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)


@FORMS
@pytest.mark.parametrize("yarn", [None, Yarn(factor=4.0, original_length=50, beta_fast=5.0)])
def test_gradients_are_those_of_the_function(form, yarn):
    module, x_BTD, q = learned(form, yarn=yarn), drawn(1, 4, HIDDEN, seed=8), drawn(1, 2, 4, HEAD_DIM, seed=9)
    names = [name for name, _ in module.named_parameters()]

    def turned(*parameters: Tensor) -> Tensor:
        turn = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x_BTD, torch.arange(4)[None]))
        return turn(q)

    assert torch.autograd.gradcheck(turned, tuple(module.parameters()))


def decoder(positions, *, num_layers: int = 2, seed: int = 0) -> Decoder:
    attention = AttentionLayout(num_heads=4, num_kv_heads=2, head_dim=HEAD_DIM, positions=positions, qk_norm="head")
    layers = (LayerLayout(attention, MlpLayout("relu2", 24)),) * num_layers
    layout = Layout(hidden_size=HIDDEN, layers=layers, tied_embeddings=True, init=InitLayout("normal", std=0.3))
    student = Decoder(layout, vocab_size=31)
    initialise(student, seed=seed)
    return student


def copied(source: Decoder, target: Decoder) -> Decoder:
    """`target` with all the weights that `source` has too."""
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected and all(".positions." in name for name in missing)
    return target


@pytest.mark.parametrize("form", ["frequencies", "contextual"])
def test_it_begins_as_rope(form):
    tokens_BT = torch.arange(30)[None]
    rope = decoder(Rope(theta=100.0))
    grape = copied(rope, decoder(GrapeM(form=form, theta=100.0), seed=1))
    torch.testing.assert_close(grape(tokens_BT).hidden_BTD, rope(tokens_BT).hidden_BTD, rtol=0, atol=2e-5)
    with torch.no_grad():
        grape.model.layers[1].positions.log_rate_p[1] += 16 * math.log(2)
    assert (grape(tokens_BT).hidden_BTD - rope(tokens_BT).hidden_BTD).abs().max() > 1e-2


def test_initial_rates_are_ropes_to_the_last_bits():
    module = GrapeRates(GrapeM(theta=10_000.0), head_dim=64, hidden_size=HIDDEN)
    with torch.no_grad():
        module.log_rate_p.copy_(module.initial_log_rates())
    rate_p = rope_rates(Rope(theta=10_000.0), head_dim=64, length=9, dtype=torch.float32, device=torch.device("cpu"))
    turn = module(torch.zeros(1, 9, HIDDEN), torch.arange(9)[None])
    expected = plane_turn(torch.arange(9)[None], rate_p)
    torch.testing.assert_close(turn.cos_B1Th, expected.cos_B1Th, rtol=0, atol=5e-6)
    torch.testing.assert_close(turn.sin_B1Th, expected.sin_B1Th, rtol=0, atol=5e-6)


def test_rates_are_stored_as_sixteen_logarithms():
    module = learned("frequencies")
    with torch.no_grad():
        module.log_rate_p.copy_(16 * torch.tensor([0.7, 0.1, 0.02, 1.9], dtype=torch.float64).log())
    turn = module(torch.zeros(1, 1, HIDDEN, dtype=torch.float64), torch.tensor([[3]]))
    expected = (3 * torch.tensor([0.7, 0.1, 0.02, 1.9], dtype=torch.float64)).cos()
    torch.testing.assert_close(turn.cos_B1Th[0, 0, 0, :4], expected, rtol=0, atol=1e-14)


def test_planes_begin_as_orthogonal_at_ropes_rates():
    student = decoder(GrapeM(form="rank2", theta=100.0))
    plane = student.model.layers[0].positions
    a, b = plane.a_Kh.double(), plane.b_Kh.double()
    assert (a * b).sum(-1).abs().max() < 1e-7
    area_K = (a.square().sum(-1) * b.square().sum(-1) - (a * b).sum(-1) ** 2).sqrt()
    torch.testing.assert_close(area_K, torch.tensor([1.0, 0.1], dtype=torch.float64), rtol=1e-6, atol=0)


def test_contextual_at_constant_steps_is_the_plain_form():
    module, plain = learned("contextual"), learned("frequencies")
    with torch.no_grad():
        plain.log_rate_p.copy_(module.log_rate_p)
        module.step_proj.weight.zero_()
        module.step_proj.bias.fill_(math.log(math.e**0.25 - 1))  # softplus of it is 1/4
    x_BTD, position_BT = drawn(2, 9, HIDDEN), torch.arange(9)[None]
    slow, quarter = module(x_BTD, position_BT), plain(x_BTD, position_BT.double() / 4)
    torch.testing.assert_close(slow.cos_B1Th, quarter.cos_B1Th.expand(2, -1, -1, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(slow.sin_B1Th, quarter.sin_B1Th.expand(2, -1, -1, -1), rtol=0, atol=1e-12)


def test_a_token_stands_where_those_before_it_have_led():
    """The sum leaves the token's own step out: position 0 is 0, and the last token moves nobody."""
    module, x_BTD = learned("contextual"), drawn(1, 6, HIDDEN)
    step_T = torch.log1p((x_BTD[0] @ module.step_proj.weight[0] + module.step_proj.bias).exp())
    travelled_T = torch.tensor([float(step_T[:t].detach().sum()) for t in range(6)], dtype=torch.float64)
    rate_p = (module.log_rate_p / 16).exp()
    turn = module(x_BTD, torch.arange(6)[None])
    expected = (travelled_T[:, None] * rate_p).sin()
    torch.testing.assert_close(turn.sin_B1Th[0, 0, :, : HEAD_DIM // 2], expected, rtol=0, atol=1e-12)


@FORMS
def test_yarn_stretches_what_turns_slowly(form):
    """A plane at one turn in 50 tokens or less is slowed down by 4, and outputs grow by the attention factor."""
    yarn = Yarn(factor=4.0, original_length=50, beta_fast=5.0, beta_slow=1.0)
    x_BTD, position_BT = torch.zeros(1, 1, HIDDEN, dtype=torch.float64), torch.tensor([[11]])
    q = drawn(1, 2, 1, HEAD_DIM)
    plain, stretched = learned(form), learned(form, yarn=yarn)
    rates = (1.9, 0.3, 0.1, 0.004)  # 15.1, 2.4, 0.8 and 0.03 turns in 50 tokens
    slower = [rate * (keep + (1 - keep) / 4) for rate in rates for keep in [min(max((50 * rate / math.tau - 1) / 4, 0), 1)]]
    assert slower[0] == rates[0] and slower[2] == rates[2] / 4 and rates[1] / 4 < slower[1] < rates[1]
    with torch.no_grad():
        for module, given in ((plain, slower), (stretched, rates)):
            if form == "rank2":
                module.a_Kh.copy_(drawn(2, HEAD_DIM, seed=5) * torch.tensor(given[1:3])[:, None].double().sqrt())
                module.b_Kh.copy_(torch.tensor([[1.0], [2.0]]) * drawn(2, HEAD_DIM, seed=6))
                area_K = (
                    module.a_Kh.square().sum(-1) * module.b_Kh.square().sum(-1) - (module.a_Kh * module.b_Kh).sum(-1) ** 2
                ).sqrt()
                module.a_Kh *= torch.tensor(given[1:3], dtype=torch.float64)[:, None] / area_K[:, None]
            else:
                module.log_rate_p.copy_(16 * torch.tensor(given, dtype=torch.float64).log())
    found, expected = stretched(x_BTD, position_BT)(q), plain(x_BTD, position_BT)(q)
    torch.testing.assert_close(found, (0.1 * math.log(4) + 1) * expected, rtol=0, atol=1e-12)


@FORMS
def test_yarn_by_one_is_the_identity(form):
    q, x_BTD, position_BT = drawn(1, 2, 5, HEAD_DIM), drawn(1, 5, HIDDEN), torch.arange(5)[None]
    by_one = learned(form, yarn=Yarn(factor=1.0))(x_BTD, position_BT)(q)
    torch.testing.assert_close(by_one, learned(form)(x_BTD, position_BT)(q), rtol=0, atol=1e-12)


@FORMS
def test_packed_documents_are_strangers(form):
    student = decoder(GrapeM(form=form, theta=100.0)).double()
    with torch.no_grad():
        for block in student.model.layers:
            if form == "contextual":
                block.positions.step_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    first_T, second_T = torch.arange(7), torch.arange(9, 20)
    packed = student(
        torch.cat([first_T, second_T])[None],
        positions_BT=torch.cat([torch.arange(7), torch.arange(11)])[None],
        segments_BT=torch.tensor([[4] * 7 + [2] * 11]),
    ).hidden_BTD[0]
    torch.testing.assert_close(packed[:7], student(first_T[None]).hidden_BTD[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(packed[7:], student(second_T[None]).hidden_BTD[0], rtol=0, atol=1e-10)


@FORMS
def test_a_cache_remembers_how_far_tokens_have_moved(form):
    student = decoder(GrapeM(form=form, theta=100.0)).double()
    with torch.no_grad():
        for block in student.model.layers:
            if form == "contextual":
                block.positions.step_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    tokens_BT = torch.stack([torch.arange(12), torch.arange(12, 24)])
    whole, cache = student(tokens_BT).hidden_BTD, student.new_cache()
    parts = [student(part_BT, cache=cache).hidden_BTD for part_BT in tokens_BT.split([5, 1, 3, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


def test_angles_are_wide_under_autocast():
    module = learned("contextual", dtype=torch.float32)
    x_BTD = drawn(1, 300, HIDDEN).float()
    with torch.autocast("cpu", torch.bfloat16):
        turn = module(x_BTD, torch.arange(300)[None])
    torch.testing.assert_close(turn.cos_B1Th, module(x_BTD, torch.arange(300)[None]).cos_B1Th, rtol=0, atol=0)
