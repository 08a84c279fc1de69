"""The environment of the build: a stand-in for the compiler, and where everything is.

Horovod 0.28.1 asks its compiler for C++14 while torch's headers need C++20. A small script stands in for the
compiler and appends the language level last, where it wins. Nothing in Horovod's source is changed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from itwinai.cli.install.check import build_path, missing_report
from itwinai.cli.install.cuda import find_cuda_home, find_nccl
from itwinai.cli.install.plan import Plan
from itwinai.cli.install.toolchain import CXX_STANDARD, check_compiler, compiler_command
from itwinai.cli.resources import available_memory, usable_cpus
from itwinai.errors import InstallError

# seen: one translation unit of torch's headers takes 2.4 GiB at its peak
BYTES_PER_JOB = 2_500_000_000


def build_environment(plan: Plan, scratch: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Write the compiler wrapper and return the environment of the build.

    Args:
        plan: what is to be built.
        scratch: a folder for the wrapper and all temporary files.
        env: the environment to start from.

    Returns:
        The whole environment.

    Raises:
        InstallError: no compiler, or the temporary folder does not allow programs.
    """
    command = compiler_command(env)
    if command is None:
        raise InstallError(missing_report([check_compiler(env)]))
    wrapper = scratch / "cxx"
    wrapper.write_text(wrapper_script(command))
    wrapper.chmod(0o755)
    if not os.access(wrapper, os.X_OK):
        raise InstallError(
            f"Programs cannot be run from {scratch.parent} (mounted noexec), and the build needs that.\n"
            "  Point TMPDIR to another folder (export TMPDIR=$HOME/tmp), then run this command again."
        )
    temporary = scratch / "tmp"
    temporary.mkdir()
    result = {**env, **plan.options, **build_settings(env)}
    # Compiler messages in English, so that errors are found in them; other generators fail, see `check_make`.
    result |= {"PATH": build_path(env), "CXX": str(wrapper), "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"}
    result["CMAKE_GENERATOR"] = "Unix Makefiles"
    if plan.torch.cuda and plan.for_gpus:
        result |= _cuda_environment(plan, scratch, result)
    return result


def build_settings(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the build tools; those the user has set come first."""
    jobs = build_jobs(usable_cpus(), available_memory())
    defaults = {"CMAKE_POLICY_VERSION_MINIMUM": "3.5", "MAKEFLAGS": f"-j{jobs}"}
    return {name: env.get(name) or value for name, value in defaults.items()}


def build_jobs(cpus: int, memory: int | None) -> int:
    """Return how many compilers may run at once without running out of memory."""
    return max(1, cpus if memory is None else min(cpus, memory // BYTES_PER_JOB))


def wrapper_script(command: Sequence[str]) -> str:
    """Return a shell script that stands in for the compiler.

    Args:
        command: the real compiler with its leading arguments.

    Returns:
        The script: it appends the language level, except where nvcc calls it. nvcc's own front end reads the
        preprocessed text at the level that nvcc was given, and fails on the library headers of a higher one.
    """
    real = shlex.join(command)
    return (
        "#!/bin/sh\n"
        'case "$*" in *__CUDACC__*|*__CUDA_ARCH*) '
        f'exec {real} "$@" ;; esac\n'
        f'exec {real} "$@" {CXX_STANDARD}\n'
    )


def _cuda_environment(plan: Plan, scratch: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Horovod's CMake finds CUDA and NCCL."""
    result: dict[str, str] = {}
    home = find_cuda_home(env)
    if home:
        result = {"HOROVOD_CUDA_HOME": str(home), "CUDA_HOME": str(home)}
        result["PATH"] = f"{home / 'bin'}{os.pathsep}{env['PATH']}"
    nccl = find_nccl(env, plan.torch) if plan.uses_nccl else None
    if nccl:
        include, library = nccl
        folder = library.parent
        if library.name == "libnccl.so.2":
            # torch's NCCL package ships the library without the name that linkers look for
            folder = scratch / "nccl"
            folder.mkdir()
            (folder / "libnccl.so").symlink_to(library)
        result |= {"HOROVOD_NCCL_INCLUDE": str(include), "HOROVOD_NCCL_LIB": str(folder)}
        if library.suffix != ".a":
            result["HOROVOD_NCCL_LINK"] = env.get("HOROVOD_NCCL_LINK", "SHARED")
    return result
