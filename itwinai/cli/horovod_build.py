"""Build Horovod against the installed torch, keep the wheel, install it.

Horovod 0.28.1 asks its compiler for C++14 while torch's headers need C++20. A small script stands in for the
compiler and appends the language level last, where it wins. Nothing in Horovod's source is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from itwinai.errors import InstallError

CXX_STANDARD = "-std=gnu++20"
MIN_CMAKE = (3, 18)
# setup.py's own list plus what turns it into a wheel; without build isolation pip does not fetch them.
PYTHON_REQUIREMENTS = ("setuptools", "wheel", "cffi", "cloudpickle", "psutil", "pyyaml", "packaging")
FEATURES = {"GLOO": True, "PYTORCH": True, "MPI": False, "TENSORFLOW": False, "MXNET": False}
# seen: one translation unit of torch's headers takes 2.4 GiB at its peak
BYTES_PER_JOB = 2_500_000_000

# What Horovod's CMake reads. Its run-time variables (HOROVOD_TIMELINE, ...) must not change the cache key.
_BUILD_OPTION = re.compile(
    r"HOROVOD_(WITH(OUT)?_\w+|GPU(_\w+)?|CPU_OPERATIONS|ALLOW_MIXED_GPU_IMPL|BUILD_\w+|DEBUG|LOCAL_VERSION"
    r"|(CUDA|ROCM|NCCL)_HOME|NCCL_(INCLUDE|LIB|LINK)|NVTX_INCLUDE)"
)
_PERCENT = re.compile(r"^\s*\[\s*(\d{1,3})%\] ")
_PHASES = (
    ("Collecting ", "downloading"),
    ("Preparing metadata", "preparing"),
    ("Running CMake in ", "configuring"),
    ("-- The CXX compiler identification", "configuring"),
    ("[100%] Built target pytorch", "packing"),
    ("running install_lib", "packing"),
)
_COMPILER_ERROR = re.compile(r"\berror: (?!subprocess-exited)|CMake Error|undefined reference to|cannot find -l")
_BUILD_FOLDER = re.compile(r"/\S+/horovod_[0-9a-f]{32}/")
_PIP_ERROR = re.compile(r"^\s*(ERROR: |\w+(Error|Exception): |error: )")

_PROBE = """
import json
import horovod
import horovod.torch as hvd
names = ("gloo", "mpi", "nccl", "ccl", "ddl", "cuda", "rocm")
built = [name for name in names if getattr(hvd, name + "_built")()]
print(json.dumps({"version": horovod.__version__, "file": hvd.__file__, "backends": built}))
"""


@dataclass(frozen=True)
class TorchInfo:
    """The torch to build against."""

    version: str
    cuda: str | None = None
    hip: str | None = None

    @property
    def flavour(self) -> str:
        """Return ``cpu``, ``cu130`` or ``rocm63``."""
        if self.cuda:
            return "cu" + self.cuda.replace(".", "")
        if self.hip:
            return "rocm" + "".join(self.hip.split(".")[:2])
        return "cpu"


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


@dataclass(frozen=True)
class Check:
    """One thing the build needs: where it was found, or how to get it."""

    name: str
    found: str | None
    problem: str = ""
    fix: str = ""
    pip_name: str | None = None  # a plain Python package, which this command installs itself


@dataclass(frozen=True)
class Loaded:
    """What a fresh Python process saw when it loaded Horovod."""

    version: str
    file: Path
    backends: tuple[str, ...]


# --- what to build ------------------------------------------------------------------------------------------


def find_torch() -> TorchInfo:
    """Find the installed torch without importing it, which would take seconds.

    Returns:
        Its version, local part included, and the CUDA or ROCm it was built for.

    Raises:
        InstallError: torch is not installed.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise InstallError(
            f"PyTorch is not installed in {sys.prefix}, and Horovod is built against it.\n"
            "  Install torch first (pip install torch), then run this command again."
        )
    names = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchInfo(str(names["__version__"]), names.get("cuda"), names.get("hip"))


