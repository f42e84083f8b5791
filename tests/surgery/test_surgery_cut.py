"""The cut against what it must not change: nothing by an order, nothing by taking away what is exactly zero."""

import math

import pytest
import torch
from prunable import CONFIGS, apart, eager, logits, model_of, tokens
from transformers import AutoModelForCausalLM

from limbeck.plan.accounting import teacher_parameters
from limbeck.plan.pruned import pruned_config
from limbeck.spec.prune import Pruning
from limbeck.surgery.anatomy import Anatomy, anatomy_of
from limbeck.surgery.cut import cut
from limbeck.surgery.depth import choose_layers
from limbeck.surgery.importance import measure_importance
from limbeck.surgery.keep import Kept, choose

EXACT = 1e-9


def pruning_of(anatomy: Anatomy, *, keys: tuple[str, ...] | None = None, **changes) -> Pruning:
    """Less of every axis that an architecture has (or of those in `keys`), and of depth: a group and a head of each group."""
    sizes = anatomy.sizes
    groups = sizes.num_kv_heads if keys == ("num_heads",) else 1
    asked = {"hidden_size": 24, "num_heads": groups * (sizes.queries_per_group - 1), "num_kv_heads": 1, "num_layers": 3}
    if sizes.intermediate_size is not None:
        asked["intermediate_size"] = sizes.intermediate_size - 8
    if sizes.num_experts is not None:
        asked |= {"num_experts": sizes.num_experts - sizes.expert_groups, "expert_size": sizes.expert_size - 8}
    if keys is not None:
        asked = {key: size for key, size in asked.items() if key in keys}
    return Pruning(**asked, **changes)


def pruned(name: str, *, dtype=torch.float64, **changes):
    """A model, what stays of it, and the new one."""
    model = model_of(name, dtype=dtype)
    anatomy = anatomy_of(model)
    scores = measure_importance(model, list(tokens()), dtype=torch.float32)
    pruning = pruning_of(anatomy, **changes)
    kept = choose(anatomy, scores, pruning, layers=choose_layers(anatomy, scores, pruning))
    return model, pruning, kept, cut(model, kept, scores=scores)


def shuffled(anatomy: Anatomy, axis: str, generator: torch.Generator) -> Kept:
    """All places of one axis, in another order in every layer; heads stay with their keys and values."""
    sizes, layers = anatomy.sizes, range(anatomy.sizes.num_layers)

    def order(count: int) -> torch.Tensor:
        found = torch.randperm(count, generator=generator)
        return found if not torch.equal(found, torch.arange(count)) else found.flip(0)

    def experts() -> torch.Tensor:
        """Within the groups that routing knows, and those in another order too."""
        each = sizes.num_experts // sizes.expert_groups
        return torch.cat([group * each + order(each) for group in order(sizes.expert_groups)])

    everything = tuple(layers)
    if axis == "hidden":
        return Kept(everything, hidden_D=order(sizes.hidden_size))
    if axis == "groups":
        groups = [order(sizes.num_kv_heads) for _ in layers]
        each = sizes.queries_per_group
        heads = [torch.cat([group * each + order(each) for group in chosen]) for chosen in groups]
        return Kept(everything, groups=tuple(groups), heads=tuple(heads))
    has = [anatomy.has_experts(layer) for layer in layers]
    match axis:
        case "neurons":
            return Kept(everything, neurons=tuple(None if is_moe else order(sizes.intermediate_size) for is_moe in has))
        case "shared":
            return Kept(everything, shared=tuple(order(sizes.shared_size) if is_moe else None for is_moe in has))
        case "experts":
            return Kept(everything, experts=tuple(experts() if is_moe else None for is_moe in has))
        case _:
            return Kept(everything, expert_neurons=tuple(order(sizes.expert_size) if is_moe else None for is_moe in has))


def axes_of(name: str) -> list[str]:
    anatomy = anatomy_of(model_of(name))
    sizes = anatomy.sizes
    has = {
        "hidden": True,
        "groups": True,
        "neurons": sizes.intermediate_size is not None,
        "shared": sizes.shared_size is not None,
        "experts": sizes.num_experts is not None,
        "expert_neurons": sizes.num_experts is not None,
    }
    return [axis for axis, there in has.items() if there]


@pytest.mark.parametrize("name", CONFIGS)
def test_another_order_changes_nothing(name):
    """Channels, neurons, groups with their heads, experts and their neurons: each axis by itself."""
    model, token_BT = model_of(name), tokens()
    expected = logits(model, token_BT)
    for axis in axes_of(name):
        kept = shuffled(anatomy_of(model), axis, torch.Generator().manual_seed(1))
        new = cut(model, kept)
        assert apart(logits(new, token_BT), expected) < EXACT, axis
        moved = [n for n, p in new.named_parameters() if not torch.equal(p, model.get_parameter(n))]
        assert moved, axis


ZEROED = {"hidden": "hidden_size", "heads": "num_heads", "groups": "num_kv_heads", "neurons": "intermediate_size"}
ZEROED |= {"expert_neurons": "expert_size"}
TENSORS = {
    "hidden": ("hidden",),
    "heads": ("queries", "heads"),
    "groups": ("queries", "keys", "heads", "groups"),
    "neurons": ("neurons", "shared"),
    "expert_neurons": ("expert_neurons", "expert_halves", "expert_turns"),
}


@torch.no_grad()
def zero_what_goes(model, kept: Kept, before) -> None:
    """Everything that is not kept, by hand, tensor by tensor."""
    anatomy = anatomy_of(model)
    for name, axes in anatomy.axes.items():
        tensor = model.state_dict()[name]
        layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else 0
        for dimension, axis in enumerate(axes):
            stays = stays_on(axis, kept, before, layer)
            if stays is not None:
                shape = [1] * tensor.ndim
                shape[dimension] = -1
                tensor.mul_(stays.to(tensor.dtype).view(shape))


