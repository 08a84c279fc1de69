"""The actor of one Ray worker. Nothing heavy is imported here before its environment variables are set."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from itwinai.quick_imports import importing_quickly
from itwinai.unify import unify_if_asked

if TYPE_CHECKING:
    from itwinai.launchers.environment import RankInfo
    from itwinai.launchers.payload import Result
    from itwinai.launchers.worker_failure import Failure


class RayWorker:
    """The actor of one worker.

    Args:
        rank: global rank, by which the driver's log names this worker.
        sys_path: see `adopt`.
        folder: see `adopt`.
        variables: see `adopt`; some of them libraries read when they are loaded.
    """

    def __init__(self, rank: int, sys_path: list[str], folder: str | None, variables: dict[str, str]) -> None:
        self.rank = rank
        self.adopt(sys_path, folder, variables)
        with importing_quickly():  # all workers at once, while the driver waits for them
            for name in ("itwinai.launchers.payload", "itwinai.trainer"):
                import_module(name)

    def adopt(self, sys_path: list[str], folder: str | None, variables: dict[str, str]) -> None:
        """Let this process find what the driver finds now.

        Args:
            sys_path: the driver's import path.
            folder: the driver's working folder, which this worker shares if its node has it too.
            variables: environment variables of all workers.
        """
        os.environ.update(variables)
        unify_if_asked()
        if folder is not None and os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [path for path in sys_path if path not in sys.path]

    def __repr__(self) -> str:
        return f"rank {self.rank}"

    def start(self) -> tuple[int, str, int]:
        """Return the process id, this node's address, and a port that is free on it."""
        import ray

        from itwinai.launchers.local import free_port

        return os.getpid(), ray.util.get_node_ip_address(), free_port()

    def run(self, packed: bytes, rank_info: RankInfo, mailbox: str) -> Result | Failure:
        """Run the payload as a rank of the group.

        Args:
            packed: the packed payload.
            rank_info: this worker's ranks in the group.
            mailbox: name for a `Mailbox`, in which a failure is left that this call cannot return.
        """
        os.environ.update(rank_info.variables())
        # Ray blocks and ignores it, the launcher sends it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's handler would end this worker before the trainer can
        from itwinai.launchers import payload
        from itwinai.launchers.worker import TRACE, leave_group, leave_group_of_sockets
        from itwinai.launchers.worker_failure import Failure

        failures: list[Failure] = []

        def report(error: BaseException) -> None:
            failures.append(Failure.of(rank_info.rank, error))
            if threading.current_thread() is not threading.main_thread():
                Mailbox.post(mailbox, failures[0])

        try:
            result = payload.run_packed(packed, rank_info, report, traced=rank_info.rank == 0)
        except BaseException as error:
            failure = failures[0] if failures else Failure.of(rank_info.rank, error)
            leave_group_of_sockets()  # the process stays, and others would wait for it
            return replace(failure, trace=vars(error).pop(TRACE, None))
        leave_group()  # this worker may be kept for another run
        return result


class Mailbox:
    """An actor that outlives the worker which leaves its failure there.

    The main thread of a worker that waits in a collective operation forever cannot end the call which it is in:
    another thread ends the process.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure

    def read(self) -> Failure:
        """Return the failure."""
        return self.failure

    @classmethod
    def post(cls, name: str, failure: Failure) -> None:
        """Start the actor, unless another worker has, and wait until it holds a failure."""
        import ray

        options: dict[str, Any] = {"name": name, "get_if_exists": True, "lifetime": "detached", "num_cpus": 0}
        actor: Any = ray.remote(cls).options(**options).remote(failure)
        ray.get(actor.read.remote())

    @staticmethod
    def pop(name: str) -> Failure | None:
        """End the actor and return what it holds; None if it was never started."""
        import ray

        try:
            actor: Any = ray.get_actor(name)
        except ValueError:
            return None
        failure: Failure = ray.get(actor.read.remote())
        ray.kill(actor)
        return failure
