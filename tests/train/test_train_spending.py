"""What a run spends and when it stops: budgets, clock, learning rate, evaluations, gradient accumulation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.report.from_runs import view_of_runs
from limbeck.report.study_page import write_study_report
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train import loop, texts
from limbeck.train import on_the_way as evaluations
from limbeck.train.setup import open_setup
from limbeck.train.texts import open_texts
from limbeck.train.train import train

TOKENS_PER_STEP = 4 * 32
CE = {"objective": {"kind": "ce"}}


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


def run(values: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The train records of a fresh run."""
    return open_run(train(recipe_of(values, **changes))).events("train")


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"kind": "steps", "amount": 5}, 5),
        ({"kind": "steps", "amount": 2.5}, 3),
        ({"kind": "tokens", "amount": 3 * TOKENS_PER_STEP}, 3),
        ({"kind": "tokens", "amount": 3 * TOKENS_PER_STEP + 1}, 4),
        ({"kind": "tokens", "amount": 1}, 1),
    ],
)
def test_a_budget_is_reached_and_not_overrun(values: dict[str, Any], budget: dict[str, Any], steps: int) -> None:
    records = run(values, **CE, budget=budget)
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert [record["tokens"] for record in records] == [TOKENS_PER_STEP * step for step in range(1, steps + 1)]


def test_a_budget_of_no_steps_measures_the_student_as_it_begins(values: dict[str, Any]) -> None:
    path = train(recipe_of(values, **CE, budget={"kind": "steps", "amount": 0}, name="untrained"))
    run = open_run(path)
    assert run.events("train") == [] and run.summary is not None and run.summary["tokens"] == 0
    student = open_setup(recipe_of(values, **CE)).student
    saved = load_file(path / "student" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in student.state_dict().items())
    assert run.summary["bits_per_byte"] == run.events("eval")[-1]["bits_per_byte"] > 1
    beside = train(recipe_of(values, **CE, budget={"kind": "steps", "amount": 2}, name="trained"))
    runs = {each.name: open_run(each) for each in (beside, path)}
    view = view_of_runs(runs, control="trained", stores=[], title="both", command="")
    assert "untrained" in write_study_report(view, folder=path.parent / "report").read_text(encoding="utf-8")


def test_flops_of_the_student_are_counted(values: dict[str, Any]) -> None:
    """Six FLOPs a token for each weight of a matrix, and attention: 12 * layers * heads' width * visible keys at the most."""
    one_step = run(values, **CE, budget={"kind": "steps", "amount": 1}, name="one")[0]["student_flops"]
    matrices = 2 * (16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 32) + 16 * 300
    assert 6 * matrices * TOKENS_PER_STEP < one_step <= (6 * matrices + 12 * 2 * 16 * 32) * TOKENS_PER_STEP
    records = run(values, **CE, budget={"kind": "flops", "amount": 3.5 * one_step})
    assert [record["student_flops"] for record in records] == [one_step * step for step in (1, 2, 3, 4)]
    assert all(record["teacher_flops"] == 0 for record in records)


def test_a_share_of_the_teachers_flops_is_counted(values: dict[str, Any]) -> None:
    """A stored row is paid for once: the teacher's share stops growing after the first epoch."""
    recipe = recipe_of(values, budget={"kind": "steps", "amount": 30}, name="long")
    write_recipe_stores([recipe])
    free = open_run(train(recipe)).events("train")
    spent = [record["student_flops"] + 0.5 * record["teacher_flops"] for record in free]
    assert free[-1]["teacher_flops"] == free[-2]["teacher_flops"] > 0
    assert free[1]["teacher_flops"] == pytest.approx(2 * free[0]["teacher_flops"])
    amount = 0.7 * spent[-1]
    records = run(values, budget={"kind": "flops", "amount": amount, "teacher_share": 0.5}, name="shared")
    assert len(records) == 1 + sum(cost < amount for cost in spent) < 30


class Clock:
    """A clock that only moves when told to; stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every step takes a second, every evaluation a hundred, every checkpoint a thousand."""
    found = Clock()
    monkeypatch.setattr(loop, "time", found)
    for module, name, seconds in ((loop, "optimizer_step", 1.0), (evaluations, "measure", 100.0), (loop, "save", 1000.0)):
        original = getattr(module, name)

        def slow(*arguments: Any, original: Any = original, seconds: float = seconds, **named: Any) -> Any:
            found.now += seconds
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, slow)
    return found


def cosine(fraction: float) -> float:
    """Warmup over the first 5 %, then half a cosine from 1 to 0.1."""
    if fraction < 0.05:
        return fraction / 0.05
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (fraction - 0.05) / 0.95)) / 2


def test_seconds_are_those_of_steps_alone(values: dict[str, Any], clock: Clock) -> None:
    records = run(values, **CE, budget={"kind": "seconds", "amount": 8.5}, checkpoint={"seconds": 2})
    assert [record["seconds"] for record in records] == [float(step) for step in range(1, 10)]
    assert clock.now > 5000  # evaluations and checkpoints did take their time
    # The middle of the coming step: s seconds spent and half of a step's second.
    expected = [0.0, *(cosine((step + 0.5) / 8.5) for step in range(1, 9))]
    assert [record["lr"] / 1e-3 for record in records] == pytest.approx(expected)


