"""Tests side by side: ``pytest --jobs 3`` collects once, and runs each file in a copy of the process that has.

A copy has all that is imported, and none of what the tests of other files leave behind: threads, a Ray, settings of
the process. So its own workers can be copies of it, which those of a process with threads, as in pytest-xdist, cannot.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import selectors
import signal
import struct
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest

from tests.support import marked
from tests.support.warm import WARM

# The files that take longest are begun with, in this order, for none to be left alone at the end. Those that wait for
# most of their time, as for SLURM, are far from each other: others compute meanwhile.
LONGEST = (
    "test_tutorials",
    "test_requeue",
    "test_situations",
    "test_tuner",
    "test_jobs",
    "test_survival",
    "test_parity",
    "test_runs",
    "test_workers",
    "test_watched_runs",
    "test_prediction_files",
    "test_stops",
    "test_checks",
    "test_worker_kinds",
    "test_trainer",
    "test_portability",
    "test_slurm",
    "test_mlflow",
    "test_main",
    "test_failures",
    "test_deepspeed",
    "test_exactness",
    "test_doctor",
    "test_exact_evaluation",
    "test_plugins",
    "test_unify",
    "test_first_output",
    "test_init",
    "test_ray_session",
    "test_resume",
    "test_outer",
    "test_examples",
    "test_prediction_writer",
    "test_pipeline",
    "test_interrupted",
    "test_cluster",
    "test_report",
)
AT_ONCE = 50
"""Most tests that a copy runs: what is left of a file is for the next."""

_LENGTH = struct.Struct("!Q")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--jobs", type=int, default=1, help="run the files of tests in so many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all tests in copies of this process, if that is asked for."""
    options = session.config.option
    if options.jobs < 2 or options.collectonly or session.testsfailed or options.usepdb:
        return None
    _Loop(session).run(options.jobs)
    return True


def groups_of(items: Iterable[pytest.Item]) -> list[list[pytest.Item]]:
    """Return the tests that run in one copy each, in the order in which they are begun."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    ordered = sorted(files, key=lambda path: LONGEST.index(path.stem) if path.stem in LONGEST else len(LONGEST))
    return [own[at : at + AT_ONCE] for own in map(files.__getitem__, ordered) for at in range(0, len(own), AT_ONCE)]


@dataclass
class _Copy:
    """A copy that runs some tests, and what it has reported of them: lists of reports, by test."""

    pid: int
    reading: BinaryIO
    items: list[pytest.Item]
    received: bytearray = field(default_factory=bytearray)
    reports: dict[str, list[Any]] = field(default_factory=dict)

    def read(self) -> bool:
        """Take what it has written; False at its end."""
        chunk = os.read(self.reading.fileno(), 1 << 20)
        self.received += chunk
        while len(self.received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self.received)[0]
            if len(self.received) < end:
                break
            nodeid, report = pickle.loads(self.received[_LENGTH.size : end])
            self.reports.setdefault(nodeid, [])
            if report is not None:
                self.reports[nodeid].append(report)
            del self.received[:end]
        return bool(chunk)


class _Loop:
    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.config = session.config
        self.running: list[_Copy] = []

    def run(self, jobs: int) -> None:
        import deepspeed  # noqa: F401 - for all copies
        import horovod.torch  # noqa: F401

        from tests.support.shared_fork_server import SHARED

        WARM.start()
        if any("shared_fork_server" in getattr(item, "fixturenames", ()) for item in self.session.items):
            SHARED.start()
        alone, others = (
            groups_of(item for item in self.session.items if bool(item.get_closest_marker("alone")) is wanted)
            for wanted in (True, False)
        )
        # Collections, of which each fit makes some, leave alone what is there already: a fifth of all the time.
        gc.collect()
        gc.freeze()
        # Of this process, for all copies to make theirs in it.
        self.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        try:
            self._run(others, jobs)
            self._run(alone, 1)
        finally:
            self._end()
            SHARED.stop()

    def _run(self, waiting: list[list[pytest.Item]], jobs: int) -> None:
        with selectors.DefaultSelector() as selector:
            while waiting or self.running:
                while waiting and len(self.running) < jobs:
                    copy = self._start(waiting.pop(0))
                    selector.register(copy.reading, selectors.EVENT_READ, copy)
                for key, _ in selector.select():
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                        if left := self._finish(key.data):
                            waiting.insert(0, left)

    def _start(self, items: list[pytest.Item]) -> _Copy:
        reading, writing = os.pipe()
        pids: list[int] = []

        def fork() -> None:
            # By a thread of its own, as workers are: see `itwinai.launchers.fork`.
            if (pid := os.fork()) == 0:
                os.close(reading)
                _run(self.session, items, os.fdopen(writing, "wb"))
            pids.append(pid)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        os.close(writing)
        copy = _Copy(pids[0], os.fdopen(reading, "rb"), items)
        self.running.append(copy)
        return copy

    def _finish(self, copy: _Copy) -> list[pytest.Item]:
        """Report what a copy has reported; return the tests that it has not come to."""
        self.running.remove(copy)
        copy.reading.close()
        code = os.waitstatus_to_exitcode(os.waitpid(copy.pid, 0)[1])
        _kill(copy.pid)  # what its tests have left
        done = [item for item in copy.items if item.nodeid in copy.reports]
        for item in done:
            reports = [
                self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
                for data in copy.reports[item.nodeid]
            ]
            if code and item is done[-1] and not any(report.when == "teardown" for report in reports):
                reports.append(_died(item, code))
            self.config.hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            for report in reports:
                self.config.hook.pytest_runtest_logreport(report=report)
            self.config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if code and not done:
            raise RuntimeError(f"The process of {copy.items[0].nodeid} ended with exit code {code} before it began.")
        return copy.items[len(done) :]

    def _end(self) -> None:
        """Interrupt what runs, which ends its workers; kill what does not end."""
        for copy in self.running:
            os.kill(copy.pid, signal.SIGINT)
        deadline = time.monotonic() + 20
        for copy in self.running:
            while os.waitpid(copy.pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            _kill(copy.pid)
        WARM.stop()


def _kill(session: int) -> None:
    """Kill what is left of a session's first process group."""
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


def _died(item: pytest.Item, code: int) -> pytest.TestReport:
    return pytest.TestReport(
        item.nodeid, item.location, {}, "failed", f"The process of this test ended with exit code {code}.", "call"
    )


class _Sender:
    def __init__(self, config: pytest.Config, writing: BinaryIO) -> None:
        self.config = config
        self.writing = writing

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._send(nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._send(report.nodeid, data)

    def _send(self, nodeid: str, data: Any) -> None:
        message = pickle.dumps((nodeid, data))
        self.writing.write(_LENGTH.pack(len(message)) + message)
        self.writing.flush()


def _run(session: pytest.Session, items: list[pytest.Item], writing: BinaryIO) -> NoReturn:
    """Run some tests in a copy, and end it."""
    # Not by conftest: when lightning is imported, it looks for pytest's handlers of logs.
    from itwinai.compat import python as compat_python

    code = 1
    try:
        os.setsid()
        marked.mark(str(os.getpid()))
        compat_python.forget_exit_functions()
        plugins = session.config.pluginmanager
        capture: Any = plugins.getplugin("capturemanager")
        capture.stop_global_capturing()  # into files that all copies would share
        capture.start_global_capturing()
        capture.suspend_global_capture()
        session.config.get_terminal_writer()._file = open(os.devnull, "w")  # noqa: SIM115 - the first process writes
        plugins.register(_Sender(session.config, writing))
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                break
        atexit._run_exitfuncs()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
