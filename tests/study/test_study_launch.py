"""Tasks side by side: what is said of those that end, and what is left of those whose study is stopped or killed.

Most processes here do a stand-in for training that needs no torch: steps of a tenth of a second, written to a file.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stand_in
import yaml
from stand_in import LIMIT, start_study, steps_of, wait_for

from limbeck.errors import SpecError
from limbeck.runs import open_run
from limbeck.spec.launch import Local, Slurm, Torchrun
from limbeck.spec.load import load_study
from limbeck.spec.study import Study
from limbeck.study import launch as module
from limbeck.study import tasks
from limbeck.study.launch import run_tasks, slots_of
from limbeck.study.machine import available_bytes, bytes_within
from limbeck.study.processes import Processes, torchrun
from limbeck.study.run import run_study
from limbeck.study.tasks import Outcome, Task
from limbeck.train.interrupt import EndedEarly
from limbeck.train.train import train


@pytest.fixture
def task(values: dict[str, Any]) -> Callable[..., Task]:
    """A task of that name, of some steps."""
    return partial(stand_in.task_of, values)


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes do the stand-in."""
    monkeypatch.setattr(module, "alone", stand_in.command)


@pytest.mark.usefixtures("stood_in")
def test_one_that_is_killed_has_failed_and_the_others_go_on(task: Callable[..., Task], tmp_path: Path) -> None:
    names = ("killed", "wild", "wrong", "broken", "mute", "good")
    told: list[str] = []
    found = run_tasks(
        [task(name) for name in names],
        launch=Local(jobs=2),
        folder=tmp_path / "tasks",
        slots=2,
        report=lambda task, _: told.append(task.name),
    )
    logs = {name: tmp_path / "tasks" / f"{name}-train.log" for name in names}
    assert all(log.is_file() for log in logs.values())
    assert found == {
        "killed": Outcome("failed", f"killed by signal 9 (out of memory?); its log: {logs['killed']}"),
        "wild": Outcome("diverged", "no loss"),
        "wrong": Outcome("failed", f"no such text; its log: {logs['wrong']}"),
        "broken": Outcome("failed", f"ValueError: of ours; its log: {logs['broken']}"),
        "mute": Outcome("failed", f"exit code 7: it said nothing; its log: {logs['mute']}"),
        "good": Outcome("finished"),
    }
    assert sorted(told) == sorted(names)
    assert "ValueError: of ours" in logs["broken"].read_text(encoding="utf-8")


