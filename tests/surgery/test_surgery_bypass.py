"""Layers bypassed, against models from which the layers are deleted; choices by cost, against all that could be chosen."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models import llama, random_rows, written_rows

from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.local_tasks import Problem
from limbeck.plan.pruned_layers import Choice
from limbeck.surgery.bypass import ModelReader, bypassed, mean_nats
from limbeck.surgery.cheapest import cheapest
from limbeck.surgery.loss_rise import LossCost
from limbeck.surgery.task_score import TaskCost, choice_rows


def without(model, places: Sequence[int]):
    """The model with layers deleted, which is right where nothing depends on a layer's place."""
    stay = [layer for place, layer in enumerate(model.model.layers) if place not in places]
    shorter = llama(layers=len(stay))
    shorter.load_state_dict({name: x for name, x in model.state_dict().items() if "layers" not in name}, strict=False)
    shorter.model.layers = torch.nn.ModuleList(stay)
    return shorter


def plain_loss(model, rows) -> float:
    """In float64, token by token."""
    model = model.double()
    total = 0.0
    for row_T in rows:
        log_q_TV = model(input_ids=row_T[None], use_cache=False).logits[0].log_softmax(-1)
        total -= sum(float(log_q_TV[at, row_T[at + 1]]) for at in range(len(row_T) - 1))
    return total / sum(len(row_T) - 1 for row_T in rows)


@pytest.mark.parametrize("places", [(), (2,), (0, 1), (1, 2, 3)])
def test_a_bypassed_model_is_one_without_the_layers(places):
    model, rows = llama(), random_rows(3)
    with bypassed(model.model.layers, places):
        found = model(input_ids=torch.stack(rows), use_cache=False).logits
        nats = mean_nats(ModelReader(model), rows)
    shorter = without(model, places)
    torch.testing.assert_close(found, shorter(input_ids=torch.stack(rows), use_cache=False).logits)
    assert nats == pytest.approx(plain_loss(shorter, rows), rel=1e-5)


def test_hooks_are_gone_afterwards():
    model, rows = llama(), random_rows(2)
    before = model(input_ids=torch.stack(rows)).logits
    with pytest.raises(KeyboardInterrupt), bypassed(model.model.layers, (1, 2)):
        raise KeyboardInterrupt
    torch.testing.assert_close(model(input_ids=torch.stack(rows)).logits, before, rtol=0, atol=0)


def test_our_own_layers_can_be_bypassed():
    from tiny_students import olmo3

    from limbeck.students.build import build_decoder

    decoder = build_decoder(olmo3(num_layers=3), vocab_size=300, seed=0)
    token_BT = torch.stack(random_rows(2))
    shorter = build_decoder(olmo3(num_layers=3), vocab_size=300, seed=0)
    del shorter.model.layers[1]
    with bypassed(decoder.model.layers, (1,)):
        found = decoder(token_BT).hidden_BTD
    assert not torch.allclose(found, decoder(token_BT).hidden_BTD)
    assert shorter(token_BT).hidden_BTD.shape == found.shape
    torch.testing.assert_close(found, shorter(token_BT).hidden_BTD)


def test_an_idle_layer_costs_nothing_and_is_the_first_to_go():
    model = llama(idle=(2,))
    rows = written_rows(model)
    cost = LossCost(ModelReader(model), model.model.layers, rows)
    assert cost([2]) == (0.0,)
    found = cheapest(one_by_one(4, going=1), cost, contiguous=False, title="test")
    assert found.stay == (0, 1, 3)
    assert found.costs[2,] == (0.0,) and all(found.costs[place,][0] > 0.1 for place in (0, 1, 3))


def test_costs_of_loss_are_rises_over_the_whole_model():
    model, rows = llama(), random_rows(4)
    cost = LossCost(ModelReader(model), model.model.layers, rows)
    whole = plain_loss(llama(), rows)
    for places in ((0,), (1, 2)):
        assert cost(places)[0] == pytest.approx(plain_loss(without(llama(), places), rows) - whole, abs=1e-5)


def one_by_one(layers: int, *, going: int) -> Choice:
    return Choice(layers, tuple((place,) for place in range(layers)), going)


@pytest.mark.parametrize("going", [1, 2, 3])
def test_the_block_is_the_best_of_all(going):
    """Every block deleted from the model, its loss in float64."""
    model, rows = llama(layers=5, seed=3), random_rows(4)
    losses = {
        start: plain_loss(without(llama(layers=5, seed=3), range(start, start + going)), rows) for start in range(5 - going + 1)
    }
    best = min(losses, key=losses.__getitem__)
    cost = LossCost(ModelReader(model), model.model.layers, rows)
    found = cheapest(one_by_one(5, going=going), cost, contiguous=True, title="test")
    assert found.stay == tuple(place for place in range(5) if not best <= place < best + going)
    assert len(found.costs) == len(losses)


