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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from itwinai.errors import WorkerError
from itwinai.io.atomic import write_whole
from itwinai.launchers.fork_server import ForkServerClient
from itwinai.launchers.worker import Start

if TYPE_CHECKING:
    from itwinai.launchers.environment import RankInfo


def call_in_fork(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process with the folder, the import path and the environment variables of this one.

    Args:
        path: of the socket of a `itwinai.launchers.fork_server.ForkServer`.
        function: what to call; it has to be found by its name there.
        *arguments: of the function; they and what it returns are pickled.

    Returns:
        What the function returns.

    Raises:
        WorkerError: the process was killed.
        BaseException: what the function raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="itwinai-call-"))
    server = ForkServerClient.connect(path)
    try:
        write_whole(folder / "payload.pickle", cloudpickle.dumps((function, arguments)))
        start = Start(sys.path, os.getcwd(), dict(os.environ), {0: None}, f"{__name__}:run")
        write_whole(folder / "start.pickle", pickle.dumps(start))
        process = server.start_worker(folder, 0)
        try:
            code = process.wait()
        finally:
            if process.known_pid is not None:  # by Ctrl-C it may not be there yet: then it ends with the pipe
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.known_pid, signal.SIGKILL)
            process.stdin.close()
        if (failure := folder / "failure-0.pickle").exists():
            raise pickle.loads(failure.read_bytes()).exception(names_rank=False)
        if code:
            raise WorkerError(f"The process of {function.__qualname__} ended with exit code {code}; see its output.")
        return pickle.loads((folder / "result-0.pickle").read_bytes())
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


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
