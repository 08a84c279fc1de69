"""What all tests need: references computed once, one Ray, and a way to run scripts as a user does."""

from __future__ import annotations

import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.mlflow_server import Server

from tests.support import marked, source_tree
from tests.support.hung import end_and_tell
from tests.support.parallel import pytest_addoption, pytest_runtestloop  # noqa: F401 - hooks of pytest
from tests.support.warm import REPOSITORY, WARM, WarmProcess

# Threads of OpenMP that wait for each other sleep: with more processes than cores, they would spin for ten times as
# long as they compute. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# These need an environment of their own: tox run -e clients. What is named on the command line is collected.
collect_ignore = ["clients"]

marked.mark(str(os.getpid()))


def pytest_configure(config: pytest.Config) -> None:
    """Set what holds for all tests."""
    source_tree.pytest_configure(config)
    # Ctrl-C works in what they start: a shell has its jobs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")


# W&B, MLflow and TensorBoard keep threads in the process for good; so does torch, of a DDP that averages models.
KEEP_THREADS = (
    "tests/callbacks/test_run_logging.py",
    "tests/callbacks/test_watched_runs.py",
    "tests/loggers/",
    "tests/trials/",
    "tests/tune/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the end what leaves threads in this process, or a Ray: with neither, workers are copies of it.

    They are there at once, whereas a new process has to import first.
    """

    def leaves_threads(item: pytest.Item) -> bool:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return (
            item.nodeid.startswith(KEEP_THREADS)
            or not {"local_ray", "kept_ray_workers"}.isdisjoint(getattr(item, "fixturenames", ()))
            or any(str(parameter).startswith("ray") for parameter in parameters)
            or any(word in item.name for word in ("logger", "wandb", "averages_models"))
        )

    items.sort(key=leaves_threads)


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code, all it printed, and the seconds it took."""

    code: int
    output: str
    seconds: float


RunCommand = Callable[..., Finished]


@pytest.fixture(scope="session", autouse=True)
def outside_the_source_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run all tests, and what they start, in a folder of their own: many things write to the current folder."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("current")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def run_command() -> RunCommand:
    """Return a function that runs a command with the repository importable, and captures what it prints."""

    def run(
        command: list[str], *, cwd: Path | None = None, timeout: float = 600, fresh: bool = False, **variables: str
    ) -> Finished:
        """Run it; in a new process of Python rather than in a copy of one that has imported torch, if it is `fresh`."""
        started = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
        if not fresh and environment["PYTHONPATH"].startswith(str(REPOSITORY)) and WARM.can_run(command, environment):
            return _run_warm(command, cwd or Path.cwd(), environment, timeout)
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            stacks = end_and_tell(process.pid)
            output, _ = process.communicate()
            pytest.fail(f"{' '.join(command)}: not ended after {timeout:.0f} s\n{stacks}\nPrinted:\n{output[-4000:]}")
        return Finished(process.returncode, output, time.monotonic() - started)

    return run


def _run_warm(command: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> Finished:
    """Run a script as `subprocess.run` does, until nobody can write to its output any more."""
    started = time.monotonic()
    WARM.start()
    reading, writing = os.pipe()
    process = WARM.run(command, cwd, environment, writing)
    os.close(writing)
    output = b""
    with open(reading, "rb", buffering=0) as file, selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0, started + timeout - time.monotonic())):
                stacks, printed = end_and_tell(process.pid), output.decode()[-4000:]
                pytest.fail(f"{' '.join(command)}: not ended after {timeout:.0f} s\n{stacks}\nPrinted:\n{printed}")
            if not (chunk := file.read(1 << 16)):
                break
            output += chunk
    code = process.wait(timeout)
    return Finished(code, output.decode().replace("\r\n", "\n"), time.monotonic() - started)


