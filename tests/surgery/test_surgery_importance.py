"""Importance against its formulas, worked out by plain loops in float64 on what a model was seen to compute."""

import math

import pytest
import torch
from prunable import CONFIGS, eager, model_of, tokens
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.spec.prune import Pruning
from limbeck.surgery.anatomy import anatomy_of
from limbeck.surgery.importance import measure_importance
from limbeck.surgery.keep import choose, hidden_score
from limbeck.surgery.scores import Scores

ROWS = tokens(7, rows=3)
CLOSE = 1e-6
"""transformers' norms and routers compute in float32 on the way."""


@torch.no_grad()
def seen(model, modules: dict[str, str]) -> dict[str, list[list[list[list[float]]]]]:
    """What modules read, by row: numbers [position][channel], one row at a time."""
    found: dict[str, list] = {name: [] for name in modules}

    def keep(name):
        def hook(module, inputs, named):
            x = inputs[0] if inputs else named["hidden_states"]
            found[name].append(x.reshape(-1, x.shape[-1]).tolist())

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(keep(name), with_kwargs=True) for name, path in modules.items()
    ]
    for row_T in ROWS:
        model.base_model(input_ids=row_T[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def aggregated(rows: list[list[list[float]]]) -> list[float]:
    """sqrt of the sum over rows of the square of the mean over positions of |x|, each channel."""
    scores = []
    for channel in range(len(rows[0][0])):
        total = 0.0
        for row in rows:
            mean = 0.0
            for position in row:
                mean += abs(position[channel]) / len(row)
            total += mean**2
        scores.append(math.sqrt(total))
    return scores


def require_close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=CLOSE, atol=1e-12)


WHERE = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gemma3": ("input_layernorm", "pre_feedforward_layernorm"),
    "olmo3": (None, None),
    "gpt_oss": ("input_layernorm", "post_attention_layernorm"),
}
"""The norms before a layer's branches; OLMo has none, and its branches read the residual stream."""


@pytest.mark.parametrize("name", WHERE)
def test_channels_heads_and_neurons(name):
    model = eager(model_of(name))
    scores = measure_importance(model, list(ROWS))
    sizes = anatomy_of(model).sizes
    for layer in range(sizes.num_layers):
        at = f"model.layers.{layer}"
        read = seen(model, {"attention": f"{at}.self_attn", "mlp": f"{at}.mlp", "o": f"{at}.self_attn.o_proj"})
        require_close(scores.hidden_HD[2 * layer], aggregated(read["attention"]))
        require_close(scores.hidden_HD[2 * layer + 1], aggregated(read["mlp"]))
        channels, h = aggregated(read["o"]), sizes.head_dim
        heads = [math.sqrt(sum(c**2 for c in channels[i * h : (i + 1) * h])) for i in range(sizes.num_heads)]
        each = sizes.num_heads // sizes.num_kv_heads
        groups = [math.sqrt(sum(s**2 for s in heads[g * each : (g + 1) * each])) for g in range(sizes.num_kv_heads)]
        require_close(scores.heads[layer], heads)
        require_close(scores.groups[layer], groups)
        if name != "gpt_oss":
            require_close(scores.neurons[layer], aggregated(seen(model, {"down": f"{at}.mlp.down_proj"})["down"]))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_hidden_channels_are_scored_by_what_norms_before_branches_give(name):
    model = eager(model_of(name))
    scores = measure_importance(model, list(ROWS))
    for hook, norm in enumerate(WHERE[name]):
        given = []
        module = model.get_submodule(f"model.layers.2.{norm}")
        handle = module.register_forward_hook(lambda module, inputs, output, given=given: given.append(output))
        for row_T in ROWS:
            model.base_model(input_ids=row_T[None], use_cache=False)
        handle.remove()
        require_close(scores.hidden_HD[4 + hook], aggregated([each[0].tolist() for each in given]))


@torch.no_grad()
def test_where_norms_stand_after_branches_the_residual_stream_is_scored():
    model = eager(model_of("olmo2"))
    states = [model(input_ids=row_T[None], output_hidden_states=True).hidden_states for row_T in ROWS]
    scores = measure_importance(model, list(ROWS))
    for layer in range(4):
        require_close(scores.hidden_HD[2 * layer], aggregated([each[layer][0].tolist() for each in states]))


