"""Which evaluations are made, which are kept, and that all of them are looked at before the first is made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import opened
from tiny_world import make_teacher, make_tokenizer

from limbeck.errors import LimbeckError
from limbeck.eval_results import EvalResult, Metric, read_results, write_result
from limbeck.evals import bits_per_byte, copying
from limbeck.evals.dependence import subject_of
from limbeck.evals.run import run_evals
from limbeck.evals.subject import EvalModel
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.calibration import Calibration
from limbeck.spec.evals.copying import Copying
from limbeck.spec.evals.generation import Generation
from limbeck.spec.evals.harness import Harness


@pytest.fixture
def model(teacher_folder: Path, texts_folder: Path) -> EvalModel:
    return opened(teacher_folder, FileTexts(paths=(f"{texts_folder}/heldout/*.txt",)), sequence_length=32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is measured."""
    names: list[str] = []
    for module in (bits_per_byte, copying):

        def measure(model: EvalModel, spec: Any, module: Any = module, measure: Any = module.measure) -> Any:
            names.append(spec.kind)
            return measure(model, spec)

        monkeypatch.setattr(module, "measure", measure)
    return names


def test_what_is_there_is_not_made_again(model: EvalModel, made: list[str], tmp_path: Path, texts_folder: Path) -> None:
    evals = {"bits_per_byte": BitsPerByte(window=16), "copies": Copying(lags=(4,), sequences=2)}
    first = run_evals(model, evals, folder=tmp_path)
    assert made == ["bits_per_byte", "copying"]
    assert read_results(tmp_path) == first and list(first) == ["bits_per_byte", "copies"]
    assert json.loads((tmp_path / "evals" / "copies.json").read_text())["kind"] == "copying"
    renamed = replace(model, name="another name of the same")
    assert run_evals(renamed, dict(reversed(evals.items())), folder=tmp_path) == first
    assert len(made) == 2
    run_evals(model, evals, folder=tmp_path, again=True)
    assert len(made) == 4
    run_evals(model, {"bits_per_byte": BitsPerByte(window=17)}, folder=tmp_path)
    run_evals(replace(model, sequence_length=31), {"copies": evals["copies"]}, folder=tmp_path)
    other = FileTexts(paths=(f"{texts_folder}/heldout/0.txt",))
    changed = replace(model, heldout=other)
    result = run_evals(changed, evals, folder=tmp_path)["bits_per_byte"]
    assert made[4:] == ["bits_per_byte", "copying", "bits_per_byte", "copying"]
    assert result.metrics["bits_per_byte"].n == 1 and result.subject["heldout"]["paths"] == [f"{texts_folder}/heldout/0.txt"]


def test_what_a_result_depends_on(
    teacher_folder: Path, texts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files by their contents and folders by their files' sizes, a teacher's weights, and the processor where time counts."""
    document, teacher, tasks = tmp_path / "a.txt", tmp_path / "teacher", tmp_path / "tasks"
    document.write_text("one", encoding="utf-8")
    shutil.copytree(teacher_folder, teacher)
    tasks.mkdir()
    model = opened(teacher_folder, FileTexts(paths=(f"{tmp_path}/*.txt",)), teacher=teacher)
    harness = Harness(tasks=("t",), include_path=str(tasks))
    chats = Generation(end_chats=str(tmp_path / "chats.jsonl"))
    read = lambda: [subject_of(model, spec) for spec in (Copying(), Calibration(), chats, harness)]  # noqa: E731

    def changed() -> list[bool]:
        nonlocal known
        known, before = read(), known
        return [one != other for one, other in zip(known, before, strict=True)]

    known = read()
    assert changed() == [False] * 4
    document.write_text("two", encoding="utf-8")
    assert changed() == [True] * 4
    (tmp_path / "chats.jsonl").write_text("{}", encoding="utf-8")
    assert changed() == [False, False, True, False]
    (tasks / "task.yaml").write_text("task: t", encoding="utf-8")
    assert changed() == [False, False, False, True]
    make_teacher(teacher, seed=1)
    assert changed() == [False, True, False, False]
    monkeypatch.setattr("limbeck.evals.dependence.processor_name", lambda: "another")
    assert changed() == [False, False, True, False]


def test_again_generates_anew(model: EvalModel, tmp_path: Path) -> None:
    asked = {"health": Generation(num_prompts=2, prompt_tokens=4, max_new_tokens=4, end_documents=0)}
    run_evals(model, asked, folder=tmp_path)
    kept = tmp_path / "evals" / "health.generations.jsonl"
    written = kept.read_text(encoding="utf-8").split("\n")
    asking, *samples = map(json.loads, filter(None, written))
    slow = [json.dumps(each | {"batch_seconds": 1e6}) for each in samples]
    kept.write_text("\n".join([json.dumps(asking), *slow, ""]), encoding="utf-8")
    (tmp_path / "evals" / "health.json").unlink()
    assert run_evals(model, asked, folder=tmp_path)["health"].metrics["seconds_per_sample"].value > 1e5, "what was kept counts"
    assert run_evals(model, asked, folder=tmp_path, again=True)["health"].metrics["seconds_per_sample"].value < 1e5
    assert len(kept.read_text(encoding="utf-8").split("\n")) == len(written)


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    of = {"kind": "copying", "name": "copies", "model": "tiny", "spec": {}}
    for metrics, details, place in (
        ({"gain_nats": Metric(1.0, low=float("nan"))}, {}, r"metrics.gain_nats.low is nan"),
        ({}, {"rows": [{"nats": float("-inf")}]}, r"details.rows.0.nats is -inf"),
    ):
        with pytest.raises(LimbeckError, match=f"copies of tiny: {place}: the model's logits are not finite"):
            write_result(tmp_path, EvalResult(**of, metrics=metrics, details=details))
    assert read_results(tmp_path) == {}


def test_nothing_is_measured_where_one_of_them_cannot_be(model: EvalModel, made: list[str], tmp_path: Path) -> None:
    evals = {"bits_per_byte": BitsPerByte(), "copying": Copying(window=1000)}
    with pytest.raises(LimbeckError, match=r"copying.window=1000 is more than tiny can read"):
        run_evals(model, evals, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match=r"bits_per_byte.json can.t be written"):
        run_evals(model, {"bits_per_byte": BitsPerByte()}, folder=tmp_path / "file")
    assert made == [] and read_results(tmp_path) == {}


def test_the_tokenizer_of_another_model_is_refused(
    teacher_folder: Path, texts_folder: Path, made: list[str], tmp_path: Path
) -> None:
    for source in teacher_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    make_tokenizer(tmp_path, vocab_size=320)
    with pytest.raises(LimbeckError, match=r"does not fit tiny: it gives ids up to 319, and the model knows 300"):
        run_evals(opened(tmp_path, None), {"copying": Copying(text=False)}, folder=tmp_path / "out")
    assert made == []


def test_tokens_that_were_added_may_lie_beyond(teacher_folder: Path, made: list[str], tmp_path: Path) -> None:
    """As in the models of a family that read no images."""
    from transformers import AutoTokenizer

    for source in teacher_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path)
    model = opened(tmp_path, None)
    assert len(model.tokenizer.backend) == 301
    run_evals(model, {"copying": Copying(text=False, lags=(4,), sequences=2)}, folder=tmp_path / "out")
    assert made == ["copying"]
