"""Sinks of metrics: what TensorBoard's own reader finds is what metrics.jsonl holds, and no sink stops or changes a run."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.train import loop, sinks
from limbeck.train.train import train


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "objective": {"kind": "ce"}, "budget": {"kind": "steps", "amount": 4}, "checkpoint": {"seconds": 1e-9}}


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def train_until_killed(recipe: Recipe, *, in_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, counted = loop.optimizer_step, [0]

    def counting(*arguments: Any, **named: Any) -> dict[str, float]:
        counted[0] += 1
        if counted[0] == in_step:
            raise Killed
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", counting)
        with pytest.raises(Killed):
            train(recipe)


class Recorder:
    """A target that keeps what it is told."""

    def __init__(self, sent: list[tuple[int, dict[str, float]]]) -> None:
        self.sent = sent

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.sent.append((step, dict(values)))

    def close(self) -> None:
        pass


def expected(path: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl says of train and eval records, by the sinks' names."""
    found = []
    costs = {"tokens", "seconds", "student_flops", "teacher_flops", "bytes_read"}
    for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        event, step = record.pop("event"), record.pop("step")
        named = {f"{event}/{name}": value for name, value in record.items() if name not in costs and value is not None}
        named |= {f"costs/{name}": record[name] for name in costs} if event == "train" else {}
        found.append((step, named))
    return found


@pytest.fixture
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "check_sinks", lambda given: None)
    monkeypatch.setattr("limbeck.train.train.check_sinks", lambda given: None)


@pytest.mark.usefixtures("everything_is_installed")
@pytest.mark.parametrize("saved", [True, False], ids=["checkpoint", "no checkpoint"])
def test_a_resumed_run_sends_every_record_once(values: dict[str, Any], saved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 4. With no checkpoint all steps are computed again, and none of the first three is sent again."""
    sent: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(sinks, "_open", lambda sink, recipe, path: Recorder(sent))
    recipe = recipe_of(values, sinks=[{"kind": "tensorboard"}], checkpoint={"seconds": 1e-9 if saved else 1e9})
    train_until_killed(recipe, in_step=4, monkeypatch=monkeypatch)
    assert [step for step, values in sent if "train/loss_nats" in values] == [1, 2, 3]
    path = train(recipe)
    steps = [(step, "eval/bits_per_byte" in values) for step, values in sent]
    assert len(set(steps)) == len(steps)
    without = [(step, {name: value for name, value in named.items() if name != "costs/seconds"}) for step, named in sent]
    assert without == [
        (step, {name: value for name, value in named.items() if name != "costs/seconds"}) for step, named in expected(path)
    ]


@pytest.mark.usefixtures("everything_is_installed")
def test_a_sink_that_fails_says_so_once_and_changes_nothing(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(recipe_of(values, name="plain"))
    weights = load_file(plain / "student" / "model.safetensors")
    # With a failure at step 3, steps 1 and 2 and their evaluations were sent; without, four steps and as many evaluations.
    for fails, told in (("open", 0), ("log", 4), ("close", 8)):
        sent: list[tuple[int, dict[str, float]]] = []
        monkeypatch.setattr(sinks, "_open", failing(fails, sent))
        capsys.readouterr()
        path = train(recipe_of(values, name=fails, sinks=[{"kind": "trackio", "project": "p"}]))
        said = [line for line in capsys.readouterr().err.splitlines() if "trackio" in line]
        assert len(said) == 1
        assert f"RuntimeError: cannot {fails}" in said[0]
        assert "and more" not in said[0]
        assert len(sent) == told
        other = load_file(path / "student" / "model.safetensors")
        assert all(bool((tensor == other[name]).all()) for name, tensor in weights.items())
        assert len(expected(path)) == len(expected(plain)) == 8


def failing(where: str, sent: list[tuple[int, dict[str, float]]]) -> Callable[..., Recorder]:
    """What opens a recorder that raises when it is opened, at step 3, or at the end."""

    class Failing(Recorder):
        def log(self, values: Mapping[str, float], step: int) -> None:
            if where == "log" and step == 3:
                raise RuntimeError("cannot log\nand more")
            super().log(values, step)

        def close(self) -> None:
            if where == "close":
                raise RuntimeError("cannot close\nand more")

    def opened(*arguments: Any) -> Recorder:
        if where == "open":
            raise RuntimeError("cannot open\nand more")
        return Failing(sent)

    return opened


def test_a_missing_package_is_found_before_anything_else(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = recipe_of(values, sinks=[{"kind": "wandb", "project": "p"}])
    with pytest.raises(LimbeckError, match=r"sinks\.0\.kind=wandb needs its package: pip install 'limbeck\[wandb\]'"):
        train(recipe)
    assert not Path(recipe.run_path).exists()


def test_sinks_may_change_when_a_run_goes_on(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train_until_killed(recipe_of(values), in_step=4, monkeypatch=monkeypatch)
    monkeypatch.setattr("limbeck.train.train.check_sinks", lambda given: None)
    sent: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(sinks, "_open", lambda sink, recipe, path: Recorder(sent))
    path = train(recipe_of(values, sinks=[{"kind": "tensorboard"}]))
    assert [step for step, named in sent if "train/loss_nats" in named] == [4]
    assert open_run(path).recipe.sinks[0].kind == "tensorboard"


def test_an_unknown_sink_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"sinks\.0\.kind=wandbb is not a kind; did you mean 'wandb'"):
        recipe_of(values, sinks=[{"kind": "wandbb", "project": "p"}])


def test_tensorboards_reader_finds_the_records(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = recipe_of(values, sinks=[{"kind": "tensorboard"}])
    train_until_killed(recipe, in_step=3, monkeypatch=monkeypatch)
    path = train(recipe)
    # Events of the killed part and of the rest; nothing is purged, so that a step sent twice would be seen.
    found = accumulators.EventAccumulator(str(path / "tensorboard"), purge_orphaned_data=False).Reload()
    for name in ("train/loss_nats", "train/lr", "eval/bits_per_byte", "costs/student_flops"):
        there = [(event.step, event.value) for event in found.Scalars(name)]
        wanted = [(step, named[name]) for step, named in expected(path) if name in named]
        assert [step for step, _ in there] == [step for step, _ in wanted]
        assert [value for _, value in there] == pytest.approx([value for _, value in wanted], rel=1e-6)  # float32


def test_wandb_offline_keeps_a_run(values: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    path = train(recipe_of(values, sinks=[{"kind": "wandb", "project": "limbeck-test", "mode": "offline"}]))
    assert "left alone" not in capfd.readouterr().err
    (kept,) = path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads((path / "sinks.json").read_text(encoding="utf-8"))["id"] in kept.name
    assert b"loss_nats" in kept.read_bytes()


def test_trackio_keeps_every_step(
    values: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    import sqlite3

    recipe = recipe_of(values, sinks=[{"kind": "trackio", "project": "limbeck-test"}])
    train_until_killed(recipe, in_step=3, monkeypatch=monkeypatch)
    path = train(recipe)
    captured = capfd.readouterr()
    assert "left alone" not in captured.err
    assert captured.out == ""  # stdout is for results
    (database,) = tmp_path.glob("trackio/*.db")
    rows = sqlite3.connect(database).execute("select step, metrics from metrics order by id").fetchall()
    read = [(step, json.loads(metrics)) for step, metrics in rows]
    there = [(step, metrics["train/loss_nats"]) for step, metrics in read if "train/loss_nats" in metrics]
    assert there == [(step, named["train/loss_nats"]) for step, named in expected(path) if "train/loss_nats" in named]
