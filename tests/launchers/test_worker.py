"""A process ends at once, and as if Python had ended it."""

from __future__ import annotations

import pytest

from tests.conftest import RunCommand, python


@pytest.mark.parametrize(
    ("work", "code", "printed"),
    [
        ("return None", 0, "unflushed\nat exit\n"),
        ("return 3", 3, "unflushed\nat exit\n"),
        ("sys.exit('why')", 1, "unflushed\nwhy\nat exit\n"),
        ("sys.exit(4)", 4, "unflushed\nat exit\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
    ],
)
def test_end_of_a_process(work: str, code: int, printed: str, run_command: RunCommand) -> None:
    script = f"""
import atexit, sys
from itwinai.launchers.worker import end_after

class Deleted:
    def __del__(self): print("tidied up")

def work():
    print("unflushed")
    {work}

kept = Deleted()
atexit.register(print, "at exit")
sys.stderr = sys.stdout
end_after(work)
"""
    ended = run_command(python("-c", script))
    assert ended.code == code, ended.output
    assert printed in ended.output
    assert "tidied up" not in ended.output
