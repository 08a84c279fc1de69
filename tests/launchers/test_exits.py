"""A process ends soon, and as Python ends it."""

from __future__ import annotations

from pathlib import Path

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

def main():
    run = Cycle()
    run.deleted = Deleted()

main()
cycle = Cycle()
cycle.log = open("log.txt", "w")
cycle.log.write("written")
data = h5py.File("data.h5", "w")  # closed by its library's own exit function
data["x"] = [1, 2, 3]
atexit.register(lambda: print("at exit, with collections:", gc.isenabled()))
atexit.register(lambda: cycle.log.write(" at the end"))
print("frozen:", gc.get_freeze_count())
sys.exit("why")
"""


def test_end_of_a_process(run_command: RunCommand, tmp_path: Path) -> None:
    ended = run_command(python("-c", SCRIPT), cwd=tmp_path, fresh=True)
    assert ended.code == 1
    assert sorted(ended.output.splitlines()) == ["at exit, with collections: True", "deleted", "frozen: 0", "why"]
    assert (tmp_path / "log.txt").read_text() == "written at the end"
    read = run_command(python("-c", "import h5py; print(h5py.File('data.h5')['x'][:].tolist())"), cwd=tmp_path)
    assert read.output == "[1, 2, 3]\n"
