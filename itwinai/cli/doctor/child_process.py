"""Child processes of the doctor, and the records they leave."""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.launchers.child_process import ChildProcess
from itwinai.tracebacks import VARIABLE as FULL_TRACEBACK

DOCTOR = (sys.executable, "-m", "itwinai.cli.doctor")  # this command, for its own children


@dataclass(frozen=True)
class Outcome:
    """What a child process left.

    Attributes:
        record: what it wrote to its file; empty if it did not get there.
        problem: one line that says how it ended, if it failed.
        log: all that it and its own children printed.
    """

    record: dict[str, Any]
    problem: str
    log: str


class Child(ChildProcess):
    """A child that writes a record.

    Args:
        command: the command; ``--out FILE`` is appended, for its record.
        folder: for its files.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str] = os.environ) -> None:
        name = uuid.uuid4().hex
        self.out = folder / f"{name}.json"
        scratch = folder / "tmp"  # for the temporary files that a child leaves when it is killed
        scratch.mkdir(exist_ok=True)
        own = {
            FULL_TRACEBACK: "1",  # what is wrong with a framework shows in its frames
            "TMPDIR": str(scratch),
            # Ray keeps its sockets where it always would: the path of a socket may not be long.
            "RAY_TMPDIR": env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",  # the log is for what went wrong
            "PYTHONFAULTHANDLER": "1",  # a crash in native code says where
        }
        super().__init__([*command, "--out", str(self.out)], folder / f"{name}.log", env={**env, **own}, tied=True)

    def outcome(self, timeout: float, tick: Callable[[], None]) -> Outcome:
        """Wait until the process has ended or its time is up.

        Args:
            timeout: seconds since its start.
            tick: called several times a second.
        """
        in_time = self.wait(timeout, tick)
        problem = _exit_text(self.code or 0) if in_time else f"did not end within {timeout:g} s"
        record: dict[str, Any] = json.loads(self.out.read_text()) if self.out.exists() else {}
        if not record and not problem:
            problem = "ended without a result"
        return Outcome(record, problem, self.output.read_text(errors="replace"))


def _exit_text(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else ""


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write a record that appears whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(out)


def summarize(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
