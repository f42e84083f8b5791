"""Students as Hugging Face folders: `save` writes what `AutoModelForCausalLM` opens with equal logits, `load` reads it back.

A folder holds config.json, generation_config.json, model.safetensors (float32), the tokenizer's files and a model card. Where
transformers has a class that computes the same (`limbeck.students.exported`) the folder is one of that class, and needs no
Limbeck to be read. Otherwise it is of `limbeck.students.registered`, which must have been imported.

The student's spec is in config.json, under `limbeck_student` or `student`, so that it comes back as it was. A folder appears
whole or not at all: it is written beside its place and then renamed.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, Olmo3Config, PreTrainedConfig, Qwen3Config

from limbeck.errors import LimbeckError, SpecError, first_line
from limbeck.plan.accounting import student_parameters
from limbeck.spec.layout import Layout
from limbeck.spec.parts import Yarn
from limbeck.spec.student import LaidOutStudent, with_yarn
from limbeck.students.decoder import Decoder
from limbeck.students.exported import MODEL_TYPES, native
from limbeck.students.olmo3_folder import olmo3_spec
from limbeck.students.registered import LimbeckConfig, student_from

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


_CONFIGS: dict[str, Any] = {"olmo3": Olmo3Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
_REGISTERED_PREFIX = ("model.", "model.body.")
"""Of parameter names: the student's own, and those of `LimbeckForCausalLM`."""


def save(
    student: Decoder,
    *,
    spec: LaidOutStudent,
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
    vocab_size = len(student.head_VD)
    config = _config(spec, vocab_size=vocab_size, max_position_embeddings=max_positions, **ids)
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in student.state_dict().items()}
    if isinstance(config, LimbeckConfig):
        weights = _renamed(weights, *_REGISTERED_PREFIX)
    with published(folder) as partial:
        config.save_pretrained(partial)
        GenerationConfig(**ids).save_pretrained(partial)
        _save_weights(weights, partial / "model.safetensors")
        if tokenizer_folder is not None:
            copy_tokenizer(tokenizer_folder, partial)
        (partial / "README.md").write_text(_model_card(spec, vocab_size=vocab_size, name=folder.name), encoding="utf-8")


def load(folder: Path) -> tuple[Decoder, LaidOutStudent, int]:
    """The student in a folder, its spec and its vocabulary size; float32, on the CPU.

    The folder is one that `save` wrote, or any OLMo-3 with safetensors, sharded or not. `LimbeckError` for others, and where
    config.json or the weights were changed into what the spec is not.
    """
    config = read_config(folder)
    spec = _spec(config, folder)
    weights = _read_weights(folder, tied=spec.layout.tied_embeddings)
    if isinstance(config, LimbeckConfig):
        weights = _renamed(weights, *reversed(_REGISTERED_PREFIX))
    try:
        with torch.device("meta"):
            student = Decoder(spec.layout, vocab_size=config.vocab_size)
        student.to_empty(device="cpu").load_state_dict(weights)
    except (RuntimeError, TypeError) as error:  # torch's words for sizes beyond 64 bits, or beyond memory, too
        raise LimbeckError(f"{folder}: the weights are not those of its config.json ({_last_line(error)})") from error
    return student, spec, config.vocab_size


def read_spec(folder: Path) -> LaidOutStudent:
    """The spec of the student in a folder, without its weights; errors as `load`."""
    return _spec(read_config(folder), folder)


