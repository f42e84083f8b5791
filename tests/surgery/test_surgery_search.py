"""The search over shapes: what is measured against the losses of models cut by hand, and what a short healing does."""

import math
from typing import Any

import pytest
import torch
from small_models import llama, random_rows, written_rows
from tiny_world import make_tokenizer

from limbeck.cli.prune_search import found_lines
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import DataError, DivergedError, SpecError
from limbeck.plan.prune_target import Workload, parse_target
from limbeck.spec.base import parse
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning
from limbeck.surgery import heal as healing
from limbeck.surgery.cut import cut
from limbeck.surgery.decode_time import decode_ms
from limbeck.surgery.heal import heal
from limbeck.surgery.keep import Kept
from limbeck.surgery.search import Asked, best_pruning, search

CPU = torch.device("cpu")


@pytest.fixture
def spec(tmp_path) -> HuggingFaceStudent:
    make_tokenizer(tmp_path)
    llama(layers=5).save_pretrained(tmp_path)
    return HuggingFaceStudent(model=str(tmp_path))


@pytest.fixture
def values(texts_folder) -> dict[str, Any]:
    texts = {"kind": "files", "paths": [f"{texts_folder}/train/*.txt"]}
    return {"calibration": {"texts": texts, "samples": 16, "sequence_length": 24}}


def test_shapes_near_the_target_are_cut_measured_and_ranked(spec, values):
    asked = Asked(parse_target("parameters=0.6"), top=4)
    found = search(spec, values, asked, data=None, device=CPU)
    whole = sum(parameter.numel() for parameter in llama(layers=5).parameters())
    assert found.whole.parameters == whole and found.wanted == pytest.approx(0.6 * whole)
    assert len(found.ranked) == 4
    losses = [each.loss_pruned for each in found.ranked]
    assert losses == sorted(losses) and all(math.isfinite(loss) for loss in losses)
    for each in found.ranked:
        assert abs(each.parameters / found.wanted - 1) <= 0.05 and each.parameters == each.shape.costs.parameters
        assert each.loss_healed is None and each.decode_ms is None
    assert best_pruning(found, values) == parse(Pruning, {**values, **found.ranked[0].shape.sizes}, source="test")


def test_healed_losses_decide_and_are_remembered(spec, values, monkeypatch):
    asked = Asked(parse_target("parameters=0.6"), top=2, heal_steps=4)
    healed: list[str] = []

    def spied(*arguments: Any, **others: Any) -> None:
        healed.append(others["title"])
        if len(healed) == 2:
            raise KeyboardInterrupt
        heal(*arguments, **others)

    monkeypatch.setattr(healing, "heal", spied)
    with pytest.raises(KeyboardInterrupt):
        search(spec, values, asked, data=None, device=CPU)
    found = search(spec, values, asked, data=None, device=CPU)
    assert len(healed) == 3 and healed[1] == healed[2] != healed[0]  # the first shape was known, the second begun anew
    for each in found.ranked:
        assert each.loss_healed is not None and each.loss == each.loss_healed != each.loss_pruned
    assert found.ranked[0].loss <= found.ranked[1].loss
    assert search(spec, values, asked, data=None, device=CPU) == found and len(healed) == 3


def test_latency_is_guessed_for_all_and_measured_for_some(spec, values, monkeypatch):
    """On a clock that takes 2 ms, 1 for each layer and 1 for each 20,000 parameters."""

    def clock(model: Any, *_: Any, **__: Any) -> float:
        layers = model.config.num_hidden_layers
        return 2.0 + layers + sum(parameter.numel() for parameter in model.parameters()) / 2e4

    monkeypatch.setattr("limbeck.surgery.decode_time.decode_ms", clock)
    monkeypatch.setattr("limbeck.surgery.search.decode_ms", clock)
    asked = Asked(parse_target("latency=0.75"), top=3, workload=Workload(context=16))
    found = search(spec, values, asked, data=None, device=CPU)
    model = llama(layers=5)
    assert found.whole_amount == pytest.approx(clock(model))
    for each in found.ranked:
        layers = each.shape.sizes.get("num_layers", 5)
        truth = 2.0 + layers + each.parameters / 2e4
        assert each.decode_ms == pytest.approx(truth) and each.shape.amount == pytest.approx(truth, rel=0.01)
        assert abs(truth / (0.75 * clock(model)) - 1) <= 0.06


def test_where_guesses_prove_wrong_the_nearest_is_first_and_it_is_said(spec, values, monkeypatch):
    """On a clock by which what is cut takes twice as long as what is built."""

    def clock(model: Any, *_: Any, **__: Any) -> float:
        return 2.0 + sum(parameter.numel() for parameter in model.parameters()) / 2e4

    monkeypatch.setattr("limbeck.surgery.decode_time.decode_ms", clock)
    monkeypatch.setattr("limbeck.surgery.search.decode_ms", lambda *each, **others: 2 * clock(*each, **others))
    asked = Asked(parse_target("latency=0.75"), top=3, workload=Workload(context=16))
    found = search(spec, values, asked, data=None, device=CPU)
    off = [each.decode_ms / found.wanted - 1 for each in found.ranked if each.decode_ms is not None]
    assert len(off) == 3 and off == sorted(off) and min(off) > 0.5
    said = found_lines(found, asked)[-1]
    assert said.startswith("no measured shape is within 5%; the nearest is ") and f"({off[0]:+.1%})" in said
    near = Asked(parse_target("parameters=0.6"), top=1)
    assert not any("no measured" in line for line in found_lines(search(spec, values, near, data=None, device=CPU), near))


