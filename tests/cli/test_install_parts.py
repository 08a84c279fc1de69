"""The parts of ``itwinai install``: plan, checks, environment of the build, and what is made of its output."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from itwinai.cli.install import packages
from itwinai.cli.install.build import first_errors
from itwinai.cli.install.cuda import builds_for_gpus, find_cuda_home, find_nccl
from itwinai.cli.install.environment import build_environment, build_jobs, wrapper_script
from itwinai.cli.install.packages import check_python_packages
from itwinai.cli.install.plan import Plan, build_options, cache_key, default_cache_dir
from itwinai.cli.install.prerequisites import check_prerequisites
from itwinai.cli.install.progress import BuildProgress
from itwinai.cli.install.toolchain import check_cmake, check_compiler
from itwinai.cli.install.torch_info import TorchInfo
from itwinai.errors import InstallError
from tests.support.install import VERSION, environment

CPU = TorchInfo("2.13.0+cpu")
CUDA = TorchInfo("2.13.0+cu130", cuda="13.0")

# lines of a real build, in its order; make counts on with several compilers at work
BUILD_LINES = """\
Collecting horovod==0.28.1
  Preparing metadata (setup.py): started
  Running command python setup.py egg_info
  running build_ext
  Running CMake in build/temp.linux-x86_64-cpython-311/RelWithDebInfo:
  -- The CXX compiler identification is GNU 12.2.0
  [  1%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/allgather.cc.o
  [  2%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/algorithm.cc.o
  [  8%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/alltoall.cc.o
  [ 10%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/alltoallv.cc.o
  [ 11%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/barrier.cc.o
  [ 40%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/transport/unbound_buffer.cc.o
  [ 39%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/transport/pair.cc.o
  [ 42%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/transport/tcp/address.cc.o
  [ 98%] Building CXX object horovod/torch/CMakeFiles/pytorch.dir/adapter_v2.cc.o
  [100%] Linking CXX shared library build/lib.linux-x86_64-cpython-311/horovod/torch/mpi_lib_v2.so
  [100%] Built target pytorch
  running install_lib""".splitlines()


# --- what is needed -----------------------------------------------------------------------------------------


def test_compiler_without_cxx20_library_is_refused() -> None:
    assert check_compiler(environment(CXX="g++")).found
    refused = check_compiler(environment(CXX="g++ -nostdinc++"))
    assert refused.found is None
    assert "concepts" in refused.problem


@pytest.mark.parametrize(("version", "good"), [("3.17.5", False), ("3.18.0", True), ("4.1.2", True)])
def test_cmake_version(tmp_path: Path, version: str, good: bool) -> None:
    program = tmp_path / "cmake"
    program.write_text(f"#!/bin/sh\necho cmake version {version}\n")
    program.chmod(0o755)
    check = check_cmake(environment(HOROVOD_CMAKE=str(program)))
    assert (check.found is not None) is good
    assert version in (check.found or check.problem)


def test_missing_python_package_is_one_that_pip_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.found for check in check_python_packages())
    monkeypatch.setattr(packages, "PYTHON_REQUIREMENTS", ("packaging", "itwinai-no-such-package"))
    missing = [check for check in check_python_packages() if check.found is None]
    assert [check.pip_name for check in missing] == ["itwinai-no-such-package"]


def test_torch_is_found_without_importing_it() -> None:
    code = (
        "import json, sys\n"
        "import itwinai.cli.install\n"
        "light = not any(name == 'torch' or name.startswith('itwinai.cli.install.') for name in sys.modules)\n"
        "from itwinai.cli.install.torch_info import find_torch\n"
        "found = find_torch()\n"
        "light = light and 'torch' not in sys.modules\n"
        "import torch\n"
        "print(json.dumps([light, [found.version, found.cuda], [torch.__version__, torch.version.cuda]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    light, found, real = json.loads(done.stdout)
    assert light
    assert found == real


def test_cuda_toolkit_needs_compiler_and_headers(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    env = {"HOROVOD_CUDA_HOME": str(tmp_path), "PATH": ""}
    assert find_cuda_home(env) != tmp_path
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert find_cuda_home(env) == tmp_path


def test_a_torch_for_gpus_gets_a_horovod_for_cpus_where_there_are_none(tmp_path: Path) -> None:
    """Then neither the CUDA toolkit nor NCCL is asked for, and Horovod's CMake leaves CUDA out too."""
    env = environment(PATH=str(tmp_path))
    plan = Plan(VERSION, CUDA, build_options(env, CUDA, gpus=False), tmp_path)
    names = [check.name for check in check_prerequisites(plan, env)]
    assert not [name for name in names if "CUDA" in name or "NCCL" in name]
    assert "there is no GPU here" in plan.note
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert builds_for_gpus(environment(CUDA_HOME=str(tmp_path)), CUDA), "a login node, whose cluster has GPUs"
    assert not builds_for_gpus(env, CPU)


def test_nccl_without_linker_name_gets_one(tmp_path: Path) -> None:
    home, scratch = tmp_path / "nccl", tmp_path / "scratch"
    for folder in (home / "include", home / "lib", scratch):
        folder.mkdir(parents=True)
    library = home / "lib" / "libnccl.so.2"
    library.touch()
    env = environment(HOROVOD_NCCL_HOME=str(home))
    found = find_nccl(env, CUDA)
    assert found is None or found[1] != library, "the header is not there yet"
    (home / "include" / "nccl.h").touch()
    assert find_nccl(env, CUDA) == (home / "include", library)
    result = build_environment(Plan(VERSION, CUDA, build_options(env, CUDA), tmp_path), scratch, env)
    assert result["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert result["HOROVOD_NCCL_INCLUDE"] == str(home / "include")
    assert (Path(result["HOROVOD_NCCL_LIB"]) / "libnccl.so").resolve() == library


# --- options, key, compiler ---------------------------------------------------------------------------------


def test_options_of_the_user_come_first() -> None:
    plain = build_options({}, CPU)
    assert plain["HOROVOD_WITH_GLOO"] == plain["HOROVOD_WITHOUT_MPI"] == plain["HOROVOD_WITH_PYTORCH"] == "1"
    assert "HOROVOD_GPU_OPERATIONS" not in plain
    own = build_options({"HOROVOD_WITH_MPI": "1", "HOROVOD_WITHOUT_GLOO": "1", "HOROVOD_TIMELINE": "x"}, CPU)
    assert own["HOROVOD_WITH_MPI"] == own["HOROVOD_WITHOUT_GLOO"] == "1"
    assert not {"HOROVOD_WITHOUT_MPI", "HOROVOD_WITH_GLOO", "HOROVOD_TIMELINE"} & own.keys()
    assert build_options({}, CUDA)["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_GPU_OPERATIONS" not in build_options({"HOROVOD_GPU_ALLREDUCE": "NCCL"}, CUDA)
    assert "HOROVOD_GPU_OPERATIONS" not in build_options({}, CUDA, gpus=False)
    with pytest.raises(InstallError, match="HOROVOD_WITHOUT_PYTORCH"):
        build_options({"HOROVOD_WITHOUT_PYTORCH": "1"}, CPU)


def test_cache_key_changes_with_all_that_a_wheel_depends_on() -> None:
    options = build_options({}, CPU)
    key = cache_key(VERSION, CPU, options)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert key.startswith(f"horovod-{VERSION}-torch-2.13.0+cpu-{tag}")
    assert f"-{os.uname().machine}-cpu-" in key
    others = {
        cache_key("0.28.0", CPU, options),
        cache_key(VERSION, dataclasses.replace(CPU, version="2.12.1+cpu"), options),
        cache_key(VERSION, CUDA, options),
        cache_key(VERSION, dataclasses.replace(CUDA, cuda="12.8"), options),
        cache_key(VERSION, CPU, build_options({"HOROVOD_WITH_MPI": "1"}, CPU)),
    }
    assert len(others | {key}) == 6
    assert key == cache_key(VERSION, CPU, build_options({"HOROVOD_LOG_LEVEL": "debug"}, CPU))


def test_default_cache_dir(tmp_path: Path) -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "itwinai" / "wheels"
    for ignored in ({}, {"XDG_CACHE_HOME": "relative"}):
        assert default_cache_dir(ignored) == Path.home() / ".cache" / "itwinai" / "wheels"


@pytest.mark.parametrize(("flags", "level"), [((), "202002L"), (("-D__CUDACC__",), "201402L")])
def test_wrapper_raises_the_language_level_except_for_nvcc(tmp_path: Path, flags: tuple[str, ...], level: str) -> None:
    wrapper = tmp_path / "cxx"
    wrapper.write_text(wrapper_script(["g++", "-DSAYS=it is"]))
    wrapper.chmod(0o755)
    line = [str(wrapper), *flags, "-std=c++14", "-E", "-P", "-x", "c++", "-"]
    done = subprocess.run(line, input="__cplusplus SAYS", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [level, "it", "is"]


def test_jobs_are_limited_by_memory() -> None:
    assert build_jobs(64, 16 * 10**9) == 6
    assert build_jobs(2, 64 * 10**9) == 2
    assert build_jobs(8, 10**9) == 1
    assert build_jobs(8, None) == 8


# --- output -------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_a_line_every_ten_percent() -> None:
    stream = io.StringIO()
    now = 0.0
    progress = BuildProgress(stream, live=False, clock=lambda: now)
    for line in BUILD_LINES:
        progress.feed(line)
        now += 5
        progress.tick()
    percents = [int(line.split("%")[0]) for line in stream.getvalue().splitlines()]
    assert percents == [1, 10, 40, 98, 100]
    for _ in range(130):  # the last files take minutes
        now += 1
        progress.tick()
    assert len(stream.getvalue().splitlines()) == 5 + 2
    assert "\r" not in stream.getvalue()


def test_progress_in_a_terminal_is_one_changing_line() -> None:
    stream = io.StringIO()
    now = 0.0
    progress = BuildProgress(stream, live=True, clock=lambda: now)
    drawn = []
    for line in BUILD_LINES:
        progress.feed(line)
        now += 9
        progress.tick()
        drawn.append(stream.getvalue().rpartition("\r\x1b[K")[2])
    assert "\n" not in stream.getvalue()
    assert drawn[0] == "  downloading  9 s"
    assert drawn[5] == "  configuring  54 s"
    assert drawn[12] == "   40 %  compiling  1 min 57 s", "the percentage does not go back"
    assert drawn[-1].startswith("  100 %  packing")
    length = len(stream.getvalue())
    progress.tick()
    assert len(stream.getvalue()) == length, "an unchanged line is not drawn again"
    assert progress.finish() == now
    assert stream.getvalue().endswith("\r\x1b[K")


def test_first_errors_shows_what_the_compiler_said(tmp_path: Path) -> None:
    source = tmp_path / "broken.cc"
    source.write_text("int main() {\n  return no_such_name;\n}\n")
    env = environment(LC_ALL="C")
    said = subprocess.run(["g++", "-c", source], env=env, cwd=tmp_path, capture_output=True, text=True).stderr
    said = said.replace(str(source), f"/tmp/pip-wheel-x1/horovod_{'0a' * 16}/broken.cc")
    called = "  cd /tmp/pip-wheel-x1/build && g++ -c broken.cc"
    log = "\n".join([*BUILD_LINES[:8], called, said, "make: *** [all] Error 2", "error: subprocess-exited-with-error"])
    shown = "\n".join(first_errors(log))
    assert "no_such_name" in shown
    assert "broken.cc:2" in shown
    assert "return no_such_name" in shown
    assert "Collecting" not in shown
    assert "pip-wheel" not in shown
    assert first_errors("a\nERROR: No matching distribution found") == ["ERROR: No matching distribution found"]
    assert first_errors("first\nlast") == ["first", "last"]
