"""What the machine is, found out without a CUDA context in this process."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "triton",
    "jsonargparse",
    "cloudpickle",
    "deepspeed",
    "horovod",
    "ray",
    "nvidia-ml-py",
    "psutil",
)


def facts() -> dict[str, str]:
    """Return versions, and what the machine has."""
    found = {"python": platform.python_version(), "machine": f"{os.cpu_count()} cores, {platform.platform()}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["CUDA of torch"] = str(torch.version.cuda)
    if smi := query("name,driver_version,memory.total,uuid"):
        found["GPU"] = "; ".join(smi)
    return found


def has_cuda() -> bool:
    """Tell whether there is a GPU. With lightning imported torch asks NVML, which makes no context."""
    return torch.cuda.is_available()


def gpu_memory_used() -> float | None:
    """Return the memory of the first GPU that is in use, in megabytes; None if nvidia-smi cannot tell."""
    read = query("memory.used")
    return float(read[0].split()[0]) if read else None


def smi(quantity: str) -> float | None:
    """Return a quantity of the first GPU as nvidia-smi tells it, without its unit; None if it does not."""
    read = query(quantity)
    try:
        return float(read[0].split()[0])
    except (IndexError, ValueError):
        return None


def query(quantities: str) -> list[str]:
    """Return what nvidia-smi tells of each GPU; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={quantities}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
