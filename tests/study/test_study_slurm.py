"""Tasks as Slurm jobs: with commands that stand in for Slurm's (`fake_slurm.py`), and with Slurm itself where there is one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stand_in
import yaml
from stand_in import LIMIT, start_study, steps_of, wait_for

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import open_run
from limbeck.spec.launch import Local, Slurm
from limbeck.spec.load import load_study, parse_overrides, split_overrides
from limbeck.study import slurm
from limbeck.study.launch import run_tasks
from limbeck.study.slurm import SlurmJobs, notice_seconds
from limbeck.study.tasks import Outcome, Task

pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Slurm whose jobs do the stand-in for training; the folder in which it keeps them."""
    commands, home = tmp_path / "bin", tmp_path / "cluster"
    commands.mkdir()
    home.mkdir()
    program = Path(stand_in.__file__).with_name("fake_slurm.py")
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" {name} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setattr(slurm, "alone", stand_in.command)
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.05)
    return home


@pytest.fixture
def task(values: dict[str, Any]) -> Callable[..., Task]:
    """A task of that name, of some steps."""
    return partial(stand_in.task_of, values)


def run(tasks: list[Task], folder: Path, **settings: Any) -> dict[str, Outcome]:
    launch = Slurm(**{"minutes": 60, **settings})
    return run_tasks(tasks, launch=launch, folder=folder / "tasks", slots=2, report=lambda *_: None)


def jobs_of(cluster: Path) -> int:
    return len(list(cluster.glob("*.sh")))


def running(cluster: Path) -> int:
    return len(list(cluster.glob("*.pid"))) - len(list(cluster.glob("*.code")))


def test_outcomes_are_those_of_processes(cluster: Path, task: Callable[..., Task], tmp_path: Path) -> None:
    names = ("killed", "wild", "wrong", "good")
    found = run([task(name) for name in names], tmp_path, jobs=3)
    log = f"its log: {tmp_path}/tasks"
    assert found == {
        "killed": Outcome(
            "failed",
            "job 1: Slurm ended it (FAILED) and it had no time for a word; the same command continues it; "
            f"{log}/killed-train.log",
        ),
        "wild": Outcome("diverged", "no loss"),
        "wrong": Outcome("failed", f"no such text; {log}/wrong-train.log"),
        "good": Outcome("finished"),
    }
    assert jobs_of(cluster) == 4
    assert not list((tmp_path / "tasks").rglob("*.job"))
    assert not list(tmp_path.rglob("*.pkl"))