def build_options(env: Mapping[str, str], torch: TorchInfo) -> dict[str, str]:
    """Choose Horovod's build options; those the user has set come first.

    Args:
        env: the environment to read ``HOROVOD_*`` variables from.
        torch: the torch to build against.

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
    if (torch.cuda or torch.hip) and not gpu_chosen:
        options["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    if torch.hip:
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
    options = build_options(env, torch)
    root = (cache_dir or default_cache_dir(env)).expanduser().absolute()
    return Plan(version, torch, options, root / cache_key(version, torch, options))


def cached_wheel(plan: Plan) -> Path | None:
    """Return the finished wheel of this plan, if there is one."""
    return next(iter(sorted(plan.folder.glob("horovod-*.whl"))), None)


# --- what the build needs -----------------------------------------------------------------------------------


def build_path(env: Mapping[str, str]) -> str:
    """Return PATH with this interpreter's programs first, so that its cmake wins over an old system one."""
    return os.pathsep.join(part for part in (sysconfig.get_path("scripts"), env.get("PATH", "")) if part)


def _which(env: Mapping[str, str], *names: str) -> str | None:
    """Return the first of some programs that is on PATH."""
    return next((found for name in names if (found := shutil.which(name, path=env.get("PATH", "")))), None)


def _output(command: Sequence[str], path: str, stdin: str = "") -> tuple[int, str]:
    """Run a short command and return its exit code with all it printed."""
    env = {**os.environ, "PATH": path, "LC_ALL": "C"}
    pipe, merge = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(command, input=stdin, env=env, stdout=pipe, stderr=merge, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


def compiler_command(env: Mapping[str, str]) -> list[str] | None:
    """Return the C++ compiler as a command: the user's CXX, or the first one found on PATH."""
    if env.get("CXX"):
        return shlex.split(env["CXX"])
    return next(([name] for name in ("g++", "c++", "clang++") if _which(env, name)), None)


def check_compiler(env: Mapping[str, str]) -> Check:
    """Check for a C++ compiler whose standard library knows C++20."""
    name = f"C++ compiler for {CXX_STANDARD}"
    fix = "apt-get install g++   |   module load gcc   |   conda install gxx"
    command = compiler_command(env)
    if command is None:
        return Check(name, None, "no g++, c++ or clang++ on PATH", fix)
    path, shown = env.get("PATH", ""), shlex.join(command)
    trial = [*command, CXX_STANDARD, "-fsyntax-only", "-x", "c++", "-"]
    code, text = _output(trial, path, "#include <concepts>\n")
    if code:
        detail = next((line for line in text.splitlines() if "error" in line), text.strip())
        return Check(name, None, f"'{shown}' does not compile C++20: {detail[:160]}", f"GCC 10 or newer: {fix}")
    version = _output([*command, "--version"], path)[1].splitlines()
    return Check(name, version[0] if version else shown)


def check_c_compiler(env: Mapping[str, str]) -> Check:
    """Check for the C compiler that Gloo's part of the build asks for."""
    names = shlex.split(env.get("CC", ""))[:1] or ["cc", "gcc", "clang"]
    problem = f"no {' or '.join(names)} on PATH"
    fix = "apt-get install gcc   |   module load gcc   |   conda install gcc"
    return Check("C compiler", _which(env, *names), problem, fix)


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
    code, text = _output([where, "--version"], path)
    version = re.search(r"version (\d+)\.(\d+)\S*", text)
    if code or not version:
        return Check(name, None, f"{where} does not run", fix, pip_name)
    if (int(version[1]), int(version[2])) < MIN_CMAKE:
        return Check(name, None, f"{where} is {version[0]}", fix, pip_name)
    return Check(name, f"{where}, {version[0]}")


def check_make(env: Mapping[str, str]) -> Check:
    """Check for make: Horovod's setup.py passes arguments that only make takes, so ninja does not do."""
    found = _which(env, "gmake", "make")
    return Check("make", found, "no make on PATH", "apt-get install make   |   conda install make")


def check_python_headers() -> Check:
    """Check for the header files of this Python."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fix = f"apt-get install python{version}-dev   |   module load Python"
    return Check("Python headers", str(header) if header.is_file() else None, f"no {header}", fix)


def check_pip() -> Check:
    """Check that this Python has pip, which environments made by other tools may lack."""
    found = "importable" if importlib.util.find_spec("pip") else None
    return Check("pip", found, f"not in {sys.prefix}", f"{sys.executable} -m ensurepip")


def check_python_packages() -> list[Check]:
    """Check for the Python packages that Horovod's setup.py and Horovod itself import."""
    checks = []
    for name in PYTHON_REQUIREMENTS:
        try:
            found: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        checks.append(Check(f"Python package {name}", found, "not installed", f"pip install {name}", name))
    return checks


def check_mpi(env: Mapping[str, str]) -> Check:
    """Check for an MPI compiler wrapper, which CMake finds MPI through."""
    found = _which(env, "mpicxx", "mpic++", "mpiCC")
    fix = "apt-get install libopenmpi-dev openmpi-bin   |   module load OpenMPI   |   conda install openmpi"
    return Check("MPI (HOROVOD_WITH_MPI=1)", found, "no mpicxx on PATH", fix)


def find_cuda_home(env: Mapping[str, str]) -> Path | None:
    """Find a CUDA toolkit that has both the compiler and the headers."""
    names = ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH", "EBROOTCUDA")
    candidates = [Path(env[name]) for name in names if env.get(name)]
    nvcc = _which(env, "nvcc")
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
    code, text = _output([str(home / "bin" / "nvcc"), "--version"], build_path(env))
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
    homes = [Path(env["HOROVOD_NCCL_HOME"])] if env.get("HOROVOD_NCCL_HOME") else []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.distribution(f"nvidia-nccl-cu{(torch.cuda or '').split('.')[0]}")
        headers = [file for file in package.files or [] if file.name == "nccl.h"]
        homes += [Path(str(package.locate_file(header))).parents[1] for header in headers]
    homes += [Path(env[name]) for name in ("NCCL_HOME", "NCCL_ROOT", "EBROOTNCCL") if env.get(name)]
    homes += [home for home in (find_cuda_home(env),) if home]
    homes += [Path(sys.prefix), Path("/usr/local"), Path("/usr")]
    include_dirs = [Path(env["HOROVOD_NCCL_INCLUDE"])] if env.get("HOROVOD_NCCL_INCLUDE") else []
    library_dirs = [Path(env["HOROVOD_NCCL_LIB"])] if env.get("HOROVOD_NCCL_LIB") else []
    for home in homes:
        include = next((d for d in [*include_dirs, home / "include"] if (d / "nccl.h").is_file()), None)
        subfolders = ("lib", "lib64", f"lib/{platform.machine()}-linux-gnu")
        folders = [*library_dirs, *(home / name for name in subfolders)]
        names = ("libnccl.so", "libnccl.so.2", "libnccl_static.a")
        library = next((d / name for d in folders for name in names if (d / name).is_file()), None)
        if include and library:
            return include, library
    return None


def check_nccl(env: Mapping[str, str], torch: TorchInfo) -> Check:
    """Check for NCCL's header and library."""
    nccl = find_nccl(env, torch)
    major = (torch.cuda or "").split(".")[0]
    fix = f"pip install nvidia-nccl-cu{major}   |   module load NCCL   |   export HOROVOD_NCCL_HOME=DIR"
    found = str(nccl[1]) if nccl else None
    return Check("NCCL headers and library", found, "nccl.h or libnccl not found", fix)


def _uses_nccl(plan: Plan) -> bool:
    return any(name.startswith("HOROVOD_GPU_") and value == "NCCL" for name, value in plan.options.items())


def check_prerequisites(plan: Plan, env: Mapping[str, str] = os.environ) -> list[Check]:
    """Check everything the build needs, before it starts.

    Args:
        plan: what is to be built.
        env: the environment of the build.

    Returns:
        One entry per requirement, found or not.
    """
    checks = [check_compiler(env), check_c_compiler(env), check_cmake(env), check_make(env)]
    checks += [check_python_headers(), check_pip()]
    if plan.options.get("HOROVOD_WITH_MPI") == "1":
        checks.append(check_mpi(env))
    if plan.torch.cuda:
        checks.append(check_nvcc(env, plan.torch))
        if _uses_nccl(plan):
            checks.append(check_nccl(env, plan.torch))
    return checks + check_python_packages()


def pip_install(arguments: Sequence[str]) -> None:
    """Run ``pip install`` for this interpreter.

    Args:
        arguments: what follows ``pip install``.

    Raises:
        InstallError: pip failed; the message ends with its last lines.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    importlib.invalidate_caches()
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-8:])
        raise InstallError(f"'{shlex.join(['pip', *command[3:]])}' failed:\n{tail}")


def _missing_report(missing: Sequence[Check]) -> str:
    lines = [f"  - {check.name}: {check.problem}\n      {check.fix}" for check in missing]
    return "\n".join(["Horovod cannot be built here; this is missing:", *lines])


def install_python_packages(checks: Sequence[Check]) -> None:
    """Let pip install the missing Python packages among the checks, saying so.

    Args:
        checks: the results of the checks.

    Raises:
        InstallError: pip could not install them.
    """
    names = [check.pip_name for check in checks if check.found is None and check.pip_name]
    if names:
        print(f"Installing with pip, for Horovod: {', '.join(names)}", flush=True)
        pip_install(names)


def ensure_prerequisites(plan: Plan) -> None:
    """Install missing Python packages; stop if anything else is missing.

    Args:
        plan: what is to be built.

    Raises:
        InstallError: something is missing; the message lists all of it with install lines.
    """
    missing = [check for check in check_prerequisites(plan) if check.found is None]
    if any(check.pip_name is None for check in missing):
        raise InstallError(_missing_report(missing))
    if missing:
        install_python_packages(missing)
        missing = [check for check in check_prerequisites(plan) if check.found is None]
        if missing:
            raise InstallError(_missing_report(missing))


# --- the build ----------------------------------------------------------------------------------------------


def build_jobs(cpus: int, memory: int | None) -> int:
    """Return how many compilers may run at once without running out of memory."""
    return max(1, cpus if memory is None else min(cpus, memory // BYTES_PER_JOB))


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available_memory() -> int | None:
    """Return the memory that is free for programs, in bytes, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


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


def build_command(plan: Plan, target: Path) -> list[str]:
    """Return the pip command that builds the wheel into a folder."""
    # pip's own cache is left out both ways: its wheels are named without the torch they were built against
    return [
        *(sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--progress-bar", "off"),
        *("--no-cache-dir", "--no-binary", "horovod", "--no-deps", "--no-build-isolation"),
        *(f"horovod=={plan.version}", "--wheel-dir", str(target)),
    ]


def build_settings(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the build tools; those the user has set come first."""
    jobs = build_jobs(_usable_cpus(), _available_memory())
    defaults = {"CMAKE_POLICY_VERSION_MINIMUM": "3.5", "MAKEFLAGS": f"-j{jobs}"}
    return {name: env.get(name) or value for name, value in defaults.items()}


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
        raise InstallError(_missing_report([check_compiler(env)]))
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
    if plan.torch.cuda:
        result |= _cuda_environment(plan, scratch, result)
    return result


def _cuda_environment(plan: Plan, scratch: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Horovod's CMake finds CUDA and NCCL."""
    result: dict[str, str] = {}
    home = find_cuda_home(env)
    if home:
        result = {"HOROVOD_CUDA_HOME": str(home), "CUDA_HOME": str(home)}
        result["PATH"] = f"{home / 'bin'}{os.pathsep}{env['PATH']}"
    nccl = find_nccl(env, plan.torch) if _uses_nccl(plan) else None
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


def parse_percent(line: str) -> int | None:
    """Return the percentage at the start of a line of make's output, if there is one."""
    found = _PERCENT.match(line)
    return min(int(found[1]), 100) if found else None


def parse_phase(line: str) -> str | None:
    """Return the phase of the build that a line of its output begins, if it begins one."""
    text = line.strip()
    return next((phase for start, phase in _PHASES if text.startswith(start)), None)


def format_duration(seconds: float) -> str:
    """Write a duration as ``4 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class BuildProgress:
    """Show how far a build has come: one changing line in a terminal, a few lines elsewhere."""

    def __init__(self, stream: TextIO, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._live, self._clock = stream, live, clock
        self._started = clock()
        self._shown, self._drawn = -10, ""
        self.phase, self.percent = "starting", 0

    def feed(self, line: str) -> None:
        """Take in one line of the build's output."""
        phase, percent = parse_phase(line), parse_percent(line)
        if percent is not None:
            self.percent = max(self.percent, percent)
            # seen: the two files at the end take as long as all before them
            self.phase = "compiling" if self.percent < 95 else "compiling the last files, the longest ones"
        if phase:
            self.phase = phase
        if not self._live and percent is not None and self.percent // 10 > self._shown // 10:
            self._shown = self.percent
            self._write(f"  {self.percent:3d} %  {format_duration(self._clock() - self._started)}\n")

    def tick(self) -> None:
        """Redraw the line in a terminal, so that the time moves while a long file compiles."""
        if self._live:
            percent = f"{self.percent:3d} %  " if self.percent else ""
            elapsed = format_duration(self._clock() - self._started)
            line = f"\r\x1b[K  {percent}{self.phase}  {elapsed}"
            if line != self._drawn:
                self._drawn = line
                self._write(line)

    def finish(self) -> float:
        """Clear the line and return the seconds since the start."""
        if self._live:
            self._write("\r\x1b[K")
        return self._clock() - self._started

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does, so that a cancelled job leaves no compilers behind.

    Yields:
        Nothing; the former handlers are put back at the end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all it started, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # each compiler holds the pipe: its end says that the last one is gone
    assert process.stdout is not None
    fd = process.stdout.fileno()
    while select.select([fd], [], [], 5)[0] and os.read(fd, 65536):
        pass


def run_logged(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> int:
    """Run a command in its own process group; when interrupted, kill the whole group.

    Args:
        command: the command.
        env: its environment.
        cwd: its working directory.
        log: the file that gets all its output.
        on_line: called with each line of output.
        on_tick: called after output, and every second without any.

    Returns:
        The exit code.
    """
    with log.open("wb") as sink:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            fd, pending = process.stdout.fileno(), b""
            while True:
                if select.select([fd], [], [], 1)[0]:
                    chunk = os.read(fd, 65536)
                    if not chunk:
                        break
                    sink.write(chunk)
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        on_line(line.decode(errors="replace"))
                elif process.poll() is not None:
                    break  # some daemon that the build started still holds the pipe
                on_tick()
            return process.wait()
        except BaseException:
            _kill_group(process)
            raise
        finally:
            process.stdout.close()


def first_errors(text: str, before: int = 2, after: int = 5, limit: int = 2) -> list[str]:
    """Pick the lines of a build log that say what went wrong.

    Args:
        text: the whole log.
        before: lines of context before an error.
        after: lines of context after an error.
        limit: how many errors to show.

    Returns:
        The first compiler or CMake errors with context; else pip's errors; else the end of the log.
    """
    # the temporary folder says nothing, nor does make's line that calls the compiler
    lines = [_BUILD_FOLDER.sub("", line) for line in text.splitlines() if not line.lstrip().startswith("cd /")]
    for pattern, lead in ((_COMPILER_ERROR, before), (_PIP_ERROR, 0)):
        hits = [number for number, line in enumerate(lines) if pattern.search(line)]
        if not hits:
            continue
        keep: list[int] = []
        shown = 0
        for hit in hits:
            if keep and hit <= keep[-1]:
                continue
            if shown == limit:
                break
            start = max(hit - lead, keep[-1] + 1 if keep else 0)
            keep += range(start, min(hit + after + 1, len(lines)))
            shown += 1
        return [lines[number][:200] for number in keep]
    return [line[:200] for line in lines[-15:]]


def _failure(plan: Plan, code: int) -> InstallError:
    text = plan.log.read_text(errors="replace")
    shown = textwrap.indent(textwrap.dedent("\n".join(first_errors(text))).strip("\n"), "  ")
    hint = ""
    if "Killed signal" in text:
        hint = "\n  The compiler was killed, most likely for memory: set MAKEFLAGS=-j1 and try again."
    elif "(from versions: none)" in text:
        hint = "\n  Without network: put Horovod's source archive into a folder and set PIP_FIND_LINKS to it."
    what = f"Building Horovod {plan.version} failed (exit code {code})"
    return InstallError(f"{what}:\n{shown}{hint}\n  The whole log: {plan.log}")


@contextlib.contextmanager
def _only_one(plan: Plan) -> Iterator[None]:
    """Let one process at a time build a plan: several tasks of a job may run this command at once."""
    with (plan.folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another process is building this wheel; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            # some network file systems have no locks: two builds are slower, not wrong
            print(f"No lock in {plan.folder} ({error.strerror}); going on without.", flush=True)
        yield


def build_wheel(plan: Plan, force: bool = False, verbose: bool = False) -> tuple[Path, Loaded, float]:
    """Build the wheel and put it into the cache, whole or not at all.

    Args:
        plan: what to build.
        force: build even if another process has just cached a wheel.
        verbose: show the whole output in place of the progress.

    Returns:
        The wheel in the cache, what it loads as, and the seconds its build took (0 if cached).

    Raises:
        InstallError: something is missing, the build failed, or its result does not load.
    """
    ensure_prerequisites(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _only_one(plan):
        ready = None if force else cached_wheel(plan)
        if ready:
            return ready, verify_wheel(ready), 0.0
        print(f"Building Horovod {plan.version} for torch {plan.torch.version}; this takes some minutes.")
        print(f"  log: {plan.log}", flush=True)
        with tempfile.TemporaryDirectory(prefix="itwinai-horovod-", ignore_cleanup_errors=True) as scratch:
            built, seconds = _compile(plan, Path(scratch), verbose)
            loaded = verify_wheel(built)
            return store_wheel(built, plan), loaded, seconds


def _compile(plan: Plan, scratch: Path, verbose: bool) -> tuple[Path, float]:
    """Run the build in a temporary folder; return the wheel there and the seconds it took."""
    progress = BuildProgress(sys.stdout, live=_is_terminal(sys.stdout) and not verbose)

    def on_line(line: str) -> None:
        if verbose:
            print(line, flush=True)
        else:
            progress.feed(line)

    env, command = build_environment(plan, scratch), build_command(plan, scratch / "wheel")
    try:
        code = run_logged(command, env, scratch, plan.log, on_line, progress.tick)
    finally:
        seconds = progress.finish()
    built = next(iter((scratch / "wheel").glob("horovod-*.whl")), None)
    if code or built is None:
        raise _failure(plan, code)
    return built, seconds


def store_wheel(built: Path, plan: Plan) -> Path:
    """Put a wheel into the cache in one step, so that readers see it whole or not at all.

    Args:
        built: the wheel where it was built.
        plan: what it was built for.

    Returns:
        The wheel in the cache.

    Raises:
        InstallError: it cannot be written there.
    """
    target = plan.folder / built.name
    part = plan.folder / f".{built.name}.{os.getpid()}.part"
    try:
        shutil.copyfile(built, part)
        os.replace(part, target)
    except OSError as error:
        raise InstallError(f"The wheel cannot be written to {plan.folder}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


# --- loading and installing ---------------------------------------------------------------------------------


def load_horovod(extra_path: Path | None = None) -> Loaded:
    """Load Horovod in a fresh process, away from the current directory.

    Args:
        extra_path: a folder that goes before the installed packages.

    Returns:
        What was loaded.

    Raises:
        InstallError: it does not load, or has neither Gloo nor MPI.
    """
    env = dict(os.environ)
    if extra_path:
        parts = (str(extra_path), env.get("PYTHONPATH", ""))
        env["PYTHONPATH"] = os.pathsep.join(part for part in parts if part)
    command = [sys.executable, "-c", _PROBE]
    with tempfile.TemporaryDirectory(prefix="itwinai-load-") as elsewhere:
        done = subprocess.run(command, env=env, cwd=elsewhere, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise InstallError(f"Horovod does not load: {reason[:300]}")
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    backends = tuple(seen["backends"])
    if not {"gloo", "mpi"} & set(backends):
        raise InstallError(f"Horovod at {seen['file']} was built with neither Gloo nor MPI.")
    return Loaded(seen["version"], Path(seen["file"]), backends)


def verify_wheel(wheel: Path) -> Loaded:
    """Load a wheel before it is installed, so that a broken one never replaces a working Horovod.

    Args:
        wheel: the wheel file.

    Returns:
        What was loaded.

    Raises:
        InstallError: the file is damaged or does not load here.
    """
    with tempfile.TemporaryDirectory(prefix="itwinai-wheel-") as name:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(name)
        except (zipfile.BadZipFile, OSError) as error:
            raise InstallError(f"{wheel} is damaged: {error}") from error
        loaded = load_horovod(Path(name))
        if not loaded.file.is_relative_to(Path(name).resolve()) and not loaded.file.is_relative_to(name):
            raise InstallError(f"{wheel} holds no Horovod for torch: {loaded.file} was loaded instead.")
        return loaded


def obtain_wheel(plan: Plan, force: bool = False, verbose: bool = False) -> tuple[Path, Loaded, float]:
    """Take the wheel from the cache, or build it; one that does not load is built again, once.

    Args:
        plan: what is wanted.
        force: build even if a wheel is cached.
        verbose: show the whole build output.

    Returns:
        The wheel, what it loads as, and the seconds its build took (0 when it was cached).

    Raises:
        InstallError: it could not be built, or does not load.
    """
    wheel = None if force else cached_wheel(plan)
    if wheel:
        install_python_packages(check_python_packages())
        try:
            return wheel, verify_wheel(wheel), 0.0
        except InstallError as error:
            print(f"The cached wheel is of no use here, building it again.\n  {error}", flush=True)
            force = True
    return build_wheel(plan, force, verbose)


def install(plan: Plan, force: bool = False, wheel_only: bool = False, verbose: bool = False) -> None:
    """Build or fetch the wheel, install it, and check that it loads.

    Args:
        plan: what is wanted.
        force: build even if a wheel is cached.
        wheel_only: stop once the wheel is in the cache.
        verbose: show the whole build output.

    Raises:
        InstallError: it could not be built or installed, or does not load.
    """
    began = time.monotonic()
    wheel, loaded, build_seconds = obtain_wheel(plan, force, verbose)
    if not wheel_only:
        pip_install(["--no-deps", "--no-index", "--force-reinstall", str(wheel)])
        loaded = load_horovod()
        if loaded.version.partition("+")[0] != plan.version:
            raise InstallError(
                f"Horovod {plan.version} was installed into {sys.prefix}, but Python loads {loaded.version} "
                f"from {loaded.file}.\n  Look for it in PYTHONPATH and in the user site folder."
            )
    how = f"built in {format_duration(build_seconds)}" if build_seconds else "from the cache"
    print(f"Horovod {loaded.version} {'is ready' if wheel_only else 'is installed'} ({how})")
    print(f"  backends: {', '.join(loaded.backends)}")
    print(f"  time:     {format_duration(time.monotonic() - began)}")
    print(f"  wheel:    {wheel}", flush=True)


def print_dry_run(plan: Plan, force: bool = False, env: Mapping[str, str] = os.environ) -> int:
    """Print what would be done and what is missing; change nothing.

    Args:
        plan: what is wanted.
        force: whether a cached wheel would be passed over.
        env: the environment of the build.

    Returns:
        0 if the command would go ahead, 1 if something is missing that it cannot install itself.
    """
    python = f"{platform.python_implementation()} {platform.python_version()}"
    wheel = cached_wheel(plan)
    use_cached = wheel is not None and not force
    print(f"Horovod {plan.version} for torch {plan.torch.version}, {python} on {platform.machine()}")
    print(f"  plan:     {'install the cached wheel' if use_cached else 'build a wheel, cache it, install it'}")
    print(f"  wheel:    {wheel or plan.folder}")
    print(f"  command:  {shlex.join(['pip', *build_command(plan, Path('DIR'))[3:]])}")
    compiler = compiler_command(env)
    print(f"  compiler: {shlex.join(compiler) if compiler else 'none found'} ... {CXX_STANDARD}")
    settings = {**plan.options, **build_settings(env)}
    print("  settings: " + "\n            ".join(f"{name}={value}" for name, value in settings.items()))
    print("  checks:")
    checks = check_prerequisites(plan, env)
    for check in checks:
        if check.found is not None:
            print(f"    ok       {check.name}: {check.found}")
        elif check.pip_name:
            print(f"    to come  {check.name}: {check.problem}; this command installs it with pip")
        else:
            print(f"    missing  {check.name}: {check.problem}\n               {check.fix}")
    blocked = any(check.found is None and check.pip_name is None for check in checks)
    return 1 if blocked and not use_cached else 0
