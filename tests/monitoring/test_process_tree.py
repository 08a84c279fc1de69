"""What a tree of processes uses: real processes that compute, hold memory and write files."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from itwinai.monitoring import process_tree
from itwinai.monitoring.gauges import Gauges
from itwinai.monitoring.node_metrics import machine_instruments
from itwinai.monitoring.process_tree import Accumulated, ProcessTree, tree_instruments


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that runs a Python script as a child; it goes on when a line is written to it."""
    started = []

    def run(script: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], text=True, **pipes)  # type: ignore[call-overload]
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def wait_for(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


BURNS = """
    import time
    input()
    while time.process_time() < 0.6:
        pass
    print("done", flush=True)
    input()
"""


def test_child_that_computes_is_seen_while_it_runs_and_not_lost_when_it_has_ended(start: Callable) -> None:
    tree = ProcessTree([os.getpid()])
    tree.look()
    tree.usage()
    child = start(BURNS)
    tell(child)
    assert wait_for(child) == "done"
    tree.look()
    percent, _, number, _ = tree.usage()
    assert child.pid in tree.processes
    assert number >= 2
    assert percent is not None and percent > 0
    used = tree.cpu_seconds
    assert used > 0.55  # the system counts in hundredths
    tell(child)
    child.wait()
    tree.look()
    tree.usage()
    assert child.pid not in tree.processes
    # This process has taken over the child's time: that counts once.
    assert used <= tree.cpu_seconds < used + 0.5


def test_percentage_is_of_the_cores_that_may_be_used(start: Callable) -> None:
    cores = sorted(os.sched_getaffinity(0))
    child = start(f"import os; os.sched_setaffinity(0, {{{cores[0]}}}); print('ready', flush=True); input()")
    assert wait_for(child) == "ready"
    assert ProcessTree([child.pid]).cores == 1
    assert ProcessTree([child.pid, os.getpid()]).cores == len(cores)


@pytest.mark.alone  # copies of this process, which run other tests, share its memory
def test_child_that_holds_memory_and_writes_a_file(start: Callable, tmp_path: Path) -> None:
    gauges = Gauges(tree_instruments([os.getpid()]).gauges, {}, "node")
    before = {name: value for name, value, _ in gauges.read(everything=True)}
    began = time.monotonic()
    child = start(
        f"""
        import os
        held = bytearray(os.urandom(1000)) * 150_000
        with open({str(tmp_path / "file")!r}, "wb") as file:
            file.write(held[:40_000_000])
            file.flush()
            os.fsync(file.fileno())
        print("done", flush=True)
        input()
        """
    )
    assert wait_for(child) == "done"
    after = {name: value for name, value, _ in gauges.read(everything=True)}
    assert after["memory_gb"] - before["memory_gb"] > 0.15
    # Of what other processes map too it is the share, which falls while more of them start.
    assert after["memory_pss_gb"] - before["memory_pss_gb"] > 0.1
    assert after["processes"] > before["processes"]
    written = after["disk_written_mb_per_s"] * (time.monotonic() - began)
    assert written > 35, "tmp_path is not on storage that counts" if written == 0 else written
    assert gauges.missing == {}


def test_grandchildren_and_workers_beside_this_process(start: Callable) -> None:
    parent = start(
        """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], stdin=subprocess.PIPE)
        print(child.pid, flush=True)
        input()
        child.kill()
        """
    )
    found = {wait_for(parent), wait_for(parent)} - {"up"}
    other = start("print('ready', flush=True); input()")
    wait_for(other)
    tree = ProcessTree([parent.pid, other.pid])
    tree.look()
    assert set(tree.processes) == {parent.pid, other.pid, *map(int, found)}
    tree = ProcessTree([os.getpid()])
    tree.look()
    assert set(tree.processes) >= {os.getpid(), parent.pid, other.pid, *map(int, found)}


def test_children_are_found_without_the_kernels_lists(start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_PROC", "/no such folder")
    child = start("print('ready', flush=True); input()")
    wait_for(child)
    tree = ProcessTree([os.getpid()])
    tree.look()
    assert child.pid in tree.processes


def test_worker_that_cannot_be_seen_is_named() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    instruments = tree_instruments([os.getpid(), gone.pid])
    assert "cannot be seen" in instruments.missing[f"processes {gone.pid}"]
    gauges = Gauges(instruments.gauges, {}, "node")
    assert "memory_gb" in {name for name, _, _ in gauges.read(everything=True)}
    assert gauges.missing == {}


def test_counter_of_a_child_that_its_parent_has_taken_over_counts_once() -> None:
    total = Accumulated(parents_take_over=True)
    assert total.update({1: 100.0}, {}) == 0
    assert total.update({1: 101.0, 2: 5.0}, {2: 1}) == 6
    assert total.update({1: 107.0}, {2: 1}) == 7  # the child has counted one more before it ended
    assert total.update({1: 108.0, 3: 2.0}, {2: 1, 3: 1}) == 10


def test_counter_of_a_worker_that_has_ended_is_kept() -> None:
    total = Accumulated(parents_take_over=True)
    total.update({1: 10.0, 2: 10.0}, {})
    assert total.update({1: 11.0, 2: 14.0}, {}) == 5
    assert total.update({1: 12.0}, {}) == 6  # its parent is not part of the tree


def test_counter_where_parents_take_over_nothing() -> None:
    total = Accumulated(parents_take_over=False)
    total.update({1: 0.0}, {})
    total.update({1: 0.0, 2: 5.0}, {2: 1})
    assert total.update({1: 1.0}, {2: 1}) == 6


def test_node() -> None:
    instruments = machine_instruments()
    gauges = Gauges(instruments.gauges, {}, "node")
    first = {name: value for name, value, _ in gauges.read(everything=True)}
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    second = {name: value for name, value, _ in gauges.read(everything=True)}
    assert "node_cpu_percent" not in first
    assert 0 < second["node_cpu_percent"] <= 100
    memory = psutil.virtual_memory()
    assert second["node_memory_percent"] == pytest.approx(100 * (1 - memory.available / memory.total), abs=5)
    assert "lo" not in instruments.facts["network interfaces"].split(", ")
    assert second.get("network_sent_mb_per_s", 0) >= 0
