"""Processes of a test run are known by a mark: others may be training on this machine.

Programs that are started inherit it with the environment, copies of this process with its memory.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil

VARIABLE = "ITWINAI_TEST_RUN"
_kept: list[mmap.mmap] = []


def mark(value: str | None = None) -> None:
    """Mark this process, and all that it starts or forks, instead of how it was marked.

    Args:
        value: the mark; by default that of the environment.
    """
    value = os.environ[VARIABLE] if value is None else value
    os.environ[VARIABLE] = value
    descriptor = os.memfd_create(_name(value))
    os.ftruncate(descriptor, mmap.PAGESIZE)
    while _kept:
        _kept.pop().close()
    _kept.append(mmap.mmap(descriptor, mmap.PAGESIZE))
    os.close(descriptor)


def is_marked(process: psutil.Process) -> bool:
    """Tell whether a process has the mark of this one.

    Raises:
        psutil.Error: it has ended.
        OSError: the same.
    """
    value = os.environ[VARIABLE]
    if f"/memfd:{_name(value)} " in (maps := Path(f"/proc/{process.pid}/maps").read_text()):
        return True
    return "/memfd:" + _name("") not in maps and process.environ().get(VARIABLE) == value


def _name(value: str) -> str:
    return f"itwinai-test-{value}"
