"""Start contenders as processes, one or several each, and let them through their gates."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tests.performance.cases import ACCELERATE, RAW, Case

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds without a sign of life after which a contender is given up


class ContenderFailed(Exception):
    """A contender has ended before its time, or hangs; the message has the end of its output."""


def environment() -> dict[str, str]:
    """Return the environment variables of contenders: one thread each, and the same network for all."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "TERM": "xterm-256color",
    }


class Contender:
    """A contender that is running, seen from the benchmark.

    Args:
        name: which one.
        process: its first process.
        log: file with its output.
        listener: socket that its gate connects to.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, listener: socket.socket) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.listener = listener
        self._connection: socket.socket | None = None
        self._stream: TextIO | None = None

    def warm_up(self) -> None:
        """Wait until the contender has done its first chunk and stands at the gate."""
        self.listener.settimeout(1)
        for _ in range(int(TIMEOUT)):
            with suppress(TimeoutError):
                self._connection, _ = self.listener.accept()
                break
            if self.process.poll() is not None:
                break
        if self._connection is None:
            raise self._failure("has not reached its first chunk")
        self._connection.settimeout(TIMEOUT)
        self._stream = self._connection.makefile("rw")
        threads = self._read()["threads"]
        if threads != 1:
            raise self._failure(f"computes with {threads:.0f} threads, and the others with one")

    def run_chunk(self) -> dict[str, float]:
        """Let the contender do one chunk, and return its report."""
        self._let_through()
        return self._read()

    def finish(self) -> None:
        """Let the contender end as it likes."""
        self._let_through()
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise self._failure("does not end") from None
        if code:
            raise self._failure(f"ended with exit code {code}")

    def close(self) -> None:
        """Leave nothing of the contender running."""
        if self._connection is not None:
            self._connection.close()
        self.listener.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _let_through(self) -> None:
        assert self._stream is not None
        self._stream.write("\n")
        self._stream.flush()

    def _read(self) -> dict[str, float]:
        assert self._stream is not None
        try:
            line = self._stream.readline()
        except TimeoutError:
            line = ""
        if not line:
            raise self._failure("has not finished a chunk")
        report: dict[str, float] = json.loads(line)
        return report

    def _failure(self, what: str) -> ContenderFailed:
        return ContenderFailed(f"{self.name} {what}. The end of its output:\n{tail(self.log)}")


def tail(log: Path, characters: int = 3000) -> str:
    """Return the end of a log file."""
    return log.read_text(errors="replace")[-characters:]


@contextmanager
def running(case: Case, name: str, steps: int, chunks: int) -> Iterator[Contender]:
    """Run a contender in a temporary folder, with as many processes as the case has workers.

    Args:
        case: what it does.
        name: which contender.
        steps: length of a chunk.
        chunks: number of chunks after the one that warms up.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        module = ["-m", "tests.performance.contenders", case.name, name]
        if case.workers > 1 and name in (RAW, ACCELERATE):  # the trainers start their workers themselves
            module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.workers}", *module]
        options = ["--socket", f"{folder}/gate", "--folder", folder, "--steps", str(steps), "--chunks", str(chunks)]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/gate")
        listener.listen()
        log = Path(folder, "output.log")
        with _output(log, terminal=case.defaults) as output:
            process = subprocess.Popen(
                [sys.executable, *module, *options],
                env=environment(),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that all of it can be ended together
            )
        contender = Contender(name, process, log, listener)
        try:
            yield contender
        finally:
            contender.close()


@contextmanager
def _output(log: Path, terminal: bool) -> Iterator[int]:
    """Open what a contender writes to: its log file, or a terminal whose text goes there.

    Args:
        log: the file.
        terminal: progress bars behave differently, and cost more, where they believe that somebody is looking.
    """
    if not terminal:
        with log.open("wb") as file:
            yield file.fileno()
        return
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # bars fill the line: it needs a width

    def copy() -> None:
        # Reading fails when the last process that holds the terminal has ended.
        with log.open("wb", buffering=0) as file, suppress(OSError):
            while text := os.read(outside, 65536):
                file.write(text)
        os.close(outside)

    threading.Thread(target=copy, daemon=True).start()
    try:
        yield inside
    finally:
        os.close(inside)
