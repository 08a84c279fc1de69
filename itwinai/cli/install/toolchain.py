"""Compilers, CMake, make, MPI and Python's headers."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from itwinai.cli.install.check import Check, build_path, find_program, run_briefly

CXX_STANDARD = "-std=gnu++20"
MIN_CMAKE = (3, 18)


def compiler_command(env: Mapping[str, str]) -> list[str] | None:
    """Return the C++ compiler as a command: the user's CXX, or the first one found on PATH."""
    if env.get("CXX"):
        return shlex.split(env["CXX"])
    return next(([name] for name in ("g++", "c++", "clang++") if find_program(env, name)), None)


def check_compiler(env: Mapping[str, str]) -> Check:
    """Check for a C++ compiler whose standard library knows C++20."""
    name = f"C++ compiler for {CXX_STANDARD}"
    fix = "apt-get install g++   |   module load gcc   |   conda install gxx"
    command = compiler_command(env)
    if command is None:
        return Check(name, None, "no g++, c++ or clang++ on PATH", fix)
    path, shown = env.get("PATH", ""), shlex.join(command)
    trial = [*command, CXX_STANDARD, "-fsyntax-only", "-x", "c++", "-"]
    code, text = run_briefly(trial, path, "#include <concepts>\n")
    if code:
        detail = next((line for line in text.splitlines() if "error" in line), text.strip())
        return Check(name, None, f"'{shown}' does not compile C++20: {detail[:160]}", f"GCC 10 or newer: {fix}")
    version = run_briefly([*command, "--version"], path)[1].splitlines()
    return Check(name, version[0] if version else shown)


def check_c_compiler(env: Mapping[str, str]) -> Check:
    """Check for the C compiler that Gloo's part of the build asks for."""
    names = shlex.split(env.get("CC", ""))[:1] or ["cc", "gcc", "clang"]
    problem = f"no {' or '.join(names)} on PATH"
    fix = "apt-get install gcc   |   module load gcc   |   conda install gcc"
    return Check("C compiler", find_program(env, *names), problem, fix)


def check_cmake(env: Mapping[str, str]) -> Check:
    """Check for a recent enough CMake."""
    wanted = ".".join(map(str, MIN_CMAKE))
    name, program = f"CMake {wanted} or newer", env.get("HOROVOD_CMAKE", "cmake")
    own = "HOROVOD_CMAKE" in env
    fix, pip_name = ("unset HOROVOD_CMAKE", None) if own else ("pip install cmake", "cmake")
    path = build_path(env)
    where = shutil.which(program, path=path)
    if where is None:
        return Check(name, None, f"no {program} on PATH", fix, pip_name)
    code, text = run_briefly([where, "--version"], path)
    version = re.search(r"version (\d+)\.(\d+)\S*", text)
    if code or not version:
        return Check(name, None, f"{where} does not run", fix, pip_name)
    if (int(version[1]), int(version[2])) < MIN_CMAKE:
        return Check(name, None, f"{where} is {version[0]}", fix, pip_name)
    return Check(name, f"{where}, {version[0]}")


def check_make(env: Mapping[str, str]) -> Check:
    """Check for make: Horovod's setup.py passes arguments that only make accepts, so ninja does not do."""
    found = find_program(env, "gmake", "make")
    return Check("make", found, "no make on PATH", "apt-get install make   |   conda install make")


def check_python_headers() -> Check:
    """Check for the header files of this Python."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fix = f"apt-get install python{version}-dev   |   module load Python"
    return Check("Python headers", str(header) if header.is_file() else None, f"no {header}", fix)


def check_mpi(env: Mapping[str, str]) -> Check:
    """Check for an MPI compiler wrapper, which CMake finds MPI through."""
    found = find_program(env, "mpicxx", "mpic++", "mpiCC")
    fix = "apt-get install libopenmpi-dev openmpi-bin   |   module load OpenMPI   |   conda install openmpi"
    return Check("MPI (HOROVOD_WITH_MPI=1)", found, "no mpicxx on PATH", fix)
