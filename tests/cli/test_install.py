"""``itwinai install horovod`` with real parts: a compiler, the finished wheel, processes and signals."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import itwinai
from itwinai.cli import horovod_build as build
from itwinai.errors import InstallError

# the first test that needs the finished wheel builds it, where no earlier run of the command has
pytestmark = pytest.mark.timeout(1800)

RUN = "import sys; from itwinai.cli.install import main; sys.exit(main(sys.argv[1:]))"
CPU = build.TorchInfo("2.13.0+cpu")
CUDA = build.TorchInfo("2.13.0+cu130", cuda="13.0")
VERSION = "0.28.1"

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


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment, without build options of the developer's own, with some changes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_") and name != "CXX"}
    package_root = str(Path(itwinai.__file__).parents[1])
    return {**kept, "PYTHONPATH": package_root, **changes}


def command(*arguments: str, python: str | Path = sys.executable, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run ``itwinai install horovod`` to its end."""
    line = [str(python), "-c", RUN, "horovod", *arguments]
    return subprocess.run(line, env=environment(**changes), capture_output=True, text=True)


@pytest.fixture(scope="module")
def cached() -> Path:
    """Return the wheel in the default cache; it is built there by the command if it is not there yet."""
    done = command("--wheel-only")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = build.make_plan(VERSION, env=environment())
    wheel = build.cached_wheel(plan)
    assert wheel is not None
    assert str(wheel) in done.stdout
    return wheel


