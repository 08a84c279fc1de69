"""Child processes: nothing of them is left, whatever they have started, and what they print is there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from itwinai.launchers.child_process import ChildProcess

SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"

# A worker with a session and, once its parent has gone, another parent of its own: no group and no tree leads to it.
LEAVES_A_DAEMON = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEPS!r}], start_new_session=True)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(child: ChildProcess, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in child.tail():
        assert time.monotonic() < deadline, child.tail()
        time.sleep(0.02)


def test_a_daemon_in_a_session_of_its_own_ends_with_the_child(tmp_path: Path) -> None:
    with ChildProcess(python(LEAVES_A_DAEMON), tmp_path / "deep" / "out.txt") as child:
        assert child.wait(60) and child.code == 0
        wait_for(child, "ready")
        assert len(child.family()) == 1
    assert child.family() == []


def test_a_child_over_its_limit_shows_where_it_is_and_ends(tmp_path: Path) -> None:
    # "itwinai" in its command line says that it may be asked for its stacks.
    code = f"import faulthandler, signal\nfaulthandler.register(signal.SIGQUIT)  # itwinai\n{SLEEPS}"
    with ChildProcess(python(code), tmp_path / "out.txt") as child:
        wait_for(child, "ready")
        assert not child.wait(0.0)
        child.end(show_stacks=True)
        assert child.code == -15
    assert "most recent call first" in child.tail()


def test_a_child_that_ignores_requests_is_killed(tmp_path: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
    with ChildProcess(python(code), tmp_path / "out.txt") as child:
        wait_for(child, "ready")
    assert child.code == -9


def test_children_of_children_belong_to_both(tmp_path: Path) -> None:
    inner = f"""
from pathlib import Path
from itwinai.launchers.child_process import ChildProcess
ChildProcess([{sys.executable!r}, "-c", {SLEEPS!r}], Path({str(tmp_path / "inner.txt")!r}))
"""
    with ChildProcess(python(inner), tmp_path / "outer.txt") as outer:
        assert outer.wait(60) and outer.code == 0, outer.tail()
        assert len(outer.family()) == 1
    assert outer.family() == []


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    code = "import sys; print('one', flush=True); print('tw', end='', flush=True); input(); print('o')"
    with ChildProcess(python(code), tmp_path / "out.txt", tied=True, heading="$ command\n") as child:
        wait_for(child, "tw")
        assert child.new_lines() == ["one"] and child.new_lines() == []
        assert child._process.stdin is not None
        child._process.stdin.write(b"\n")
        child._process.stdin.flush()
        assert child.wait(60)
        assert child.new_lines() == ["two"]
    assert child.tail() == "$ command\none\ntwo"


def test_a_tied_child_can_see_that_its_caller_has_gone(tmp_path: Path) -> None:
    with ChildProcess(python("input()"), tmp_path / "out.txt") as child:
        assert child.wait(60) and "EOFError" in child.tail(), "without a tie there is no stdin to wait for"
    with ChildProcess(python(SLEEPS.replace("time.sleep(600)", "input()")), tmp_path / "out.txt", tied=True) as child:
        wait_for(child, "ready")
        assert child.code is None
        assert child._process.stdin is not None
        child._process.stdin.close()
        assert child.wait(60)
