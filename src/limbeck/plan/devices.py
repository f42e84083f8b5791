"""What accelerators do at best, and how long a number of FLOPs takes on them.

Peaks are of dense bfloat16 products accumulated in float32, without sparsity, as the vendors' data sheets state them (halved
where a sheet gives the number with sparsity). What training reaches of a peak is its utilisation: 0.3 to 0.5 is usual for a
well-tuned run of a dense model. Bytes are decimal, as on the sheets: 80 GB are 80e9.
"""

import math
import re
from dataclasses import dataclass

from limbeck.errors import LimbeckError
from limbeck.spec.base import nearest

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Device:
    """One accelerator at its peak."""

    name: str
    flops_per_second: float
    """Dense bfloat16."""
    memory_bytes: float | None
    bytes_per_second: float | None
    """Of its memory. Both are None where only the FLOP/s are given."""
    source: str
    """Where the numbers are from, and what is particular to them."""


DEVICES = (
    Device("h100", 989.4e12, 80e9, 3.35e12, "NVIDIA H100 data sheet, SXM5"),
    Device("h200", 989.4e12, 141e9, 4.8e12, "NVIDIA H200 data sheet, SXM"),
    Device("b200", 2.25e15, 180e9, 8e12, "NVIDIA DGX B200 data sheet, an eighth of it"),
    Device("a100", 312e12, 80e9, 2.039e12, "NVIDIA A100 data sheet, 80 GB SXM4"),
    Device("l40s", 362.05e12, 48e9, 864e9, "NVIDIA L40S data sheet"),
    Device("a10", 125e12, 24e9, 600e9, "NVIDIA A10 data sheet"),
    Device("a10g", 70e12, 24e9, 600e9, "NVIDIA A10G data sheet; the variant in AWS G5, slower in matrix products than the A10"),
    Device("rtx4090", 165.2e12, 24e9, 1008e9, "NVIDIA Ada architecture white paper, float32 accumulation"),
    Device("rtx3090", 71e12, 24e9, 936e9, "NVIDIA Ampere GA102 white paper, float32 accumulation"),
    Device("t4", 65e12, 16e9, 320e9, "NVIDIA T4 data sheet; float16: it has no bfloat16"),
    Device("mi300x", 1307.4e12, 192e9, 5.3e12, "AMD Instinct MI300X data sheet"),
)


def find_device(name: str) -> Device:
    """A device by its name, whatever the case and the punctuation ('RTX 4090'), or by its peak FLOP/s ('3e12').

    Raises `LimbeckError` for another name, with the nearest one, and for a peak that is not positive and finite.
    """
    wanted = re.sub(r"[^a-z0-9]", "", name.casefold())
    for device in DEVICES:
        if device.name == wanted:
            return device
    try:
        peak = float(name)
    except ValueError:
        known = [device.name for device in DEVICES]
        raise LimbeckError(f"device {name!r} is neither known nor a number of FLOP/s{nearest(wanted, known)}") from None
    if not (math.isfinite(peak) and peak > 0):
        raise LimbeckError(f"device {name!r}: FLOP/s must be positive and finite")
    return Device(name, peak, None, None, "given")


def sustained_flops_per_second(device: Device, *, utilisation: float, count: int = 1) -> float:
    """FLOP/s that `count` devices keep up at `utilisation` of their peak, in (0, 1]. Raises `LimbeckError` outside of it."""
    if not 0 < utilisation <= 1:
        raise LimbeckError(f"utilisation={utilisation} is a share of the peak: more than 0, at most 1")
    if count < 1:
        raise LimbeckError(f"count={count}: at least one device must do the work")
    return device.flops_per_second * utilisation * count


def hours(flops: float, *, device: Device, utilisation: float, count: int = 1) -> float:
    """Hours that `flops` take on `count` devices at `utilisation` of their peak; errors as `sustained_flops_per_second`."""
    return flops / sustained_flops_per_second(device, utilisation=utilisation, count=count) / SECONDS_PER_HOUR
