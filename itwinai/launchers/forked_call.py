"""A call in a process that is forked off a fork server, for what needs torch and Lightning in a caller that does not.

To import them takes seconds, and the server has them for others anyway. What the call has imported beside, such as the
user's modules, is there for others too: afterwards its process serves forks of itself, where that is safe.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cloudpickle

from itwinai.errors import WorkerError
from itwinai.io.atomic import write_whole
from itwinai.launchers.fork_server import ForkServerClient, serve_callers, title_process
from itwinai.launchers.worker import Start

if TYPE_CHECKING:
    from itwinai.launchers.environment import RankInfo


class ForkedCall:
    """A call of a function, which runs in another process while the caller goes on.

    The process has the folder, the import path and the environment variables of this one. It lives as long as the
    context that this is.

    Args:
        path: of the socket of a `itwinai.launchers.fork_server.ForkServer`.
        function: what to call; it has to be found by its name there.
        *arguments: of the function; they and what it returns are pickled.
    """

    def __init__(self, path: str, function: Callable[..., Any], *arguments: Any) -> None:
        self._name = function.__qualname__
        self._server = ForkServerClient.connect(path)
        self._folder = Path(tempfile.mkdtemp(prefix="itwinai-call-"))  # readable by this user only
        write_whole(self._folder / "payload.pickle", cloudpickle.dumps((self._folder, function, arguments)))
        start = Start(sys.path, os.getcwd(), dict(os.environ), {0: None}, f"{__name__}:run")
        write_whole(self._folder / "start.pickle", pickle.dumps(start))
        self._process = self._server.start_worker(self._folder, 0)

    def __enter__(self) -> ForkedCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.known_pid is not None:  # by Ctrl-C it may not be there yet: then it ends with the pipe
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.known_pid, signal.SIGKILL)
        self._process.stdin.close()
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def result(self) -> Any:
        """Wait for what the function returns, and return it.

        Raises:
            WorkerError: the process was killed.
            BaseException: what the function raises.
        """
        returned = self._folder / _RETURNED
        while self._process.poll() is None and not returned.exists():
            time.sleep(0.01)
        if (failure := self._folder / "failure-0.pickle").exists():
            raise pickle.loads(failure.read_bytes()).exception(names_rank=False)
        if not returned.exists():
            code = self._process.returncode
            raise WorkerError(f"The process of {self._name} ended with exit code {code}; see its output.")
        return pickle.loads(returned.read_bytes())

    @property
    def server_path(self) -> str | None:
        """Path of the socket of the fork server that the process has become.

        None if the process may not be copied, for the call has started threads or has a device in use; and if it has
        not returned.
        """
        path = self._folder / _SOCKET
        return str(path) if path.exists() else None


_RETURNED, _SOCKET = "returned.pickle", "socket"


def run(packed: bytes, rank_info: RankInfo | None, on_failure: Callable[[BaseException], None], traced: bool) -> None:
    """Do the call, as the entry of a forked process; see `itwinai.launchers.worker`.

    Args:
        packed: the pickled function, with its arguments, and the folder for what it returns.
        rank_info: none: this is not a worker of a group.
        on_failure: called with an exception at once.
        traced: without effect: what the call changes is not needed afterwards.
    """
    from itwinai.launchers.fork import why_not_fork

    title_process("itwinai call")
    folder, function, arguments = pickle.loads(packed)
    returned = cloudpickle.dumps(function(*arguments))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        serves = why_not_fork() is None
        if serves:
            listener.bind(str(folder / _SOCKET))
            listener.listen(64)
        write_whole(folder / _RETURNED, returned)
        if serves:
            serve_callers(listener)