@pytest.fixture
def throwaway(tmp_path: Path) -> tuple[Path, Path]:
    """Make an environment that sees this one's packages; return its Python and its own package folder."""
    root = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", root], check=True)
    python = root / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    parent = sysconfig.get_path("purelib")
    # a venv made from a venv sees the base interpreter's packages only
    (own / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    return python, own


# --- what is needed -----------------------------------------------------------------------------------------


def test_everything_missing_is_reported_at_once_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = command("--wheel-only", "--cache-dir", str(tmp_path / "cache"), PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    for expected in (
        "C++ compiler",
        "apt-get install g++",
        "module load gcc",
        "C compiler",
        "apt-get install make",
    ):
        assert expected in done.stderr
    assert "Building" not in done.stdout
    assert not (tmp_path / "cache").exists()


def test_dry_run_prints_plan_and_checks_and_changes_nothing(tmp_path: Path) -> None:
    changes = {"HOROVOD_WITH_MPI": "1", "CXX": "g++ -pipe", "CUDA_HOME": str(tmp_path)}
    done = command("--dry-run", "--cache-dir", str(tmp_path / "cache"), **changes)
    assert str(tmp_path / "cache" / f"horovod-{VERSION}-torch-") in done.stdout
    for expected in (
        "HOROVOD_WITH_MPI=1",
        "HOROVOD_WITH_GLOO=1",
        "g++ -pipe",
        "-std=gnu++20",
        "MPI (HOROVOD_WITH_MPI",
    ):
        assert expected in done.stdout
    assert "HOROVOD_WITHOUT_MPI" not in done.stdout
    assert done.returncode == (1 if "  missing  " in done.stdout else 0)
    assert not (tmp_path / "cache").exists()


def test_dry_run_says_when_something_is_missing(tmp_path: Path) -> None:
    done = command("--dry-run", "--cache-dir", str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "missing  C++ compiler" in done.stdout


def test_compiler_without_cxx20_library_is_refused() -> None:
    assert build.check_compiler(environment(CXX="g++")).found
    refused = build.check_compiler(environment(CXX="g++ -nostdinc++"))
    assert refused.found is None
    assert "concepts" in refused.problem


@pytest.mark.parametrize(("version", "good"), [("3.17.5", False), ("3.18.0", True), ("4.1.2", True)])
def test_cmake_version(tmp_path: Path, version: str, good: bool) -> None:
    program = tmp_path / "cmake"
    program.write_text(f"#!/bin/sh\necho cmake version {version}\n")
    program.chmod(0o755)
    check = build.check_cmake(environment(HOROVOD_CMAKE=str(program)))
    assert (check.found is not None) is good
    assert version in (check.found or check.problem)


def test_missing_python_package_is_one_that_pip_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.found for check in build.check_python_packages())
    monkeypatch.setattr(build, "PYTHON_REQUIREMENTS", ("packaging", "itwinai-no-such-package"))
    missing = [check for check in build.check_python_packages() if check.found is None]
    assert [check.pip_name for check in missing] == ["itwinai-no-such-package"]


def test_torch_is_found_without_importing_it() -> None:
    code = (
        "import json, sys\n"
        "import itwinai.cli.install\n"
        "light = 'torch' not in sys.modules and 'itwinai.cli.horovod_build' not in sys.modules\n"
        "from itwinai.cli.horovod_build import find_torch\n"
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
    assert build.find_cuda_home(env) != tmp_path
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert build.find_cuda_home(env) == tmp_path


def test_nccl_without_linker_name_gets_one(tmp_path: Path) -> None:
    home, scratch = tmp_path / "nccl", tmp_path / "scratch"
    for folder in (home / "include", home / "lib", scratch):
        folder.mkdir(parents=True)
    library = home / "lib" / "libnccl.so.2"
    library.touch()
    env = environment(HOROVOD_NCCL_HOME=str(home))
    found = build.find_nccl(env, CUDA)
    assert found is None or found[1] != library, "the header is not there yet"
    (home / "include" / "nccl.h").touch()
    assert build.find_nccl(env, CUDA) == (home / "include", library)
    result = build.build_environment(build.Plan(VERSION, CUDA, build.build_options(env, CUDA), tmp_path), scratch, env)
    assert result["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert result["HOROVOD_NCCL_INCLUDE"] == str(home / "include")
    assert (Path(result["HOROVOD_NCCL_LIB"]) / "libnccl.so").resolve() == library


# --- options, key, compiler ---------------------------------------------------------------------------------


def test_options_of_the_user_come_first() -> None:
    plain = build.build_options({}, CPU)
    assert plain["HOROVOD_WITH_GLOO"] == plain["HOROVOD_WITHOUT_MPI"] == plain["HOROVOD_WITH_PYTORCH"] == "1"
    assert "HOROVOD_GPU_OPERATIONS" not in plain
    own = build.build_options({"HOROVOD_WITH_MPI": "1", "HOROVOD_WITHOUT_GLOO": "1", "HOROVOD_TIMELINE": "x"}, CPU)
    assert own["HOROVOD_WITH_MPI"] == own["HOROVOD_WITHOUT_GLOO"] == "1"
    assert not {"HOROVOD_WITHOUT_MPI", "HOROVOD_WITH_GLOO", "HOROVOD_TIMELINE"} & own.keys()
    assert build.build_options({}, CUDA)["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_GPU_OPERATIONS" not in build.build_options({"HOROVOD_GPU_ALLREDUCE": "NCCL"}, CUDA)
    with pytest.raises(InstallError, match="HOROVOD_WITHOUT_PYTORCH"):
        build.build_options({"HOROVOD_WITHOUT_PYTORCH": "1"}, CPU)


def test_cache_key_changes_with_all_that_a_wheel_depends_on() -> None:
    options = build.build_options({}, CPU)
    key = build.cache_key(VERSION, CPU, options)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert key.startswith(f"horovod-{VERSION}-torch-2.13.0+cpu-{tag}")
    assert f"-{os.uname().machine}-cpu-" in key
    others = {
        build.cache_key("0.28.0", CPU, options),
        build.cache_key(VERSION, dataclasses.replace(CPU, version="2.12.1+cpu"), options),
        build.cache_key(VERSION, CUDA, options),
        build.cache_key(VERSION, dataclasses.replace(CUDA, cuda="12.8"), options),
        build.cache_key(VERSION, CPU, build.build_options({"HOROVOD_WITH_MPI": "1"}, CPU)),
    }
    assert len(others | {key}) == 6
    assert key == build.cache_key(VERSION, CPU, build.build_options({"HOROVOD_LOG_LEVEL": "debug"}, CPU))


def test_default_cache_dir(tmp_path: Path) -> None:
    assert build.default_cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "itwinai" / "wheels"
    for ignored in ({}, {"XDG_CACHE_HOME": "relative"}):
        assert build.default_cache_dir(ignored) == Path.home() / ".cache" / "itwinai" / "wheels"


@pytest.mark.parametrize(("flags", "level"), [((), "202002L"), (("-D__CUDACC__",), "201402L")])
def test_wrapper_raises_the_language_level_except_for_nvcc(tmp_path: Path, flags: tuple[str, ...], level: str) -> None:
    wrapper = tmp_path / "cxx"
    wrapper.write_text(build.wrapper_script(["g++", "-DSAYS=it is"]))
    wrapper.chmod(0o755)
    line = [str(wrapper), *flags, "-std=c++14", "-E", "-P", "-x", "c++", "-"]
    done = subprocess.run(line, input="__cplusplus SAYS", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [level, "it", "is"]


def test_jobs_are_limited_by_memory() -> None:
    assert build.build_jobs(64, 16 * 10**9) == 6
    assert build.build_jobs(2, 64 * 10**9) == 2
    assert build.build_jobs(8, 10**9) == 1
    assert build.build_jobs(8, None) == 8


# --- output -------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_a_line_every_ten_percent() -> None:
    stream = io.StringIO()
    seconds = iter(range(0, 1000, 7))
    progress = build.BuildProgress(stream, live=False, clock=lambda: next(seconds))
    for line in BUILD_LINES:
        progress.feed(line)
        progress.tick()
    percents = [int(line.split("%")[0]) for line in stream.getvalue().splitlines()]
    assert percents == [1, 10, 40, 98, 100]
    assert "\r" not in stream.getvalue()


def test_progress_in_a_terminal_is_one_changing_line() -> None:
    stream = io.StringIO()
    now = 0.0
    progress = build.BuildProgress(stream, live=True, clock=lambda: now)
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
    shown = "\n".join(build.first_errors(log))
    assert "no_such_name" in shown
    assert "broken.cc:2" in shown
    assert "return no_such_name" in shown
    assert "Collecting" not in shown
    assert "pip-wheel" not in shown
    assert build.first_errors("a\nERROR: No matching distribution found") == ["ERROR: No matching distribution found"]
    assert build.first_errors("first\nlast") == ["first", "last"]


# --- the cache and the installation -------------------------------------------------------------------------


def test_cached_wheel_is_installed_and_loads(cached: Path, throwaway: tuple[Path, Path], tmp_path: Path) -> None:
    python, own = throwaway
    written = cached.stat().st_mtime_ns
    # neither a compiler nor a temporary folder of the build is needed
    (tmp_path / "bin").mkdir()
    done = command(python=python, PATH=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Horovod {VERSION} is installed (from the cache)" in done.stdout
    assert "gloo" in done.stdout
    code = "import horovod.torch as hvd; print(hvd.__file__)"
    seen = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(seen.strip()).is_relative_to(own)
    assert cached.stat().st_mtime_ns == written


def test_damaged_wheel_is_built_again_and_never_installed(
    cached: Path, throwaway: tuple[Path, Path], tmp_path: Path
) -> None:
    python, own = throwaway
    folder = tmp_path / "cache" / cached.parent.name
    folder.mkdir(parents=True)
    with zipfile.ZipFile(cached) as good, zipfile.ZipFile(folder / cached.name, "w") as bad:
        for item in good.infolist():
            library = "mpi_lib" in item.filename and item.filename.endswith(".so")
            bad.writestr(item, b"\x7fELF, cut short" if library else good.read(item))
    # without a compiler, the second build ends at the checks
    (tmp_path / "bin").mkdir()
    done = command("--cache-dir", str(tmp_path / "cache"), python=python, PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "building it again" in done.stdout
    assert "C++ compiler" in done.stderr
    assert not (own / "horovod").exists()


def test_wheel_that_does_not_fit_leaves_nothing_in_the_cache(cached: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(build.make_plan(VERSION), folder=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cached.stat().st_size // 2, hard))
    try:
        with pytest.raises(InstallError, match="File too large"):
            build.store_wheel(cached, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert build.store_wheel(cached, plan) == build.cached_wheel(plan)


def test_second_process_waits_for_the_first_and_takes_its_wheel(cached: Path, tmp_path: Path) -> None:
    folder = tmp_path / cached.parent.name
    folder.mkdir()
    line = [sys.executable, "-c", RUN, "horovod", "--wheel-only", "--cache-dir", str(tmp_path)]
    # a build, which must not happen here, finds no source and ends soon
    env = environment(PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", PIP_NO_INDEX="1")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "waiting" in process.stdout.readline()
        shutil.copy(cached, folder / cached.name)
    rest = process.stdout.read()
    assert process.wait() == 0
    assert "from the cache" in rest
    assert "Building" not in rest


# --- stopping -----------------------------------------------------------------------------------------------


def _open_when_read(fifo: Path, process: subprocess.Popen[str], limit: float = 60) -> int:
    """Open a pipe for writing as soon as some process reads from it."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the compiler was not started")


@contextmanager
def _half_way(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], bool]]]:
    """Start a build whose compiler waits for its source; yield the command and whether the compiler lives."""
    fifo, compiler = tmp_path / "source.cc", tmp_path / "slow-g++"
    os.mkfifo(fifo)
    compiler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-fsyntax-only*|--version*) exec g++ "$@" ;; esac\n'
        f"exec g++ -c -x c++ {fifo} -o /dev/null\n"
    )
    compiler.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    env = environment(CXX=str(compiler), TMPDIR=str(tmp_path / "tmp"))
    line = [sys.executable, "-c", RUN, "horovod", "--wheel-only", "--cache-dir", str(tmp_path / "cache")]
    process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer = -1
    try:
        writer = _open_when_read(fifo, process)

        def alive() -> bool:
            try:
                os.write(writer, b" ")
            except BrokenPipeError:
                return False
            return True

        yield process, alive
    finally:
        process.kill()
        process.communicate()
        if writer >= 0:
            os.close(writer)
        for left in _processes_naming(tmp_path):
            left.kill()


def _processes_naming(path: Path) -> list[psutil.Process]:
    """Return the processes whose command line names a path; the dead have none."""
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if any(str(path) in part for part in process.info["cmdline"] or [])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_build_leaves_no_wheel_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with _half_way(tmp_path) as (process, alive):
        assert alive()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, out + err
        assert "interrupted" in err
        assert "Traceback" not in err
        assert not alive()
        assert _processes_naming(tmp_path) == []
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".whl", ".part")] == []
    assert list((tmp_path / "tmp").iterdir()) == []
