"""What this machine has for cells that run side by side: cores, GPUs, free memory. Without torch."""

import math
import os
import shutil
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; empty where there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def available_bytes() -> float | None:
    """Of main memory, what can be had without swapping and within the limits of a container; None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    free = next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is None:
        return None
    group = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), "/")
    return min(free, bytes_within(group, root=CGROUPS))


def bytes_within(group: str, *, root: Path) -> float:
    """What the tightest limit of a control group (cgroup v2) and those around it leaves; infinity where there is none.

    File pages that the kernel would give back do not count as used.
    """
    left = math.inf
    folder = root / group.strip("/")
    for each in (folder, *folder.parents):
        if not each.is_relative_to(root):
            break
        try:
            limit = (each / "memory.max").read_text(encoding="utf-8").strip()
            used = float((each / "memory.current").read_text(encoding="utf-8"))
            lines = (each / "memory.stat").read_text(encoding="utf-8").splitlines()
        except OSError:  # the root has no limit
            continue
        stat = dict(line.split() for line in lines)
        if limit != "max":
            left = min(left, float(limit) - used + float(stat.get("inactive_file", 0)))
    return max(left, 0.0)
