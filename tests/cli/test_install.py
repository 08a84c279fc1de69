"""``itwinai install horovod`` from beginning to end, with a real compiler and the finished wheel."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
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

from itwinai.cli.install.cache import cached_wheel, store_wheel
from itwinai.cli.install.plan import make_plan
from itwinai.errors import InstallError
from tests.support.install import VERSION, environment

# the first test that needs the finished wheel builds it, where no earlier run of the command has
pytestmark = pytest.mark.timeout(1800)

RUN = "import sys; from itwinai.cli.install import main; sys.exit(main(sys.argv[1:]))"


def command(*arguments: str, python: str | Path = sys.executable, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run ``itwinai install horovod`` to its end."""
    line = [str(python), "-c", RUN, "horovod", *arguments]
    return subprocess.run(line, env=environment(**changes), capture_output=True, text=True)


@pytest.fixture(scope="module")
def cached() -> Path:
    """Return the wheel in the default cache; it is built there by the command if it is not there yet."""
    done = command("--wheel-only")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = make_plan(VERSION, env=environment())
    wheel = cached_wheel(plan)
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


def test_only_what_is_cached_is_installed_where_that_is_asked_for(tmp_path: Path) -> None:
    done = command("--cached-only", "--cache-dir", str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Horovod is not installed: there is no wheel" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_when_something_is_missing(tmp_path: Path) -> None:
    done = command("--dry-run", "--cache-dir", str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "missing  C++ compiler" in done.stdout


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
    plan = dataclasses.replace(make_plan(VERSION), folder=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cached.stat().st_size // 2, hard))
    try:
        with pytest.raises(InstallError, match="File too large"):
            store_wheel(cached, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert store_wheel(cached, plan) == cached_wheel(plan)


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
