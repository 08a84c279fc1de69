"""Child processes with a time limit, of which nothing is left: not their workers, which have sessions of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from typing_extensions import Self

GRACE = 5.0
"""Seconds that processes have to end by themselves before they are killed."""

_MARK = "ITWINAI_CHILD"  # all processes that a child starts inherit it, in any session and under any parent


class ChildProcess:
    """A process in a session of its own, with its output in a file. Leaving its context ends it with all it started.

    Ctrl-C does not reach it: the caller ends it in order. The output is a file and not a pipe, because a daemon that
    the child leaves behind would keep a pipe open.

    Args:
        command: program and arguments.
        output: file for all that it prints; its folder is created if missing.
        env: its environment, by default that of this process.
        cwd: its working directory.
        tied: give it a pipe as stdin that closes when this process is gone, for children that watch it; otherwise its
            stdin is empty.
        heading: first text of the output.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        tied: bool = False,
        heading: str = "",
    ) -> None:
        env = os.environ if env is None else env
        self.output = output
        self._mark = uuid.uuid4().hex
        self._read = len(heading.encode())
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(heading)
        self.started = time.monotonic()
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env={**env, _MARK: f"{env.get(_MARK, '')} {self._mark}"},  # a child may have children of its own
                cwd=cwd,
                stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, limit: float | None = None, tick: Callable[[], None] = lambda: None) -> bool:
        """Wait until it has ended, and return whether it did so in time.

        Args:
            limit: seconds since its start.
            tick: called several times a second.
        """
        while self.code is None:
            if limit is not None and time.monotonic() - self.started > limit:
                return False
            tick()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        return True

    def new_lines(self) -> list[str]:
        """Return the lines that it has printed since the last call."""
        with self.output.open("rb") as file:
            file.seek(self._read)
            *lines, rest = (chunk := file.read()).split(b"\n")
        self._read += len(chunk) - len(rest)
        return [line.decode(errors="replace") for line in lines]

    def tail(self, characters: int = 4000) -> str:
        """Return the end of its output."""
        return self.output.read_text(errors="replace")[-characters:].strip()

    def end(self, show_stacks: bool = False) -> None:
        """End it with all it started: ask first, kill what is left after `GRACE` seconds.

        Args:
            show_stacks: before, ask itwinai's processes for a traceback, which they print if they have registered
                faulthandler for SIGQUIT.
        """
        if show_stacks:
            self._signal(signal.SIGQUIT, [pid for pid in self.family() if _is_itwinai(pid)])
            self._gone_within(0.5)
        if self.code is None:
            self._signal(signal.SIGTERM, self.family())
            self._gone_within(GRACE)
        else:
            self._gone_within(1.0)  # what it started may be about to end too
        deadline = time.monotonic() + GRACE
        while (family := self.family()) and time.monotonic() < deadline:
            self._signal(signal.SIGKILL, family)
            self._gone_within(0.02)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def family(self) -> list[int]:
        """Return the ids of the child and of all it started that are alive; without ``/proc``, only the child's."""
        if not Path("/proc/self/environ").exists():
            return [self._process.pid] if self.code is None else []
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has ended, or belongs to another user
                if self._mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _gone_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (self.code is None or self.family()) and time.monotonic() < deadline:
            time.sleep(0.02)

    @staticmethod
    def _signal(number: int, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _is_itwinai(pid: int) -> bool:
    """Return whether a process runs itwinai, and is not a server of Ray."""
    with suppress(OSError):
        return b"itwinai" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