def test_the_batch_script_says_what_the_study_says(
    cluster: Path, task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    wanted = {"partition": "long", "cpus": 6, "memory_gib": 12, "settings": {"account": "me", "exclusive": True}}
    assert run([task("good")], tmp_path, **wanted)["good"].status == "finished"
    lines = (cluster / "1.sh").read_text("utf-8").splitlines()
    options = dict((line.removeprefix("#SBATCH --") + "=").split("=")[:2] for line in lines if line.startswith("#SBATCH"))
    assert {key: options[key] for key in ("time", "partition", "cpus-per-task", "mem", "account", "exclusive", "signal")} == {
        "time": "60",
        "partition": "long",
        "cpus-per-task": "6",
        "mem": "12G",
        "account": "me",
        "exclusive": "",
        "signal": "B:TERM@180",
    }
    assert "gpus-per-node" not in options
    assert steps_of(tmp_path, "good") == ["begun threads=6 ended"]
    command = slurm.command_of(Slurm(minutes=1, gpus=4), Path("x.yaml"))
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert "--nproc-per-node=4" in command
    assert slurm.parameters_of(Slurm(minutes=1, gpus=4), name="x", log=Path("x"))["gpus_per_node"] == 4
    assert [notice_seconds(minutes) for minutes in (1, 10, 60)] == [6, 60, 180]


def test_a_job_whose_time_is_up_goes_on_in_another(cluster: Path, task: Callable[..., Task], tmp_path: Path) -> None:
    """As Slurm does shortly before: SIGTERM to the process that has taken the place of the batch script's shell."""
    study = start_study(tmp_path, Slurm(minutes=1), [task("long", steps=30)])
    wait_for(lambda: bool(steps_of(tmp_path, "long")))
    os.kill(int((cluster / "1.pid").read_text("utf-8")), signal.SIGTERM)
    assert study.communicate(timeout=LIMIT)[0] == "finished\n"
    assert jobs_of(cluster) == 2
    assert len(steps_of(tmp_path, "long")) == 30
    log = (tmp_path / "tasks" / "long-train.log").read_text("utf-8")
    assert "stopping after this step" in log and "limbeck: stopped after step" in log


def test_a_study_that_was_killed_finds_its_jobs_again(cluster: Path, task: Callable[..., Task], tmp_path: Path) -> None:
    """One that still runs, and one that ended while nobody looked."""
    work = [task("wild", steps=20), task("long", steps=60)]
    study = start_study(tmp_path, Slurm(minutes=1), work)
    wait_for(lambda: bool(steps_of(tmp_path, "wild") and steps_of(tmp_path, "long")))
    study.kill()
    study.communicate(timeout=LIMIT)
    wait_for((cluster / "1.code").exists)
    assert running(cluster) == 1
    found = run(work, tmp_path)
    assert [found[name].status for name in ("wild", "long")] == ["diverged", "finished"]
    assert jobs_of(cluster) == 2
    assert len(steps_of(tmp_path, "long")) == 60


def test_ctrl_c_cancels_what_waits_and_stops_what_runs_after_its_step(
    cluster: Path, task: Callable[..., Task], tmp_path: Path
) -> None:
    study = start_study(tmp_path, Slurm(minutes=1), [task("one", steps=9999), task("two", steps=9999)])
    wait_for(lambda: bool(steps_of(tmp_path, "one") and steps_of(tmp_path, "two")))
    study.send_signal(signal.SIGINT)
    study.communicate(timeout=LIMIT)
    assert study.returncode == 130
    assert running(cluster) == 0
    assert all(line.endswith("ended") for name in ("one", "two") for line in steps_of(tmp_path, name))
    (cluster / "full").touch()
    study = start_study(tmp_path, Slurm(minutes=1), [task("one", steps=2)])
    wait_for(lambda: jobs_of(cluster) == 3)
    study.send_signal(signal.SIGTERM)
    study.communicate(timeout=LIMIT)
    assert study.returncode == 130
    assert (cluster / "3.cancelled").exists()
    (cluster / "full").unlink()
    assert run([task("two", steps=1)], tmp_path)["two"].status == "finished"
    assert jobs_of(cluster) == 4


def test_a_job_that_somebody_cancels_is_not_submitted_again(cluster: Path, task: Callable[..., Task], tmp_path: Path) -> None:
    study = start_study(tmp_path, Slurm(minutes=1), [task("long", steps=9999)])
    wait_for(lambda: bool(steps_of(tmp_path, "long")))
    (cluster / "1.cancelled").touch()
    os.kill(int((cluster / "1.pid").read_text("utf-8")), signal.SIGTERM)
    assert study.communicate(timeout=LIMIT)[0] == "failed\n"
    assert jobs_of(cluster) == 1


def test_while_slurm_does_not_answer_the_study_waits(
    cluster: Path,
    task: Callable[..., Task],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (cluster / "down").touch()
    asked = []
    original = slurm.Queue._ask

    def ask(queue: Any) -> None:
        asked.append(queue.states)
        if len(asked) == 4:
            (cluster / "down").unlink()
        original(queue)

    monkeypatch.setattr(slurm.Queue, "_ask", ask)
    assert run([task("killed")], tmp_path)["killed"].status == "failed"
    assert capsys.readouterr().err.count("Slurm does not answer (slurm_load_jobs error: Unable to contact") == 3


def test_what_sbatch_refuses_has_failed_with_its_words(cluster: Path, task: Callable[..., Task], tmp_path: Path) -> None:
    found = run([task("good"), task("other")], tmp_path, partition="none")
    said = "sbatch refused it: invalid partition specified: none; Batch job submission failed"
    assert [(each.status, each.error) for each in found.values()] == [("failed", said)] * 2


def test_what_is_missing_is_said_before_anything_runs(
    cluster: Path, task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LimbeckError, match=r"launch.kind=slurm needs the package submitit: pip install 'limbeck\[slurm\]'"):
        run([task("good")], tmp_path)
    monkeypatch.delitem(sys.modules, "submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LimbeckError, match="there is no sbatch here"):
        SlurmJobs(tmp_path, Slurm(minutes=1))
    assert jobs_of(cluster) == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], Local()),
        (["launch.jobs=2"], Local(jobs=2)),
        (["launch.kind=slurm", "launch.minutes=60"], Slurm(minutes=60)),
        (["launch={kind: slurm, minutes: 5, settings: {qos: low}}"], Slurm(minutes=5, settings={"qos": "low"})),
        (["launch.kind=slurm"], "launch.minutes is missing"),
        (["launch.kind=slrum"], "did you mean 'slurm'"),
        (["launch.kind=slurm", "launch.minutes=1", "launch.settings.time=9"], "settings.time is set by launch.minutes"),
        (["launch.kind=slurm", "launch.minutes=1", "launch.settings.cpus_per_task=9"], "is set by launch.cpus"),
        (["launch.kind=slurm", "launch.minutes=1", "launch.settings.output=x"], "settings.output cannot be set"),
        (["launch.kind=slurm", "launch.minutes=1", "launch.settings.exclusive=false"], "leave it out"),
    ],
)
def test_overrides_of_the_command_line(overrides: list[str], expected: Any) -> None:
    of_study, of_recipe = split_overrides(parse_overrides([*overrides, "seed=3"]))
    assert of_recipe == {"seed": 3}
    if isinstance(expected, str):
        with pytest.raises(SpecError, match=expected):
            load_study("quickstart", of_study)
    else:
        assert load_study("quickstart", of_study).launch == expected


