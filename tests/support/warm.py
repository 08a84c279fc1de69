"""A process that has imported torch, lightning and itwinai, and runs scripts in copies of itself, at once.

A script finds what it would find in a new process of Python: its arguments, path, environment, folder, streams and
signals, a session of its own, no threads. What differs is that the packages are imported already: tests of imports, and
of what is read when packages are imported, need a new process.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import random
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support import marked

REPOSITORY = Path(__file__).parents[2]

_CODE = struct.Struct("!q")
# Read once, when the packages are imported.
_EARLY = (
    "CUDA_",
    "GLOO_",
    "GOMP_",
    "KMP_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "PYTORCH_",
    "TORCH",
)
_LATE = ("PYTHONPATH",)


class WarmProcess:
    """A copy that runs a script, with the interface of `subprocess.Popen` as far as tests need it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = self._receive()
        self.returncode: int | None = None

    def _receive(self) -> int:
        message = self._connection.recv(_CODE.size, socket.MSG_WAITALL)
        if len(message) < _CODE.size:
            raise ConnectionError("the process whose copies run scripts has ended")
        return int(_CODE.unpack(message)[0])

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return the exit code."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(f"script {self.pid}", timeout or 0.0)
            self.returncode = self._receive()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process whose copies run scripts; started by `start`, at the latest when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._address = ""

    def start(self) -> None:
        """Start it, unless it has been."""
        if self._process is not None:
            return
        self._environment = dict(os.environ)
        self._address = f"\0itwinai-tests-{os.getpid()}-{time.monotonic_ns()}"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self._address)
        listening.listen(64)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", str(listening.fileno())],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,  # it ends with this process
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        listening.close()

    def stop(self) -> None:
        """Let it end, and wait until it has."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(100)  # it may still import, on a busy machine
            self._process = None

    def can_run(self, command: list[str], environment: Mapping[str, str]) -> bool:
        """Tell whether a command can be run in a copy, as far as can be seen."""
        if len(command) < 2 or command[0] != sys.executable:
            return False
        if not (command[1].endswith(".py") or (command[1] == "-m" and command[2].startswith(("itwinai.", "tests.")))):
            return False
        started = self._environment if self._process is not None else os.environ
        changed = {name for name in started.keys() | environment.keys() if started.get(name) != environment.get(name)}
        return not any(name.startswith(_EARLY) and name not in _LATE for name in changed)

    def run(self, command: list[str], cwd: Path, environment: Mapping[str, str], output: int) -> WarmProcess:
        """Run a command in a copy, in a session of its own.

        Args:
            command: the command line of this Python.
            cwd: the folder in which it runs.
            environment: all variables.
            output: a descriptor to which it prints.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        request = pickle.dumps((command, str(cwd), dict(environment)))
        socket.send_fds(connection, [_CODE.pack(len(request))], [output])
        connection.sendall(request)
        return WarmProcess(connection)


WARM = Warm()
"""That of this process, and of its copies."""


def _serve(listening: socket.socket) -> tuple[list[str], str, dict[str, str], int] | None:
    """Fork a copy for every request; return it there. Return None here, at the end."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the process
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is listening:
                    connection, _ = listening.accept()
                    length, descriptors, _, _ = socket.recv_fds(connection, _CODE.size, 1)
                    request = connection.recv(_CODE.unpack(length)[0], socket.MSG_WAITALL)
                    pid = os.fork()
                    if pid == 0:
                        for descriptor, (_, other) in running.items():
                            os.close(descriptor)
                            other.close()
                        connection.close()
                        listening.close()
                        return (*pickle.loads(request), descriptors[0])
                    os.close(descriptors[0])
                    connection.sendall(_CODE.pack(pid))
                    running[descriptor := os.pidfd_open(pid)] = pid, connection
                    selector.register(descriptor, selectors.EVENT_READ)
                else:
                    pid, connection = running.pop(key.fd)
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with suppress(OSError):  # whoever asked has gone
                        connection.sendall(_CODE.pack(code))
                    connection.close()


def _become(command: list[str], cwd: str, environment: dict[str, str], output: int) -> None:
    """Be as a new process of Python is."""
    import multiprocessing.process

    import numpy as np

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.close(nothing)
    os.close(output)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]
    random.seed()
    np.random.seed()
    marked.mark()
    sys.orig_argv = command
    arguments = command[2:] if command[1] == "-m" else command[1:]
    first = cwd if command[1] == "-m" else str(Path(cwd, command[1]).parent)
    given = [place for place in environment.get("PYTHONPATH", "").split(":") if place]
    sys.argv[:] = arguments
    sys.path[:] = [first, *given, *(place for place in sys.path if place not in _own_path)]
    sys.modules["__main__"] = types.ModuleType("__main__")


def _run(command: list[str]) -> None:
    if command[1] == "-m":
        runpy._run_module_as_main(command[2])  # type: ignore[attr-defined]
        return
    main = sys.modules["__main__"]
    main.__file__ = str(Path.cwd() / command[1])
    with io.open_code(main.__file__) as file:
        code = compile(file.read(), main.__file__, "exec")
    exec(code, vars(main))


def _without_these_frames(kind: Any, error: Any, frames: Any) -> None:
    own = (__file__, runpy.__file__, "<frozen runpy>")
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    sys.__excepthook__(kind, error.with_traceback(frames), frames)


if __name__ == "__main__":
    import lightning.pytorch  # noqa: F401
    import torch  # noqa: F401

    import itwinai.config.lightning_cli
    import itwinai.trainer  # noqa: F401

    _own_path = [sys.path[0], *os.environ["PYTHONPATH"].split(":")]
    gc.collect()
    gc.freeze()  # for the copies to leave alone what they share
    if (_request := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _become(*_request)
        sys.excepthook = _without_these_frames
        _run(_request[0])
