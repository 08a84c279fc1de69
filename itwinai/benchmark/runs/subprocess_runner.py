"""Commands that are given only so much time, and that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

GRACE = 5.0
"""Seconds that processes get to end by themselves, before they are killed."""


@dataclass(frozen=True)
class Ended:
    """How a command has ended.

    Attributes:
        code: its exit code.
        began: when it was started, in seconds since 1970.
        seconds: how long it took.
        timed_out: it was ended because its time was over.
    """

    code: int
    began: float
    seconds: float
    timed_out: bool


def run(command: Sequence[str], output: Path, limit: float, variables: Mapping[str, str] | None = None) -> Ended:
    """Run a command, whose last argument becomes the time at which it starts.

    Args:
        command: the command.
        output: file for all that it prints.
        limit: seconds after which it is ended, with all processes that it has started. They are asked before where
            they are: a traceback of Python processes that have registered for SIGQUIT is in the output.
        variables: further variables of its environment.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        began = time.time()
        process = subprocess.Popen(
            [*command, repr(began)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(variables or {})},
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
        )
        timed_out = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            end(process, ask_where=True)
        except BaseException:
            end(process)
            raise
    return Ended(process.returncode, began, time.time() - began, timed_out)


def end(process: subprocess.Popen[bytes], ask_where: bool = False) -> None:
    """End a process and all that it has started, also what has left its session.

    Args:
        process: the process.
        ask_where: send SIGQUIT to its Python processes first.
    """
    import psutil

    try:
        itself = psutil.Process(process.pid)
        family = [itself, *itself.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if ask_where:
        _send(signal.SIGQUIT, [one for one in family if _is_python(one)])
        psutil.wait_procs(family, 0.5)
    _send(signal.SIGTERM, family)
    _, left = psutil.wait_procs(family, GRACE)
    _send(signal.SIGKILL, left)
    psutil.wait_procs(left, GRACE)
    process.wait()


def _send(number: int, family: Iterable[Process]) -> None:
    import psutil

    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def _is_python(process: Process) -> bool:
    """Tell whether a process runs the Python of this one, as those of a benchmark do, and no server of Ray."""
    import psutil

    with suppress(psutil.Error):
        return "itwinai" in " ".join(process.cmdline())
    return False