def test_free_choice_takes_the_cheapest_singles_and_whole_groups():
    prices = {0: 5.0, 1: 1.0, 2: 4.0, 3: 2.0, 4: 0.5, 5: 9.0}

    def cost(places: Sequence[int]) -> tuple[float, ...]:
        return (sum(prices[place] for place in places),)

    chosen = cheapest(one_by_one(6, going=3), cost, contiguous=False, title="test")
    gone = set(range(6)) - set(chosen.stay)
    assert sum(prices[each] for each in gone) == min(sum(prices[each] for each in some) for some in combinations(range(6), 3))
    groups = Choice(6, ((0, 1), (2, 3), (4, 5)), 1)
    assert cheapest(groups, cost, contiguous=False, title="test").stay == (2, 3, 4, 5)
    assert cheapest(one_by_one(6, going=0), cost, contiguous=True, title="test").stay == tuple(range(6))


def test_costs_are_remembered_as_they_come(tmp_path: Path):
    """A choice that was interrupted reads each layer once in all."""
    asked: list[tuple[int, ...]] = []

    def cost(places: Sequence[int]) -> tuple[float, ...]:
        asked.append(tuple(places))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return (float(-places[0]), 1.0)

    path = tmp_path / "within" / "costs.json"
    with pytest.raises(KeyboardInterrupt):
        cheapest(one_by_one(4, going=2), cost, contiguous=False, title="test", remembered=path)
    found = cheapest(one_by_one(4, going=2), cost, contiguous=False, title="test", remembered=path)
    assert found.stay == (0, 1)
    assert asked == [(0,), (1,), (2,), (2,), (3,)]


def test_a_task_is_answered_by_the_likeliest_choice(teacher_folder: Path):
    """Against log-softmax over whole texts; an idle layer changes no answer, and ties are broken by the right choice's nats."""
    model, tokenizer = llama(idle=(1,)), load_tokenizer(str(teacher_folder))
    problems, expected_nats = [], []
    for place, word in enumerate("state union nation congress law budget".split()):
        problem = Problem(f"Q: the {word} of people\nA:", ("peace", "war and", "energy"), (0,))
        nats = []
        for before, after in choice_rows(problem, tokenizer):
            tokens_T = torch.tensor([*before, *after])
            assert tokenizer.backend.decode(tokens_T[1:]).startswith(problem.context)
            logits_TV = model(input_ids=tokens_T[None]).logits[0, len(before) - 1 : -1]
            nats.append(float(F.cross_entropy(logits_TV.double(), tokens_T[len(before) :], reduction="sum")))
        right = min(nats) if place < 4 else max(nats)  # the likeliest is right of four questions, the least likely of two
        problems.append(replace(problem, labels=(nats.index(right),)))
        expected_nats.append(right)
    cost = TaskCost(ModelReader(model), model.model.layers, problems, tokenizer)
    error, right = cost([])
    assert error == pytest.approx(2 / 6) and right == pytest.approx(sum(expected_nats) / 6, rel=1e-5)
    assert cost([1]) == (error, right)
    singles = {place: cost([place]) for place in range(4)}
    found = cheapest(one_by_one(4, going=1), cost, contiguous=False, title="test")
    assert set(range(4)) - set(found.stay) == {min(singles, key=singles.__getitem__)}


def test_answers_that_are_no_numbers_are_wrong_and_cost_a_finite_sum(teacher_folder: Path):
    model, tokenizer = llama(), load_tokenizer(str(teacher_folder))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    problems = [Problem("Q: peace\nA:", ("yes", "no"), (label,)) for label in (0, 1)]
    error, right = TaskCost(ModelReader(model), model.model.layers, problems, tokenizer)([1])
    assert error == 1.0 and json.loads(json.dumps([right], allow_nan=False))[0] > 1e6


def test_sentences_are_compared_whole(teacher_folder: Path):
    tokenizer = load_tokenizer(str(teacher_folder))
    rows = choice_rows(Problem("", ("peace and war", "law"), (0,)), tokenizer)
    assert [before.tolist() for before, _ in rows] == [[tokenizer.start_id]] * 2
    assert tokenizer.backend.decode(rows[0][1]) == "peace and war"
