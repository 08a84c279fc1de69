"""The processor cores that a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much processor time a container may take, with control groups of version 2."""


def own_cores() -> frozenset[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota(path: Path = QUOTA) -> float:
    """Return how many cores' time the container of this process may take; infinite without a limit.

    Args:
        path: the file of the control group, ``"200000 100000"``: microseconds of time in so many microseconds.
    """
    try:
        limit, period = path.read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return math.inf


def cores_of_each(workers: list[frozenset[int]], limit: float) -> int:
    """Return how many cores each of some workers has, which may share them; at least 1.

    Args:
        workers: the cores that each may run on.
        limit: of all together.
    """
    return max(int(min(len(frozenset().union(*workers)), limit)) // max(len(workers), 1), 1)
