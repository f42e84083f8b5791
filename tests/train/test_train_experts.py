"""Expert load and router drift: against cases by hand, and in a run that is killed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_resume import Killed, at_step, kill, only_checkpoint_after, recipe_of, require_same
from tiny_students import moe

from limbeck.runs import open_run
from limbeck.train.expert_watch import chosen_experts, drift, load_of
from limbeck.train.setup import open_setup
from limbeck.train.train import train


def test_load_by_hand() -> None:
    """Ten choices among five experts: 6, 2, 2, 0, 0 of a mean of 2."""
    chosen = np.array([[0, 1], [0, 2], [0, 1], [0, 2], [0, 0]])  # the last one's stand for two tokens' first choices
    found = load_of(chosen, experts=5)
    assert found["load"] == 3
    assert found["dead"] == pytest.approx(2 / 5)
    shares = [0.6, 0.2, 0.2]
    assert found["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares) / math.log(5), rel=1e-12)
    even = load_of(np.arange(8).reshape(4, 2), experts=8)
    assert even == {"load": 1.0, "entropy": pytest.approx(1.0), "dead": 0.0}


def test_drift_by_hand() -> None:
    """Of three tokens the first kept both experts in another order, the second one of two, the third none."""
    before, now = np.array([[0, 1], [2, 3], [4, 5]]), np.array([[1, 0], [3, 7], [6, 7]])
    assert drift(before, now) == pytest.approx((0 + 1 / 2 + 1) / 3, rel=1e-12)
    assert drift(before, before) == 0


def test_a_run_records_what_its_routers_choose(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 7 after the evaluation of step 6, resumed from step 5: the same records. No layer changes its mind where
    nothing learns, and the choice is that of scores plus biases."""
    ce = {"objective": {"kind": "ce"}, "teacher": None, "signal": None, "student": moe().model_dump(mode="json")}
    data = {**values["data"], "tokenizer": values["teacher"]["model"]}
    calm, hurt = (recipe_of({**values, **ce, "data": data}, name=name) for name in ("calm", "hurt"))
    path = train(calm)
    found = open_run(path).events("experts")
    assert [record["step"] for record in found] == [2, 4, 6, 8]
    assert found[0]["drift"] is None
    assert all(0 < layer["drift"] < 1 for record in found[1:] for layer in record["layers"])
    assert [len(record["layers"]) for record in found] == [3] * 4
    assert found[1]["drift"] == found[1]["drift_from_first"] != found[2]["drift_from_first"]
    assert found[2]["entropy"] == pytest.approx(np.mean([layer["entropy"] for layer in found[2]["layers"]]), rel=1e-12)
    with at_step(7, kill, monkeypatch).context() as patched:
        only_checkpoint_after(5, patched)
        with pytest.raises(Killed):
            train(hurt)
    monkeypatch.undo()
    assert Path(hurt.run_path, "experts", "6.npy").is_file()
    require_same(train(hurt), path)
    assert not Path(hurt.run_path, "experts").exists()


def test_what_is_chosen_are_the_highest_scores_with_their_biases(values: dict[str, Any]) -> None:
    """Of the first layer with experts, from its inputs, by sorting; without groups."""
    student = moe(expert_groups=1, groups_per_token=1).model_dump(mode="json")
    data = {**values["data"], "tokenizer": values["teacher"]["model"]}
    recipe = recipe_of({**values, "objective": {"kind": "ce"}, "teacher": None, "student": student, "data": data})
    setup = open_setup(recipe)
    experts = setup.student.experts()[0]  # type: ignore[attr-defined]
    with torch.no_grad():
        experts.router.bias.copy_(torch.linspace(-0.5, 0.5, 8))
    inputs: list[torch.Tensor] = []
    hook = experts.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    chosen = chosen_experts(setup, setup.student, length=16)[0]  # type: ignore[arg-type]
    hook.remove()
    x_ND = torch.cat([each.flatten(0, 1) for each in inputs]).double()
    assert len(x_ND) == 213 == len(chosen)
    scores = 1 / (1 + torch.exp(-x_ND @ experts.router.weight.double().T)) + experts.router.bias.double()
    by_hand = [sorted(range(8), key=lambda expert: -row[expert])[:3] for row in scores.tolist()]
    assert [sorted(row) for row in chosen.tolist()] == [sorted(row) for row in by_hand]
