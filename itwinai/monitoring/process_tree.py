"""A tree of processes as one thing: what the workers of a node and all that they start use together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from itwinai.monitoring.gauges import Gauge, Instruments, Rate

if TYPE_CHECKING:
    import psutil

_PROC = "/proc"
# The system walks through all memory of a process for it, and may block the process.
_SHARE_OF_PSS = 0.0005


class Accumulated:
    """The sum of a counter over processes that come and go.

    On Linux a process takes over what its children have counted when they have ended, so that a child that is gone is
    in the counter of its parent.

    Args:
        parents_take_over: whether that is so for this counter on this system.
    """

    def __init__(self, parents_take_over: bool) -> None:
        self._parents_take_over = parents_take_over
        self._last: Mapping[int, float] = {}
        self._gone = 0.0
        self._initial: float | None = None
        self._total = 0.0

    def update(self, counters: Mapping[int, float], parents: Mapping[int, int]) -> float:
        """Return what was counted since the first call.

        Args:
            counters: of the processes that there are, by id.
            parents: ids of the parents of these and of those that were there before.
        """
        for pid in self._last.keys() - counters.keys():
            if not self._parents_take_over or parents.get(pid) not in counters:
                self._gone += self._last[pid]
        self._last = dict(counters)
        total = sum(counters.values()) + self._gone
        if self._initial is None:
            self._initial = total
        # A child that ends between two readings is in none of them, or in both, until the next time.
        self._total = max(self._total, total - self._initial)
        return self._total


class ProcessTree:
    """The processes that are given and all that they start.

    Args:
        roots: ids of processes.

    Attributes:
        processes: that were there at the last look, by id.
        parents: ids of the parents of those that were found.
        unseen: roots that there are not, for all that can be seen from here.
        cores: that the roots may use.
        cpu_seconds: processor time from the first to the last call of `usage`.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        import psutil

        self._gone = psutil.NoSuchProcess
        self._zombie = psutil.ZombieProcess
        self._running_status = psutil.STATUS_RUNNING
        self.processes: dict[int, psutil.Process] = {}
        self.parents: dict[int, int] = {}
        self.unseen: list[int] = []
        for pid in dict.fromkeys(roots):
            try:
                self.processes[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self.unseen.append(pid)
        self.cores = _cores(self.processes.values())
        self.cpu_seconds = 0.0
        self._cpu = Accumulated(psutil.LINUX)
        self._cpu_rate = Rate()
        self._read, self._written = Accumulated(psutil.LINUX), Accumulated(psutil.LINUX)
        self._read_rate, self._written_rate = Rate(), Rate()

    def look(self) -> tuple[()]:
        """Find new processes, and forget those that have ended."""
        for pid, process in list(self.processes.items()):
            if not process.is_running():  # or its number is another's by now
                del self.processes[pid]
        for process in list(self.processes.values()):
            with contextlib.suppress(self._gone):
                self._add_children(process)
        return ()

    def _add_children(self, process: psutil.Process) -> None:
        for child in _children(process):
            if child.pid not in self.processes:
                self.processes[child.pid] = child
                self.parents[child.pid] = process.pid
                with contextlib.suppress(self._gone):
                    self._add_children(child)

    def usage(self) -> tuple[float | None, float, float, float]:
        """Return the percentage of the cores in use, the memory in GB, and how many processes there are and run now."""
        seconds: dict[int, float] = {}
        memory = running = 0

        def read(process: psutil.Process) -> None:
            nonlocal memory, running
            with process.oneshot():
                times = process.cpu_times()
                memory += process.memory_info().rss
                running += process.status() == self._running_status
            reaped = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            seconds[process.pid] = times.user + times.system + reaped

        self._each(read)
        self.cpu_seconds = self._cpu.update(seconds, self.parents)
        used = self._cpu_rate(self.cpu_seconds)
        percent = None if used is None else 100 * used / self.cores
        return percent, memory / 1e9, float(len(seconds)), float(running)

    def shared_out_memory(self) -> tuple[float]:
        """Return the memory in GB, where what processes share counts once (PSS)."""
        total = 0

        def read(process: psutil.Process) -> None:
            nonlocal total
            total += process.memory_full_info().pss

        self._each(read)
        return (total / 1e9,)

    def disk(self) -> tuple[float | None, float | None]:
        """Return the MB per second that are read from and written to storage."""
        read_bytes: dict[int, float] = {}
        written_bytes: dict[int, float] = {}

        def read(process: psutil.Process) -> None:
            counters = process.io_counters()
            read_bytes[process.pid], written_bytes[process.pid] = counters.read_bytes, counters.write_bytes

        self._each(read)
        got = self._read_rate(self._read.update(read_bytes, self.parents))
        put = self._written_rate(self._written.update(written_bytes, self.parents))
        return None if got is None else got / 1e6, None if put is None else put / 1e6

    def _each(self, read: Callable[[psutil.Process], None]) -> None:
        """Read every process, parents before their children, and forget those that have ended."""
        for pid, process in list(self.processes.items()):
            try:
                read(process)
            except self._zombie:  # what it has used is not with its parent yet; that comes when it is gone
                continue
            except self._gone:
                del self.processes[pid]


def tree_instruments(roots: Iterable[int]) -> Instruments:
    """Return what measures the tree of some processes.

    Args:
        roots: ids of processes of this machine.
    """
    import psutil

    tree = ProcessTree(roots)
    gauges = [
        Gauge((), tree.look),
        Gauge(("cpu_percent", "memory_gb", "processes", "running_processes"), tree.usage),
    ]
    missing = {}
    if psutil.LINUX:
        gauges.append(Gauge(("memory_pss_gb",), tree.shared_out_memory, _SHARE_OF_PSS))
    else:
        missing["memory_pss_gb"] = "only Linux tells it"
    disk = ("disk_read_mb_per_s", "disk_written_mb_per_s")
    if hasattr(psutil.Process, "io_counters"):
        gauges.append(Gauge(disk, tree.disk))
    else:
        missing |= dict.fromkeys(disk, "this system does not tell it")
    if tree.unseen:
        missing[f"processes {', '.join(map(str, tree.unseen))}"] = (
            "these workers cannot be seen from the one that measures their node, as from another container; the "
            "values are those of the other processes"
        )
    return Instruments(gauges, missing=missing, facts={"cores": str(tree.cores)})


def _cores(processes: Iterable[psutil.Process]) -> int:
    """Return the number of cores that some processes may run on."""
    import psutil

    cores: set[int] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, AttributeError):  # not on macOS
            cores.update(process.cpu_affinity())
    return len(cores) or psutil.cpu_count() or 1


def _children(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process has started.

    Linux lists them by thread, which takes a hundredth of looking at all processes of a large node.
    """
    import psutil

    tasks = f"{_PROC}/{process.pid}/task"
    if not os.path.exists(f"{tasks}/{process.pid}/children"):
        return process.children()
    found = []
    try:
        threads = os.listdir(tasks)
    except OSError:  # the process has ended
        return []
    for thread in threads:
        try:
            with open(f"{tasks}/{thread}/children") as file:
                pids = file.read().split()
        except OSError:  # the thread has ended
            continue
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
    return found
