"""A world small enough to run in a second: a random byte-level teacher, a handful of texts, a recipe for a tiny student."""

import os

# Many threads make tiny tensors slow, and much slower where cores are shared. Set before torch reads it, and inherited.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings
from tiny_world import make_teacher, prose

settings.register_profile("limbeck", deadline=None)  # other work may share the machine: no test measures time
settings.load_profile("limbeck")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every test has a user cache of its own, but for those that share the converted real teacher."""
    if request.node.get_closest_marker("quickstart_inputs") is None:
        monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher."""
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def texts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/*.txt` of very different lengths, and `heldout/*.txt`."""
    folder = tmp_path_factory.mktemp("texts")
    for part, lengths in (("train", (5, 40, 300, 12, 90, 150, 60, 33)), ("heldout", (50, 20))):
        (folder / part).mkdir()
        for index, words in enumerate(lengths):
            (folder / part / f"{index}.txt").write_text(prose(100 * len(part) + index, words), encoding="utf-8")
    return folder


@pytest.fixture
def values(teacher_folder: Path, texts_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe as a mapping, to be changed by a test and given to `parse` or written as YAML."""
    return {
        "name": "tiny",
        "student": {
            "kind": "olmo3",
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 8,
            "intermediate_size": 32,
        },
        "teacher": {
            "kind": "huggingface",
            "model": str(teacher_folder),
            "dtype": "float32",
            "context": {"window": 48, "overlap": 16},
        },
        "data": {
            "train": {"kind": "files", "paths": [f"{texts_folder}/train/*.txt"]},
            "heldout": {"kind": "files", "paths": [f"{texts_folder}/heldout/*.txt"]},
            "sequence_length": 32,
        },
        "signal": {"kind": "topk", "k": 20},
        "objective": {"kind": "forward_kl"},
        "budget": {"kind": "steps", "amount": 8},
        "batch": {"sequences": 4},
        "precision": "float32",
        "device": "cpu",
        "output": str(tmp_path / "out"),
    }


@pytest.fixture
def recipe_file(values: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
