"""Tell what tests have left in the source tree, where nothing of theirs belongs, and which tests ran at the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# What tools keep there: pytest, hypothesis, type checkers, builds, and tutorials that have run.
_KEPT = {".git", ".tox", ".venv", "__pycache__", "_build", "build", "dist"}
_KEPT_ENDINGS = ("_cache", ".egg-info", ".hypothesis")

_TICK = 0.02
"""Seconds that the time of a file may be behind."""


def pytest_configure(config: pytest.Config) -> None:
    """Look at the source tree before the tests begin."""
    config.pluginmanager.register(SourceTree(config.rootpath))


class SourceTree:
    """The files of a folder when the tests began, and when each test ran.

    Args:
        folder: of the sources.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = set(self._paths())
        self._ran: dict[str, tuple[float, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note when a test ran."""
        began, _ = self._ran.get(report.nodeid, (report.start, 0.0))
        self._ran[report.nodeid] = began, report.stop

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Let tests fail that have left something; where people work, it may be theirs."""
        if exitstatus == 0 and os.environ.get("ITWINAI_TESTS_REQUIRE_ALL") and any(self.left()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name what was left."""
        if lines := list(self.left()):
            terminalreporter.section("new in the source tree; tests write to tmp_path", red=True)
            terminalreporter.write("".join(f"{line}\n" for line in lines))

    def left(self) -> Iterator[str]:
        """Yield a line for each new file, and for each new folder with all that is in it: the tests that ran then."""
        new = sorted(set(self._paths()) - self._before)
        for path in new:
            if os.path.dirname(path) not in new:
                # Of a folder, the file that is written first: another test may have added to it.
                inside = [one for one in new if one == path or one.startswith(f"{path}{os.sep}")]
                yield f"{path}: {self._running(min(os.lstat(self._folder / one).st_mtime for one in inside))}"

    def _running(self, moment: float) -> str:
        found = [test for test, (began, ended) in self._ran.items() if began - _TICK <= moment <= ended]
        return " or ".join(found) or "written when no test ran"

    def _paths(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if name not in _KEPT and not name.endswith(_KEPT_ENDINGS)]
            yield from (os.path.relpath(os.path.join(folder, name), self._folder) for name in (*folders, *files))