def test_a_latency_search_is_repeated_without_a_clock(spec, values, monkeypatch):
    """And after a kill in the middle of the probes none is timed twice."""
    ticks: list[float] = []

    def clock(*_: Any, **__: Any) -> float:
        ticks.append(100.0 - len(ticks))
        if len(ticks) == 3:
            raise KeyboardInterrupt
        return ticks[-1]

    monkeypatch.setattr("limbeck.surgery.decode_time.decode_ms", clock)
    monkeypatch.setattr("limbeck.surgery.search.decode_ms", clock)
    asked = Asked(parse_target("latency=0.97"), top=1, workload=Workload(context=16))
    with pytest.raises(KeyboardInterrupt):
        search(spec, values, asked, data=None, device=CPU)
    found = search(spec, values, asked, data=None, device=CPU)
    assert found.whole_amount == 100.0 and ticks[:4] == [100.0, 99.0, 98.0, 97.0]
    count = len(ticks)
    assert search(spec, values, asked, data=None, device=CPU) == found and len(ticks) == count
    probes = len(["layers", "channels", "neurons", "groups", "all of them"])
    assert count == 1 + 1 + probes + 1  # what was killed, the model, its probes, the shape that was cut


def test_texts_chats_and_tasks_are_read_before_anything_is_timed(spec, values, monkeypatch):
    monkeypatch.setattr("limbeck.surgery.search.fitted_decode_ms", lambda *_, **__: pytest.fail("timed"))
    asked = Asked(parse_target("latency=0.5"))
    with pytest.raises(DataError, match=r"student\.prune\.depth\.file=none\.jsonl"):
        search(spec, {**values, "depth": {"kind": "task", "file": "none.jsonl"}}, asked, data=None, device=CPU)
    with pytest.raises(DataError, match="no chat template"):
        search(spec, {"calibration": {**values["calibration"], "chats": "none.jsonl"}}, asked, data=None, device=CPU)


def test_decoding_is_timed(spec):
    model = llama(layers=2)
    assert decode_ms(model, load_tokenizer(spec.model), Workload(context=8, batch_size=3), device=CPU) > 0


def test_mistakes_are_found_before_anything_is_measured(spec, values, monkeypatch):
    monkeypatch.setattr("limbeck.surgery.search.load_causal_lm", lambda _: pytest.fail("nothing has to be loaded"))
    for text, reason in (("parameters=1.5B", "is no less than the"), ("parameters=0.01", "no shape on the grid")):
        with pytest.raises(SpecError, match=reason):
            search(spec, values, Asked(parse_target(text)), data=None, device=CPU)
    with pytest.raises(SpecError, match="neither texts nor chats"):
        search(spec, {}, Asked(parse_target("parameters=0.6")), data=None, device=CPU)
    one = {"calibration": {**values["calibration"], "samples": 1}}
    with pytest.raises(SpecError, match="gives one row"):
        search(spec, one, Asked(parse_target("parameters=0.6")), data=None, device=CPU)


def plain_objective(model: Any, parent: Any, rows: list[torch.Tensor]) -> float:
    """Cross-entropy and KL(parent || model), in nats per token, written out in float64."""
    token_BT = torch.stack(rows)
    log_q_BTV, log_p_BTV = (each(input_ids=token_BT[:, :-1]).logits.double().log_softmax(-1) for each in (model, parent))
    ce = -log_q_BTV.gather(-1, token_BT[:, 1:, None]).mean()
    kl = (log_p_BTV.exp() * (log_p_BTV - log_q_BTV)).sum(-1).mean()
    return float(ce + kl)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setitem(healing.BATCH_TOKENS, "cpu", 96)


def test_healing_brings_a_pruned_model_nearer_to_its_parent():
    parent = llama()
    rows = written_rows(parent, 8)
    model = cut(parent, Kept((0, 1, 3)))
    with torch.no_grad():
        before, parents = plain_objective(model, parent, rows), {name: x.clone() for name, x in parent.state_dict().items()}
        loss = healing._loss(healing.with_head(model), healing.with_head(parent), torch.stack(rows))
        assert float(loss) == pytest.approx(before, rel=3e-3)  # where bfloat16 is faster, it is used
    heal(model, parent, rows, steps=20, title="test")
    with torch.no_grad():
        assert plain_objective(model, parent, rows) < 0.9 * before
    assert all(torch.equal(x, parents[name]) for name, x in parent.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_not_finite_ends_healing():
    parent = llama()
    model = cut(parent, Kept((0, 1)))
    broken = [each.data.fill_(torch.nan) for each in model.model.layers[1].mlp.up_proj.parameters()]
    assert broken
    with pytest.raises(DivergedError, match="test: the loss is nan at step 0"):
        heal(model, parent, random_rows(2), steps=2, title="test")