@pytest.fixture
def real_slurm() -> None:
    """A cluster to which jobs can be submitted from here, and which sees this machine's files."""
    asked = shutil.which("sinfo") and subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, timeout=30, check=False
    )
    if not asked or asked.returncode != 0 or not {"idle", "mixed", "allocated"} & set(asked.stdout.split()):
        pytest.skip("needs a Slurm cluster")


LIMBECK = [sys.executable, "-m", "limbeck.cli.main"]


@pytest.mark.slow
@pytest.mark.usefixtures("real_slurm")
def test_a_study_on_slurm(recipe_file: Path) -> None:
    """Its process is killed when the first job has begun; the same command finds the jobs again, and ends the study."""
    alone = {"objective.kind": "ce", "evaluation.kl_to_teacher": False}
    arms = {"ce": alone, "wild": {**alone, "optimizer.lr": 1e30, "optimizer.clip_norm": None}}
    path, out = recipe_file.with_name("study.yaml"), recipe_file.with_name("out")
    path.write_text(yaml.safe_dump({"name": "pair", "recipe": str(recipe_file), "arms": arms, "control": "ce"}), "utf-8")
    command = [*LIMBECK, "study", "run", str(path), "-o", str(out), "launch.kind=slurm", "launch.minutes=5"]
    study = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("tasks/*.job"))) == 2)
    study.kill()
    study.wait()
    numbers = {file.stem: file.read_text("utf-8") for file in out.glob("tasks/*.job")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    for task, number in numbers.items():
        assert f"{task.removesuffix('-train')}: found again, job {number}" in done.stderr
    assert "submitted" not in done.stderr
    assert "wild: diverged" in done.stderr
    summary = open_run(out / "runs" / "ce").summary
    assert summary is not None and summary["step"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("real_slurm")
def test_a_job_that_slurm_ends_goes_on(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More steps than fit into a minute, which is the least that Slurm gives."""
    monkeypatch.setattr(slurm, "alone", stand_in.command)
    found = run([stand_in.task_of(values, "long", steps=800)], tmp_path, minutes=1)
    assert found["long"] == Outcome("finished")
    assert "long: its time was up; it goes on" in capsys.readouterr().err
    lines = steps_of(tmp_path, "long")
    assert len(lines) == 800
    assert set(lines) == {lines[0]}
