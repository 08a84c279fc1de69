"""The processor cores that workers may use, and the threads that share them."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says how much processor time a container or job may take, with control groups of version 2."""

OWN_CGROUP = Path("/proc/self/cgroup")
"""Which control group this process is in."""


def own_cores() -> frozenset[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """Return how many cores' time this process and those beside it may take; infinite without a limit.

    Args:
        groups: folder of the control groups. A limit of any group that holds this process counts.
        own: file with the path of this process' group, below that folder.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    group = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    levels = [groups / group, *(groups / group).parents]
    return min(_limit(level / "cpu.max") for level in levels if level.is_relative_to(groups))


def available_cores() -> int:
    """Return the number of cores that this process may use: those it is bound to, within the container's limit."""
    return cores_of_each([own_cores()], quota())


def cores_of_each(workers: list[frozenset[int]], limit: float) -> int:
    """Return how many cores each of some workers has, which may share them; at least 1.

    Args:
        workers: the cores that each may run on.
        limit: of all together.
    """
    return max(int(min(len(frozenset().union(*workers)), limit)) // max(len(workers), 1), 1)


def share_cores(workers: int) -> None:
    """Let torch compute with this worker's share of the cores, unless OMP_NUM_THREADS says how many threads.

    Args:
        workers: on this machine.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(available_cores() // workers, 1)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def oversubscription_text(workers: int, threads: int, cores: int, flag: str = "cpu_threads=") -> str:
    """Return a warning if there are more threads than cores; empty if there are not.

    Args:
        workers: that share the cores.
        threads: that all of them compute with.
        cores: that they may use.
        flag: what sets the threads of each worker.
    """
    if threads <= cores:
        return ""
    of_workers = "1 worker computes" if workers == 1 else f"{workers} workers compute"
    share = max(1, cores // workers)
    todo = f"set {flag}{share}"
    if flag == "cpu_threads=":
        todo += f" (--trainer.cpu_threads {share})"
    if workers > cores:
        todo = f"use at most {cores} worker{'s' * (cores > 1)} per node"
    return (
        f"{of_workers} with {threads} threads on {cores} core{'s' * (cores > 1)}: threads wait for each other, and "
        f"steps can take many times longer; {todo}."
    )


def _limit(path: Path) -> float:
    """Return the cores of ``"200000 100000"``: CPU time in each period, both in microseconds."""
    try:
        limit, period = path.read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return math.inf
