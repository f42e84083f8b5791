"""Students as Hugging Face folders: `save` writes what `AutoModelForCausalLM` opens with equal logits, `load` reads it back.

A folder holds config.json, generation_config.json, model.safetensors (float32), the tokenizer's files and a model card.
Parameter names are transformers' own, so saving is a plain copy. A folder appears whole or not at all: it is written beside
its place and then renamed.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, Olmo3Config

from limbeck.errors import LimbeckError
from limbeck.plan.accounting import student_parameters
from limbeck.spec.student import Olmo3Student, Student
from limbeck.students.olmo3 import Olmo3

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def save(
    student: Olmo3,
    *,
    spec: Student,
    folder: Path,
    max_positions: int,
    tokenizer_folder: Path | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write `student` to `folder`, replacing what is there.

    `max_positions` is the longest context in tokens that the student was trained on. `tokenizer_folder` is any folder with a
    tokenizer's files (a teacher's will do); nothing else of it is copied. Raises `LimbeckError` where it holds none.
    """
    ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    config = _config(spec, vocab_size=student.head_VD.shape[0], max_position_embeddings=max_positions, **ids)
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in student.state_dict().items()}
    with _published(folder) as partial:
        config.save_pretrained(partial)
        GenerationConfig(**ids).save_pretrained(partial)
        _save_weights(weights, partial / "model.safetensors")
        if tokenizer_folder is not None:
            _copy_tokenizer(tokenizer_folder, partial)
        (partial / "README.md").write_text(_model_card(spec, vocab_size=config.vocab_size, name=folder.name), encoding="utf-8")


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise LimbeckError(f"{path} cannot be written ({error}): free some space and run the same command again") from error
    path.chmod(0o644)  # safetensors writes for the owner alone, and a model folder is there to be read


def load(folder: Path) -> tuple[Olmo3, Olmo3Student, int]:
    """The student in an OLMo-3 folder (ours or anyone's, sharded or not), its spec and its vocabulary size; float32, CPU.

    Where several values of `full_attention_every` give the folder's layers (there are fewer layers than that), the spec holds
    the default, else the smallest. Raises `LimbeckError` for folders that hold no OLMo-3 with plain rotary positions.
    """
    config = _read_config(folder)
    spec = _spec(config, folder)
    with torch.device("meta"):
        student = Olmo3(spec, vocab_size=config.vocab_size)
    student.to_empty(device="cpu")
    student.load_state_dict(_read_weights(folder, tied=spec.tied_embeddings))
    return student, spec, config.vocab_size


def _config(spec: Student, *, vocab_size: int, **others: Any) -> Olmo3Config:
    """The transformers config of a student, every field explicit: the library's defaults changed between versions."""
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    return Olmo3Config(
        architectures=["Olmo3ForCausalLM"],
        dtype="float32",
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        hidden_act="silu",
        attention_bias=False,
        tie_word_embeddings=spec.tied_embeddings,
        rope_parameters={"sliding_attention": dict(rope), "full_attention": dict(rope)},
        rms_norm_eps=spec.rms_norm_eps,
        sliding_window=spec.sliding_window,
        layer_types=list(spec.layer_types),
        initializer_range=spec.init_std,
        **others,
    )


def _read_config(folder: Path) -> Olmo3Config:
    path = folder / "config.json"
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no config.json: name the folder of a saved student")
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if model_type != "olmo3":
        raise LimbeckError(f"{folder} holds a model of type {model_type!r}: only 'olmo3' can be loaded as a student")
    return Olmo3Config.from_pretrained(folder)


def _spec(config: Olmo3Config, folder: Path) -> Olmo3Student:
    """The inverse of `_config`."""
    ropes = list(config.rope_parameters.values())
    if any(rope["rope_type"] != "default" or rope["rope_theta"] != ropes[0]["rope_theta"] for rope in ropes):
        raise LimbeckError(f"{folder} uses rotary positions {ropes}: a student needs one plain theta for all layers")
    spec = Olmo3Student(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        tied_embeddings=config.tie_word_embeddings,
        rope_theta=ropes[0]["rope_theta"],
        rms_norm_eps=config.rms_norm_eps,
        sliding_window=config.sliding_window,
        init_std=config.initializer_range,
    )
    for every in (spec.full_attention_every, *range(1, spec.num_layers + 2)):
        candidate = spec.model_copy(update={"full_attention_every": every})
        if candidate.layer_types == tuple(config.layer_types):
            return candidate
    raise LimbeckError(f"{folder} has layers {config.layer_types}: a student needs one full layer in every so many")


def _read_weights(folder: Path, *, tied: bool) -> dict[str, torch.Tensor]:
    weights = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    if not weights:
        raise LimbeckError(f"{folder} holds no *.safetensors: save the model with safetensors")
    if tied:
        weights.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    return weights


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well, and vanishes when it doesn't."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{role}") for role in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _copy_tokenizer(source: Path, target: Path) -> None:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise LimbeckError(f"{source} holds no tokenizer files (such as tokenizer.json): name the tokenizer's folder")
    for path in found:
        shutil.copyfile(path, target / path.name)


def _model_card(spec: Student, *, vocab_size: int, name: str) -> str:
    count = student_parameters(spec, vocab_size=vocab_size)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [limbeck, distillation]
---
# {name}

A language model of the OLMo-3 architecture, trained with Limbeck.

| parameters | total | embeddings | without embeddings |
|---|---|---|---|
| | {count.total:,} | {count.embedding:,} | {count.non_embedding:,} |

{spec.num_layers} layers of width {spec.hidden_size}, {spec.num_heads} query and {spec.num_kv_heads} key/value heads of
{spec.head_dim} channels, SwiGLU of width {spec.intermediate_size}, vocabulary {vocab_size:,},
{"tied" if spec.tied_embeddings else "untied"} embeddings. Every size is in config.json.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")
```
"""
