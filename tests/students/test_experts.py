"""DeepSeek-V3's mixture against a plain loop over tokens, and the properties that its routing has."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.spec.layout import ExpertsLayout, MlpLayout
from limbeck.spec.parts import SharedExpert
from limbeck.students.experts import Experts, Router
from limbeck.students.mlp import Mlp

HIDDEN = 16


def layout(**changes) -> ExpertsLayout:
    """Twelve experts, three of which see a token."""
    sizes = {"num_experts": 12, "per_token": 3, "expert": MlpLayout("relu2", 8), "route_scale": 2.5, "balance_weight": 0.01}
    return ExpertsLayout(**{**sizes, **changes})


def mixture(dtype=torch.float64, **changes) -> Experts:
    """Random, with biases large enough to choose for themselves."""
    experts = Experts(layout(**changes), hidden_size=HIDDEN)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        experts.router.bias.copy_(0.2 * torch.randn(experts.layout.num_experts, generator=generator))
    return experts.to(dtype)


def drawn(*shape: int, seed: int = 1, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expert_output(experts: Experts, index: int, x_D: Tensor) -> Tensor:
    stack = experts.experts
    up = x_D @ stack.up_EDF[index]
    match stack.activation:
        case "swiglu":
            inner = torch.nn.functional.silu(x_D @ stack.gate_EDF[index]) * up
        case "relu2":
            inner = up.relu() ** 2
        case "leaky_relu2":
            inner = torch.where(up > 0, up, up / 2) ** 2
    return inner @ stack.down_EFD[index]


def chosen(layout: ExpertsLayout, score_E: Tensor, bias_E: Tensor) -> list[int]:
    """By sorting lists."""
    biased = (score_E.detach() + bias_E.to(score_E.dtype)).tolist()
    size = layout.num_experts // layout.groups
    groups = [list(range(start, start + size)) for start in range(0, layout.num_experts, size)]
    groups.sort(key=lambda group: -sum(sorted((biased[i] for i in group), reverse=True)[:2]))
    reachable = [i for group in groups[: layout.groups_per_token] for i in group]
    return sorted(reachable, key=lambda i: -biased[i])[: layout.per_token]


def plain_mixture(experts: Experts, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, expert by expert; and how many tokens each expert saw."""
    spec, outputs, load_E = experts.layout, [], torch.zeros(experts.layout.num_experts)
    for x_D in x_BTD.flatten(0, 1):
        score_E = 1 / (1 + (-(experts.router.weight @ x_D)).exp())
        picked = chosen(spec, score_E, experts.router.bias)
        y_D = torch.zeros_like(x_D)
        for index in picked:
            y_D = y_D + spec.route_scale * score_E[index] / score_E[picked].sum() * expert_output(experts, index, x_D)
            load_E[index] += 1
        if experts.shared is not None:
            y_D = y_D + experts.shared_share * experts.shared(x_D)
        outputs.append(y_D)
    return torch.stack(outputs).view_as(x_BTD), load_E


CASES = {
    "plain": {},
    "swiglu": {"expert": MlpLayout("swiglu", 8)},
    "leaky": {"expert": MlpLayout("leaky_relu2", 8)},
    "groups": {"groups": 4, "groups_per_token": 2},
    "groups of one": {"groups": 12, "groups_per_token": 5},
    "shared": {"shared": SharedExpert(size=24)},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_the_mixture_is_the_plain_loop(name, dtype):
    """In value and in the gradient of every parameter and of what comes in."""
    experts = mixture(dtype, **CASES[name])
    x_BTD = drawn(2, 15, HIDDEN, dtype=dtype).requires_grad_()
    towards = drawn(2, 15, HIDDEN, seed=2, dtype=dtype)
    inputs = [x_BTD, *experts.parameters()]
    output, (plain, load_E) = experts(x_BTD), plain_mixture(experts, x_BTD)
    tolerance = {"rtol": 0, "atol": 1e-11 if dtype == torch.float64 else 2e-5}
    torch.testing.assert_close(output.x_BTD, plain, **tolerance)
    assert torch.equal(output.load_E, load_E) and output.load_E.sum() == 2 * 15 * 3
    mine, theirs = (torch.autograd.grad((y * towards).sum(), inputs, allow_unused=True) for y in (output.x_BTD, plain))
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, torch.zeros_like(left) if right is None else right, **tolerance)


