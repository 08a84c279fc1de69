"""A process that has imported what workers need, and becomes as many of them as are asked for, by forking.

Importing torch and Lightning takes seconds in every process. Here one process does it for all workers of a
launch, and of later launches of the same trainer. It runs nothing but imports, so that it has no threads and no GPU
context, which do not survive a fork.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from itwinai.launchers.worker import exit_at_once, python_that_runs, run_in
from itwinai.quick_imports import importing_quickly

# Variables that libraries and the interpreter read when they are loaded, which in a forked worker lies in the past.
# All others are set in the worker before it does anything.
_READ_WHEN_LOADED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "DYLD_", "PYTHON")

# A request or an event; everything that may be long is in the launch's folder.
_MESSAGE_SIZE = 4096


class ForkedWorker:
    """A worker that a fork server was asked for, with the interface of `subprocess.Popen` as far as launchers need it.

    Args:
        server: which forks it.
        number: by which the server knows it.
        stdin: the end of a pipe that keeps the worker alive as long as it is open.
    """

    def __init__(self, server: ForkServerClient, number: int, stdin: int) -> None:
        self.server = server
        self.number = number
        self.stdin = os.fdopen(stdin, "wb", buffering=0)
        self.returncode: int | None = None
        self.known_pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id; waits until the worker is there. None if it was never there."""
        while self.known_pid is None and self.returncode is None:
            self.server.receive(None)
        return self.known_pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the worker runs."""
        if self.returncode is None:
            self.server.receive(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the worker has ended, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            self.server.receive(left)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal to the worker, unless it has ended."""
        if self.poll() is None and (pid := self.pid) is not None:
            os.kill(pid, signum)


class ForkServerClient:
    """The caller's end of the connection to a fork server.

    Args:
        connection: to the server's process.
        end: ends that process, and waits until it has.
        variables: environment variables that it was started with, beside those of this process.
    """

    def __init__(self, connection: socket.socket, end: Callable[[], None], variables: Mapping[str, str]) -> None:
        self.connection = connection
        self.variables = _read_when_loaded(variables)
        self.workers: dict[int, ForkedWorker] = {}
        self.lost = False
        self._started = 0
        # Also when the trainer that this belongs to is forgotten without ceremony.
        self.close = weakref.finalize(self, _close, connection, end, os.getpid())

    @classmethod
    def start(cls, modules: Iterable[str], variables: Mapping[str, str]) -> ForkServerClient:
        """Start a fork server of one's own, which begins to import.

        Args:
            modules: names of what it imports.
            variables: environment variables, beside those of this process.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [*python_that_runs("itwinai.launchers.fork_server"), str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C comes to the caller, which passes it on
            )

        def end() -> None:
            process.kill()
            process.wait()

        return cls(ours, end, variables)

    @classmethod
    def connect(cls, path: str) -> ForkServerClient:
        """Connect to a `ForkServer`, which forks off a process that serves this caller alone.

        Args:
            path: of its socket.

        Raises:
            OSError: no server listens there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return cls(connection, _do_nothing, {})  # it ends when the connection does

    def start_worker(self, folder: Path, rank: int, streams: tuple[int, int] = (1, 2)) -> ForkedWorker:
        """Ask for a worker; it need not be there yet on return.

        Args:
            folder: of the launch; see `itwinai.launchers.worker`.
            rank: which worker.
            streams: file descriptors of its standard output and error; by default those of this process.
        """
        number, self._started = self._started, self._started + 1
        reading, writing = os.pipe()
        worker = self.workers[number] = ForkedWorker(self, number, writing)
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError):
                stream.flush()  # before the worker writes to the same place
        try:
            # The caller's streams as they are now, which may not be those that the server was started with.
            socket.send_fds(self.connection, [pickle.dumps((number, str(folder), rank))], [reading, *streams])
        except OSError:
            self._lose()
        finally:
            os.close(reading)
        return worker

    def is_there(self) -> bool:
        """Return whether the server has not ended."""
        self.receive(0)
        return not self.lost

    def is_usable(self, variables: Mapping[str, str]) -> bool:
        """Return whether workers with additional environment variables may come from this server."""
        return self.is_there() and self.variables == _read_when_loaded(variables)

    def receive(self, timeout: float | None) -> None:
        """Read what the server has to tell.

        Args:
            timeout: seconds to wait for the first news; None waits until there are some.
        """
        while not self.lost and select.select([self.connection], [], [], timeout)[0]:
            try:
                message = self.connection.recv(_MESSAGE_SIZE)
            except ConnectionResetError:  # it has ended with requests unread
                message = b""
            if not message:
                self._lose()
                return
            kind, number, value = pickle.loads(message)
            worker = self.workers[number]
            if kind == "started":
                worker.known_pid = value
            else:
                worker.returncode = value
                del self.workers[number]
            timeout = 0

    def _lose(self) -> None:
        """Give up the workers of a server that has ended: nothing tells any more when they end."""
        self.lost = True
        for worker in self.workers.values():
            if worker.known_pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(worker.known_pid, signal.SIGKILL)
            worker.returncode = 1
        self.workers.clear()