@pytest.fixture(scope="session")
def references() -> dict[str, dict[str, Any]]:
    """Return the result of every parity case in a single process of lightning's own single-device strategy."""
    from tests.support.cases import CASES, run_case

    return {str(case): run_case(case, "auto", workers=1) for case in CASES}


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start one Ray for all tests that need one: each start costs seconds."""
    import ray

    # Not one that somebody else runs on this machine.
    ray.init("local", num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}})
    yield
    ray.shutdown()


@pytest.fixture
def kept_ray_workers(local_ray: None) -> Iterator[None]:
    """Let the fits of a test have the same two Ray workers."""
    from tests.support.kept_workers import kept_workers

    with kept_workers():
        yield


@pytest.fixture(scope="session")
def shared_fork_server() -> Iterator[None]:
    """Let workers that are sent a payload be copies of one process that has imported."""
    from tests.support.shared_fork_server import SHARED

    with SHARED.used():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run an MLflow server for the tests of a module."""
    from tests.support.mlflow_server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def no_mlflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the variable that lightning's logger sets for the whole process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    """Give back the signals that Ray Tune takes in this process, and keeps."""
    numbers = (signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def own_log_filters() -> Iterator[None]:
    """Give back the loggers of which the command line, called in this process, silences what is known as noise."""
    before = {logger: list(logger.filters) for logger in _loggers()}
    yield
    for logger in _loggers():
        logger.filters[:] = before.get(logger, [])


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Check that the test leaves no worker process behind."""
    yield
    wait_for_no_workers()


def wait_for_no_workers() -> None:
    """Check that no worker process is left, but for those that have noticed already that their caller is gone."""
    deadline = time.monotonic() + 15
    while leftover := worker_processes():
        assert time.monotonic() < deadline, f"worker processes were left behind: {leftover}"
        time.sleep(0.1)


def worker_processes() -> list[str]:
    """Return itwinai's processes that are running on this machine, but for those that wait for this one's next fit."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            ours = process.name().startswith("itwinai") or "itwinai.launchers" in command
            waiting = process.ppid() == os.getpid()
            # Of this run only: somebody else may be training on this machine.
            if ours and not waiting and marked.is_marked(process):
                found.append(f"{process.pid}: {process.name()}: {command}")
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
    return found


def start_script(script: list[str], output: Path) -> subprocess.Popen[bytes] | WarmProcess:
    """Start a Python script in a session of its own, with what it prints going to a file."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with output.open("wb") as file:
        if WARM.can_run(python(*script), environment):
            WARM.start()
            return WARM.run(python(*script), Path.cwd(), environment, file.fileno())
        return subprocess.Popen(
            python(*script),
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_files(process: subprocess.Popen[bytes], files: list[Path], output: Path) -> None:
    """Wait until a process has written some files."""
    while not all(file.exists() for file in files):
        assert process.poll() is None, output.read_text()
        time.sleep(0.05)


def assert_no_process_left(session: int) -> None:
    """Wait until no worker and no Ray process of a session is left."""
    import psutil

    deadline = time.monotonic() + 15
    while True:
        left = worker_processes() + [
            f"{process.pid}: {process.info['name']}"
            for process in psutil.process_iter(["name", "status"])  # read at once: the next moment they may be gone
            if process.info["status"] != psutil.STATUS_ZOMBIE and _session_of(process.pid) == session
        ]
        if not left:
            return
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def python(*arguments: str) -> list[str]:
    """Return the command line of this Python with some arguments, of which scripts of the tests may be relative."""
    is_script = re.compile(r"tests/[\w/]+\.py").fullmatch
    return [sys.executable, *(str(REPOSITORY / one) if is_script(one) else one for one in arguments)]


def require_programs(missing: list[str], install: str) -> None:
    """Skip a test whose programs are missing; where nothing may be skipped, fail."""
    if not missing:
        return
    message = f"{', '.join(missing)} not found: {install}"
    if os.environ.get("ITWINAI_TESTS_REQUIRE_ALL"):
        pytest.fail(message)
    pytest.skip(message)
