"""A teacher on another device, and teachers in processes of their own: the same training as with the teacher beside it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from several_processes import Group, several
from test_train_sharded import require_same_training, tiny_values
from tiny_students import olmo3

from limbeck.data.packing import Piece
from limbeck.errors import SpecError, TeacherError
from limbeck.optim.build import build_optimizer
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.placement import SameDevice
from limbeck.spec.recipe import Recipe
from limbeck.study.controls import twin
from limbeck.teachers.live import LiveRows
from limbeck.train import pool as pool_module
from limbeck.train.loop import optimizer_step
from limbeck.train.messages import Answer, Sent, Verb
from limbeck.train.parallel import Processes
from limbeck.train.pool import AskedRows, shares, students_of, teachers_of
from limbeck.train.setup import open_setup
from limbeck.train.split import MovedRows
from limbeck.train.train import train

STEPS = 5
PROJECTED = {
    "kind": "mixture",
    "terms": [{"weight": 0.5, "term": {"kind": "forward_kl"}}, {"weight": 0.5, "term": {"kind": "hidden"}}],
}
SIGNALS: dict[str, dict[str, Any]] = {
    "dense": {"signal": {"kind": "dense", "temperature": 1.5}, "objective": PROJECTED},
    "topk": {"signal": {"kind": "topk", "k": 20, "live": True}, "objective": {"kind": "forward_kl"}},
    "hybrid": {"signal": {"kind": "hybrid", "k": 4, "draws": 6, "live": True}, "objective": {"kind": "forward_kl"}},
    "written": {
        "signal": {"kind": "dense"},
        "objective": {"kind": "reverse_kl"},
        "on_policy": {
            "prompts": {"kind": "documents", "tokens": 8},
            "max_new_tokens": 16,
            "sources": {"student": 0.5, "data": 0.5},
        },
    },
}
BASE: dict[str, Any] = {
    "student": olmo3(num_layers=2).model_dump(mode="json"),
    "budget": {"kind": "steps", "amount": STEPS},
    "evaluation": {"every": 0.5},
    "batch": {"sequences": 4, "micro_sequences": 2},
}
SPLIT = ("dense", "topk")
"""Signals of which two teachers each make a part."""
AT_STEP_3 = """
import os, signal
from limbeck.errors import LimbeckError
from limbeck.train import loop
original, steps = loop.optimizer_step, []

def step(*arguments, **named):
    steps.append(1)
    if len(steps) == 3:
        {what}
    return original(*arguments, **named)

loop.optimizer_step = step
"""
AT_ROWS_6 = """
import os, signal
from limbeck.errors import TeacherError
from limbeck.teachers.live import LiveRows
made, calls = LiveRows.rows, []

def rows(*arguments):
    calls.append(1)
    if len(calls) == 6:
        {what}
    return made(*arguments)

LiveRows.rows = rows
"""
TOLD = "os.kill(os.getpid(), signal.SIGTERM)"
HURT = {
    "student-fails": AT_STEP_3.format(what="raise LimbeckError('out of paper')"),
    "student-dies": AT_STEP_3.format(what="os.kill(os.getpid(), signal.SIGKILL)"),
    "teacher-fails": AT_ROWS_6.format(what="raise TeacherError('out of chalk')"),
    "teacher-dies": AT_ROWS_6.format(what="os.kill(os.getpid(), signal.SIGKILL)"),
    "all-stop": AT_STEP_3.format(what=TOLD) + AT_ROWS_6.format(what=TOLD),
}
"""What happens to a student and its teacher. Rows are asked for once before the first step, then twice for each."""
LATE = """
import os, signal, time
from limbeck.train.pool import AskedRows
signal.alarm(60)
made, calls = AskedRows.rows, []

def rows(asked, pieces):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        time.sleep(1)
    return made(asked, pieces)

