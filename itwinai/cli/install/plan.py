"""What is built: for which torch, with which options, and under which name it is cached."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from itwinai.cli.install.cuda import builds_for_gpus
from itwinai.cli.install.torch_info import TorchInfo, find_torch
from itwinai.errors import InstallError

FEATURES = {"GLOO": True, "PYTORCH": True, "MPI": False, "TENSORFLOW": False, "MXNET": False}
# What Horovod's CMake reads. Its run-time variables (HOROVOD_TIMELINE, ...) must not change the cache key.
_BUILD_OPTION = re.compile(
    r"HOROVOD_(WITH(OUT)?_\w+|GPU(_\w+)?|CPU_OPERATIONS|ALLOW_MIXED_GPU_IMPL|BUILD_\w+|DEBUG|LOCAL_VERSION"
    r"|(CUDA|ROCM|NCCL)_HOME|NCCL_(INCLUDE|LIB|LINK)|NVTX_INCLUDE)"
)


@dataclass(frozen=True)
class Plan:
    """What is built, with which options, and where the wheel is kept."""

    version: str
    torch: TorchInfo
    options: dict[str, str]
    folder: Path

    @property
    def log(self) -> Path:
        """Return the file that gets the whole build output."""
        return self.folder / "build.log"

    @property
    def for_gpus(self) -> bool:
        """Return whether it is built for GPUs."""
        return any(name.startswith("HOROVOD_GPU_") for name in self.options)

    @property
    def note(self) -> str:
        """Return what to say where a torch for GPUs gets a Horovod for CPUs; empty elsewhere."""
        if self.for_gpus or self.torch.flavour == "cpu":
            return ""
        return (
            "built for CPUs: there is no GPU here, and no CUDA toolkit. To build for the GPUs of other nodes, load "
            "their CUDA module first."
        )

    @property
    def uses_nccl(self) -> bool:
        """Return whether NCCL does some of the GPU operations."""
        return any(name.startswith("HOROVOD_GPU_") and value == "NCCL" for name, value in self.options.items())


def make_plan(version: str, cache_dir: Path | None = None, env: Mapping[str, str] = os.environ) -> Plan:
    """Work out what to build and where to keep it.

    Args:
        version: Horovod's version.
        cache_dir: folder for finished wheels; None for the default one.
        env: the environment that holds the user's choices.

    Returns:
        The plan; nothing is written yet.

    Raises:
        InstallError: torch is missing or the user's options contradict the purpose.
    """
    torch = find_torch()
    options = build_options(env, torch, gpus=builds_for_gpus(env, torch))
    root = (cache_dir or default_cache_dir(env)).expanduser().absolute()
    return Plan(version, torch, options, root / cache_key(version, torch, options))


def build_options(env: Mapping[str, str], torch: TorchInfo, gpus: bool = True) -> dict[str, str]:
    """Choose Horovod's build options; those the user has set come first.

    Args:
        env: the environment to read ``HOROVOD_*`` variables from.
        torch: the torch to build against.
        gpus: whether to build for GPUs, if torch is.

    Returns:
        The ``HOROVOD_*`` variables for the build, sorted by name.

    Raises:
        InstallError: the user's variables leave out the torch part, the only one itwinai uses.
    """
    options = {name: value for name, value in env.items() if _BUILD_OPTION.fullmatch(name)}
    if options.get("HOROVOD_WITHOUT_PYTORCH") == "1":
        raise InstallError(
            "HOROVOD_WITHOUT_PYTORCH=1 is set, and itwinai uses Horovod through PyTorch only.\n"
            "  Unset it (unset HOROVOD_WITHOUT_PYTORCH), then run this command again."
        )
    for feature, wanted in FEATURES.items():
        chosen = {options.get(f"HOROVOD_WITH_{feature}"), options.get(f"HOROVOD_WITHOUT_{feature}")}
        if "1" not in chosen:
            options[f"HOROVOD_{'WITH' if wanted else 'WITHOUT'}_{feature}"] = "1"
    gpu_chosen = any(name.startswith("HOROVOD_GPU_") for name in options)
    if gpus and (torch.cuda or torch.hip) and not gpu_chosen:
        options["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    if torch.hip and (gpus or gpu_chosen):
        options.setdefault("HOROVOD_GPU", "ROCM")
    return dict(sorted(options.items()))


def default_cache_dir(env: Mapping[str, str]) -> Path:
    """Return the folder for finished wheels, after the XDG convention."""
    base = env.get("XDG_CACHE_HOME", "")
    # the convention says to ignore a relative path
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "itwinai" / "wheels"


def cache_key(version: str, torch: TorchInfo, options: Mapping[str, str]) -> str:
    """Name what a wheel depends on: any difference in it needs another wheel.

    Args:
        version: Horovod's version.
        torch: the torch the wheel is built against.
        options: the ``HOROVOD_*`` build options.

    Returns:
        A folder name.
    """
    python = f"cp{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    digest = hashlib.sha256(json.dumps(sorted(options.items())).encode()).hexdigest()[:8]
    head = (f"horovod-{version}", f"torch-{torch.version}")
    return "-".join((*head, python, platform.machine(), torch.flavour, digest))
