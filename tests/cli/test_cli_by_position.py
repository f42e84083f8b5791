"""`limbeck eval … --by-position` and `export --yarn`: what is printed is what is written, and mistakes are one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.students import hf
from limbeck.students.build import build


@pytest.fixture
def student(tmp_path: Path, teacher_folder: Path) -> Callable[[str, int], Path]:
    """A random one, made for 64 tokens, in a folder of that name."""

    def make(name: str, seed: int) -> Path:
        sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 32}
        spec = Olmo3Student(**sizes, sliding_window=8, full_attention_every=2, init_std=0.4)
        made = build(spec, vocab_size=300, seed=seed)
        hf.save(made, spec=spec, folder=tmp_path / name, max_positions=64, tokenizer_folder=teacher_folder)
        return tmp_path / name

    return make


def test_models_side_by_side(
    limbeck: Callable[..., Any], student: Callable[[str, int], Path], texts_folder: Path, tmp_path: Path
) -> None:
    one, two, written = student("one", 0), student("two", 1), tmp_path / "out"
    texts = f"{texts_folder}/train/*.txt"
    common = ("--by-position", "--window", 128, "--texts", texts)
    printed = limbeck("eval", one, two, *common, "-o", written).out
    assert "the first 128 tokens of 8 documents" in printed and "two - one" in printed
    saved = json.loads((written / "by-position.json").read_text(encoding="utf-8"))
    row = saved["models"]["two"][1]
    line = next(line for line in printed.splitlines() if line.startswith("64-127"))
    assert f"{row['nats']['value']:.4f} [{row['nats']['low']:.4f}, {row['nats']['high']:.4f}]" in line
    assert f"{row['difference']['value']:+.4f}" in line
    assert (written / "by-position.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(limbeck("eval", one, two, *common, "-o", written, "--json").out) == saved
    assert "name a folder for the table and the figure with -o" in limbeck("eval", one, *common).complaint
    assert "2 models are named: add --by-position" in limbeck("eval", one, two, "--texts", texts).complaint
    assert "named twice" in limbeck("eval", one, one, *common, "-o", written).complaint
    assert "--overlap means nothing" in limbeck("eval", one, *common, "--overlap", 4, "-o", written).complaint


def test_stretching_without_training(limbeck: Callable[..., Any], student: Callable[[str, int], Path], tmp_path: Path) -> None:
    """`export --yarn` says what transformers reads: eight times as far, from the length of training."""
    from transformers import AutoConfig, AutoTokenizer

    one = student("one", 1)
    assert limbeck("export", one, "-o", tmp_path / "far", "--yarn", 8).code == 0
    config = AutoConfig.from_pretrained(tmp_path / "far")
    assert config.max_position_embeddings == 512
    rope = config.rope_parameters["full_attention"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 8.0, 64)
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert AutoTokenizer.from_pretrained(tmp_path / "far").get_vocab() == AutoTokenizer.from_pretrained(one).get_vocab()
    assert "has YaRN already" in limbeck("export", tmp_path / "far", "-o", tmp_path / "farther", "--yarn", 2).complaint
    assert (
        "--yarn is for --format hf"
        in limbeck("export", one, "-o", tmp_path / "x.gguf", "--format", "gguf", "--yarn", 2).complaint
    )


def test_a_run_keeps_its_own(limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    assert limbeck("train", recipe_file, "objective.kind=ce", "name=ce").code == 0
    run = tmp_path / "out" / "runs" / "ce"
    shown = json.loads(limbeck("eval", run, "--by-position", "--window", 64, "--json").out)
    assert json.loads((run / "by-position.json").read_text(encoding="utf-8")) == shown
    assert list(shown["models"]) == ["ce"] and shown["models"]["ce"][0]["difference"] is None