AskedRows.rows = rows
"""
"""The second student asks for rows of its first step when its teacher could already answer the first one's next question."""
WRITTEN = [np.arange(2, 9), np.arange(100, 105), np.arange(50, 71)]
"""Sequences that are in no document."""
ASKING = """
import torch
import numpy as np
from limbeck.train import train
original = train.preflight
written = [np.arange(2, 9), np.arange(100, 105), np.arange(50, 71)]

def preflight(setup):
    source, name = setup.loader.source, setup.recipe.name
    if hasattr(source, "ask") and setup.processes.is_first:
        before, rows = source.tokens_scored, source.rows_of(written)
        torch.save([vars(rows), source.tokens_scored - before], f"{folder}/{{name}}.rows")
    return original(setup)

train.preflight = preflight
"""
"""Rows of the same, saved beside the run."""
SHARDED = {"parallel": {"kind": "sharded"}, "checkpoint": {"seconds": 1e-9}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As processes of `torchrun` have: sums of another number of threads round in another way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pool(teachers: int) -> dict[str, Any]:
    return {"placement": {"kind": "pool", "teachers": teachers}}


@dataclass(frozen=True)
class World:
    """Texts and teacher as values of a recipe, and a folder in which groups of processes have trained."""

    folder: Path
    values: dict[str, Any]
    ended: list[list[dict[str, Any]]]

    def run(self, name: str) -> Path:
        return self.folder / "out" / "runs" / name


def write(values: dict[str, Any], folder: Path, **changes: Any) -> tuple[Path, Recipe]:
    merged = {**values, **changes}
    path = folder / f"{merged['name']}.yaml"
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return path, parse(Recipe, merged, source="test")


@pytest.fixture(scope="module")
def world(teacher_folder: Path, texts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    """Made when first asked for."""
    folder = tmp_path_factory.mktemp("placement")
    values = {**tiny_values(teacher_folder, texts_folder, folder), **BASE}
    made: list[World] = []

    def make() -> World:
        if not made:
            one_one = [write(values, folder, **each, **pool(1), name=f"one-one-{name}")[0] for name, each in SIGNALS.items()]
            plain = write(values, folder, **SIGNALS["dense"], name="two")[0]
            two_one = write(values, folder, **SIGNALS["dense"], **pool(1), name="two-one")[0]
            shards = write(values, folder, **SIGNALS["topk"], **pool(1), **SHARDED, name="shards-one")[0]
            one_two = [write(values, folder, **SIGNALS[each], **pool(2), name=f"one-two-{each}")[0] for each in SPLIT]
            hurt = [Group(2, [write(values, folder, **SIGNALS["topk"], **pool(1), name=each)[0]], HURT[each]) for each in HURT]
            asking = ASKING.format(folder=folder)
            late = Group(3, [write(values, folder, **SIGNALS["dense"], **pool(1), name="late")[0]], LATE)
            groups = [Group(2, [*one_one, plain], asking), Group(3, [two_one, shards, *one_two], asking), *hurt, late]
            made.append(World(folder, values, several(folder, *groups)))
        return made[0]

    return make


def logged(run: Path) -> list[dict[str, Any]]:
    events = open_run(run).events("train")
    return [{key: value for key, value in each.items() if not key.endswith("seconds")} for each in events]


def require_equal(found: Path, expected: Path) -> None:
    """Bit for bit: what is logged, what is measured, the student."""
    assert len(logged(expected)) == STEPS
    assert logged(found) == logged(expected)
    keys = ("bits_per_byte", "kl_to_teacher_nats")
    measured = [[[record[key] for key in keys] for record in open_run(run).events("eval")] for run in (found, expected)]
    assert measured[0] == measured[1]
    assert measured[0][-1][1] is not None
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_one_student_and_one_teacher_are_one_process(name: str, world: Callable[[], World], tmp_path: Path) -> None:
    """Rows, with draws that depend on documents, and the teacher's reading of held-out texts."""
    found = world()
    assert found.ended[0] == [{"code": 0, "errors": {}}] * 2
    _, recipe = write(found.values, tmp_path, **SIGNALS[name], name="alone", output=str(tmp_path))
    require_equal(found.run(f"one-one-{name}"), train(recipe))
    assert logged(found.run(f"one-one-{name}"))[-1]["teacher_flops"] > 0


@pytest.mark.slow
def test_two_students_and_one_teacher_are_two_processes(world: Callable[[], World]) -> None:
    found = world()
    assert found.ended[1] == [{"code": 0, "errors": {}}] * 3
    require_equal(found.run("two-one"), found.run("two"))


@pytest.mark.slow
def test_a_student_that_is_late_does_not_hold_up_what_it_waits_for(world: Callable[[], World]) -> None:
    found = world()
    assert found.ended[-1] == [{"code": 0, "errors": {}}] * 3
    require_equal(found.run("late"), found.run("two"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_two_teachers_share_the_work_of_a_student(name: str, world: Callable[[], World], tmp_path: Path) -> None:
    """They read other windows together than one would, and matrix products of another shape may round in another way."""
    found = world()
    _, recipe = write(found.values, tmp_path, **SIGNALS[name], name="alone", output=str(tmp_path))
    require_same_training(found.run(f"one-two-{name}"), train(recipe))


@pytest.mark.slow
def test_students_that_are_sharded_are_so_among_themselves(world: Callable[[], World], tmp_path: Path) -> None:
    """Checkpoints are written at every step; the process that teaches takes no part."""
    found = world()
    _, recipe = write(found.values, tmp_path, **SIGNALS["topk"], name="alone", output=str(tmp_path))
    require_same_training(found.run("shards-one"), train(recipe))
    assert not list(found.run("shards-one").glob("checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("student-fails", "out of paper", "process 0 stopped before the end of its run"),
        ("student-dies", None, "a process that this teacher served has ended"),
        ("teacher-fails", "out of chalk", "out of chalk"),
        ("teacher-dies", "a process that holds a teacher has ended", None),
        ("all-stop", "stopped after step 3", "process 0 stopped before the end of its run"),
    ],
)
def test_where_one_ends_early_so_does_the_other(
    name: str, student: str | None, teacher: str | None, world: Callable[[], World]
) -> None:
    """With one sentence each; None: it was killed."""
    ended = world().ended[2 + list(HURT).index(name)]
    for found, expected in zip(ended, (student, teacher), strict=True):
        if expected is None:
            assert found == {"code": -9, "errors": {}}
            continue
        assert found["code"] in (1, 130)
        assert found["errors"][name].startswith(expected) or expected in found["errors"][name]
        assert "\n" not in found["errors"][name]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_without_a_pool(world: Callable[[], World], tmp_path: Path) -> None:
    """Where a teacher runs may change where a run is resumed; the numbers stay."""
    found = world()
    alone = train(write(found.values, tmp_path, **SIGNALS["topk"], name="alone", output=str(tmp_path))[1])
    assert len(logged(found.run("all-stop"))) == 3
    train(write(found.values, tmp_path, **SIGNALS["topk"], name="all-stop")[1])
    require_equal(found.run("all-stop"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["one-one-dense", "one-one-topk", "one-one-hybrid", "one-two-dense", "one-two-topk"])
def test_rows_of_what_was_written(run: str, world: Callable[[], World]) -> None:
    """As a teacher in this process makes them, of all positions but the last of each sequence."""
    found = world()
    recipe = write(found.values, found.folder, **SIGNALS[run.split("-")[-1]], name="here")[1]
    source = open_setup(recipe).loader.source
    assert isinstance(source, LiveRows)
    expected, (rows, scored) = vars(source.rows_of(WRITTEN)), torch.load(found.folder / f"{run}.rows")
    assert scored == source.tokens_scored == 6 + 4 + 20
    assert rows.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(rows[name], value, rtol=0, atol=0 if run.startswith("one-one") else 1e-4)
        else:
            assert torch.equal(rows[name], value) if isinstance(value, torch.Tensor) else rows[name] == value


@pytest.mark.parametrize("name", ["dense", "topk", "hybrid"])
def test_a_step_does_not_depend_on_where_the_teacher_is(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    """There is one device here, but it has two names; rows are brought over, read ahead in a thread or not."""
    ended = []
    for place in ({"kind": "same"}, {"kind": "split", "teacher_device": "cpu"}, {"kind": "split", "teacher_device": "cpu:0"}):
        changes = {**BASE, **SIGNALS[name], "placement": place, "output": str(tmp_path)}
        setup = open_setup(parse(Recipe, {**values, **changes}, source="test"))
        apart = place.get("teacher_device") == "cpu:0"
        assert isinstance(setup.loader.source, MovedRows) == setup.loader.teacher_apart == apart
        setup.loader.reads_ahead = apart
        optimizer = build_optimizer(setup.recipe.optimizer, setup.trained, dtype=setup.dtype)
        with closing(setup.loader.steps(0)) as steps:
            logged = [optimizer_step(setup, optimizer, next(steps)) for _ in range(3)]
        assert "limbeck-loader" not in {thread.name for thread in threading.enumerate()}
        ended.append((logged, [parameter.detach() for parameter in setup.trained.parameters()]))
    for logged, weights in ended[1:]:
        assert logged == ended[0][0]
        assert all(torch.equal(*pair) for pair in zip(weights, ended[0][1], strict=True))


def test_every_teacher_that_lives_is_told_of_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three the first is gone; the third's answer is on its way and is taken first, since it listens only then."""
    said: list[tuple[str, int]] = []

    def send(verb: Verb, numbers: np.ndarray, *, teacher: int) -> Sent:
        said.append((verb.name, teacher))
        return Sent((), ())

    def receive(teacher: int, *, device: torch.device) -> Answer:
        said.append(("answer", teacher))
        if len(said) > 6 and teacher == 1:
            raise TeacherError("gone")
        return Answer((torch.tensor([300]), None))

    monkeypatch.setattr(pool_module, "send_request", send)
    monkeypatch.setattr(pool_module, "receive_answer", receive)
    asked = AskedRows(Processes(0, 1, teachers=3), temperature=1.0, device=torch.device("cpu"))
    with pytest.raises(TeacherError, match="gone"), asked.told_where_it_fails():
        asked.rows([Piece(0, 0, 4), Piece(1, 0, 4)])
    assert said[6:] == [("PIECES", 1), ("PIECES", 3), ("answer", 1), ("LEAVE", 2), ("answer", 3), ("LEAVE", 3)]


def test_devices_that_are_not_there_are_refused(values: dict[str, Any]) -> None:
    split = {**values, **SIGNALS["topk"], "placement": {"kind": "split"}}
    with pytest.raises(SpecError, match=r"placement\.kind=split on device=cpu: say where the teacher goes"):
        train(parse(Recipe, split, source="test"))
    split["placement"] = {"kind": "split", "teacher_device": "cuda:7"}
    with pytest.raises(SpecError, match=r"placement\.teacher_device=cuda:7 cannot be used here: "):
        train(parse(Recipe, split, source="test"))


def test_a_pool_leaves_somebody_to_train(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(Recipe, {**values, **SIGNALS["topk"], **pool(2)}, source="test")
    with pytest.raises(SpecError, match=r"placement\.teachers=2 of 1 processes leaves none that trains.*--nproc-per-node 3"):
        train(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"placement\.teachers=2 of 2 processes"):
        train(recipe)


def test_only_a_live_teacher_is_placed(values: dict[str, Any]) -> None:
    for changes in ({"signal": {"kind": "topk", "k": 20}}, {"objective": {"kind": "ce"}}):
        with pytest.raises(SpecError, match=r"placement\.kind=pool says where a live teacher runs, and none does"):
            parse(Recipe, {**values, **changes, **pool(1)}, source="test")


def test_a_control_has_no_teacher_to_place(values: dict[str, Any]) -> None:
    """A recipe with its placement and without its teacher would be refused."""
    alone = twin(parse(Recipe, {**values, **SIGNALS["topk"], **pool(1)}, source="test"))
    assert parse(Recipe, alone.model_dump(mode="json"), source="test").placement == SameDevice()


@pytest.mark.parametrize(("students", "teachers"), [(1, 1), (1, 3), (2, 1), (5, 2), (2, 5), (4, 4)])
def test_work_is_shared_evenly(students: int, teachers: int) -> None:
    """Everyone is asked, nobody by more than one above the least; who asks and who is asked agree."""
    asked = {student: teachers_of(student, students=students, teachers=teachers) for student in range(students)}
    asking = {each: students_of(each, students=students, teachers=teachers) for each in range(students, students + teachers)}
    assert {(student, each) for student, found in asked.items() for each in found} == {
        (student, each) for each, found in asking.items() for student in found
    }
    for sizes in ([len(found) for found in asked.values()], [len(found) for found in asking.values()]):
        assert min(sizes) >= 1
        assert max(sizes) <= min(sizes) + 1


def test_pieces_are_shared_by_their_tokens() -> None:
    assert shares([5], among=3) == [slice(0, 0), slice(0, 1), slice(1, 1)]
    assert shares([4, 4, 4, 4], among=2) == [slice(0, 2), slice(2, 4)]
    assert shares([12, 1, 1, 1, 1], among=2) == [slice(0, 1), slice(1, 5)]
    draw = np.random.default_rng(0)
    for among in (1, 2, 5):
        sizes = draw.integers(1, 9, 40)
        parts = shares(sizes.tolist(), among=among)
        assert [index for part in parts for index in range(40)[part]] == list(range(40))
        sums = [sizes[part].sum() for part in parts]
        assert max(sums) - min(sums) <= 2 * 8
