"""GGUF files of students: read back by transformers and by the `gguf` package's names; refused where llama.cpp has no part."""

import json
from pathlib import Path

import gguf as format
import numpy as np
import pytest
import torch
from test_hf import moved as moved_small
from tiny_students import YARN, dense, golf, moe, olmo3
from tiny_world import make_tokenizer, prose
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from limbeck.errors import SpecError
from limbeck.spec.parts import Rope
from limbeck.spec.student import Student
from limbeck.students import gguf, hf
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.gguf_tokenizer import _SPLITS

VOCAB = 304
"""Four more than the tokenizer has."""
FULL = {"full_attention_every": 1}
LLAMA = dense(qk_norm="none", num_heads=6, num_kv_heads=3, positions=Rope(theta=321.0), **FULL)
QWEN = dense(head_dim=128, rms_norm_eps=1e-3, **FULL)
"""transformers does not read a head's size from a `qwen3` file, and takes 128."""


def moved(spec: Student) -> Decoder:
    student, draw = build(spec, vocab_size=VOCAB, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return student.eval()


def saved(spec: Student, tmp_path: Path) -> tuple[Decoder, Path]:
    student, folder = moved(spec), tmp_path / "student"
    make_tokenizer(tmp_path / "tokenizer")
    hf.save(
        student,
        spec=spec,
        folder=folder,
        max_positions=64,
        tokenizer_folder=tmp_path / "tokenizer",
        bos_token_id=0,
        eos_token_id=1,
    )
    return student, folder


def field(path: Path, key: str) -> object:
    return format.GGUFReader(path).get_field(key).contents()


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (LLAMA, "float32"),
        (LLAMA.model_copy(update={"tied_embeddings": True}), "float32"),
        (LLAMA, "float16"),
        (LLAMA, "bfloat16"),
        (QWEN, "float32"),
        (QWEN.model_copy(update={"tied_embeddings": True}), "float32"),
    ],
)
@torch.no_grad()
def test_transformers_reads_the_file_back_with_equal_logits(tmp_path, spec, dtype):
    """Those of the student whose matrices are rounded to the file's dtype."""
    student, folder = saved(spec, tmp_path)
    gguf.export(folder, path=tmp_path / "out.gguf", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="out.gguf", dtype=torch.float32)
    tokens_BT = torch.randint(300, (2, 29), generator=torch.Generator().manual_seed(0))
    unrounded, theirs = student.logits(student(tokens_BT).hidden_BTD), model(tokens_BT).logits
    assert ((theirs - unrounded).abs().max() > 1e-3) == (dtype != "float32")
    for parameter in student.parameters():
        parameter.copy_(parameter.to(getattr(torch, dtype)) if parameter.ndim > 1 else parameter)
    assert theirs.std() > 1
    torch.testing.assert_close(theirs, student.logits(student(tokens_BT).hidden_BTD), rtol=0, atol=1e-5)
    config = model.config
    assert (config.max_position_embeddings, config.vocab_size, config.tie_word_embeddings) == (64, VOCAB, spec.tied_embeddings)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_an_olmo3_file_has_the_tensors_and_keys_that_llama_cpp_reads(tmp_path, tied):
    """transformers reads no `olmo2` files; the `gguf` package names their tensors, and transformers' own class computes."""
    spec = olmo3(head_dim=12, num_layers=5, yarn=YARN, tied_embeddings=tied)
    student, folder = saved(spec, tmp_path)
    path = tmp_path / "out.gguf"
    gguf.export(folder, path=path, dtype="float32")
    reader = format.GGUFReader(path)
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    names = format.get_tensor_name_map(format.MODEL_ARCH.OLMO2, 5)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    weights = {}
    for name in model.state_dict():
        found = tensors.pop(f"{names.get_name(name.removesuffix('.weight'))}.weight")
        weights[name] = found
    assert not tensors  # also where tied: llama.cpp wants `output.weight` of this architecture
    model.load_state_dict(weights)
    tokens_BT = torch.randint(300, (2, 29), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens_BT).logits, student.logits(student(tokens_BT).hidden_BTD), rtol=0, atol=1e-5)
    expected = {
        "general.architecture": "olmo2",
        "olmo2.attention.sliding_window": 5,
        "olmo2.attention.sliding_window_pattern": 4,
        "olmo2.rope.freq_base": 500_000.0,
        "olmo2.rope.scaling.type": "yarn",
        "olmo2.rope.scaling.factor": 4.0,
        "olmo2.rope.scaling.original_context_length": 64,
        "olmo2.rope.scaling.yarn_beta_fast": 8.0,
        "olmo2.rope.scaling.yarn_beta_slow": 1.0,
        "olmo2.embedding_length": 48,
        "olmo2.feed_forward_length": 80,
        "olmo2.block_count": 5,
        "olmo2.attention.head_count": 4,
        "olmo2.attention.head_count_kv": 2,
        "olmo2.context_length": 64,
    }
    assert {key: field(path, key) for key in expected} == expected
    assert field(path, "olmo2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def test_norms_are_float32_and_matrices_are_not(tmp_path):
    _, folder = saved(LLAMA, tmp_path)
    gguf.export(folder, path=tmp_path / "out.gguf")
    kinds = {len(tensor.shape): tensor.tensor_type.name for tensor in format.GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds == {1: "F32", 2: "F16"}
    assert field(tmp_path / "out.gguf", "general.file_type") == format.LlamaFileType.MOSTLY_F16


@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_windows_come_with_the_period_of_full_layers(tmp_path, every):
    spec = olmo3(head_dim=12, num_layers=5, full_attention_every=every)
    _, folder = saved(spec, tmp_path)
    gguf.export(folder, path=tmp_path / "out.gguf")
    fields = format.GGUFReader(tmp_path / "out.gguf").fields
    assert ("olmo2.attention.sliding_window" in fields) == (every > 1)
    if every > 1:
        period = field(tmp_path / "out.gguf", "olmo2.attention.sliding_window_pattern")
        full = [layer % period == period - 1 for layer in range(5)]  # `set_swa_pattern` of llama.cpp
        assert full == [kind == "full_attention" for kind in spec.kinds]


def test_the_tokenizer_comes_back(tmp_path):
    _, folder = saved(LLAMA, tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    gguf.export(folder, path=tmp_path / "out.gguf")
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
    text = prose(7, 60) + "  don't   stop:\n\n 1234 Ünïcode </s> 東京"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours(text, add_special_tokens=False)["input_ids"]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.chat_template) == (0, 1, "{{ messages }}")
    tokens = field(tmp_path / "out.gguf", "tokenizer.ggml.tokens")
    assert tokens[:2] == ["<s>", "</s>"] and tokens[300:] == ["[PAD300]", "[PAD301]", "[PAD302]", "[PAD303]"]
    kinds = field(tmp_path / "out.gguf", "tokenizer.ggml.token_type")
    assert kinds == [3, 3] + [1] * 298 + [5] * 4
    assert field(tmp_path / "out.gguf", "tokenizer.ggml.pre") == "gpt-2"
    assert field(tmp_path / "out.gguf", "tokenizer.ggml.add_bos_token") is False


def test_splits_are_those_that_transformers_has_for_llama_cpps_names():
    assert {name: GGUF_PRE_TOKENIZER_SPLITS[name] for name in _SPLITS.values()} == {
        name: split for split, name in _SPLITS.items()
    }
    assert GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"] == GGUF_PRE_TOKENIZER_SPLITS["dbrx"]


@pytest.mark.parametrize("name", ["qwen2", "dbrx", "llama-bpe", "gpt-4o", "smollm"])
def test_a_way_of_splitting_is_called_by_its_name(tmp_path, name):
    _, folder = saved(LLAMA, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if name == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.model.ignore_merges = name == "llama-bpe"
    tokenizer.save(str(folder / "tokenizer.json"))
    gguf.export(folder, path=tmp_path / "out.gguf")
    assert field(tmp_path / "out.gguf", "tokenizer.ggml.pre") == name
    if name != "smollm":
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf").backend_tokenizer
        text = "the Nation's 12345 states,\n\n  DON'T stop"
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no name for"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "no byte-level BPE"),
        ({"added_tokens": [{"id": VOCAB, "content": "<more>", "special": True}]}, "305 tokens and the student knows 304"),
    ],
)
def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(tmp_path, change, message):
    _, folder = saved(LLAMA, tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SpecError, match=message):
        gguf.export(folder, path=tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))
    path.unlink()
    with pytest.raises(SpecError, match="holds no tokenizer"):
        gguf.export(folder, path=tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (moe(), "experts"),
        (golf(), "an activation other than swiglu"),
        (golf(activation="swiglu"), "ntk_length"),
        (dense(), "sliding windows"),
        (dense(sinks=True), "attention sinks"),
        (olmo3(), "head_dim = 64 other than hidden_size=48"),
        (dense(positions=Rope(yarn=YARN.model_copy(update={"truncate": False})), **FULL), "truncate=false"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_name(tmp_path, spec, part):
    hf.save(moved_small(spec), spec=spec, folder=tmp_path / "student", max_positions=64)
    with pytest.raises(SpecError, match=f"{part}.*--format hf"):
        gguf.export(tmp_path / "student", path=tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))
