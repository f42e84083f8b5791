"""Scheduled weights, routing and the projection inside the training loop, with a live teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.train import loop, resume
from limbeck.train.setup import open_setup
from limbeck.train.train import train

POINTS = {"kind": "points", "at": [[0.1, 0.2], [0.5, 1.0], [1, 0]]}
EVERYTHING: dict[str, Any] = {
    "signal": {"kind": "dense", "temperature": 1.5},
    "objective": {
        "kind": "mixture",
        "terms": [
            {"weight": POINTS, "term": {"kind": "jsd", "beta": 0.3, "scale": "plain", "temperature_squared": False}},
            {"weight": {"kind": "with_lr", "at_peak": 0.2, "at_zero": 0.7}, "term": {"kind": "ce"}},
            {"weight": 0.5, "term": {"kind": "reverse_kl"}, "entropy": {"from_nats": 1.0}},
            {"weight": 0.3, "term": {"kind": "hidden"}},
        ],
    },
    "schedule": {"kind": "wsd", "warmup": 0.25, "decay": 0.5, "final": 0.0},
}


class Killed(BaseException):
    """Nothing in the code may catch it."""


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **EVERYTHING, **changes}, source="test")


def test_the_logged_loss_is_the_sum_that_the_schedule_says(values: dict[str, Any]) -> None:
    """Eight steps, each read in its middle: fractions 1/16, 3/16, ..., 15/16."""
    steps = open_run(train(recipe_of(values))).events("train")
    fractions = [(2 * index + 1) / 16 for index in range(8)]
    points = [0.2, 0.2 + 0.8 * (3 / 16 - 0.1) / 0.4, 0.2 + 0.8 * (5 / 16 - 0.1) / 0.4, 0.2 + 0.8 * (7 / 16 - 0.1) / 0.4]
    points += [2 * (1 - fraction) for fraction in fractions[4:]]
    lr_factors = [min(fraction / 0.25, 1, (1 - fraction) / 0.5) for fraction in fractions]
    for step, point, factor in zip(steps, points, lr_factors, strict=True):
        assert step["lr"] == pytest.approx(1e-3 * factor)
        routed = step["reverse_kl[entropy 1..]"]
        assert routed > 0
        expected = point * step["jsd"] + (0.7 - 0.5 * factor) * step["ce"] + 1.5**2 * 0.5 * routed + 0.3 * step["hidden_cosine"]
        assert step["loss_nats"] == pytest.approx(expected, rel=1e-5)


def test_a_killed_run_continues_bit_for_bit_with_its_projection(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 6 of 8, one step after the last checkpoint."""
    calm, hurt = (recipe_of(values, name=name, checkpoint={"seconds": 1e-9}) for name in ("calm", "hurt"))
    undisturbed = train(calm)
    step, save, taken = loop.optimizer_step, resume.save_checkpoint, [0]

    def killed_in_six(*arguments: Any, **named: Any) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == 6:
            raise Killed
        return step(*arguments, **named)

    def save_until_four(path: Path, **named: Any) -> None:
        if named["costs"].step <= 4:
            save(path, **named)

    monkeypatch.setattr(loop, "optimizer_step", killed_in_six)
    monkeypatch.setattr(resume, "save_checkpoint", save_until_four)
    with pytest.raises(Killed):
        train(hurt)
    monkeypatch.undo()
    saved = torch.load(Path(hurt.run_path, "checkpoint.pt"), weights_only=True)
    assert saved["costs"]["step"] == 4
    fresh = open_setup(hurt)
    assert fresh.projection is not None
    start_ED = fresh.projection.weight.detach()
    assert start_ED.shape == (32, 16)
    assert not torch.equal(saved["model"]["projection.weight"], start_ED)  # it has learned
    path = train(hurt)
    one, other = (
        [{key: value for key, value in record.items() if key != "seconds"} for record in open_run(each).records]
        for each in (path, undisturbed)
    )
    assert one == other
    weights = [load_file(each / "student" / "model.safetensors") for each in (path, undisturbed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any("projection" in name for name in weights[0])  # no part of the student


def test_no_projection_without_a_hidden_term(values: dict[str, Any]) -> None:
    setup = open_setup(recipe_of(values, objective={"kind": "reverse_kl"}))
    assert setup.projection is None
    assert setup.trained is setup.student


def test_micro_batches_give_the_losses_of_the_whole_batch(values: dict[str, Any]) -> None:
    whole, parts = (
        open_run(train(recipe_of(values, name=name, batch={"sequences": 4, "micro_sequences": micro}))).events("train")
        for name, micro in (("whole", 4), ("parts", 1))
    )
    for one, other in zip(whole, parts, strict=True):
        assert one["loss_nats"] == pytest.approx(other["loss_nats"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
