"""The loop with averages, rounding, experts, softcaps and Muon: what reaches the run, and what is resumed bit for bit."""

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_resume import Killed, at_step, kill, only_checkpoint_after, recipe_of, require_same

from limbeck.errors import DivergedError
from limbeck.objectives.objective import LossOutput
from limbeck.runs import open_run
from limbeck.train import loop
from limbeck.train.train import train

SIZES = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 32}
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "expert_size": 8, "balance_weight": 0.01}
EMA, SWA = {"kind": "ema", "decay": 0.8}, {"kind": "swa", "below": 0.9, "every": 0.1}
ALL: dict[str, Any] = {
    "student": {"kind": "moe", **SIZES, **EXPERTS, "shared_expert": {"size": 16, "schedule": "anneal", "until": 1.0}},
    "objective": {"kind": "ce"},
    "optimizer": {"kind": "normuon", "momentum_warmup": {"start": 0.5, "until": 0.5}},
    "schedule": {"kind": "wsd", "warmup": 0.1, "decay": 0.7},
    "averaging": EMA,
    "quantisation_aware": {"from_lr_factor": 0.8, "small_elements": 0, "matrix_bits": 3},
    "batch": {"sequences": 4, "micro_sequences": 2},
}


def trained(values: dict[str, Any], **changes: Any) -> tuple[list[dict[str, Any]], list[float], dict[str, torch.Tensor]]:
    """Training records, bits per byte of every evaluation, and the weights of the saved student."""
    path = train(recipe_of(values, **{**ALL, **changes}))
    found = open_run(path)
    weights = load_file(path / "student" / "model.safetensors")
    return found.events("train"), [record["bits_per_byte"] for record in found.events("eval")], weights


@pytest.mark.parametrize("averaging", [EMA, SWA], ids=["ema", "swa"])
@pytest.mark.parametrize("last", [False, True], ids=["midway", "after the last step"])
def test_a_killed_run_continues_bit_for_bit(
    values: dict[str, Any], averaging: dict[str, Any], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**ALL, "averaging": averaging, "checkpoint": {"seconds": 1e-9}}
    calm, hurt = (recipe_of(values, **changes, name=name) for name in ("calm", "hurt"))
    undisturbed = train(calm)
    with monkeypatch.context() as patched:
        if last:
            patched.setattr(sys.modules["limbeck.train.train"], "finish", lambda *_, **__: kill())
        else:
            at_step(7, kill, patched)
            only_checkpoint_after(5, patched)
        with pytest.raises(Killed):
            train(hurt)
    require_same(train(hurt), undisturbed)


def test_experts_are_balanced_once_a_step_however_it_is_cut(values: dict[str, Any]) -> None:
    """Without rounded weights: a sum in another order can move one of them by a whole step of three bits."""
    exact = {"quantisation_aware": None}
    whole, _, expected = trained(values, **exact, batch={"sequences": 4}, name="whole")
    for record in whole:
        assert record["loss_nats"] == pytest.approx(record["ce"] + record["balance"], rel=1e-6)
    for micro in (1, 2):
        batch = {"sequences": 4, "micro_sequences": micro}
        records, _, weights = trained(values, **exact, batch=batch, name=f"micro-{micro}")
        for name in ("loss_nats", "balance", "grad_norm"):
            assert [each[name] for each in records] == pytest.approx([each[name] for each in whole], rel=1e-4)
        for name, bias in ((name, each) for name, each in expected.items() if name.endswith("router.bias")):
            assert bias.any() and torch.equal(weights[name], bias), name
    shares = [float(each) for name, each in expected.items() if name.endswith("shared_share")]
    assert shares and set(shares) == {1 / 16}  # in the middle of the last of eight steps, annealed over all of them


def test_rounding_and_averages_reach_the_run(values: dict[str, Any]) -> None:
    records, measured, weights = trained(values, name="all")
    unrounded, _, _ = trained(values, name="unrounded", quantisation_aware=None)
    losses, plain = ([each["loss_nats"] for each in one] for one in (records, unrounded))
    begins = next(index for index, (one, other) in enumerate(zip(losses, plain, strict=True)) if one != other)
    assert begins == 4  # in the middle of the fifth of eight steps the rate first is below 0.8: (1 - 4.5 / 8) / 0.7 = 0.63
    own, own_measured, own_weights = trained(values, name="own", averaging={"kind": "none"})
    assert [each["loss_nats"] for each in own] == losses
    assert all(one != other for one, other in zip(measured, own_measured, strict=True))
    assert not torch.equal(weights["model.body.embed_tokens.weight"], own_weights["model.body.embed_tokens.weight"])


def test_the_loss_is_that_of_capped_logits(values: dict[str, Any]) -> None:
    student = {"kind": "golf", **SIZES, "exclusive_layers": 1, "softcap": 0.05}
    recipe = recipe_of(values, objective={"kind": "ce"}, student=student, optimizer={"lr": 0.1}, name="capped")
    losses = [record["loss_nats"] for record in open_run(train(recipe)).events("train")]
    assert all(abs(loss - math.log(300)) <= 0.1 for loss in losses), losses  # logits differ by 0.1 at most, whatever is learnt


def test_a_step_that_is_not_finite_changes_nothing(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    step, loss, kept = loop.optimizer_step, loop.batch_loss, {}

    def watched(setup: Any, *arguments: Any, **named: Any) -> dict[str, float]:
        kept.update(setup=setup, before={name: each.clone() for name, each in setup.student.state_dict().items()})
        if kept.setdefault("steps", 0) == 2:
            monkeypatch.setattr(loop, "batch_loss", poisoned)
        kept["steps"] += 1
        return step(setup, *arguments, **named)

    def poisoned(*arguments: Any, **named: Any) -> tuple[LossOutput, torch.Tensor | None]:
        output, load_ME = loss(*arguments, **named)
        return replace(output, loss=output.loss * math.nan), load_ME

    monkeypatch.setattr(loop, "optimizer_step", watched)
    with pytest.raises(DivergedError, match="step 3"):
        train(recipe_of(values, **ALL))
    after = kept["setup"].student.state_dict()
    changed = [name for name, each in kept["before"].items() if not torch.equal(each, after[name])]
    assert all(name.endswith("shared_share") for name in changed), changed  # of the schedule, set before every step
