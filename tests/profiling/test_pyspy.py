"""py-spy shows where a real process spends its time, ends with it, and never ends it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.profiling.collapsed_stacks import lowest_functions, top_functions
from itwinai.profiling.pyspy import StackSampler
from tests.conftest import REPOSITORY

PTRACE_SEIZE = 0x4206
WAIT_ALL = 0x40000000


def one_part() -> None:
    spin(100_000)


def three_parts() -> None:
    spin(300_000)


def spin(times: int) -> int:
    total = 0
    for i in range(times):
        total += i % 7
    return total


def work_until_it_has_ended(sampler: StackSampler) -> None:
    recorder = sampler._recorder
    assert recorder is not None
    while recorder.poll() is None:
        one_part()
        three_parts()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_shares_of_two_functions(tmp_path: Path) -> None:
    """Of which one does three times as much as the other, while a third thread waits."""
    waits = threading.Event()
    thread = threading.Thread(target=waits.wait)
    thread.start()
    sampler = StackSampler(tmp_path / "new", 2, rate=100, duration=2)
    sampler.start()
    work_until_it_has_ended(sampler)
    sampler.stop()
    waits.set()
    thread.join()
    assert sampler.missing == [] and sampler.collapsed is not None
    files = [tmp_path / "new" / "stacks-rank-2.txt", tmp_path / "new" / "flame-graph-rank-2.svg"]
    assert [sampler.stacks, sampler.flame_graph] == files and set((tmp_path / "new").iterdir()) == set(files)
    assert files[0].read_text() == sampler.collapsed and "three_parts" in files[1].read_text()
    assert sampler.functions[0].name == "spin" and sampler.functions[0].self_share > 0.9
    assert sampler.functions[0].place == f"profiling/test_pyspy.py:{spin.__code__.co_firstlineno}"
    total = {function.name: function.total_share for function in top_functions(sampler.collapsed, limit=500)}
    assert 0.6 < total["three_parts"] < 0.9 and 0.1 < total["one_part"] < 0.4
    assert total["work_until_it_has_ended"] > 0.9  # the thread that waits is not counted
    here = lowest_functions(sampler.collapsed, REPOSITORY / "tests")
    assert here[0].name == "spin" and here[0].total_share > 0.9


def test_threads_that_wait_and_lines(tmp_path: Path) -> None:
    waits = threading.Event()
    thread = threading.Thread(target=waits.wait, name="waiting-thread")
    thread.start()
    sampler = StackSampler(tmp_path, 0, rate=50, duration=1, idle=True, threads=True, lines=True)
    sampler.start()
    work_until_it_has_ended(sampler)
    sampler.stop()
    waits.set()
    thread.join()
    assert sampler.collapsed is not None and "waiting-thread" in sampler.collapsed
    first = spin.__code__.co_firstlineno
    lines = {f"profiling/test_pyspy.py:{first + number}" for number in (2, 3)}
    assert {function.place for function in sampler.functions if function.name == "spin"} == lines
    total = {function.name: function.total_share for function in top_functions(sampler.collapsed, limit=500)}
    assert total["Event.wait"] > 0.2


def test_stop_at_any_time(tmp_path: Path) -> None:
    sampler = StackSampler(tmp_path, 0, duration=None)
    sampler.stop()
    assert sampler.missing == []
    sampler.start()
    sampler.start()
    sampler.stop()
    assert (sampler.collapsed is None) == bool(sampler.missing)  # it may have taken a sample, or not
    assert not list(tmp_path.glob(".part-*"))
    found = (sampler.collapsed, list(sampler.missing))
    sampler.stop()
    assert found == (sampler.collapsed, sampler.missing)


def test_recorder_that_was_killed_is_a_missing_result(tmp_path: Path) -> None:
    sampler = StackSampler(tmp_path, 0, duration=None)
    sampler.start()
    assert sampler._recorder is not None
    sampler._recorder.kill()
    with pytest.warns(UserWarning, match="Python stacks: py-spy could not sample them"):
        sampler.stop()
    assert sampler.collapsed is None and sampler.functions == [] and len(sampler.missing) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"pip install 'itwinai\[watch\]'"):
        StackSampler(tmp_path, 0).start()


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    for wrong in ({"rate": 0}, {"duration": 0}, {"duration": -1.0}):
        with pytest.raises(ConfigurationError, match="above 0"):
            StackSampler(tmp_path, 0, **wrong)  # type: ignore[arg-type]


REFUSED = """
import json, sys, threading, warnings
from pathlib import Path
from itwinai.profiling.pyspy import StackSampler
thread = threading.Thread(target=threading.Event().wait, daemon=True)
thread.start()
print(thread.native_id, flush=True)
sys.stdin.readline()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sampler = StackSampler(Path(sys.argv[1]), 0, native=True)
    sampler.start()
    sampler.stop()
print(json.dumps([sampler.missing, len(caught), sampler.collapsed]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace")
def test_refusal_is_told_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    """The system refuses to let a thread be traced by two: this test is the first."""
    process = subprocess.Popen(
        [sys.executable, "-c", REFUSED, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    thread = int(process.stdout.readline())
    assert ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, thread, None, None) == 0
    print("go on", file=process.stdin, flush=True)
    missing, warnings, collapsed = json.loads(process.stdout.readline())
    os.waitpid(thread, WAIT_ALL)  # who traces a thread has to see its end
    process.communicate()
    assert process.returncode == 0 and collapsed is None and warnings == 1
    assert len(missing) == 1 and "SYS_PTRACE" in missing[0] and "Operation not permitted" in missing[0]
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from itwinai.profiling.pyspy import StackSampler
def work(rounds):
    for _ in range(rounds):
        sum(range(1000))
sampler = StackSampler(Path(sys.argv[1]), 0, duration=None)
sampler.start()
work(50_000)
try:
    print(sampler._recorder.pid, flush=True)
    work(10**9)
except KeyboardInterrupt:
    sampler.stop()
print("work" in [function.name for function in sampler.functions], flush=True)
sampler.start()
print(sampler._recorder.pid, flush=True)
work(10**9)
"""


def test_control_c_does_not_end_the_recorder_and_the_end_of_the_run_does(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        first = int(process.stdout.readline())
        assert os.getsid(first) != os.getsid(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.readline() == "True\n"
        second = int(process.stdout.readline())
        assert not is_running(first) and is_running(second)
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: not is_running(second))