@pytest.mark.parametrize("name", ["llama", "olmo3", "gemma3", "gpt_oss", "qwen3_moe", "own", "own, contextual"])
@torch.no_grad()
def test_influence_is_one_less_the_mean_cosine(name):
    """Of a layer's input and what the next one, or the final norm, reads."""
    model = eager(model_of(name))
    anatomy = anatomy_of(model)
    body, layers = anatomy.architecture.body, anatomy.sizes.num_layers
    places = [f"{body}.layers.{layer}" for layer in range(layers)] + [f"{body}.norm"]
    read = seen(model, {str(index): place for index, place in enumerate(places)})
    scores = measure_importance(model, list(ROWS))
    for layer in range(layers):
        total, count = 0.0, 0
        for before, after in zip(read[str(layer)], read[str(layer + 1)], strict=True):
            for x, y in zip(before, after, strict=True):
                lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
                total += sum(a * b for a, b in zip(x, y, strict=True)) / lengths
                count += 1
        assert float(scores.influence_L[layer]) == pytest.approx(1 - total / count, rel=CLOSE)


@torch.no_grad()
def swiglu(x, gate, up):
    """silu(gate x) * up x, by hand; matrices [inputs][neurons]."""
    columns = range(len(gate[0]))
    gates = [sum(x[i] * gate[i][f] for i in range(len(x))) for f in columns]
    ups = [sum(x[i] * up[i][f] for i in range(len(x))) for f in columns]
    return [g / (1 + math.exp(-g)) * u for g, u in zip(gates, ups, strict=True)]


def gpt_oss_gate(x, both, bias):
    """(up + 1) * gate * sigmoid(1.702 gate), clamped, gates and ups in turn."""
    sums = [sum(x[i] * both[i][f] for i in range(len(x))) + bias[f] for f in range(len(bias))]
    gates, ups = [min(s, 7.0) for s in sums[::2]], [max(min(s, 7.0), -7.0) for s in sums[1::2]]
    return [(u + 1) * g / (1 + math.exp(-1.702 * g)) for g, u in zip(gates, ups, strict=True)]


def routes(name, router, x):
    """Chosen experts and their weights, by the papers' rules."""
    logits = [sum(w * v for w, v in zip(row, x, strict=True)) for row in router.weight.tolist()]
    if name == "gpt_oss":
        logits = [a + b for a, b in zip(logits, router.bias.tolist(), strict=True)]
    best = sorted(range(len(logits)), key=lambda e: -logits[e])[:2]
    total = sum(math.exp(logits[e]) for e in best)  # qwen3_moe: softmax over all, then over the chosen: the same
    return {e: math.exp(logits[e]) / total for e in best}


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
@torch.no_grad()
def test_experts_and_their_neurons(name):
    model = eager(model_of(name))
    scores = measure_importance(model, list(ROWS))
    layer = 2
    mlp = model.model.layers[layer].mlp
    router = mlp.gate if name == "qwen3_moe" else mlp.router
    experts = mlp.experts
    count, width = anatomy_of(model).sizes.num_experts, anatomy_of(model).sizes.expert_size
    lengths, visits, squares = [0.0] * count, [0] * count, [0.0] * width
    for row in seen(model, {"mlp": f"model.layers.{layer}.mlp"})["mlp"]:
        sums = [0.0] * width
        for x in row:
            for e, weight in routes(name, router, x).items():
                if name == "gpt_oss":
                    inner = gpt_oss_gate(x, experts.gate_up_proj[e].tolist(), experts.gate_up_proj_bias[e].tolist())
                    down, bias = experts.down_proj[e].tolist(), experts.down_proj_bias[e].tolist()
                else:
                    matrix = experts.gate_up_proj[e].T
                    inner = swiglu(x, matrix[:, :width].tolist(), matrix[:, width:].tolist())
                    down, bias = experts.down_proj[e].T.tolist(), [0.0] * len(x)
                out = [weight * (sum(inner[f] * down[f][d] for f in range(width)) + bias[d]) for d in range(len(x))]
                lengths[e] += math.sqrt(sum(o * o for o in out))
                visits[e] += 1
                sums = [s + abs(i) for s, i in zip(sums, inner, strict=True)]
        squares = [q + (s / (2 * len(row))) ** 2 for q, s in zip(squares, sums, strict=True)]
    assert scores.routed[layer].tolist() == visits
    require_close(scores.experts[layer], [length / (n + 1e-8) for length, n in zip(lengths, visits, strict=True)])
    require_close(scores.expert_neurons[layer], [math.sqrt(q) for q in squares])


