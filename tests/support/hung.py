"""What a command that has hung was doing: the stacks of all its processes, and then an end to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil


def end_and_tell(pid: int) -> str:
    """Kill a process, all that it has started, and its group if it leads one.

    Returns:
        where each of them stood, as py-spy sees it.
    """
    processes = [process for process in psutil.process_iter() if _belongs(process, pid)]
    told = []
    for process in processes:
        with suppress(psutil.Error):
            told.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())}\n{_stacks(process.pid)}")
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    return "\n".join(told)


def _belongs(process: psutil.Process, pid: int) -> bool:
    with suppress(psutil.Error, ProcessLookupError):
        return pid in (process.pid, os.getpgid(process.pid), *(parent.pid for parent in process.parents()))
    return False


def _stacks(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    command = str(beside) if beside.exists() else shutil.which("py-spy")
    if command is None:
        return "(no py-spy to read its stacks)"
    found = subprocess.run([command, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=60)
    return found.stdout or found.stderr