def test_of_processes_that_taught_a_run_the_run_itself_says_how_it_ended(
    task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tasks.write_task(task("asked"), tmp_path)
    for error, said in ((EndedEarly("process 0 stopped"), None), (SpecError("no such text"), "no such text")):
        monkeypatch.setattr(tasks, "perform", partial(raising, error))
        assert tasks.main([str(path)]) == 1
        assert capsys.readouterr().err == f"limbeck: {error}\n"
        ending = tasks.read_ending(path)
        assert (None if ending is None else ending.outcome.error) == said


def raising(error: Exception, _: Task) -> None:
    raise error


@pytest.mark.usefixtures("stood_in")
def test_what_an_earlier_process_said_is_not_said_of_the_next(task: Callable[..., Task], tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mute-train.log").write_text("limbeck: an old complaint\n", encoding="utf-8")
    old = {"outcome": {"status": "diverged", "error": "long ago"}, "stopped": False}
    for name in ("mute", "killed"):
        (folder / f"{name}-train.ending.json").write_text(json.dumps(old), encoding="utf-8")
    work = [task("mute"), task("killed")]
    found = run_tasks(work, launch=Local(jobs=2), folder=folder, slots=2, report=lambda *_: None)
    assert found["mute"].error.startswith("exit code 7: it said nothing")
    assert found["killed"].error.startswith("killed by signal 9")


@pytest.mark.usefixtures("stood_in")
def test_each_has_its_share_of_the_cores(task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("limbeck.study.processes.cores", lambda: 12)
    run_tasks([task("good")], launch=Local(jobs=3), folder=tmp_path / "tasks", slots=3, report=lambda *_: None)
    assert steps_of(tmp_path, "good") == ["begun threads=4 ended"]
    spread = Processes(tmp_path, slots=1, command=torchrun(4), width=4)
    assert spread._environment(0)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert spread._environment(0)["OMP_NUM_THREADS"] == "5"


def test_each_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    several = Processes(tmp_path, slots=3, command=[])
    assert [several._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]
    assert Processes(tmp_path, slots=1, command=[])._environment(0)["CUDA_VISIBLE_DEVICES"] == "4, 6"
    assert slots_of(Local(jobs="auto"), memory_bytes=1e30) == 2  # it is not main memory that they take


def is_locked(folder: Path) -> bool:
    with (folder / "study.lock").open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_stops_its_processes_after_their_steps(
    task: Callable[..., Task], tmp_path: Path, number: int
) -> None:
    work = [task("one", steps=9999), task("two", steps=9999), task("three")]
    study = start_study(tmp_path, Local(jobs=2), work)
    wait_for(lambda: bool(steps_of(tmp_path, "one") and steps_of(tmp_path, "two")))
    os.killpg(study.pid, number) if number == signal.SIGINT else study.send_signal(number)
    study.communicate(timeout=LIMIT)
    assert study.returncode == 130
    counts = [len(steps_of(tmp_path, name)) for name in ("one", "two")]
    assert not is_locked(tmp_path)
    assert not steps_of(tmp_path, "three")
    for name, count in zip(("one", "two"), counts, strict=True):
        assert all(line == steps_of(tmp_path, name)[0] for line in steps_of(tmp_path, name))  # none was cut off
        said = json.loads((tmp_path / "tasks" / f"{name}-train.ending.json").read_text("utf-8"))
        assert said == {"outcome": {"status": "failed", "error": f"stopped after step {count}"}, "stopped": True}
    time.sleep(0.3)
    assert counts == [len(steps_of(tmp_path, name)) for name in ("one", "two")]


def test_a_study_that_is_killed_takes_its_processes_along_and_keeps_its_lock_until_they_have_ended(
    task: Callable[..., Task], tmp_path: Path
) -> None:
    study = start_study(tmp_path, Local(jobs=2), [task("one", steps=9999), task("two", steps=9999)])
    wait_for(lambda: bool(steps_of(tmp_path, "one") and steps_of(tmp_path, "two")))
    study.kill()
    study.communicate(timeout=LIMIT)
    endings = [tmp_path / "tasks" / f"{name}-train.ending.json" for name in ("one", "two")]
    wait_for(lambda: not is_locked(tmp_path))
    assert all(ending.is_file() for ending in endings)
    assert all(line.endswith("ended") for name in ("one", "two") for line in steps_of(tmp_path, name))
    again = start_study(tmp_path, Local(jobs=2), [task("one"), task("two")])
    assert again.communicate(timeout=LIMIT)[0].split() == ["finished", "finished"]


def test_more_cells_than_fit_into_memory_are_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpus", list)
    monkeypatch.setattr(module, "cores", lambda: 8)
    monkeypatch.setattr(module, "available_bytes", lambda: 10e9)
    with pytest.raises(SpecError) as caught:
        slots_of(Local(jobs=4), memory_bytes=3e9)
    assert str(caught.value) == "launch.jobs=4: a cell takes about 3.0 GB and 10.0 GB are free: set it to 3 or to auto"
    assert slots_of(Local(jobs=3), memory_bytes=3e9) == 3
    assert [slots_of(Local(jobs="auto"), memory_bytes=each) for each in (3e9, 1e9, 20e9)] == [3, 8, 1]
    assert slots_of(Local(jobs=1), memory_bytes=20e9) == 1
    assert slots_of(Slurm(minutes=1, jobs=5), memory_bytes=20e9) == 5
    assert slots_of(Torchrun(processes=3), memory_bytes=20e9) == 1


def test_the_tightest_limit_around_a_process_counts(tmp_path: Path) -> None:
    for group, limit, used, pages in (("job", "5000", 4000, 700), ("job/step", "max", 1500, 0), ("other", "1", 1, 0)):
        folder = tmp_path / group
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n", encoding="utf-8")
        (folder / "memory.current").write_text(f"{used}\n", encoding="utf-8")
        (folder / "memory.stat").write_text(f"anon 9\ninactive_file {pages}\n", encoding="utf-8")
    assert bytes_within("/job/step", root=tmp_path) == 1700
    assert bytes_within("/", root=tmp_path) == float("inf")
    psutil = pytest.importorskip("psutil")
    found = available_bytes()
    assert found is not None
    assert 0.5 * found < psutil.virtual_memory().available < 2 * found or found < psutil.virtual_memory().available


def study_of(recipe_file: Path, **launch: Any) -> Study:
    arms = {"ce": {"objective.kind": "ce"}, "kl": {}}
    path = recipe_file.with_name("study.yaml")
    path.write_text(yaml.safe_dump({"name": "pair", "recipe": str(recipe_file), "control": "ce", "arms": arms}), "utf-8")
    return load_study(str(path), {f"launch.{key}": value for key, value in launch.items()})


def results_of(runs: dict[str, Path]) -> dict[str, Any]:
    """All that a run measures, time aside, and its weights."""
    found = {}
    for name, path in runs.items():
        run = open_run(path)
        assert run.summary is not None
        kept = ("loss_nats", "grad_norm", "tokens", "lr")
        records = [{key: record[key] for key in kept} for record in run.events("train")]
        weights = (path / "student" / "model.safetensors").read_bytes()
        found[name] = (records, run.summary["bits_per_byte_by_document"], run.summary["kl_to_teacher_nats"], weights)
    return found


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.study.run.write_report_of", lambda study, cells, *, output: output / "report.html")


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_cells_at_once_are_those_one_after_another(recipe_file: Path) -> None:
    one, two = (
        run_study(study_of(recipe_file, jobs=jobs), output=str(recipe_file.with_name(f"out{jobs}")), overrides={})
        for jobs in (1, 2)
    )
    assert (recipe_file.with_name("out2") / "tasks" / "kl-train.log").is_file()
    assert not (recipe_file.with_name("out1") / "tasks").exists()
    assert results_of(two.runs) == results_of(one.runs)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_cell_on_two_processes(recipe_file: Path) -> None:
    """Under torchrun, whose own exit code and last words are others than the cell's."""
    wild = {"optimizer.lr": 1e30, "optimizer.clip_norm": None, "objective.kind": "ce"}
    study = study_of(recipe_file, kind="torchrun", processes=2)
    study = study.model_copy(update={"arms": {"ce": {"objective.kind": "ce"}, "wild": wild}, "axes": {}})
    found = run_study(study, output=str(recipe_file.with_name("out")), overrides={})
    assert found.failed["wild"].status == "diverged"
    assert "loss or gradient is not finite at step" in found.failed["wild"].error
    assert list(found.failed) == ["wild"]
    alone = train(open_run(found.runs["ce"]).recipe.model_copy(update={"name": "alone"}))
    two, one = results_of({"ce": found.runs["ce"]})["ce"], results_of({"ce": alone})["ce"]
    # Gradients are summed in another order: about 1e-7 in every one of eight steps, times what AdamW makes of it.
    assert [r["loss_nats"] for r in two[0]] == pytest.approx([r["loss_nats"] for r in one[0]], rel=1e-5)