@torch.no_grad()
def test_experts_of_our_own():
    """Against the mixture itself, one expert's last matrix kept at a time."""
    model = eager(model_of("own, grape"))
    scores = measure_importance(model, list(ROWS))
    block = model.model.body.layers[2]
    given = []
    handle = block.mlp.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    model.base_model(input_ids=ROWS, use_cache=False)
    handle.remove()
    down = block.mlp.experts.down_EFD.clone()
    for expert in range(16):
        block.mlp.experts.down_EFD.zero_()[expert] = down[expert]
        routing = block.mlp.router(given[0].flatten(0, 1))
        visits = int((routing.expert_Nk == expert).sum())
        length = float(block.mlp(given[0]).x_BTD.norm(dim=-1).sum())
        assert float(scores.experts[2][expert]) == pytest.approx(length / (visits + 1e-8), rel=CLOSE)
        assert int(scores.routed[2][expert]) == visits


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_change_nothing_and_scores_come_back(name, tmp_path, monkeypatch):
    model = eager(model_of(name))
    together = measure_importance(model, list(ROWS))
    monkeypatch.setattr("limbeck.surgery.importance.BATCH_TOKENS", 1)
    apart = measure_importance(model, list(ROWS))
    together.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert again.tokens == together.tokens == ROWS.numel()
    for other, rtol in ((apart, 1e-5), (again, 0)):
        for field in ("hidden_HD", "influence_L"):
            torch.testing.assert_close(getattr(other, field), getattr(together, field), rtol=rtol, atol=1e-7 if rtol else 0)
        for field in ("neurons", "shared", "heads", "groups", "experts", "routed", "expert_neurons"):
            for one, two in zip(getattr(other, field), getattr(together, field), strict=True):
                torch.testing.assert_close(one, two, rtol=rtol, atol=0)
        assert other.mean_squares.keys() == together.mean_squares.keys()


def test_hooks_are_added_up_as_they_are_or_each_over_its_mean():
    hidden_HD = torch.tensor([[1.0, 3.0, 2.0], [100.0, 100.0, 400.0]])
    nothing = ()
    scores = Scores(1, hidden_HD, *(nothing,) * 7, torch.zeros(1), {})
    raw, normalised = (hidden_score(scores, Pruning(hidden_size=2, hidden_scores=how)) for how in ("raw_sum", "normalised_sum"))
    assert raw.tolist() == [101.0, 103.0, 402.0]
    assert normalised.tolist() == pytest.approx([0.5 + 0.5, 1.5 + 0.5, 1.0 + 2.0])


def test_the_best_stay_in_their_old_order():
    """Channels by one ranking, neurons by each layer's own, query heads inside each group, groups as wholes."""
    model = model_of("olmo3")
    anatomy = anatomy_of(model)
    hidden_HD = torch.zeros(8, 32)
    hidden_HD[3, [5, 30, 2]] = torch.tensor([3.0, 2.0, 1.0])
    scores = Scores(
        tokens=1,
        hidden_HD=hidden_HD,
        neurons=tuple(torch.arange(48.0).roll(layer) for layer in range(4)),
        shared=(torch.zeros(0),) * 4,
        heads=(torch.tensor([9.0, 1.0, 8.0, 2.0, 5.0, 3.0]),) * 4,
        groups=(torch.tensor([1.0, 2.0]),) * 4,
        experts=(torch.zeros(0),) * 4,
        routed=(torch.zeros(0),) * 4,
        expert_neurons=(torch.zeros(0),) * 4,
        influence_L=torch.zeros(4),
        mean_squares={},
    )
    raw = {"hidden_scores": "raw_sum"}
    kept = choose(anatomy, scores, Pruning(hidden_size=3, intermediate_size=2, num_heads=4, **raw), layers=(1, 3))
    assert kept.hidden_D.tolist() == [2, 5, 30]
    assert [each.tolist() for each in kept.neurons] == [[0, 47], [1, 2]]
    assert [each.tolist() for each in kept.heads] == [[0, 2, 4, 5]] * 2
    assert kept.groups == ()
    kept = choose(anatomy, scores, Pruning(num_kv_heads=1, num_heads=2))
    assert [each.tolist() for each in kept.heads] == [[4, 5]] * 4 and [each.tolist() for each in kept.groups] == [[1]] * 4


def test_what_is_no_number_is_not_the_best():
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = math.inf
    with pytest.raises(SpecError, match="activations are no finite numbers"):
        measure_importance(eager(model), list(ROWS))


def test_nothing_to_read_is_one_error():
    with pytest.raises(SpecError, match="no rows to measure importance on"):
        measure_importance(model_of("llama"), [])