def test_bfloat16_autocast_is_the_loop_up_to_its_rounding():
    """Routing stays float32, so that the same experts see the same tokens."""
    experts, x_BTD = mixture(torch.float32, shared=SharedExpert(size=24)), drawn(2, 40, HIDDEN, dtype=torch.float32)
    towards = drawn(2, 40, HIDDEN, seed=2, dtype=torch.float32)
    exact, load_E = plain_mixture(experts, x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        output = experts(x_BTD)
    assert output.x_BTD.dtype == torch.bfloat16
    assert torch.equal(output.load_E, load_E)
    parameters = list(experts.parameters())
    mine = torch.autograd.grad((output.x_BTD * towards).sum(), parameters)
    theirs = torch.autograd.grad((exact * towards).sum(), parameters)
    # Three products, an activation and a sum: a few times half a unit in the last place, 2**-9.
    for left, right in zip((output.x_BTD.float(), *mine), (exact, *theirs), strict=True):
        assert 1e-4 * right.norm() < (left - right).norm() < 2e-2 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_experts_without_tokens_learn_nothing(dtype):
    experts = mixture(dtype)
    with torch.no_grad():
        experts.router.bias.fill_(0)
        experts.router.bias[[2, 5, 11]] = 10  # every token goes there
    output = experts(drawn(1, 9, HIDDEN, dtype=dtype))
    assert output.load_E.nonzero()[:, 0].tolist() == [2, 5, 11]
    (output.x_BTD * drawn(1, 9, HIDDEN, seed=3, dtype=dtype)).sum().backward()
    idle = [index for index in range(12) if index not in (2, 5, 11)]
    for stack in experts.experts.parameters():
        assert (stack.grad[idle] == 0).all()
        assert (stack.grad[[2, 5, 11]].flatten(1).norm(dim=1) > 0).all()


def test_an_expanded_gradient_is_taken_too():
    """`grouped_mm` refuses the gradient that a bare sum gives; the mixture puts tokens back in order in between."""
    experts = mixture(torch.float32)
    experts(drawn(1, 9, HIDDEN, dtype=torch.float32)).x_BTD.sum().backward()
    assert experts.experts.down_EFD.grad.norm() > 0


def test_one_expert_that_sees_all_is_a_dense_mlp():
    experts = mixture(num_experts=1, per_token=1, route_scale=1.0)
    dense = Mlp(MlpLayout("relu2", 8), hidden_size=HIDDEN).double()
    with torch.no_grad():
        dense.up_proj.weight.copy_(experts.experts.up_EDF[0].T)
        dense.down_proj.weight.copy_(experts.experts.down_EFD[0].T)
    x_BTD = drawn(2, 5, HIDDEN)
    torch.testing.assert_close(experts(x_BTD).x_BTD, dense(x_BTD), rtol=0, atol=1e-12)


def test_gates_sum_to_the_route_scale_and_are_the_scores_shares():
    experts, x_ND = mixture(), drawn(50, HIDDEN)
    routing = experts.router(x_ND)
    torch.testing.assert_close(routing.gate_Nk.sum(1), torch.full((50,), 2.5, dtype=torch.float64), rtol=0, atol=1e-12)
    score_NE = torch.sigmoid(x_ND @ experts.router.weight.T)
    expected = 2.5 * score_NE.gather(1, routing.expert_Nk)
    expected = expected / score_NE.gather(1, routing.expert_Nk).sum(1, keepdim=True)
    torch.testing.assert_close(routing.gate_Nk, expected, rtol=0, atol=1e-12)


def test_biases_choose_and_never_weigh():
    """The same shift of all changes nothing; a bias that doesn't change the choice leaves the gates; and none is learned."""
    experts, x_ND = mixture(), drawn(50, HIDDEN)
    before = experts.router(x_ND)
    experts.router.bias += 7.0
    shifted = experts.router(x_ND)
    assert torch.equal(shifted.expert_Nk.sort(1).values, before.expert_Nk.sort(1).values)
    torch.testing.assert_close(shifted.gate_Nk.sort(1).values, before.gate_Nk.sort(1).values, rtol=0, atol=1e-6)
    experts.router.bias.zero_()
    unbiased = experts.router(x_ND)
    assert not torch.equal(unbiased.expert_Nk.sort(1).values, before.expert_Nk.sort(1).values)
    assert not experts.router.bias.requires_grad
    assert "router.bias" not in dict(experts.named_parameters())
    assert "router.bias" in experts.state_dict()


def test_tokens_stay_in_the_best_groups():
    """Also where biased scores are negative, which a mask of zeros would prefer to."""
    experts, x_ND = mixture(groups=4, groups_per_token=2), drawn(200, HIDDEN)
    for shift in (0.0, -3.0):
        experts.router.bias += shift
        routing = experts.router(x_ND)
        for row in range(200):
            wanted = chosen(experts.layout, routing.score_NE[row], experts.router.bias)
            assert sorted(routing.expert_Nk[row].tolist()) == sorted(wanted)
            assert len({index // 3 for index in wanted}) <= 2
    anywhere = mixture().router(x_ND)
    assert not torch.equal(anywhere.expert_Nk, experts.router(x_ND).expert_Nk)


def test_the_order_of_experts_does_not_matter():
    experts, x_BTD = mixture(), drawn(2, 9, HIDDEN)
    before = experts(x_BTD)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for tensor in (*experts.experts.parameters(), experts.router.weight, experts.router.bias):
            tensor.copy_(tensor[order].clone())
    after = experts(x_BTD)
    torch.testing.assert_close(after.x_BTD, before.x_BTD, rtol=0, atol=1e-12)
    assert torch.equal(after.load_E, before.load_E[order])
    torch.testing.assert_close(after.balance, before.balance, rtol=1e-12, atol=0)


def router_with_steps(step: float) -> Router:
    return Router(layout(num_experts=4, bias_step=step), hidden_size=HIDDEN)


def test_biases_move_by_one_step_towards_the_mean():
    router = router_with_steps(2**-10)
    router.rebalance(torch.tensor([10.0, 2.0, 6.0, 6.0]))
    assert router.bias.tolist() == [-(2**-10), 2**-10, 0, 0]
    # Three below the mean and one above: two steps up in all, of which each gives back half a step.
    router = router_with_steps(2**-10)
    router.rebalance(torch.tensor([9.0, 1.0, 1.0, 1.0]))
    assert router.bias.tolist() == [-1.5 * 2**-10, 0.5 * 2**-10, 0.5 * 2**-10, 0.5 * 2**-10]
    before = router.bias.clone()
    router.rebalance(torch.full((4,), 5.0))
    assert torch.equal(router.bias, before)


def test_large_counts_are_compared_to_their_mean_exactly():
    router = router_with_steps(1.0)
    router.rebalance(torch.tensor([2**24, 2**24 - 1, 2**24 - 1, 2**24 - 2], dtype=torch.float32))
    assert router.bias.tolist() == [-1, 0, 0, 1]


def test_a_skewed_router_balances():
    """Experts that tokens like much more than others are evened out by biases alone, within 1,000 updates."""
    experts = mixture(torch.float32, bias_step=5e-3)
    with torch.no_grad():
        experts.router.bias.zero_()
        experts.router.weight[:, 0] = torch.linspace(-2, 2, 12)
    generator = torch.Generator().manual_seed(0)

    def load() -> Tensor:
        x_ND = torch.randn(256, HIDDEN, generator=generator)
        x_ND[:, 0] = 1
        routing = experts.router(x_ND)
        return torch.bincount(routing.expert_Nk.flatten(), minlength=12).float()

    ratios = []
    with torch.no_grad():
        for _ in range(1000):
            load_E = load()
            ratios.append(float(load_E.max() / load_E.mean()))
            experts.router.rebalance(load_E)
    start, end = sum(ratios[:10]) / 10, sum(ratios[-100:]) / 100
    assert start > 2.5
    assert end < 1.35
    assert abs(float(experts.router.bias.sum())) < 1e-4


def balance_formula(experts: Experts, x_BTD: Tensor) -> Tensor:
    """Equations 17 to 20 of DeepSeek-V3's report, token by token."""
    spec, total = experts.layout, 0.0
    for x_TD in x_BTD:
        often_E, share_E = torch.zeros(spec.num_experts, dtype=torch.float64), 0.0
        for x_D in x_TD:
            score_E = 1 / (1 + (-(experts.router.weight @ x_D)).exp())
            for index in sorted(range(spec.num_experts), key=lambda i: -float(score_E[i].detach()))[: spec.per_token]:
                often_E[index] += spec.num_experts / (spec.per_token * len(x_TD))
            share_E = share_E + score_E / score_E.sum() / len(x_TD)
        total = total + spec.balance_weight * (often_E * share_E).sum() / len(x_BTD)
    return total


def test_the_balance_loss_is_its_formula_for_each_sequence():
    experts, x_BTD = mixture(), drawn(3, 7, HIDDEN).requires_grad_()
    found, expected = experts(x_BTD).balance, balance_formula(experts, x_BTD)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(loss, [x_BTD, experts.router.weight]) for loss in (found, expected))
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-14)
    one_sequence = experts(x_BTD.flatten(0, 1)[None]).balance
    assert abs(float((one_sequence - found).detach())) > 1e-6
    assert mixture(balance_weight=0.0)(x_BTD).balance == 0


def test_even_scores_cost_the_weight_and_no_less():
    """f = 1 and P = 1 / E: the loss is alpha; a router that prefers a few experts costs more."""
    experts, x_BTD = mixture(), drawn(2, 30, HIDDEN)
    with torch.no_grad():
        experts.router.weight.zero_()
    assert float(experts(x_BTD).balance.detach()) == pytest.approx(0.01, rel=1e-12)
    x_BTD[..., 0] = 1
    with torch.no_grad():
        experts.router.weight[:3, 0] = 4
    assert experts(x_BTD).balance > 0.015


def test_recomputed_activations_count_once():
    experts, x_BTD = mixture(), drawn(2, 9, HIDDEN).requires_grad_()
    state = {name: tensor.clone() for name, tensor in experts.state_dict().items()}
    plain = experts(x_BTD)
    again = checkpoint(experts, x_BTD, use_reentrant=False)
    gradients = [torch.autograd.grad(y.x_BTD.square().sum(), x_BTD)[0] for y in (plain, again)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert torch.equal(plain.load_E, again.load_E)
    assert not plain.load_E.requires_grad
    for name, tensor in experts.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_evaluation_counts_nothing():
    experts = mixture().eval()
    state = {name: tensor.clone() for name, tensor in experts.state_dict().items()}
    with torch.no_grad():
        experts(drawn(2, 9, HIDDEN))
    assert all(torch.equal(tensor, state[name]) for name, tensor in experts.state_dict().items())


def test_biases_stay_float32_to_the_last_bit():
    experts = mixture(torch.float32)
    bias_E = experts.router.bias.clone()
    experts.bfloat16()
    assert experts.router.weight.dtype == torch.bfloat16
    assert experts.router.bias.dtype == torch.float32
    assert torch.equal(experts.router.bias, bias_E)
    assert mixture(torch.float64).router.bias.dtype == torch.float32


@pytest.mark.parametrize(("schedule", "shares"), [("constant", [1, 1, 1]), ("warmup", [0, 0.5, 1]), ("anneal", [1, 0.5, 0])])
def test_shared_experts_have_their_part_of_the_budget(schedule, shares):
    spec = SharedExpert(size=24, schedule=schedule, until=0.4)
    assert [spec.share(fraction) for fraction in (0.0, 0.2, 0.4)] == pytest.approx(shares)
    assert spec.share(1.0) == shares[-1]
    experts, x_BTD = mixture(shared=spec), drawn(1, 4, HIDDEN)
    experts.shared_share.fill_(0)
    routed, shared = experts(x_BTD).x_BTD, experts.shared(x_BTD)
    for share in shares:
        experts.shared_share.fill_(share)
        torch.testing.assert_close(experts(x_BTD).x_BTD, routed + share * shared, rtol=0, atol=1e-12)


def test_routers_are_not_rounded_by_autocast():
    """Scores of two experts a thousandth apart, which bfloat16 would call equal."""
    router = Router(layout(num_experts=8, per_token=1), hidden_size=HIDDEN)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = 1.0
        router.weight[5, 0] = 1.001
    x_ND = torch.zeros(3, HIDDEN)
    x_ND[:, 0] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x_ND)
    assert routing.score_NE.dtype == torch.float32
    assert routing.expert_Nk.tolist() == [[5], [5], [5]]
    assert float(routing.score_NE[0, 5].detach()) == pytest.approx(1 / (1 + math.exp(-1.001)), rel=1e-6)


def test_padding_is_neither_counted_nor_balanced() -> None:
    """Two sequences of 9 and 4 tokens, padded to 9: loads are the sums, the balance loss the mean, of each read alone."""
    experts = mixture()
    x_BTD = drawn(2, 9, HIDDEN)
    real_BT = torch.arange(9) < torch.tensor([[9], [4]])
    alone = [experts(x_BTD[:1]), experts(x_BTD[1:, :4])]
    found = experts(x_BTD, real_BT)
    assert torch.equal(found.load_E, alone[0].load_E + alone[1].load_E)
    torch.testing.assert_close(found.balance, (alone[0].balance + alone[1].balance) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.x_BTD[1, :4], alone[1].x_BTD[0], rtol=1e-12, atol=1e-12)
    everywhere = experts(x_BTD, torch.ones(2, 9, dtype=torch.bool))
    assert torch.equal(everywhere.load_E, experts(x_BTD).load_E)
