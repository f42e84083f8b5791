"""What a user can get wrong: an exit code, one line that names the place and the remedy, and no finished work lost."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import LimbeckError

Command = Callable[..., Any]
CE = ("objective.kind=ce", "name=ce")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(limbeck: Command, recipe_file: Path, tmp_path: Path) -> Path:
    """The store of the tiny recipe: topk, k = 20."""
    path = tmp_path / "written"
    assert limbeck("cache", "write", recipe_file, f"store={path}").code == 0
    return path


@pytest.fixture
def other_tokenizer(teacher_folder: Path, tmp_path: Path) -> Path:
    """The teacher with a tokenizer that lacks the last merge: other ids for the same text."""
    folder = tmp_path / "other-teacher"
    shutil.copytree(teacher_folder, folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["merges"].pop()
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].get)
    del state["model"]["vocab"][last]
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("student.hiden_size=3",), "student.hiden_size is not a key; did you mean 'hidden_size'?"),
        (("budget.amount=inf",), "budget.amount=inf"),
        (("optimizer.lr=nan",), "optimizer.lr=nan"),
        (("signal=null",), "set signal.kind"),
        (("data.sequence_length.0=3",), "data.sequence_length holds a value, not keys"),
        (("data.train.paths.1=x.txt",), "data.train.paths is a list without a place 1"),
        (("lr",), "'lr' is not of the form key.path=value"),
        (("data.train.paths=[a.txt",), "the value is not valid YAML"),
    ],
)
def test_a_recipe_that_says_nonsense(
    limbeck: Command, recipe_file: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    outcome = limbeck("train", recipe_file, *arguments)
    assert outcome.code == 2
    assert expected in outcome.complaint
    assert not (tmp_path / "out").exists()


def test_a_number_in_quotes_is_text(limbeck: Command, recipe_file: Path) -> None:
    assert "name=1000.0" in limbeck("train", recipe_file, "name=1e3").complaint
    assert json.loads(limbeck("train", recipe_file, "name='1e3'", "--dry-run", "--json").out)["recipe"]["name"] == "1e3"


def test_a_recipe_that_is_not_there_or_no_recipe(limbeck: Command, tmp_path: Path) -> None:
    for content, expected in (
        (None, "does not exist"),
        (b"- a list\n", "must hold a mapping"),
        (b"name: \xe9t\xe9\n", "not UTF-8 at byte 6"),
        (b"name: x\n\tbatch: 1\n", "line 2: not valid YAML"),
        (b"name: x\n", "student is missing"),
    ):
        path = tmp_path / "wrong.yaml"
        if content is not None:
            path.write_bytes(content)
        outcome = limbeck("train", path)
        assert outcome.code == 2
        assert str(path) in outcome.complaint
        assert expected in outcome.complaint
    assert "did you mean 'nano'" in limbeck("train", "nan0").complaint


def test_texts_that_are_not_there_or_empty(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    absent = limbeck("train", recipe_file, *CE, f"data.train.paths=[{tmp_path}/absent.txt]")
    assert absent.code == 1
    assert f"{tmp_path}/absent.txt matches no file" in absent.complaint
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    for part in ("train", "heldout"):
        empty = limbeck("train", recipe_file, *CE, f"data.{part}.paths=[{tmp_path}/empty.txt]")
        assert empty.code == 1
        assert f"data.{part} holds no text" in empty.complaint
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    latin = limbeck("train", recipe_file, *CE, f"data.train.paths=[{tmp_path}/latin.txt]")
    assert latin.code == 1
    assert "latin.txt: not UTF-8 at byte 3" in latin.complaint
    assert not (tmp_path / "out").exists()


def test_a_student_whose_vocabulary_is_not_the_teachers(limbeck: Command, recipe_file: Path, store: Path) -> None:
    outcome = limbeck("train", recipe_file, "student.vocab_size=299", f"store={store}")
    assert outcome.code == 2
    assert "student.vocab_size=299 is smaller than the tokenizer's 300 ids" in outcome.complaint
    live = limbeck("train", recipe_file, "student.vocab_size=301", "signal.live=true")
    assert live.code == 2
    assert "student.vocab_size=301, but the teacher's vocabulary is 300" in live.complaint
    measured = limbeck("train", recipe_file, *CE, "student.vocab_size=301")  # its KL to the teacher could not be
    assert measured.code == 2
    assert "student.vocab_size=301, but the teacher's vocabulary is 300" in measured.complaint
    alone = limbeck("train", recipe_file, *CE, "student.vocab_size=299", "evaluation.kl_to_teacher=false")
    assert alone.code == 2
    assert "student.vocab_size=299 is smaller than the tokenizer's 300 ids" in alone.complaint
    assert limbeck("train", recipe_file, *CE, "student.vocab_size=301", "evaluation.kl_to_teacher=false").code == 0


def test_a_tokenizer_that_is_not_the_teachers(limbeck: Command, recipe_file: Path, store: Path, other_tokenizer: Path) -> None:
    outcome = limbeck("train", recipe_file, f"data.tokenizer={other_tokenizer}", f"store={store}")
    assert outcome.code == 2
    assert f"data.tokenizer={other_tokenizer} (vocabulary of 299) is not the teacher's" in outcome.complaint


def test_a_store_of_another_tokenizer(limbeck: Command, recipe_file: Path, store: Path, other_tokenizer: Path) -> None:
    before = files(store)
    for verb in (("train",), ("cache", "write")):
        outcome = limbeck(*verb, recipe_file, f"teacher.model={other_tokenizer}", f"store={store}")
        assert outcome.code == 1
        assert "tokenizer" in outcome.complaint
        assert str(store) in outcome.complaint
    assert files(store) == before


def test_a_store_of_other_documents(limbeck: Command, recipe_file: Path, texts_folder: Path, tmp_path: Path) -> None:
    texts = [str(texts_folder / "train" / f"{index}.txt") for index in range(5)]
    store = tmp_path / "some"
    assert limbeck("cache", "write", recipe_file, f"store={store}", f"data.train.paths={texts}").code == 0
    outcome = limbeck("train", recipe_file, f"store={store}")
    assert outcome.code == 1
    assert f"{store} lacks 3 of the 8 training documents" in outcome.complaint
    assert limbeck("train", recipe_file, f"store={store}", f"data.train.paths={texts[1:]}").code == 0  # a part is served


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("signal.k=21", "signal.k=21 exceeds the 20 stored"),
        ("signal.kind=sampled", "signal.kind=sampled is not what"),
        ("signal.temperature=2", "signal.temperature=2.0 is not the 1.0 stored"),
        ("teacher.context.window=64", "was scored with"),
    ],
)
def test_a_signal_that_the_store_does_not_hold(
    limbeck: Command, recipe_file: Path, store: Path, override: str, expected: str
) -> None:
    outcome = limbeck("train", recipe_file, override, f"store={store}")
    assert outcome.code == 1
    assert expected in outcome.complaint
    assert str(store) in outcome.complaint


def test_a_store_that_is_not_written_yet(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    outcome = limbeck("train", recipe_file)
    assert outcome.code == 1
    assert "limbeck cache write" in outcome.complaint
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_damaged_while_training(limbeck: Command, recipe_file: Path, store: Path, tmp_path: Path) -> None:
    shard = store / "shard-00000.rows"
    content = shard.read_bytes()
    for place in (100, len(content) // 2):  # one bit each time; twenty steps read every document
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        outcome = limbeck("train", recipe_file, f"store={store}", "budget.amount=20")
        assert outcome.code == 1
        assert str(store) in outcome.complaint
    shard.write_bytes(content[:1000])
    assert f"{shard} is damaged" in limbeck("train", recipe_file, f"store={store}", "budget.amount=20").complaint
    shard.unlink()
    assert f"{shard} is missing" in limbeck("train", recipe_file, f"store={store}", "budget.amount=20").complaint
    assert not (tmp_path / "out/runs/tiny/summary.json").exists()


def test_a_teacher_that_is_not_there(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    for teacher in (f"teacher.model={tmp_path}/absent", f"teacher={{kind: gguf, path: {tmp_path}/absent}}"):
        outcome = limbeck("cache", "write", recipe_file, teacher)
        assert outcome.code == 1
        assert f"{tmp_path}/absent" in outcome.complaint
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_weights(limbeck: Command, recipe_file: Path, teacher_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder, tmp_path / "hollow")
    (tmp_path / "hollow/model.safetensors").unlink()
    outcome = limbeck("cache", "write", recipe_file, f"teacher.model={tmp_path}/hollow")
    assert outcome.code == 1
    assert f"cannot be loaded from {tmp_path}/hollow" in outcome.complaint


def test_a_teacher_that_says_nan_publishes_nothing(
    limbeck: Command, recipe_file: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    poisoned = tmp_path / "poisoned"
    shutil.copytree(teacher_folder, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    weights["lm_head.weight"][17, 3] = float("nan")
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    teacher = f"teacher.model={poisoned}"
    outcome = limbeck("cache", "write", recipe_file, teacher)
    assert outcome.code == 1
    assert "nan" in outcome.complaint
    assert not list(tmp_path.rglob("store.json"))
    assert not list(tmp_path.rglob("*.rows"))
    assert limbeck("train", recipe_file, teacher).code == 1
    assert not (tmp_path / "out/runs").exists()


def test_code_that_comes_with_a_teacher_is_neither_run_nor_asked_about(
    limbeck: Command, recipe_file: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trace, asked = tmp_path / "foreign", tmp_path / "it-was-run", []
    shutil.copytree(teacher_folder, folder)
    (folder / "foreign.py").write_text(f"open({str(trace)!r}, 'w')\n", encoding="utf-8")
    for name, entry in (("config", "AutoConfig"), ("tokenizer_config", "AutoTokenizer")):
        path = folder / f"{name}.json"
        classes = {entry: ["foreign.Foreign", None] if entry == "AutoTokenizer" else "foreign.Foreign"}
        values = {**json.loads(path.read_text(encoding="utf-8")), "auto_map": classes}
        path.write_text(json.dumps({**values, "model_type": "foreign", "tokenizer_class": "Foreign"}), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    outcome = limbeck("cache", "write", recipe_file, f"teacher.model={folder}")
    assert not trace.exists()
    assert asked == []
    assert outcome.code == 1
    assert "contains custom code" in outcome.complaint


def test_a_device_that_is_not_there(limbeck: Command, recipe_file: Path) -> None:
    for device in ("cuda:63", "abacus"):
        outcome = limbeck("train", recipe_file, *CE, f"device={device}")
        assert outcome.code == 1
        assert f"device={device} cannot be used here" in outcome.complaint


def test_an_output_that_cannot_be_written(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    for verb in (("train",), ("cache", "write")):
        outcome = limbeck(*verb, recipe_file, f"output={tmp_path}/taken", *(CE if verb == ("train",) else ()))
        assert outcome.code == 1
        assert f"{tmp_path}/taken" in outcome.complaint
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "a file, not a folder"


def test_a_finished_run_is_neither_trained_over_nor_lost(limbeck: Command, recipe_file: Path, tmp_path: Path) -> None:
    assert limbeck("train", recipe_file, *CE).code == 0
    before = files(tmp_path / "out")
    outcome = limbeck("train", recipe_file, *CE, "optimizer.lr=0.5")
    assert outcome.code == 2
    assert "optimizer" in outcome.complaint
    assert "choose another name or output, or remove the folder" in outcome.complaint
    assert files(tmp_path / "out") == before


def disk_that_fills(after: int, monkeypatch: pytest.MonkeyPatch, *, files: str = "") -> Callable[[], None]:
    """After `after` calls no file whose name holds `files` can be synced to the disk. Returns what frees it again."""
    sync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += files in os.readlink(f"/proc/self/fd/{descriptor}")
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return lambda: monkeypatch.setattr(os, "fsync", sync)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, although the corpus is tiny."""
    monkeypatch.setattr("limbeck.teachers.cache.SHARD_TOKENS", 500)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the documents that the teacher has scored."""
    from limbeck.teachers import cache

    ids: list[str] = []
    original = cache.score_documents

    def spy(teacher: Any, documents: Any, **keywords: Any) -> Any:
        rows = original(teacher, documents, **keywords)
        ids.extend(keywords["ids"])
        return rows

    monkeypatch.setattr(cache, "score_documents", spy)
    return ids


def payloads(store: Path) -> list[str]:
    """Checksums of the rows of every shard (the whole file also holds the seconds that it took)."""
    from limbeck.signals.shards import read_index

    return [read_index(path).payload_checksum for path in sorted(store.glob("*.rows"))]


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_keeps_finished_shards_and_the_same_command_goes_on(
    limbeck: Command, recipe_file: Path, store: Path, scored: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "again"
    free = disk_that_fills(6, monkeypatch)  # file and folder are synced: the plan and two shards fit
    outcome = limbeck("cache", "write", recipe_file, f"store={other}")
    assert outcome.code == 1
    assert f"the disk is full: {other}/shard-00002.rows" in outcome.complaint
    assert not (other / "store.json").exists()
    assert sorted(path.name for path in other.iterdir()) == ["plan.json", "shard-00000.rows", "shard-00001.rows"]
    assert "is incomplete (2 of" in limbeck("train", recipe_file, f"store={other}").complaint
    free()
    kept = payloads(other)
    scored_first = len(scored)
    assert limbeck("cache", "write", recipe_file, f"store={other}").code == 0
    assert payloads(other) == payloads(store)
    assert payloads(other)[:2] == kept
    assert len(set(scored)) == 8
    assert len(scored) < scored_first + 8  # what was kept wasn't scored again
    assert limbeck("cache", "verify", other).code == 0


@pytest.mark.usefixtures("small_shards")
def test_ctrl_c_while_scoring_keeps_finished_shards_and_the_same_command_goes_on(
    limbeck: Command, recipe_file: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.teachers import cache

    other, original, calls = tmp_path / "again", cache.score_documents, 0

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(cache, "score_documents", interrupted)
    outcome = limbeck("cache", "write", recipe_file, f"store={other}")
    assert outcome.code == 130
    assert "interrupted; the same command continues" in outcome.complaint
    assert len(payloads(other)) == 1
    assert limbeck("cache", "write", recipe_file, f"store={other}").code == 0
    assert payloads(other) == payloads(store)
    assert calls == 1 + len(payloads(store))


def test_a_full_disk_while_tokenising_leaves_no_half_made_tokens(
    limbeck: Command, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.data.token_store.np.save", full)
        outcome = limbeck("train", recipe_file, *CE)
    assert outcome.code == 1
    assert "No space left on device" in outcome.complaint
    assert str(tmp_path / "cache" / "tokens") in outcome.complaint
    assert not list((tmp_path / "cache" / "tokens").iterdir())
    assert limbeck("train", recipe_file, *CE).code == 0


def test_a_full_disk_while_training_keeps_what_is_there(
    limbeck: Command, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe_file.write_text(yaml.safe_dump({**recipe, "checkpoint": {"seconds": 1e-9}}), encoding="utf-8")
    run = tmp_path / "out/runs/ce"
    free = disk_that_fills(3, monkeypatch, files="checkpoint.pt")  # a checkpoint after every step: three fit
    outcome = limbeck("train", recipe_file, *CE)
    assert outcome.code == 1
    assert f"{run}/checkpoint.pt cannot be written" in outcome.complaint
    assert "free some space" in outcome.complaint
    assert (run / "checkpoint.pt").is_file()
    free()
    resumed = limbeck("train", recipe_file, *CE)
    assert resumed.code == 0
    assert "resuming at step 3" in resumed.err


def test_a_full_disk_anywhere_else_is_one_line_too(
    limbeck: Command, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.runs.RunWriter.record", full)
        outcome = limbeck("train", recipe_file, *CE)
    assert outcome.code == 1
    assert "metrics.jsonl: No space left on device; free some space" in outcome.complaint
    assert limbeck("train", recipe_file, *CE).code == 0


def test_an_error_of_several_lines_is_one_line(limbeck: Command, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise LimbeckError("first\n  second\nthird")

    monkeypatch.setattr("limbeck.train.train.open_setup", fail)
    assert limbeck("train", recipe_file).complaint == "limbeck: first second third"


def test_our_own_mistakes_keep_their_traceback(limbeck: Command, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("limbeck.train.train.open_setup", mistaken)
    with pytest.raises(ZeroDivisionError):
        limbeck("train", recipe_file)
