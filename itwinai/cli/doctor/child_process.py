"""Child processes with a time limit, of which nothing is left behind, and the records they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.tracebacks import VARIABLE as FULL_TRACEBACK

DOCTOR = (sys.executable, "-m", "itwinai.cli.doctor")  # this command, for its own children
GRACE = 5.0  # seconds that a child has to end by itself, before it is killed with all that it started
_MARK = "ITWINAI_DOCTOR_CHILD"  # variable by which all that a child has started is found


@dataclass(frozen=True)
class Outcome:
    """What a child process left.

    Attributes:
        record: what it wrote into its file; empty if it did not get there.
        problem: one line that says how it ended, if it did not end well.
        log: all that it and its own children printed.
    """

    record: dict[str, Any]
    problem: str
    log: str


class Child:
    """A process with a time limit, of which nothing is left when its context ends.

    Its output goes to a file, because a daemon that a failed trial leaves behind would keep a pipe open.

    Args:
        command: the command; ``--out FILE`` is appended, for its record.
        folder: where its files are put.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str] = os.environ) -> None:
        self.mark = uuid.uuid4().hex
        self.out, self.log = folder / f"{self.mark}.json", folder / f"{self.mark}.log"
        scratch = folder / "tmp"  # for the temporary files that a child leaves lying about when it is killed
        scratch.mkdir(exist_ok=True)
        own = {
            _MARK: self.mark,
            FULL_TRACEBACK: "1",  # what is wrong with a framework shows in its frames
            "TMPDIR": str(scratch),
            # Ray keeps its sockets where it always would: the path of a socket may not be long.
            "RAY_TMPDIR": env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",  # the log is for what went wrong
            "PYTHONFAULTHANDLER": "1",  # a crash in native code says where
        }
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--out", str(self.out)],
                stdin=subprocess.PIPE,  # closes when this process is gone, which ends the child
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, **own},
                start_new_session=True,  # Ctrl-C comes to this process, which ends the child
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def wait(self, timeout: float, tick: Callable[[], None]) -> Outcome:
        """Wait until the process has ended, or its time is up.

        Args:
            timeout: seconds since its start.
            tick: called several times a second.
        """
        problem = ""
        while self.process.poll() is None:
            if time.monotonic() - self.started > timeout:
                problem = f"did not end within {timeout:g} s"
                break
            tick()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
        else:
            problem = _describe_exit(self.process.returncode)
        record: dict[str, Any] = json.loads(self.out.read_text()) if self.out.exists() else {}
        if not record and not problem:
            problem = "ended without a result"
        return Outcome(record, problem, self.log.read_text(errors="replace"))

    def end(self) -> None:
        """Leave nothing of the process: not its workers, which have sessions of their own, nor daemons."""
        try:
            if self.process.poll() is None:
                self.process.terminate()  # lets the launchers clean up after themselves
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            deadline = time.monotonic() + GRACE
            while (family := marked_processes(self.mark)) and time.monotonic() < deadline:
                for pid in family:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else ""


def marked_processes(mark: str) -> list[int]:
    """Return the ids of all living processes that a child and its children have started.

    Workers and daemons have sessions of their own, and other parents once theirs are gone. What all inherit is the
    environment. Where there is no ``/proc``, the list is empty.
    """
    found = []
    wanted = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if wanted in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write a record that appears whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(out)


def summarize(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
