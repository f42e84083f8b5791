"""Which device and which precision: measured, not assumed.

On CPUs bfloat16 is several times faster than float32 where the processor multiplies it natively, and slower elsewhere; float16
is never faster. A probe decides once per processor and torch version, and the user cache remembers, so that a resumed run
computes in the precision it began with.
"""

import hashlib
import json
import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from limbeck.errors import LimbeckError, first_line
from limbeck.paths import cache_folder, write_atomically
from limbeck.runs import processor_name

PROBE_SIZE = 1024
PROBE_REPEATS = 5
FASTER = 1.3
"""bfloat16 must win by this factor: a tie is not worth eight bits of mantissa."""


def pick_device(name: str) -> torch.device:
    """The device of that name; 'auto' is cuda where there is one (under `torchrun`, this process's own), otherwise cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LimbeckError(f"device={name} cannot be used here: {first_line(error)}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; 'auto' is bfloat16 where it is faster than float32, otherwise float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    return torch.bfloat16 if _bfloat16_is_faster(device) else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; nothing at all for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def _bfloat16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    described = json.dumps([platform.node(), processor_name(), torch.__version__, torch.get_num_threads()])
    remembered = cache_folder() / "probes" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"
    speedup = _recall(remembered)
    if speedup is None:
        speedup = _seconds_per_product(torch.float32) / _seconds_per_product(torch.bfloat16)
        _remember(remembered, speedup)
    return speedup >= FASTER


def _recall(path: Path) -> float | None:
    """What an earlier probe found; None where there was none or its file is damaged."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["bfloat16_speedup"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, speedup: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"bfloat16_speedup": speedup}))


def _seconds_per_product(dtype: torch.dtype) -> float:
    left = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    right = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    seconds = []
    for _ in range(PROBE_REPEATS):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return min(seconds)
