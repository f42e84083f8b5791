"""A run that is stopped, killed or damaged: what continues is what an undisturbed run would have been, bit for bit."""

import errno
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train import loop, resume
from limbeck.train.interrupt import Interrupted
from limbeck.train.train import train

NOT_REPEATABLE = {"seconds"}


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


def records(path: Path, *, without: set[str] = NOT_REPEATABLE) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in without} for record in open_run(path).records]


def require_same(path: Path, undisturbed: Path, *, without: set[str] = NOT_REPEATABLE) -> None:
    """Same records, same weights, same summary, but for what a clock says."""
    assert records(path, without=without) == records(undisturbed, without=without)
    one, other = load_file(path / "student" / "model.safetensors"), load_file(undisturbed / "student" / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    first, second = open_run(path).summary, open_run(undisturbed).summary
    assert first is not None
    assert second is not None
    timed = {"tokens_per_second", "arm", *without}
    assert {key: first[key] for key in first if key not in timed} == {key: second[key] for key in second if key not in timed}


def at_step(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Call `act` in the middle of the given step, counted from 1, of the next run."""
    original, counted = loop.optimizer_step, [0]

    def step_and_act(*arguments: Any, **named: Any) -> dict[str, float]:
        counted[0] += 1
        if counted[0] == step:
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "optimizer_step", step_and_act)
    return monkeypatch


def kill() -> None:
    raise Killed


def only_checkpoint_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the clock had asked for one checkpoint, after the given step."""
    original = resume.save_checkpoint

    def save(path: Path, **named: Any) -> None:
        if named["costs"].step == step:
            original(path, **named)

    monkeypatch.setattr(resume, "save_checkpoint", save)


TOPK = {"signal": {"kind": "topk", "k": 20}, "objective": {"kind": "forward_kl"}}
SAMPLED = {"signal": {"kind": "sampled", "draws": 10}, "objective": {"kind": "forward_kl"}}
CE = {"objective": {"kind": "ce"}}
LIVE = {"signal": {"kind": "dense"}, "objective": {"kind": "forward_kl"}}
STEPS, TOKENS = {"kind": "steps", "amount": 8}, {"kind": "tokens", "amount": 1000}


@pytest.mark.parametrize("budget", [STEPS, TOKENS], ids=["steps", "tokens"])
@pytest.mark.parametrize("arm", [CE, TOPK, SAMPLED, LIVE], ids=["ce", "topk", "sampled", "live"])
def test_a_killed_run_continues_bit_for_bit(
    values: dict[str, Any], arm: dict[str, Any], budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 7, after records of six steps and one evaluation; the checkpoint is that of step 5."""
    changes = {**arm, "budget": budget, "checkpoint": {"seconds": 1e-9}}
    calm = recipe_of(values, **changes, name="calm")
    hurt = recipe_of(values, **changes, name="hurt")
    if calm.uses_store:
        write_recipe_stores([calm])
    undisturbed = train(calm)
    assert len(open_run(undisturbed).events("train")) == 8
    with at_step(7, kill, monkeypatch).context() as patched:
        only_checkpoint_after(5, patched)
        with pytest.raises(Killed):
            train(hurt)
    monkeypatch.undo()
    path = Path(hurt.run_path)
    assert [record["step"] for record in open_run(path).events("train")] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in open_run(path).events("eval")] == [2, 4, 6]
    assert train(hurt) == path
    require_same(path, undisturbed, without={"seconds"})


def test_a_kill_before_the_first_checkpoint_starts_again(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calm, hurt = recipe_of(values, **CE, name="calm"), recipe_of(values, **CE, name="hurt")
    undisturbed = train(calm)
    with at_step(4, kill, monkeypatch).context(), pytest.raises(Killed):
        train(hurt)
    monkeypatch.undo()
    assert not Path(hurt.run_path, "checkpoint.pt").exists()
    require_same(train(hurt), undisturbed)


@pytest.mark.parametrize("where", ["limbeck.train.measure.hf.save", "limbeck.runs.RunWriter.finish"])
def test_a_kill_after_the_last_step_repeats_no_record(
    values: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, hurt = recipe_of(values, **CE, name="calm"), recipe_of(values, **CE, name="hurt")
    undisturbed = train(calm)

    def interrupted(*arguments: Any, **named: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(where, interrupted)
        with pytest.raises(Killed):
            train(hurt)
    require_same(train(hurt), undisturbed)


def test_a_finished_run_is_left_alone(values: dict[str, Any]) -> None:
    recipe = recipe_of(values, **CE)
    path = train(recipe)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}
    assert train(recipe) == path
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}
    assert {file: content for file, (content, _) in before.items()} == {file: content for file, (content, _) in after.items()}
    assert before[path / "summary.json"] == after[path / "summary.json"]
    assert not (path / "checkpoint.pt").exists()


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves(values: dict[str, Any], number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, hurt = recipe_of(values, **CE, name="calm"), recipe_of(values, **CE, name="hurt")
    undisturbed = train(calm)
    handler = signal.getsignal(number)
    at_step(4, lambda: os.kill(os.getpid(), number), monkeypatch)
    with pytest.raises(Interrupted, match="stopped after step 4") as caught:
        train(hurt)
    monkeypatch.undo()
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is handler
    path = Path(hurt.run_path)
    assert len(open_run(path).events("train")) == 4
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    assert state["costs"]["step"] == 4
    require_same(train(hurt), undisturbed)


def test_ctrl_c_in_the_last_step_stops_nothing(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(8, press_ctrl_c, monkeypatch)
    path = train(recipe_of(values, **CE))
    assert open_run(path).summary is not None


def test_a_second_ctrl_c_stops_at_once(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        press_ctrl_c()
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # two at once would be one
            time.sleep(0.01)
        press_ctrl_c()

    at_step(4, twice, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(values, **CE, name="hurt"))
    monkeypatch.undo()
    assert len(open_run(Path(values["output"], "runs", "hurt")).events("train")) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_names_the_step(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights become NaN in step 6: the checkpoint of step 5 is kept, and the run can go on from there."""
    recipe = recipe_of(values, **CE, checkpoint={"seconds": 1e-9})
    original, seen = loop.batch_loss, [0]

    def poisoned(setup: Any, batch: Any, **named: Any) -> Any:
        seen[0] += 1
        if seen[0] == 6:
            with torch.no_grad():
                next(setup.student.parameters()).fill_(math.nan)
        return original(setup, batch, **named)

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    with pytest.raises(LimbeckError, match="not finite at step 6"):
        train(recipe)
    monkeypatch.undo()
    path = Path(recipe.run_path)
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    assert state["costs"]["step"] == 5
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert open_run(path).summary is None
    undisturbed = train(recipe_of(values, **CE, name="calm"))
    require_same(train(recipe), undisturbed)


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc] . unexpected pos")],
)
def test_a_full_disk_keeps_the_last_checkpoint(
    values: dict[str, Any], failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(values, **CE, checkpoint={"seconds": 1e-9})
    original, saved = torch.save, [0]

    def save(state: Any, file: Any) -> None:
        saved[0] += 1
        if saved[0] == 4:
            file.write(b"half of it")
            raise failure
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(LimbeckError, match=r"checkpoint\.pt cannot be written") as caught:
        train(recipe)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    path = Path(recipe.run_path)
    assert torch.load(path / "checkpoint.pt", weights_only=True)["costs"]["step"] == 3
    assert [file.name for file in path.glob("checkpoint*")] == ["checkpoint.pt"]
    require_same(train(recipe), train(recipe_of(values, **CE, name="calm")))


def interrupted_run(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    at_step(4, press_ctrl_c, monkeypatch)
    recipe = recipe_of(values, **CE, **changes)
    with pytest.raises(Interrupted):
        train(recipe)
    monkeypatch.undo()
    return Path(recipe.run_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_a_damaged_checkpoint_is_one_clear_error(values: dict[str, Any], kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted_run(values, monkeypatch) / "checkpoint.pt"
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(LimbeckError, match=r"checkpoint\.pt is damaged .*: remove it") as caught:
        train(recipe_of(values, **CE))
    assert "\n" not in str(caught.value)
    path.unlink()
    assert open_run(train(recipe_of(values, **CE))).summary is not None


def test_a_checkpoint_runs_no_code(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = interrupted_run(values, monkeypatch) / "checkpoint.pt"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"model": Trap()}, path)
    with pytest.raises(LimbeckError, match=r"checkpoint\.pt is damaged"):
        train(recipe_of(values, **CE))
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_of_another_student_is_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted_run(values, monkeypatch)
    other = interrupted_run(values, monkeypatch, name="other", student={**values["student"], "hidden_size": 24})
    (path / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    with pytest.raises(LimbeckError, match=r"checkpoint\.pt is damaged") as caught:
        train(recipe_of(values, **CE))
    assert "\n" not in str(caught.value)


def test_another_precision_is_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`precision: auto` may mean another dtype on another machine: a run does not change it half way."""
    monkeypatch.setattr("limbeck.compute._bfloat16_is_faster", lambda device: False)
    values["precision"] = "auto"
    path = interrupted_run(values, monkeypatch)
    monkeypatch.setattr("limbeck.compute._bfloat16_is_faster", lambda device: True)
    with pytest.raises(
        LimbeckError, match=r"computed in float32, this run would use torch\.bfloat16: add precision=float32"
    ) as caught:
        train(recipe_of(values, **CE))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"optimizer": {"kind": "adamw", "lr": 0.5}}, r"optimizer\.lr"),
        ({"objective": {"kind": "ce", "z_loss_weight": 0.1}}, r"objective\.z_loss_weight"),
        ({"budget": {"kind": "tokens", "amount": 8}}, "budget"),
        ({"batch": {"sequences": 2}}, r"batch\.sequences"),
    ],
)
def test_another_recipe_in_the_folder_is_refused(
    values: dict[str, Any], change: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = interrupted_run(values, monkeypatch)
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SpecError, match=rf"another recipe \({key} is .* there and .* here\)"):
        train(recipe_of(values, **{**CE, **change}))
    assert {file: file.read_bytes() for file in path.iterdir()} == before


def test_where_things_lie_is_no_other_recipe(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = interrupted_run(values, monkeypatch)
    moved = tmp_path / "elsewhere" / "runs" / "tiny"
    moved.parent.mkdir(parents=True)
    path.rename(moved)
    changed = recipe_of(values, **CE, output=str(tmp_path / "elsewhere"), checkpoint={"seconds": 5})
    require_same(train(changed), train(recipe_of(values, **CE, name="calm")))
    assert json.loads((moved / "summary.json").read_text(encoding="utf-8"))["step"] == 8


def test_the_saved_recipe_continues_the_run(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.spec.load import load_recipe

    path = interrupted_run(values, monkeypatch)
    assert train(load_recipe(str(path / "recipe.yaml"))) == path
    assert open_run(path).summary is not None