class ForkServer:
    """A process that imports once, and forks a server off itself for each caller on this machine that connects.

    Args:
        modules: names of what it imports.

    Attributes:
        path: of the socket to connect to; see `ForkServerClient.connect`.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="itwinai-fork-server-")  # of this user only
        self.path = os.path.join(self._folder, "socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            listener.bind(self.path)
            listener.listen(64)  # who comes before the imports are done waits
            self._process = subprocess.Popen(
                [*python_that_runs("itwinai.launchers.fork_server"), "--shared", str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,  # it ends when this process does
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End the process; the servers that it has forked end with their callers."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def can_fork() -> bool:
    """Return whether workers may be forked here. On macOS the system's libraries do not survive it."""
    return sys.platform == "linux"


def serve(connection: socket.socket) -> None:
    """Fork a worker for every request, and tell when it ends; return when the caller is gone."""
    gc.freeze()  # collections in the workers leave these pages alone, which they share until one of them writes
    children: dict[int, int] = {}
    # A child's end is a signal, a request is data on a socket. Python writes a byte into a pipe for each signal
    # (`set_wakeup_fd`), so that one `select` waits for both, and misses none that comes between two looks.
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([connection.fileno(), awake], [], [])
        if awake in ready:
            os.read(awake, _MESSAGE_SIZE)
            for pid, number in list(children.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del children[pid]
                    _tell(connection, "ended", number, os.waitstatus_to_exitcode(status))
        if connection.fileno() not in ready:
            continue
        try:
            message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_SIZE, 3)
        except ConnectionResetError:  # the caller was killed
            return
        if not message:
            return
        number, folder, rank = pickle.loads(message)
        try:
            pid = _fork()
        except OSError as error:  # no memory, or no room for another process
            os.write(streams[2], f"rank {rank} could not be forked: {error}\n".encode())
            _tell(connection, "ended", number, 1)
        else:
            if pid == 0:
                # What is the server's must not live on in the worker: its socket would look open to the caller after
                # the server has died, and a signal for the worker would be written into the server's pipe.
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.close()
                os.close(awake)
                os.close(wake)
                _become_worker(streams, Path(folder), rank)
            children[pid] = number
            _tell(connection, "started", number, pid)
        for stream in streams:
            os.close(stream)


def serve_callers(listener: socket.socket) -> None:
    """Fork a server for each caller that connects; return when the standard input is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for them
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if _fork() == 0:
            listener.close()
            os.setsid()  # Ctrl-C in the search's terminal must not end the trials before they have saved
            serve(connection)
            exit_at_once()
        connection.close()


def _become_worker(streams: list[int], folder: Path, rank: int) -> NoReturn:
    os.setsid()  # a group of its own, killed as a whole: with loaders' processes and what the user's code has started
    title_worker(rank)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    code: object = None
    try:
        run_in(folder, rank)
    except SystemExit as stopped:  # a failed worker, or a process that the user's code has forked off one
        code = stopped.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    exit_at_once(code or 0)


def title_worker(rank: int) -> None:
    """Name this process, for people who look at `top`, where all workers would have the same name."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(worker_title(rank))


def worker_title(rank: int) -> str:
    """Return the name of a forked worker in the system's list of processes."""
    return f"itwinai rank {rank}"


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of other threads. There are those of OpenBLAS, which knows what to do when it is forked.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _tell(connection: socket.socket, kind: str, number: int, value: int) -> None:
    with suppress(BrokenPipeError):  # the caller is gone, which the next look at the connection shows as well
        connection.send(pickle.dumps((kind, number, value)))


def _close(connection: socket.socket, end: Callable[[], None], owner: int) -> None:
    if os.getpid() != owner:  # a process that was forked off the caller has a copy of everything
        return
    connection.close()
    end()


def _read_when_loaded(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process reads only at its start, as it would be started now."""
    all_variables = {**os.environ, **variables}
    return {name: value for name, value in all_variables.items() if name.startswith(_READ_WHEN_LOADED)}


def _do_nothing() -> None:
    pass


def main() -> None:
    """Serve one caller, or with ``--shared`` all that connect; arguments: a socket's number, modules to import."""
    arguments = sys.argv[1:]
    work: Callable[[socket.socket], None] = serve
    if arguments[0] == "--shared":
        arguments, work = arguments[1:], serve_callers
    number, *modules = arguments
    connection = socket.socket(fileno=int(number))
    with importing_quickly():
        for name in (*modules, "itwinai.launchers.payload", "itwinai.launchers.worker"):
            with suppress(ModuleNotFoundError):  # a worker that needs it says so
                import_module(name)
    work(connection)
