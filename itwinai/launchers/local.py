"""Supervised worker processes on this machine."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.errors import WorkerError
from itwinai.files.whole import write_whole
from itwinai.launchers.base import PayloadLauncher, on_signals, preemption_signals, stopped_by
from itwinai.launchers.environment import Place
from itwinai.launchers.failure import Failure, WorkersFailed
from itwinai.launchers.payload import Result
from itwinai.launchers.template import ForkedWorker, WorkerTemplate, can_fork, offered_template
from itwinai.launchers.worker import Start

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from lightning.pytorch import Trainer

# After the first failure the others get this long to report theirs and to run their hooks on exceptions. Together
# with KILL_AFTER it stays well below the 30 s in which a failed job has to end.
GRACE = 8.0
KILL_AFTER = 4.0


class LocalLauncher(PayloadLauncher):
    """Starts the workers of this node as processes, and ends all of them when one fails.

    With several nodes, the same script is started once per node, with NODE_RANK, MASTER_ADDR and MASTER_PORT set, and
    each node launches its own workers.

    Args:
        environment: says which node this is, and where rank 0 of the group is.
        num_processes: number of workers on this node.
        num_nodes: number of nodes.
        variables: environment variables for the workers, beside those of this process.
    """

    def __init__(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int = 1,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.environment = environment
        self.num_processes = num_processes
        self.num_nodes = num_nodes
        self.variables = dict(variables or {})
        self.processes: dict[int, subprocess.Popen[bytes] | ForkedWorker] = {}
        self.template = offered_template()
        self._passed_on: int | None = None

    def run_workers(self, packed: bytes, trainer: Trainer) -> Sequence[Result]:
        """Start one process per worker and wait for their results."""
        folder = Path(tempfile.mkdtemp(prefix="itwinai-launch-"))  # readable by this user only
        places = self.places()
        try:
            write_whole(folder / "payload.pickle", packed)
            start = Start(sys.path, os.getcwd(), self._environment(), places)
            write_whole(folder / "start.pickle", pickle.dumps(start))
            self._passed_on = None
            with on_signals(preemption_signals(trainer), self._pass_on):
                self._start(folder, places, trainer)
                self._wait(folder)
            return [pickle.loads((folder / f"result-{rank}.pickle").read_bytes()) for rank in places]
        finally:
            self._end()
            shutil.rmtree(folder, ignore_errors=True)

    def places(self) -> dict[int, Place]:
        """Return the places of this node's workers by global rank."""
        node_rank = self.environment.node_rank()
        alone = self.num_nodes == 1
        main_address = "127.0.0.1" if alone else self.environment.main_address
        main_port = free_port() if alone else self.environment.main_port
        places = [
            Place(
                rank=node_rank * self.num_processes + local_rank,
                world_size=self.num_nodes * self.num_processes,
                local_rank=local_rank,
                local_world_size=self.num_processes,
                node_rank=node_rank,
                num_nodes=self.num_nodes,
                main_address=main_address,
                main_port=main_port,
                launcher="itwinai",
            )
            for local_rank in range(self.num_processes)
        ]
        return {place.rank: place for place in places}

    def kill(self, signum: int) -> None:
        """Send a signal to every worker that is still running."""
        for process in self.processes.values():
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signum)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "processes": {}, "template": None}

    def _pass_on(self, signum: int) -> None:
        """Pass a signal on to the workers, so that they can end in an orderly way."""
        self._passed_on = signum
        self.kill(signum)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **self.variables}
        if self.num_nodes == 1:
            # Gloo looks its own host name up, and laptops are often unable to resolve theirs.
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
        return environment

    def _start(self, folder: Path, places: Mapping[int, Place], trainer: Trainer) -> None:
        if can_fork():
            if self.template is None or not self.template.is_usable(self.variables):
                # Of these and what they import; modules of the user's own might start threads, say.
                owners = (*type(trainer).__mro__, *type(trainer.strategy).__mro__)
                modules = {owner.__module__ for owner in owners if owner.__module__.startswith("itwinai.")}
                self.template = WorkerTemplate.start(sorted(modules), self.variables)
            for rank in places:
                self.processes[rank] = self.template.start_worker(folder, rank)
            return
        for rank in places:
            self.processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "itwinai.launchers.worker", str(folder), str(rank)],
                stdin=subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C comes to this process, which passes it on
            )

    def _wait(self, folder: Path) -> None:
        """Wait until all workers have ended; if one fails, end the others and raise its error."""
        try:
            while any(process.poll() is None for process in self.processes.values()):
                if self._dead(folder) or any(folder.glob("failure-*.pickle")):
                    break
                time.sleep(0.02)
        except KeyboardInterrupt as interrupt:
            self.kill(signal.SIGINT)
            with suppress(KeyboardInterrupt):  # pressed again: no more patience
                self._wait_for_exit(GRACE)
            raise WorkersFailed(interrupt) from None
        if not self._dead(folder) and not any(folder.glob("failure-*.pickle")):
            return
        self._wait_for_exit(GRACE)
        dead = self._dead(folder)
        if self._passed_on is not None and -self._passed_on in dead.values():
            raise WorkersFailed(stopped_by(self._passed_on))  # it has come before they could do anything about it
        # Nobody else has been signalled yet: whoever is dead without a report was killed by somebody else.
        raise WorkersFailed(self._cause(folder, dead))

    def _dead(self, folder: Path) -> dict[int, int]:
        """Return the exit codes of the workers that ended without a result, by rank."""
        return {
            rank: code
            for rank, process in self.processes.items()
            if (code := process.poll()) is not None and not (folder / f"result-{rank}.pickle").exists()
        }

    def _wait_for_exit(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def _cause(self, folder: Path, dead: Mapping[int, int]) -> BaseException:
        """Find the failure that made the others fail.

        Args:
            folder: where the workers left their failures.
            dead: exit codes, by rank, of the workers that have ended without a result.
        """
        failures = [pickle.loads(path.read_bytes()) for path in folder.glob("failure-*.pickle")]
        reported = {failure.rank for failure in failures}
        # A worker that was killed could report nothing; what the others report is that they have lost it.
        silent = {rank: code for rank, code in dead.items() if rank not in reported}
        if silent:
            return _death(*next(iter(silent.items())))
        first: Failure = min(failures, key=lambda failure: failure.time)
        return first.exception()

    def _end(self) -> None:
        """Leave no process behind: neither the workers nor what they have started."""
        self.kill(signal.SIGTERM)
        self._wait_for_exit(KILL_AFTER)
        for process in self.processes.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self.processes = {}


def _death(rank: int, code: int) -> WorkerError:
    if code < 0:
        name = signal.Signals(-code).name
        why = " The kernel does that when memory runs out: see `dmesg`." if name == "SIGKILL" else ""
        return WorkerError(f"rank {rank} was killed by {name}, without a Python exception.{why}")
    return WorkerError(f"rank {rank} ended with exit code {code} before it had a result; its output is above.")


def free_port() -> int:
    """Return a TCP port that is free on this machine at this moment.

    It lies below the range from which systems take the ports of outgoing connections: one of those could take it
    before rank 0 listens.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def loopback_interface() -> str:
    """Return the name of this machine's loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
