"""A pruned model as a Hugging Face folder, made once: from the student of a recipe to what `AutoModelForCausalLM` opens.

Beside config.json and safetensors (float32) lie the tokenizer's files, the parent's generation settings, a model card, and
`pruning.json`, which says what went and what stayed. Without a place of its own it lies in the user cache, keyed by all that it
depends on, where a second call finds it. It appears whole or not at all.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.gguf_folder import remembered_sha256
from limbeck.paths import cache_folder
from limbeck.plan.prune_steps import in_steps
from limbeck.plan.pruned import sizes_of, target_sizes
from limbeck.progress import say
from limbeck.spec.base import parse
from limbeck.spec.data import Data
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning
from limbeck.students.causal_lm import transformers_quiet
from limbeck.students.hf import TOKENIZER_FILES, copy_tokenizer, published
from limbeck.students.pretrained import load_causal_lm
from limbeck.students.pretrained_folder import PRUNING
from limbeck.surgery.anatomy import anatomy_of
from limbeck.surgery.calibration import scores_key
from limbeck.surgery.depth_costs import TASK_KEY
from limbeck.surgery.identity import Parent, digest_of, parent_of
from limbeck.surgery.importance import products_dtype
from limbeck.surgery.keep import prunes_width
from limbeck.surgery.prune import Pruned, needs_scores, prune, task_of
from limbeck.surgery.record import model_card, record
from limbeck.surgery.task_score import read_task

FORMAT = 2
"""Of folders: another one where the same asking gives another model."""


def pruned_student(spec: HuggingFaceStudent, *, data: Data | None, device: torch.device | None = None) -> HuggingFaceStudent:
    """The student with its pruning done: that of the pruned folder. One that asks for none is returned as it is."""
    if spec.prune is None:
        return spec
    folder = prune_folder(spec, data=data, device=device)
    return spec.model_copy(update={"model": str(folder), "revision": None, "prune": None})


def prune_folder(
    spec: HuggingFaceStudent, *, data: Data | None, to: Path | None = None, device: torch.device | None = None
) -> Path:
    """The folder of the model that `spec` names, pruned as it says; made where it is not there yet.

    `data` gives calibration texts where the spec names none (its training texts). `to` must not exist, or hold the same
    already; None: the user cache. Importance is measured on `device` (None: the fastest). `SpecError` for what cannot be.
    """
    assert spec.prune is not None, "there is something to prune"
    pruning, parent, device = spec.prune, parent_of(spec), device or pick_device("auto")
    _check(parent.config, pruning)
    tokenizer = _tokenizer(parent, required=needs_scores(pruning) or task_of(pruning) is not None)
    key = _key(parent, pruning, tokenizer, data, device=device)
    folder = to or cache_folder() / "pruned" / key
    if _is_made(folder, key):
        return folder
    with nullcontext() if to else _alone(folder):
        if _is_made(folder, key):
            return folder
        model = load_causal_lm(spec)
        anatomy_of(model)  # refuses what is not recognised before anything is measured
        pruned = prune(model, pruning, tokenizer=tokenizer, identity=parent.identity, data=data, device=device)
        _save(pruned, spec, parent, key=key, tokenizer=tokenizer, folder=folder)
    say(f"pruned {spec.model}: {folder}")
    return folder


def _is_made(folder: Path, key: str) -> bool:
    if (made := read_record(folder)) is not None and made["key"] == key:
        return True
    if folder.exists():
        raise SpecError(f"{folder} exists and holds something else: name another folder")
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process makes this folder of the cache; what one that was killed has left of it is gone."""
    lock = cache_folder() / "surgery" / f"{folder.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `pruning.json` in a folder says; None where there is none, `LimbeckError` where it is damaged."""
    path = folder / PRUNING
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["key"], found["before"], found["after"]
    except (ValueError, KeyError, TypeError) as error:
        raise LimbeckError(f"{path} is damaged: restore it, or remove the folder and prune again") from error
    return dict(found)


def _check(config: Mapping[str, Any], pruning: Pruning) -> None:
    """What the configuration says can be, before anything is read or loaded."""
    parse(Pruning, pruning.model_dump(mode="json"), source="student.prune")  # a copy may have been changed since
    in_steps(config, pruning)
    before, after = sizes_of(config), target_sizes(config, pruning)
    if not prunes_width(before, after) and after.num_layers == before.num_layers:
        raise SpecError("student.prune asks for the sizes that the model has: ask for smaller ones, or remove prune")


def _key(parent: Parent, pruning: Pruning, tokenizer: Tokenizer | None, data: Data | None, *, device: torch.device) -> str:
    measured, task = None, task_of(pruning)
    if task is not None:
        read_task(task.file, limit=1, key=TASK_KEY)
    if needs_scores(pruning):
        assert tokenizer is not None
        measured = scores_key(parent.identity, tokenizer, pruning.calibration, data, dtype=products_dtype(device))
    return digest_of(
        {
            "format": FORMAT,
            "model": parent.identity,
            "carried": _carried(Path(parent.source.model)),
            "pruning": pruning.model_dump(mode="json", exclude={"calibration"}),
            "scores": measured,
            "task": remembered_sha256(Path(task.file)) if task is not None else None,
        }
    )


def _carried(parent: Path) -> dict[str, str]:
    """Digests of the other files that a folder's pruned model takes along; of a hub model the commit tells them."""
    files = [parent / name for name in (*TOKENIZER_FILES, "generation_config.json")]
    return {path.name: remembered_sha256(path) for path in files if path.is_file()}


def _tokenizer(parent: Parent, *, required: bool) -> Tokenizer | None:
    """The parent's own; `DataError` where calibration needs it and there is none."""
    try:
        return load_tokenizer(parent.source.model, **parent.source.arguments)
    except DataError:
        if required:
            raise
        return None


def _save(
    pruned: Pruned, spec: HuggingFaceStudent, parent: Parent, *, key: str, tokenizer: Tokenizer | None, folder: Path
) -> None:
    about: Mapping[str, Any] = {"key": key, **record(pruned, spec, weights=parent.weights)}
    with published(folder) as partial:
        with transformers_quiet(f"{folder} cannot be written", error=LimbeckError):
            pruned.model.save_pretrained(partial)
        for path in partial.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes for the owner alone, and a model folder is there to be read
        _save_tokenizer(tokenizer, Path(parent.source.model), partial)
        (partial / PRUNING).write_text(json.dumps(about, separators=(",", ":"), allow_nan=False), encoding="utf-8")
        (partial / "README.md").write_text(model_card(about), encoding="utf-8")


def _save_tokenizer(tokenizer: Tokenizer | None, parent: Path, folder: Path) -> None:
    """The files as they are where the parent is a folder; a hub model's as transformers writes them."""
    if any((parent / name).is_file() for name in TOKENIZER_FILES):
        copy_tokenizer(parent, folder)
    elif tokenizer is not None:
        save_tokenizer(tokenizer, folder)