def stays_on(axis: str, kept: Kept, sizes, layer: int) -> torch.Tensor | None:
    def mask(places, count: int, *, each: int = 1) -> torch.Tensor | None:
        if places is None:
            return None
        found = torch.zeros(count, dtype=torch.bool)
        found[places] = True
        return found.repeat_interleave(each)

    match axis:
        case "hidden":
            return mask(kept.hidden_D, sizes.hidden_size)
        case "queries":
            return mask(kept.of("heads", layer), sizes.num_heads, each=sizes.head_dim)
        case "keys":
            return mask(kept.of("groups", layer), sizes.num_kv_heads, each=sizes.head_dim)
        case "neurons":
            return mask(kept.of("neurons", layer), sizes.intermediate_size)
        case "shared":
            return mask(kept.of("shared", layer), sizes.shared_size)
        case "expert_neurons":
            return mask(kept.of("expert_neurons", layer), sizes.expert_size)
        case "expert_turns":
            return mask(kept.of("expert_neurons", layer), sizes.expert_size, each=2)
        case "expert_halves":
            once = mask(kept.of("expert_neurons", layer), sizes.expert_size)
            return None if once is None else torch.cat([once, once])
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_zero_can_go(name):
    """With the fix-up of norms, whose divisors change with the channels and, in OLMo, with the heads."""
    token_BT = tokens()
    sizes = anatomy_of(model_of(name)).sizes
    has = [axis for axis, key in ZEROED.items() if getattr(sizes, key) is not None]
    for axis in has:
        model = model_of(name)
        anatomy = anatomy_of(model)
        scores = measure_importance(model, list(token_BT))
        kept = choose(anatomy, scores, pruning_of(anatomy, keys=(ZEROED[axis],)))
        zero_what_goes(model, kept, sizes)
        zeroed = logits(model, token_BT)
        scores = measure_importance(model, list(token_BT))
        assert apart(logits(cut(model, kept, scores=scores), token_BT), zeroed) < EXACT, axis
        by_norms = axis == "hidden" or (axis in ("heads", "groups") and "queries" in anatomy.norms.values())
        without = apart(logits(cut(model, kept), token_BT), zeroed)
        assert (without > 1e-3) if by_norms else (without < EXACT), axis


def test_only_weights_are_rounded():
    """The rates of positions, 10000^(-2 i / 8), stay in float32 as transformers loads them."""
    model = model_of("llama", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    new = cut(model, Kept((0, 1)))
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(new.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)


def test_the_fix_up_is_the_square_root_of_the_ratio_of_mean_squares():
    model, token_BT = model_of("olmo2"), tokens()
    kept = Kept(tuple(range(4)), hidden_D=torch.arange(0, 32, 2))
    scores = measure_importance(model, list(token_BT))
    seen = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits(model, token_BT)
    handle.remove()
    total = sum(float(x) ** 2 for x in seen[0].flatten())
    stays = sum(float(x) ** 2 for x in seen[0][..., ::2].flatten())
    factor = math.sqrt((stays / 16) / (total / 32))
    new = cut(model, kept, scores=scores)
    torch.testing.assert_close(new.model.norm.weight, factor * model.model.norm.weight[::2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "moe" in name or name in ("gpt_oss", "own, grape")])
def test_experts_that_no_token_visits_can_go(name):
    model, token_BT = model_of(name), tokens(4, rows=1)
    anatomy = anatomy_of(model)
    scores = measure_importance(model, list(token_BT))
    unused = [[] if not len(routed) else (routed == 0).nonzero().flatten().tolist() for routed in scores.routed]
    experts = []
    for layer, idle in enumerate(unused):
        if not anatomy.has_experts(layer):
            experts.append(None)
            continue
        assert idle, "few tokens leave some expert alone"
        experts.append(torch.tensor([e for e in range(anatomy.sizes.num_experts) if e != idle[-1]]))
    new = cut(model, Kept(tuple(range(4)), experts=tuple(experts)))
    assert apart(logits(new, token_BT), logits(model, token_BT)) < EXACT
    assert anatomy_of(new).sizes.num_experts == anatomy.sizes.num_experts - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_opened_again_it_says_the_same(name, tmp_path):
    """Pruned in every axis and in depth; parameters are as many as the plan says."""
    model, pruning, kept, new = pruned(name, dtype=torch.float32)
    new.save_pretrained(tmp_path)
    again = eager(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert type(again) is type(new)
    assert torch.equal(logits(again, tokens()), logits(new, tokens()))
    config = pruned_config(model.config.to_dict(), pruning, layers=kept.layers)
    assert sum(p.numel() for p in again.parameters()) == teacher_parameters(config).total
    written = again.config.to_dict()
    assert {key: written.get(key) for key in ("student", "layer_types", "head_dim", "hidden_size")} == {
        key: config.get(key) for key in ("student", "layer_types", "head_dim", "hidden_size")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_group_keeps_as_many_heads(name):
    """Chosen inside each: with all groups, and with one."""
    for keys, groups in ((("num_heads",), 2), (("num_heads", "num_kv_heads"), 1)):
        model, _, kept, new = pruned(name, keys=keys)
        before, config = anatomy_of(model).sizes, new.config
        each = before.queries_per_group - 1
        for heads in kept.heads:
            counts = (heads // before.queries_per_group).bincount(minlength=before.num_kv_heads)
            assert sorted(counts.tolist()) == [0] * (before.num_kv_heads - groups) + [each] * groups
        assert anatomy_of(new).sizes.num_heads == each * groups
        if hasattr(config, "num_key_value_heads"):
            assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (each * groups, groups, 8)