def save_again(folder: Path, *, to: Path, yarn_factor: float | None = None) -> None:
    """Read the student of a folder and save it, with what else belongs to it, to another.

    With `yarn_factor` the copy's positions are stretched by YaRN from the longest context that it was trained on. `SpecError`
    where its family has no YaRN, or it has been stretched already. One that was a pretrained model before is copied as it is,
    an adapter with it.
    """
    if _was_pretrained(folder):
        if yarn_factor is not None:
            raise SpecError(f"{folder} was a pretrained model: stretch it where its own family says how, in its config.json")
        with published(to) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
        return
    student, spec, _ = load(folder)
    config = read_config(folder)
    max_positions = config.max_position_embeddings
    if yarn_factor is not None:
        spec = _stretched(spec, Yarn(factor=yarn_factor, original_length=max_positions), folder)
        max_positions = round(yarn_factor * max_positions)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    save(
        student,
        spec=spec,
        folder=to,
        max_positions=max_positions,
        tokenizer_folder=folder if has_tokenizer else None,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def _stretched(spec: LaidOutStudent, yarn: Yarn, folder: Path) -> LaidOutStudent:
    if any(layer.attention.positions.yarn is not None for layer in spec.layout.layers):
        raise SpecError(f"{folder} has YaRN already: stretch the student that it began as")
    try:
        return with_yarn(spec, yarn)
    except ValueError as error:
        raise SpecError(f"{folder}: {error}") from None


def _config(spec: LaidOutStudent, *, vocab_size: int, **others: Any) -> PreTrainedConfig:
    """The configuration of the native class, or of Limbeck's; with the spec in it."""
    found, saved = native(spec.layout), spec.model_dump(mode="json")
    if found is None:
        names = ["LimbeckForCausalLM"]
        return LimbeckConfig(architectures=names, dtype="float32", vocab_size=vocab_size, student=saved, **others)
    config_class = _CONFIGS[MODEL_TYPES[found.architecture]]
    return config_class(
        architectures=[found.architecture],
        dtype="float32",
        vocab_size=vocab_size,
        limbeck_student=saved,
        **found.values,
        **others,
    )


def _was_pretrained(folder: Path) -> bool:
    """Whether a folder was written by `limbeck.students.pretrained_folder`."""
    saved = _read_json(folder).get("limbeck_student")
    return isinstance(saved, dict) and saved.get("kind") == "huggingface"


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no config.json: name the folder of a saved student")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(values, dict):
        raise _damaged(path, TypeError("it is no mapping"))
    return values


def _damaged(path: Path, error: Exception) -> LimbeckError:
    said = first_line(error).rstrip(":") or type(error).__name__
    return LimbeckError(f"{path} is damaged ({said}): restore it")


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a student's folder; `LimbeckError` where it holds none, or it is damaged."""
    model_type = _read_json(folder).get("model_type")
    config_class: Any = {**_CONFIGS, "limbeck": LimbeckConfig}.get(str(model_type))
    if config_class is None:
        raise LimbeckError(f"{folder} holds a model of type {model_type!r}: a student is one that Limbeck saved, or an 'olmo3'")
    path = folder / "config.json"
    try:
        config: PreTrainedConfig = config_class.from_pretrained(folder)
    except Exception as error:  # transformers' classes check their values by whatever comes to pass
        raise _damaged(path, error) from error
    for name in ("vocab_size", "max_position_embeddings"):
        if not isinstance(getattr(config, name), int) or getattr(config, name) < 1:
            raise _damaged(path, ValueError(f"{name} is {getattr(config, name)!r}"))
    return config


def _spec(config: PreTrainedConfig, folder: Path) -> LaidOutStudent:
    """The spec in config.json, where the rest of it still says the same; an OLMo-3's can be told without."""
    if isinstance(config, LimbeckConfig):
        return student_from(config.student or {}, source=f"{folder}/config.json")
    saved = getattr(config, "limbeck_student", None)
    if not isinstance(saved, dict | None):
        raise _damaged(folder / "config.json", TypeError("limbeck_student is no mapping"))
    pretrained = saved is not None and saved.get("kind") == "huggingface"
    if saved is not None and not pretrained:
        spec = student_from(saved, source=f"{folder}/config.json")
        if _says(config, spec.layout):
            return spec
    if isinstance(config, Olmo3Config):
        return olmo3_spec(config, folder)
    known = "was pretrained elsewhere" if pretrained else "was changed since Limbeck saved it"
    raise LimbeckError(
        f"{folder} holds a model of type {config.model_type!r} that {known if saved is not None else 'Limbeck did not save'}: "
        "a student is one that Limbeck saved, or an 'olmo3'"
    )


def _says(config: PreTrainedConfig, layout: Layout) -> bool:
    """Whether the configuration is that of the layout."""
    found = native(layout)
    if found is None or MODEL_TYPES[found.architecture] != config.model_type:
        return False
    same = type(config)(**found.values)
    return all(getattr(config, name) == getattr(same, name) for name in found.values)


def _renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """With another prefix, where they have that one."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in weights.items()}


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise LimbeckError(f"{path} cannot be written ({error}): free some space and run the same command again") from error
    path.chmod(0o644)  # safetensors writes for the owner alone, and a model folder is there to be read


def _read_weights(folder: Path, *, tied: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
    if not weights:
        raise LimbeckError(f"{folder} holds no *.safetensors: save the model with safetensors")
    if tied:
        weights.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    return weights


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well, and vanishes when it doesn't.

    What was there before goes only when its successor is in place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
    partial, old = (folder.with_name(f"{mark}.{role}") for role in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        _replace_folder(folder, partial, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(folder: Path, new: Path, old: Path) -> None:
    """`new` becomes `folder`, which becomes `old`; where the disk refuses, `folder` is again what it was."""
    if not folder.exists():
        os.replace(new, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files alone; `LimbeckError` where there are none."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise LimbeckError(f"{source} holds no tokenizer files (such as tokenizer.json): name the tokenizer's folder")
    for path in found:
        shutil.copyfile(path, target / path.name)


def _model_card(spec: LaidOutStudent, *, vocab_size: int, name: str) -> str:
    count, layout, found = student_parameters(spec, vocab_size=vocab_size), spec.layout, native(spec.layout)
    architecture = found.architecture if found is not None else "LimbeckForCausalLM"
    registering = (
        "" if found is not None else "import limbeck.students.registered  # once, so that transformers knows the class\n"
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [limbeck, distillation]
---
# {name}

A language model (`{architecture}`, family `{spec.kind}`), trained with Limbeck.

| parameters | total | embeddings | without embeddings |
|---|---|---|---|
| | {count.total:,} | {count.embedding:,} | {count.non_embedding:,} |

{len(layout.layers)} layers of width {layout.hidden_size}, vocabulary {vocab_size:,},
{"tied" if layout.tied_embeddings else "untied"} embeddings. Every size is in config.json.

```python
{registering}from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")
```
"""
