"""A process ends soon, and as Python ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunCommand, python

SCRIPT = """
import atexit, sys
from itwinai.launchers.worker import exit_soon

exit_soon()
import gc, h5py, torch

class Deleted:
    def __del__(self): print("deleted")

class Cycle:
    def __init__(self):
        self.own = self

class Module(Cycle):
    def __del__(self): print("taken apart")

cycle = Module()
cycle.log = open("log.txt", "w")
cycle.log.write("written")
data = h5py.File("data.h5", "w")  # closed by its library's own exit function
data["x"] = [1, 2, 3]
atexit.register(lambda: print("at exit, with collections:", gc.isenabled()))
atexit.register(lambda: cycle.log.write(" at the end"))
print("frozen:", gc.get_freeze_count())

def main():
    run = Cycle()
    run.deleted = Deleted()
    {end}

main()
"""


@pytest.mark.parametrize("end", ["sys.exit('why')", "raise ValueError('why')"])
def test_end_of_a_process(end: str, run_command: RunCommand, tmp_path: Path) -> None:
    script = SCRIPT.replace("{end}", end)
    ended = run_command(python("-c", script), cwd=tmp_path, fresh=True)
    assert ended.code == 1
    lines = [line for line in ended.output.splitlines() if not line.startswith((" ", "Traceback"))]
    why = "ValueError: why" if "raise" in end else "why"
    assert sorted(lines) == sorted(["at exit, with collections: True", "deleted", "frozen: 0", why]), ended.output
    assert (tmp_path / "log.txt").read_text() == "written at the end"
    read = run_command(python("-c", "import h5py; print(h5py.File('data.h5')['x'][:].tolist())"), cwd=tmp_path)
    assert read.output == "[1, 2, 3]\n"


def test_end_of_a_command(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
from tests.support.cases import Regression

class Mine(Regression):
    pass

class Kept:
    def __init__(self): self.own = self
    def __del__(self): print("taken apart")

kept = Kept()
"""
    )
    command = python("-m", "itwinai.cli.main", "fit", "--model", "mine.Mine", "--print_config")
    ended = run_command(command, cwd=tmp_path, fresh=True)
    assert ended.code == 0, ended.output
    assert "class_path: mine.Mine" in ended.output
    assert "taken apart" not in ended.output
