"""Experts, and golf's tables, skips and gates, in the training loop: micro-batches, resumption, what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_resume import Killed, at_step, kill, recipe_of, require_same
from tiny_students import golf, moe

from limbeck.runs import open_run
from limbeck.students import hf
from limbeck.train.train import train

CE: dict[str, Any] = {"objective": {"kind": "ce"}, "signal": None, "evaluation": {"kl_to_teacher": False}}
STEPS = 4
BIAS_STEP = 0.01


def biases(path: Path) -> torch.Tensor:
    weights = load_file(path / "student" / "model.safetensors")
    return torch.stack([weights[name] for name in sorted(weights) if name.endswith("router.bias")])


def test_micro_batches_balance_experts_as_one_batch_does(values: dict[str, Any]) -> None:
    """The balance loss weighs each micro-batch by its tokens; biases move once a step, by the loads of all of them."""
    spec = moe(num_layers=3, balance_weight=0.5, bias_step=BIAS_STEP, sliding_window=16)
    changes = {**CE, "student": spec.model_dump(mode="json"), "budget": {"kind": "steps", "amount": STEPS}}
    whole, parts = (
        train(recipe_of(values, **changes, name=f"by-{each}", batch={"sequences": 4, "micro_sequences": each}))
        for each in (4, 1)
    )
    one, other = (open_run(path).events("train") for path in (whole, parts))
    assert len(one) == len(other) == STEPS
    for record, same in zip(one, other, strict=True):
        for key in ("loss_nats", "balance", "grad_norm"):
            assert record[key] == pytest.approx(same[key], rel=1e-4), key
        # Two mixtures, each of balance alpha where experts are equally busy, and more where they are not.
        assert 0.9 <= record["balance"] < 2.0
    torch.testing.assert_close(biases(parts), biases(whole), rtol=0, atol=1e-7)
    assert BIAS_STEP / 2 < float(biases(whole).abs().max()) <= 2 * STEPS * BIAS_STEP


def test_golf_trains_resumes_and_is_saved(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = golf(num_layers=3, exclusive_layers=1)
    changes = {**CE, "student": spec.model_dump(mode="json"), "checkpoint": {"seconds": 1e-9}}
    changes["optimizer"] = {"kind": "adamw", "lr": 0.01}
    calm, hurt = (recipe_of(values, **changes, name=name) for name in ("calm", "hurt"))
    undisturbed = train(calm)
    with at_step(5, kill, monkeypatch).context(), pytest.raises(Killed):
        train(hurt)
    monkeypatch.undo()
    require_same(train(hurt), undisturbed)
    losses = [record["loss_nats"] for record in open_run(undisturbed).events("train")]
    assert losses[-1] < losses[0] - 0.1
    student, saved, vocab_size = hf.load(undisturbed / "student")
    assert (saved, vocab_size) == (spec.with_vocab_size(300), 300)
    assert all(bool(parameter.isfinite().all()) for parameter in student.parameters())
    # What begins at zero has learned something, and so has taken part.
    for part in (student.model.bigram.table.weight, student.model.smear.gate_D, student.model.value_embedding.proj.weight):
        assert bool(part.any())
