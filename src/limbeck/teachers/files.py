"""Where a teacher's weights and tokenizer lie, before anything is loaded. A GGUF file is converted (`limbeck.gguf_folder`)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import TeacherError, first_line
from limbeck.gguf_folder import converted, remembered_sha256, smollm2_in_package
from limbeck.model_config import SMOLLM2_HUB_ID, config_path, hub_revision, read_model_config
from limbeck.plan.teachers import find
from limbeck.spec.teacher import GGUFTeacher, HuggingFaceTeacher, SmolLM2Teacher, Teacher


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
        return hub_revision(self.model, self.revision)


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
            packaged = smollm2_in_package()
            return _converted(packaged, name=spec.model_slug) if packaged else TeacherFiles(spec.model_slug, SMOLLM2_HUB_ID)


def read_config(files: TeacherFiles) -> dict[str, Any] | None:
    """The teacher's config.json if it is on this machine, otherwise None. Does not import torch."""
    return read_model_config(files.model, revision=files.revision)


def known_config(spec: Teacher | None) -> dict[str, Any] | None:
    """A teacher's catalogue entry or config.json; None where there is no teacher, or neither is on this machine."""
    if spec is None:
        return None
    known = find(spec.model if isinstance(spec, HuggingFaceTeacher) else spec.model_slug)
    if known is not None or not isinstance(spec, HuggingFaceTeacher) or spec.gguf_file is not None:
        return known
    return read_config(locate(spec))


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
        return "+".join(remembered_sha256(path)[:16] for path in weights) or None
    path = config_path(files.model, revision=files.revision)
    return f"commit:{path.parent.name}" if path is not None else None


def stored_parameters(files: TeacherFiles) -> int | None:
    """Parameters in the safetensors files of a model that is on this machine, by their headers; None where there are none."""
    from safetensors import safe_open

    path = config_path(files.model, revision=files.revision)
    weights = sorted(path.parent.glob("*.safetensors")) if path is not None else []
    total = 0
    for each in weights:
        with safe_open(each, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
    return total or None


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
    made = converted(gguf)
    return TeacherFiles(name, str(made.folder), revision=made.revision, quantisation=made.quantisation)
