"""The CUDA toolkit and NCCL, for a torch that was built with CUDA."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from itwinai.cli.install.check import Check, build_path, find_program, run_briefly
from itwinai.cli.install.torch_info import TorchInfo


def builds_for_gpus(env: Mapping[str, str], torch: TorchInfo) -> bool:
    """Return whether Horovod is to use GPUs: there are some here, or a toolkit, as on the login node of a GPU cluster.

    Args:
        env: the environment of the build.
        torch: the torch to build against.
    """
    if torch.cuda:
        drivers = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")
        return any(map(os.path.exists, drivers)) or find_cuda_home(env) is not None
    if torch.hip:
        return os.path.exists("/dev/kfd") or bool(find_program(env, "hipcc")) or os.path.isdir("/opt/rocm")
    return False


def find_cuda_home(env: Mapping[str, str]) -> Path | None:
    """Find a CUDA toolkit that has both the compiler and the headers."""
    candidates = _folders(env, "HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH", "EBROOTCUDA")
    nvcc = find_program(env, "nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parents[1])
    candidates.append(Path("/usr/local/cuda"))
    for home in candidates:
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return home
    return None


def check_nvcc(env: Mapping[str, str], torch: TorchInfo) -> Check:
    """Check for the CUDA compiler; a version other than torch's is shown, not refused."""
    home = find_cuda_home(env)
    fix = f"module load CUDA   |   conda install cuda-toolkit={torch.cuda}   |   export CUDA_HOME=DIR"
    name = "CUDA compiler and headers"
    if home is None:
        return Check(name, None, "no toolkit in $CUDA_HOME, on PATH or in /usr/local/cuda", fix)
    code, text = run_briefly([str(home / "bin" / "nvcc"), "--version"], build_path(env))
    version = re.search(r"release ([\d.]+)", text)
    if code or not version:
        return Check(name, None, f"{home / 'bin' / 'nvcc'} does not run", fix)
    return Check(name, f"{home}, version {version[1]} (torch was built with {torch.cuda})")


def find_nccl(env: Mapping[str, str], torch: TorchInfo) -> tuple[Path, Path] | None:
    """Find NCCL: the one pip installed with torch first, for that one is in the process anyway.

    Args:
        env: the environment, for ``NCCL_HOME`` and the like.
        torch: the torch to build against.

    Returns:
        The folder with ``nccl.h`` and the library file, or None.
    """
    homes = _folders(env, "HOROVOD_NCCL_HOME")
    with suppress(metadata.PackageNotFoundError):
        package = metadata.distribution(_nccl_package(torch))
        found = [file for file in package.files or [] if file.name == "nccl.h"]
        homes += [Path(str(package.locate_file(header))).parents[1] for header in found]
    homes += _folders(env, "NCCL_HOME", "NCCL_ROOT", "EBROOTNCCL")
    cuda_home = find_cuda_home(env)
    if cuda_home:
        homes.append(cuda_home)
    homes += [Path(sys.prefix), Path("/usr/local"), Path("/usr")]
    subfolders = ("lib", "lib64", f"lib/{platform.machine()}-linux-gnu")
    names = ("libnccl.so", "libnccl.so.2", "libnccl_static.a")
    for home in homes:
        headers = [*_folders(env, "HOROVOD_NCCL_INCLUDE"), home / "include"]
        libraries = [*_folders(env, "HOROVOD_NCCL_LIB"), *(home / name for name in subfolders)]
        include = next((folder for folder in headers if (folder / "nccl.h").is_file()), None)
        library = next((folder / name for folder in libraries for name in names if (folder / name).is_file()), None)
        if include and library:
            return include, library
    return None


def check_nccl(env: Mapping[str, str], torch: TorchInfo) -> Check:
    """Check for NCCL's header and library."""
    nccl = find_nccl(env, torch)
    fix = f"pip install {_nccl_package(torch)}   |   module load NCCL   |   export HOROVOD_NCCL_HOME=DIR"
    found = str(nccl[1]) if nccl else None
    return Check("NCCL headers and library", found, "nccl.h or libnccl not found", fix)


def _nccl_package(torch: TorchInfo) -> str:
    return f"nvidia-nccl-cu{(torch.cuda or '').split('.')[0]}"


def _folders(env: Mapping[str, str], *names: str) -> list[Path]:
    """Return the folders that some variables name, without those that are not set."""
    return [Path(env[name]) for name in names if env.get(name)]
