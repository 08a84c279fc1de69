"""A call in a process that is forked off a fork server, for what needs torch and Lightning in a caller that does not.

To import them takes seconds, and the server has them for others anyway.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cloudpickle

from itwinai.errors import WorkerError
from itwinai.io.atomic import write_whole
from itwinai.launchers.fork_server import ForkServerClient
from itwinai.launchers.worker import Start

if TYPE_CHECKING:
    from itwinai.launchers.environment import RankInfo


class ForkedCall:
    """A call of a function, which runs in another process while the caller goes on.

    The process has the folder, the import path and the environment variables of this one. Use it as a context manager:
    when the context ends, the process is killed if it is still running.

    Args:
        path: of the socket of a `itwinai.launchers.fork_server.ForkServer`.
        function: what to call; it has to be found by its name there.
        *arguments: of the function; they and what it returns are pickled.
    """

    def __init__(self, path: str, function: Callable[..., Any], *arguments: Any) -> None:
        packed = cloudpickle.dumps((function, arguments))
        self._name = function.__qualname__
        start = Start(sys.path, os.getcwd(), dict(os.environ), {0: None}, f"{__name__}:run")
        with ExitStack() as on_error:
            self._server = ForkServerClient.connect(path)
            on_error.callback(self._server.close)
            self._folder = Path(tempfile.mkdtemp(prefix="itwinai-call-"))
            on_error.callback(shutil.rmtree, self._folder, ignore_errors=True)
            write_whole(self._folder / "payload.pickle", packed)
            write_whole(self._folder / "start.pickle", pickle.dumps(start))
            self._process = self._server.start_worker(self._folder, 0)
            on_error.pop_all()

    def __enter__(self) -> ForkedCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None and self._process.known_pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.known_pid, signal.SIGKILL)
        self._process.stdin.close()  # with which it ends if it was not there yet, as by Ctrl-C
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def result(self) -> Any:
        """Wait for what the function returns, and return it.

        Raises:
            WorkerError: the process was killed.
            BaseException: what the function raises.
        """
        code = self._process.wait()
        if (failure := self._folder / "failure-0.pickle").exists():
            raise pickle.loads(failure.read_bytes()).exception(names_rank=False)
        if code:
            raise WorkerError(f"The process of {self._name} ended with exit code {code}; see its output.")
        return pickle.loads((self._folder / "result-0.pickle").read_bytes())


def run(packed: bytes, rank_info: RankInfo | None, on_failure: Callable[[BaseException], None], traced: bool) -> Any:
    """Do the call, as the entry of a forked process; see `itwinai.launchers.worker`.

    Args:
        packed: the pickled function, with its arguments.
        rank_info: none: this is not a worker of a group.
        on_failure: called with an exception at once.
        traced: without effect: what the call changes is not needed afterwards.
    """
    function, arguments = pickle.loads(packed)
    return function(*arguments)
