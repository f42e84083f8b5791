"""`limbeck export`: a trained student as a folder or a GGUF file."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from tiny_students import golf, ladder
from tiny_world import make_tokenizer

from limbeck.spec.adapter import LoRA
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import Student
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.pretrained import load_pretrained
from limbeck.students.pretrained_folder import save_pretrained


def saved(spec: Student, tmp_path: Path) -> tuple[Decoder, Path]:
    student, folder = build(spec, vocab_size=300, seed=0), tmp_path / "student"
    make_tokenizer(tmp_path / "tokenizer")
    hf.save(student, spec=spec, folder=folder, max_positions=64, tokenizer_folder=tmp_path / "tokenizer")
    return student, folder


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def field(path: Path, key: str) -> object:
    return gguf.GGUFReader(path).get_field(key).contents()


def test_the_command_writes_both(limbeck, tmp_path):
    student, folder = saved(ladder(), tmp_path)
    outcome = limbeck("export", folder, "--format", "gguf", "-o", tmp_path / "a.gguf", "--dtype", "float32")
    assert (outcome.code, outcome.out.strip()) == (0, f"gguf: {tmp_path / 'a.gguf'}")
    assert field(tmp_path / "a.gguf", "general.architecture") == "qwen3"
    assert field(tmp_path / "a.gguf", "general.file_type") == gguf.LlamaFileType.ALL_F32
    outcome = limbeck("export", folder, "-o", tmp_path / "b", "--json")
    assert json.loads(outcome.out) == {"student": str(folder), "format": "hf", "path": str(tmp_path / "b")}
    assert torch.equal(hf.load(tmp_path / "b")[0].head_VD, student.head_VD)


def test_what_means_nothing_is_refused(limbeck, tmp_path):
    _, folder = saved(ladder(), tmp_path)
    outcome = limbeck("export", folder, "-o", tmp_path / "c", "--dtype", "float16")
    assert outcome.code == 2 and "--dtype=float16 is for --format gguf" in outcome.complaint
    outcome = limbeck("export", folder, "-o", folder)
    assert outcome.code == 2 and "name another" in outcome.complaint
    outcome = limbeck("export", tmp_path / "nothing", "-o", tmp_path / "c")
    assert outcome.code == 1 and "holds no config.json" in outcome.complaint


@pytest.mark.parametrize("there", ["the student", "the run", "all runs", "inside", "texts", "a file", "another model"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_folder_replaces_nothing(limbeck, tmp_path, monkeypatch, teacher_folder, there, pretrained):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    if pretrained:
        spec = HuggingFaceStudent(model=str(teacher_folder))
        save_pretrained(load_pretrained(spec, seed=0), spec=spec, folder=run / "student")
    else:
        saved(ladder(), tmp_path)[1].rename(run / "student")
    (run / "recipe.yaml").write_text("name: mine\n")
    for name in ("texts", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("what nobody has twice")
    (tmp_path / "model" / "config.json").write_text("{}")
    places = {
        "the student": (run / "student", "is, or holds, the folder to export"),
        "the run": (run, "is, or holds, the folder to export"),
        "all runs": (".", "is, or holds, the folder to export"),
        "inside": (run / "student" / "copy", "is inside the folder to export"),
        "texts": (tmp_path / "texts", "exists already: name a new folder"),
        "a file": (tmp_path / "texts" / "a.txt", "exists already: name a new folder"),
        "another model": (tmp_path / "model", "exists already: name a new folder"),
    }
    output, said = places[there]
    before = files(tmp_path)
    monkeypatch.chdir(tmp_path / "runs")
    outcome = limbeck("export", run, "-o", output)
    assert (outcome.code, said in outcome.complaint) == (2, True), outcome.complaint
    assert files(tmp_path) == before


def test_an_empty_folder_is_filled(limbeck, tmp_path, monkeypatch):
    _, folder = saved(ladder(), tmp_path)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert limbeck("export", folder, "-o", ".").code == 0
    assert "# new\n" in (tmp_path / "new" / "README.md").read_text()
    assert hf.load(tmp_path / "new")[1] == ladder()


def test_a_run_is_named_by_its_folder(limbeck, tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: mine\n")
    outcome = limbeck("export", run, "-o", tmp_path / "b")
    assert outcome.code == 1 and f"{run} is unfinished" in outcome.complaint
    _, folder = saved(ladder(), tmp_path)
    folder.rename(run / "student")
    assert limbeck("export", run, "--format", "gguf", "-o", tmp_path / "a.gguf").code == 0
    assert field(tmp_path / "a.gguf", "general.name") == "mine"


def test_a_part_that_gguf_lacks_is_one_line(limbeck, tmp_path):
    _, folder = saved(golf(), tmp_path)
    outcome = limbeck("export", folder, "--format", "gguf", "-o", tmp_path / "a.gguf")
    expected = f"limbeck: {folder}: GGUF has no model with an activation other than swiglu: export it with --format hf"
    assert (outcome.code, outcome.complaint) == (2, expected)


def test_a_student_that_was_a_pretrained_model_is_copied_with_its_adapter(limbeck, tmp_path, teacher_folder):
    spec = HuggingFaceStudent(model=str(teacher_folder), adapter=LoRA(rank=2))
    run = tmp_path / "mine"
    save_pretrained(load_pretrained(spec, seed=0), spec=spec, folder=run / "student")
    (run / "recipe.yaml").write_text("name: mine\n")
    assert limbeck("export", run, "-o", tmp_path / "copy").code == 0
    names = {path.relative_to(run / "student") for path in (run / "student").rglob("*")}
    assert names == {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*")}
    assert Path("adapter/adapter_model.safetensors") in names
    outcome = limbeck("export", run, "--format", "gguf", "-o", tmp_path / "a.gguf")
    assert (outcome.code, "'llama' that was pretrained elsewhere" in outcome.complaint) == (1, True)
