"""Run folders: what is written is read again, a kill leaves at most half a line, and damage is named."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import Costs, RunWriter, checkout_commit, is_finished, open_run, require_recipe
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe


@pytest.fixture
def recipe(values: dict[str, Any]) -> Recipe:
    return parse(Recipe, values, source="test")


def resolved(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"vocab_size": 300})})


def costs(step: int) -> Costs:
    return Costs(step=step, tokens=100 * step, seconds=0.1 * step, student_flops=1e9 * step, teacher_flops=5.0, bytes_read=7)


def write_run(path: Path, recipe: Recipe, *, steps: int = 3) -> RunWriter:
    writer = RunWriter(path, recipe=recipe, device="cpu")
    for step in range(1, steps + 1):
        writer.record("train", costs(step), loss_nats=1.0 / 3 / step, lr=1e-3)
    return writer


def test_a_run_is_read_as_it_was_written(tmp_path: Path, recipe: Recipe) -> None:
    writer = write_run(tmp_path / "run", recipe)
    writer.record("eval", costs(3), bits_per_byte=2.5, kl_to_teacher_nats=None)
    run = open_run(tmp_path / "run")
    assert run.recipe == recipe
    assert run.summary is None
    assert not is_finished(run.path)
    assert [record["loss_nats"] for record in run.events("train")] == [1.0 / 3, 1.0 / 6, 1.0 / 9]
    assert run.events("eval") == [
        {
            "event": "eval",
            "step": 3,
            "tokens": 300,
            "seconds": pytest.approx(0.3),
            "student_flops": 3e9,
            "teacher_flops": 5.0,
            "bytes_read": 7,
            "bits_per_byte": 2.5,
            "kl_to_teacher_nats": None,
        }
    ]
    assert run.environment["device"] == "cpu"
    assert run.environment["cores"] >= 1
    writer.finish(costs(3), bits_per_byte=2.5)
    assert is_finished(run.path)
    summary = open_run(run.path).summary
    assert summary is not None
    assert (summary["step"], summary["bits_per_byte"]) == (3, 2.5)


def test_half_a_last_line_is_no_record(tmp_path: Path, recipe: Recipe) -> None:
    write_run(tmp_path, recipe)
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):  # whatever a kill left of the third record
        metrics.write_bytes(whole[:cut])
        assert [record["step"] for record in open_run(tmp_path).records] == [1, 2]


def test_a_continued_run_drops_half_a_line_before_it_goes_on(tmp_path: Path, recipe: Recipe) -> None:
    writer = write_run(tmp_path, recipe)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "st')
    writer.rewind(2)
    writer.record("train", costs(3), loss_nats=0.5)
    assert [(record["step"], record["loss_nats"]) for record in open_run(tmp_path).records][1:] == [(2, 1.0 / 6), (3, 0.5)]


def test_rewinding_forgets_what_came_after(tmp_path: Path, recipe: Recipe) -> None:
    writer = write_run(tmp_path, recipe)
    writer.record("eval", costs(2), bits_per_byte=1.0)
    writer.record("eval", costs(3), bits_per_byte=1.0)
    writer.rewind(2)
    assert [(record["event"], record["step"]) for record in open_run(tmp_path).records] == [
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]
    writer.forget("eval", step=2)
    assert [(record["event"], record["step"]) for record in open_run(tmp_path).records] == [("train", 1), ("train", 2)]
    writer.rewind(0)
    assert open_run(tmp_path).records == ()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", "not a record\n"),
        ("metrics.jsonl", '{"event": "train", "step": 1}\n'),
        ("metrics.jsonl", "\n"),
        ("metrics.jsonl", "[1, 2]\n"),
        ("metrics.jsonl", '{"step": 1}\n'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("environment.json", "{"),
        ("environment.json", None),
        ("summary.json", ""),
        ("recipe.yaml", "name: [unclosed"),
        ("recipe.yaml", ""),
        ("recipe.yaml", "just a sentence"),
        ("recipe.yaml", "name: tiny\n"),
    ],
)
def test_damage_is_named(tmp_path: Path, recipe: Recipe, file: str, content: str | bytes | None) -> None:
    path = tmp_path / "run"
    write_run(path, recipe).finish(costs(3))
    open_run(path)
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LimbeckError) as caught:
        open_run(path)
    assert str(path) in str(caught.value)


def test_damaged_records_stop_a_continued_run(tmp_path: Path, recipe: Recipe) -> None:
    writer = write_run(tmp_path, recipe)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8").replace('{"event"', '{event"', 1), encoding="utf-8")
    with pytest.raises(LimbeckError, match=r"metrics\.jsonl, line 1"):
        writer.rewind(2)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="not a run folder"):
        open_run(tmp_path)


def test_a_recipe_asks_for_the_run_it_was_resolved_into(tmp_path: Path, recipe: Recipe) -> None:
    """The vocabulary is filled in when a run starts; a recipe that leaves it open means the same run, also the second time."""
    write_run(tmp_path, resolved(recipe))
    require_recipe(tmp_path, recipe)
    require_recipe(tmp_path, resolved(recipe))
    other = recipe.model_copy(update={"student": recipe.student.model_copy(update={"vocab_size": 301})})
    with pytest.raises(SpecError, match=r"student\.vocab_size is 300 there and 301 here"):
        require_recipe(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed is 0 there and 7 here"),
        ({"signal": {"kind": "topk", "k": 4}}, r"signal\.k is 20 there and 4 here"),
        ({"data": {"sequence_length": 64}}, r"data\.sequence_length is 32 there and 64 here"),
        ({"signal": {"kind": "sampled"}}, r"signal is \{.*topk.* there and \{.*sampled"),
    ],
)
def test_another_recipe_is_named_by_its_key(
    tmp_path: Path, values: dict[str, Any], recipe: Recipe, change: dict[str, Any], message: str
) -> None:
    write_run(tmp_path, recipe)
    for key, value in change.items():
        values[key] = {**values[key], **value} if key == "data" else value
    other = parse(Recipe, values, source="test")
    with pytest.raises(SpecError, match=message) as caught:
        RunWriter(tmp_path, recipe=other, device="cpu")
    assert caught.value.exit_code == 2
    assert open_run(tmp_path).recipe == recipe


def test_where_things_lie_may_change(tmp_path: Path, values: dict[str, Any], recipe: Recipe) -> None:
    write_run(tmp_path, recipe)
    values |= {"output": "elsewhere", "store": "there", "checkpoint": {"seconds": 3}}
    moved = parse(Recipe, values, source="test")
    RunWriter(tmp_path, recipe=moved, device="cpu")
    assert open_run(tmp_path).recipe == moved


def test_files_are_plain(tmp_path: Path, recipe: Recipe) -> None:
    """Anyone can read a run without Limbeck."""
    write_run(tmp_path, recipe).finish(costs(3))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))["name"] == "tiny"
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["tokens"] == 300
    assert not list(tmp_path.glob("*.tmp"))


def test_runs_are_read_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, limbeck.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=n", "-c", "user.email=e@example.com", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(folder), *named, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_of_a_checkout_is_what_git_says(tmp_path: Path) -> None:
    checkout, tree = tmp_path / "checkout", tmp_path / "tree"
    checkout.mkdir()
    assert checkout_commit(checkout) is None
    git(checkout, "init")
    assert checkout_commit(checkout) is None
    git(checkout, "commit", "--allow-empty", "-m", "one")
    first = git(checkout, "rev-parse", "HEAD")
    assert checkout_commit(checkout) == first
    git(checkout, "worktree", "add", "-b", "side", str(tree))
    git(tree, "commit", "--allow-empty", "-m", "two")
    assert checkout_commit(tree) == git(tree, "rev-parse", "HEAD") != first
    git(checkout, "pack-refs", "--all")
    assert checkout_commit(checkout) == first
    assert checkout_commit(tree) == git(tree, "rev-parse", "HEAD")
    git(tree, "checkout", "--detach", first)
    assert checkout_commit(tree) == first
    (checkout / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert checkout_commit(checkout) is None
