"""A world small enough to run in a second: a random byte-level teacher, a handful of texts, a recipe for a tiny student."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

WORDS = "the state of union people nation congress peace war economy energy freedom work law budget policy world year".split()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every test has a user cache of its own, but for those that share the converted real teacher."""
    if request.node.get_closest_marker("quickstart_inputs") is None:
        monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))


def prose(seed: int, words: int) -> str:
    """Random English-looking prose with a few characters beyond ASCII."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    return " ".join(WORDS[index] + ("é" if index == 3 else "") + ("." if place % 9 == 8 else "") for place, index in enumerate(chosen))


def make_tokenizer(folder: Path, *, vocab_size: int = 300) -> None:
    """A byte-level BPE tokenizer trained on the prose, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([prose(seed, 400) for seed in range(4)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def make_teacher(folder: Path, *, vocab_size: int = 300, seed: int = 0) -> Path:
    """A random two-layer Llama whose distributions are far from flat, with a tokenizer, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder, vocab_size=vocab_size)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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
        "teacher": {"kind": "huggingface", "model": str(teacher_folder), "dtype": "float32", "context": {"window": 48, "overlap": 16}},
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
