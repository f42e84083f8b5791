"""Teachers that other packages quantise while they are loaded: bitsandbytes and torchao, through transformers.

Each layer is quantised as it arrives on its device, so the whole teacher is never held in full precision. Both packages are
optional. Experts that transformers keeps in one three-dimensional parameter are left as they are by both: `quantised_matrices`
lists what was really done.
"""

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import TeacherError
from limbeck.spec.quantisation import BitsAndBytesQuantisation, TorchAOQuantisation
from limbeck.teachers.files import TeacherFiles
from limbeck.teachers.quantise import QuantisedMatrix, routers

Packaged = BitsAndBytesQuantisation | TorchAOQuantisation


def loading_arguments(scheme: Packaged, files: TeacherFiles, *, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told besides; `TeacherError` where the package or a kernel is missing."""
    check_package(scheme, dtype=dtype, device=device)
    kept = _kept(files)
    config = _bitsandbytes(scheme, kept, dtype) if isinstance(scheme, BitsAndBytesQuantisation) else _torchao(scheme, kept)
    return {"quantization_config": config, "device_map": {"": device}}


def check_package(scheme: Packaged, *, dtype: torch.dtype, device: torch.device) -> None:
    """`TeacherError` where the package is missing, or has no kernel for this device and dtype."""
    package_version(scheme)
    if isinstance(scheme, TorchAOQuantisation) and scheme.bits == 4 and (device.type, dtype) != ("cuda", torch.bfloat16):
        raise TeacherError(
            f"teacher.quantisation={scheme.slug} computes on CUDA in bfloat16 only, not on {device} in {_name(dtype)}: use "
            "bitsandbytes, or kind=integer for its error alone"
        )


def package_version(scheme: Packaged) -> str:
    """`bitsandbytes 0.50.2`; `TeacherError` naming the extra to install where the package is missing."""
    try:
        return f"{scheme.kind} {version(scheme.kind)}"
    except PackageNotFoundError:
        raise TeacherError(
            f"teacher.quantisation={scheme.slug} needs {scheme.kind}: pip install 'limbeck[{scheme.kind}]'"
        ) from None


def quantised_matrices(model: Any, scheme: Packaged) -> tuple[QuantisedMatrix, ...]:
    """What the package quantised, by the weights as they are now; `TeacherError` where that is nothing."""
    found = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or not isinstance(weight, Tensor):
            continue
        num_bytes = _packed_bytes(module, weight)
        if num_bytes is not None:
            _check_shape(module, weight, scheme)
            weights = module.in_features * module.out_features
            found.append(QuantisedMatrix(name, scheme.slug, weights, 8 * num_bytes / weights))
    if not found:
        raise TeacherError(f"teacher.quantisation={scheme.slug}: {scheme.kind} quantised nothing of {type(model).__name__}")
    return tuple(found)


def without_weights(files: TeacherFiles) -> Any:
    """The teacher's model on the device `meta`: its modules and shapes, by its config alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    revision, remote = files.hub_revision, files.trust_remote_code
    config = AutoConfig.from_pretrained(files.model, revision=revision, trust_remote_code=remote)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=remote)


def _kept(files: TeacherFiles) -> list[str]:
    """Names of the modules to leave alone: the head, and the routers of experts."""
    model = without_weights(files)
    ends = {id(module) for module in (model.get_output_embeddings(), model.get_input_embeddings())}
    return sorted({name for name, module in model.named_modules() if id(module) in ends} | routers(model))


def _bitsandbytes(scheme: BitsAndBytesQuantisation, kept: list[str], dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if scheme.values == "int8":
        # It says at every layer of every batch that bfloat16 inputs pass through float16 on their way to eight bits.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,  # of four bits too, whatever its name says
        bnb_4bit_quant_type=scheme.values,
        bnb_4bit_use_double_quant=scheme.double,
        bnb_4bit_compute_dtype=dtype,  # by default float32, which is slow
    )


def _torchao(scheme: TorchAOQuantisation, kept: list[str]) -> Any:
    from transformers import TorchAoConfig

    torchao: Any = import_module("torchao.quantization")
    if scheme.bits == 8:
        return TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    packing = "tile_packed_to_4d"  # the one that needs no kernels but PyTorch's own
    weight_only = torchao.Int4WeightOnlyConfig(group_size=scheme.group, int4_packing_format=packing)
    return TorchAoConfig(weight_only, modules_to_not_convert=kept)


def _check_shape(module: nn.Linear, weight: Tensor, scheme: Packaged) -> None:
    """The four-bit kernel of bitsandbytes for CPUs wants whole blocks, 64 weights wide and 32 rows high."""
    if (
        type(weight).__name__ == "Params4bit"
        and weight.device.type == "cpu"
        and (module.in_features % 64 or module.out_features % 32)
    ):
        raise TeacherError(
            f"teacher.quantisation={scheme.slug}: on a CPU a layer of {module.out_features} by {module.in_features} does not "
            "fit (32 by 64): use CUDA, or kind=nf4 for its error alone"
        )


def _packed_bytes(module: Any, weight: Any) -> int | None:
    """Bytes of a quantised layer's weights with their scales; None of a layer that is not quantised."""
    match type(weight).__name__:
        case "Params4bit":
            state = weight.quant_state
            nested = state.state2.absmax.nbytes if state.nested else 0
            return int(weight.nbytes + state.absmax.nbytes + nested)
        case "Int8Params":
            scales = weight.SCB if weight.SCB is not None else module.state.SCB
            return int(weight.nbytes + scales.nbytes)
    if not hasattr(weight, "__tensor_flatten__"):  # torchao's subclasses of a tensor have it
        return None
    return sum(int(getattr(weight, name).nbytes) for name in weight.__tensor_flatten__()[0])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
