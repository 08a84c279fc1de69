"""Tests that run side by side are told of as if one process had run them, whatever becomes of theirs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import RunCommand, python

FIRST = """
import os
import signal
from pathlib import Path

def test_passes(tmp_path):
    os.environ["LEFT_BEHIND"] = "1"

def test_fails():
    print("what it has printed")
    assert os.getpid() == 0

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_leaves_a_file():
    folder = Path(__file__).with_name("runs")
    folder.mkdir()
    (folder / "metrics.csv").touch()

def test_after_it():
    assert "LEFT_BEHIND" not in os.environ
"""
SECOND = """
import os
import threading

import pytest

@pytest.fixture(scope="session")
def shared():
    yield
    print("taken down")

def test_of_another_file(shared):
    assert "LEFT_BEHIND" not in os.environ and threading.active_count() == 1

@pytest.mark.skip(reason="of no use")
def test_skipped():
    pass

@pytest.mark.timeout(0.5)
def test_hangs(shared):
    threading.Event().wait()
"""


def test_outcomes_of_all_are_told(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "test_first.py").write_text(FIRST)
    (tmp_path / "test_second.py").write_text(SECOND)
    plugins = ("-p", "tests.support.parallel", "-p", "tests.support.source_tree", "-p", "no:cacheprovider")
    flags = [*plugins, "--jobs", "2", "-rA", f"--rootdir={tmp_path}"]
    ended = run_command(python("-m", "pytest", *flags, str(tmp_path)))
    outcomes = {name: kind for kind, name in re.findall(r"^(\w+) \S*::(\w+)", ended.output, re.MULTILINE)}
    assert outcomes == {
        "test_passes": "PASSED",
        "test_fails": "FAILED",
        "test_dies": "FAILED",
        "test_leaves_a_file": "PASSED",
        "test_after_it": "PASSED",
        "test_of_another_file": "PASSED",
        "test_hangs": "FAILED",
    }
    assert ended.code == 1
    assert "3 failed, 4 passed, 1 skipped" in ended.output
    assert "what it has printed" in ended.output and "taken down" in ended.output
    assert "The process of this test ended with exit code -9." in ended.output
    assert "Timeout" in ended.output
    left = ended.output.partition("new in the source tree")[2]
    assert re.search(r"^runs: (.* or )?test_first\.py::test_leaves_a_file", left, re.MULTILINE), ended.output