def test_the_schedule_follows_the_budget(values: dict[str, Any]) -> None:
    records = run(values, **CE, budget={"kind": "tokens", "amount": 1000}, optimizer={"kind": "adamw", "lr": 0.02})
    expected = [0.02 * cosine((step + 0.5) * TOKENS_PER_STEP / 1000) for step in range(8)]
    assert [record["lr"] for record in records] == pytest.approx(expected)


@pytest.mark.parametrize(("every", "expected"), [(0.1, range(1, 11)), (0.25, [3, 5, 8, 10]), (1.0, [10]), (0.01, range(1, 11))])
def test_evaluations_are_evenly_spread(values: dict[str, Any], every: float, expected: Any) -> None:
    path = train(recipe_of(values, **CE, budget={"kind": "steps", "amount": 10}, evaluation={"every": every}))
    assert [record["step"] for record in open_run(path).events("eval")] == list(expected)


def test_evaluations_change_nothing(values: dict[str, Any]) -> None:
    losses = [
        [record["loss_nats"] for record in run(values, **CE, evaluation={"every": every}, name=f"every-{every}")]
        for every in (0.01, 1.0)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
@pytest.mark.parametrize("packing", ["documents", "plain"])
def test_gradient_accumulation_is_one_batch(values: dict[str, Any], packing: str, live: bool) -> None:
    """The mean over 128 tokens is summed in another order: about 1e-7, relatively, which eight steps may multiply."""
    values["data"]["packing"] = packing
    values["signal"]["live"] = live
    if not live:
        write_recipe_stores([recipe_of(values)])
    whole = run(values, batch={"sequences": 4}, name="whole")
    for micro in (1, 3):
        parts = run(values, batch={"sequences": 4, "micro_sequences": micro}, name=f"micro-{micro}")
        for name in ("loss_nats", "ce", "forward_kl", "grad_norm"):
            assert [record[name] for record in parts] == pytest.approx([record[name] for record in whole], rel=1e-5)
    assert whole[-1]["loss_nats"] < whole[0]["loss_nats"]


def test_the_first_loss_is_the_mean_over_the_batch(values: dict[str, Any]) -> None:
    """Cross-entropy of the untrained student in float64, over all 128 targets."""
    recipe = recipe_of(values, **CE)
    opened = open_setup(recipe)
    (batch,) = opened.loader.step(0)
    with torch.no_grad():
        reading = opened.student(batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT)
        hidden_BTD = reading.hidden_BTD
        logits_TV = hidden_BTD.flatten(0, 1).double() @ opened.student.head_VD.double().T
        expected = torch.nn.functional.cross_entropy(logits_TV, batch.targets_BT.flatten())
    assert run(values, **CE)[0]["loss_nats"] == pytest.approx(float(expected), rel=1e-6)


def test_the_control_never_loads_the_teacher(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the teacher is loaded")

    monkeypatch.setattr("limbeck.train.setup.load_teacher", refuse)
    monkeypatch.setattr("limbeck.evals.reference.load_teacher", refuse)
    path = train(recipe_of(values, **CE, evaluation={"kl_to_teacher": False}))
    summary = open_run(path).summary
    assert summary is not None
    assert summary["kl_to_teacher_nats"] is None
    assert summary["teacher"] is None
    assert summary["teacher_flops"] == summary["bytes_read"] == 0


def test_live_and_stored_rows_train_the_same_student(values: dict[str, Any]) -> None:
    """Draws are the same ids and counts either way; only the entropy's float16 differs, and it has no gradient."""
    values["signal"] = {"kind": "sampled", "draws": 20}
    stored = recipe_of(values, name="stored")
    write_recipe_stores([stored])
    live = recipe_of({**values, "signal": {**values["signal"], "live": True}}, name="live")
    one, other = train(stored), train(live)
    weights, twins = (load_file(path / "student" / "model.safetensors") for path in (one, other))
    for name, tensor in weights.items():
        assert torch.equal(tensor, twins[name]), name
    assert open_run(one).events("train")[-1]["bytes_read"] > 0
    assert open_run(other).events("train")[-1]["bytes_read"] == 0


def test_the_summary_is_the_last_record(values: dict[str, Any]) -> None:
    path = train(recipe_of(values, **CE))
    opened = open_run(path)
    last = opened.events("train")[-1]
    assert opened.summary is not None
    for name in ("step", "tokens", "seconds", "student_flops", "teacher_flops", "bytes_read"):
        assert opened.summary[name] == last[name] == opened.events("eval")[-1][name]
    assert opened.summary["tokens_per_second"] == pytest.approx(last["tokens"] / last["seconds"])
    assert Path(path, "student", "tokenizer.json").is_file()


def test_a_teachers_revision_is_its_tokenizers_too(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    original = texts.load_tokenizer

    def load(folder: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
        asked.append((folder, revision))
        return original(local)

    local = values["teacher"]["model"]
    monkeypatch.setattr(texts, "load_tokenizer", load)
    open_texts(recipe_of({**values, "teacher": {"kind": "huggingface", "model": "some/hub-id", "revision": "v2"}}))
    open_texts(recipe_of({**values, "teacher": {"kind": "huggingface", "model": local, "revision": "v2"}}))
    assert asked == [("some/hub-id", "v2"), (local, None)]
