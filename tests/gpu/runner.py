"""Run checks, each in a process of its own that is forked off this one, which has imported all and has no CUDA."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from itwinai.launchers.fork import why_not_fork
from tests.gpu.check import Bench, Check, Figure, NotInstalled, figures_in, kill_group
from tests.gpu.machine import gpu_memory_used

ROOT = Path(__file__).parents[2]
LOG = "output.txt"
MISSING = 77
KEPT_MEMORY = 200.0
"""Megabytes of the GPU that may be in use after a check, beyond those before: others may run there too."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        name: of the check.
        group: of the check.
        title: of the check.
        status: ``passed``; ``failed``: a figure is not what it should be; ``error``: it raised an exception;
            ``timed out``; ``died``; ``not installed``; ``not reached``: the time was over.
        seconds: how long it took.
        why: the end of its output, or what is missing.
        figures: what it has measured.
    """

    name: str
    group: str
    title: str
    status: str
    seconds: float = 0.0
    why: str = ""
    figures: Sequence[Figure] = field(default_factory=tuple)

    @property
    def is_bad(self) -> bool:
        """Whether the check was not passed, though it has run."""
        return self.status in ("failed", "error", "timed out", "died")


def run_all(
    checks: Sequence[Check], out: Path, dry: bool, seconds: float, tell: Callable[[Sequence[Outcome]], None]
) -> list[Outcome]:
    """Run checks one after the other.

    Args:
        checks: in the order of their value.
        out: a folder, in which each check gets one.
        dry: run them on the CPU.
        seconds: for all of them.
        tell: is called after each check with all outcomes until now.
    """
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for check in checks:
        left = deadline - time.monotonic()
        if missing := check.missing():
            outcome = Outcome(check.name, check.group, check.title, "not installed", why=", ".join(missing))
        elif left < 5.0:
            outcome = Outcome(check.name, check.group, check.title, "not reached")
        else:
            outcome = run_one(check, out / check.name, dry, min(check.seconds, left))
        outcomes.append(outcome)
        tell(outcomes)
    return outcomes


def run_one(check: Check, folder: Path, dry: bool, seconds: float) -> Outcome:
    """Run a check in a process of its own, and end that with all of its group when the time is over.

    Args:
        check: the check.
        folder: for what it leaves.
        dry: run it on the CPU.
        seconds: that it may take.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before = None if dry else gpu_memory_used()
    began = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = _start(check, folder, dry)
    ended = None
    try:
        while ended is None and time.monotonic() < began + seconds:
            # It stays a zombie, so that its number belongs to nobody else while its group is killed.
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                time.sleep(0.01)
    finally:
        kill_group(pid)
        status_of_process = os.waitpid(pid, 0)[1]
    code = None if ended is None else os.waitstatus_to_exitcode(status_of_process)
    took = time.monotonic() - began
    figures = figures_in(folder)
    if before is not None:
        figures.append(_kept_memory(before))
    if code is None:
        status = "timed out"
    elif code < 0:
        status = "died"
    elif code == MISSING:
        status = "not installed"
    elif code:
        status = "error"
    else:
        status = "passed" if all(figure.ok for figure in figures) else "failed"
    why = "" if code == 0 else _end_of(folder / LOG)
    return Outcome(check.name, check.group, check.title, status, took, why, figures)


def _start(check: Check, folder: Path, dry: bool) -> int:
    """Start the process of a check, and return its id."""
    if why_not_fork() is not None:  # it imports everything once more, which takes seconds
        command = [sys.executable, "-m", "tests.gpu.runner", check.name, str(folder), "dry" if dry else "real"]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True).pid
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _be_the_check(check, folder, dry)
    return pid


def _be_the_check(check: Check, folder: Path, dry: bool) -> NoReturn:
    code = 1
    try:
        if os.getpgrp() != os.getpid():
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(folder)
        if dry:
            torch.set_num_threads(1)
            os.environ["OMP_NUM_THREADS"] = "1"
        check.run(Bench(folder, dry))
        code = 0
    except NotInstalled as missing:
        code = MISSING
        print(missing)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _kept_memory(before: float) -> Figure:
    """Return how much more memory of the GPU is in use than before; what a process has had comes back soon."""
    deadline = time.monotonic() + 5
    while (kept := (gpu_memory_used() or 0.0) - before) > KEPT_MEMORY and time.monotonic() < deadline:
        time.sleep(0.2)
    wanted = f"at most {KEPT_MEMORY:.0f}"
    return Figure("GPU memory kept afterwards", round(kept, 1), "MB", wanted, kept <= KEPT_MEMORY)


def _end_of(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:]) if log.exists() else ""


def main() -> None:
    """Be the check that the command line names, in a folder, dry or real."""
    from tests.gpu.registry import all_checks

    name, folder, how = sys.argv[1:]
    _be_the_check(next(check for check in all_checks() if check.name == name), Path(folder), how == "dry")


if __name__ == "__main__":
    main()
