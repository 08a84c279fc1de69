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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from lightning.fabric.plugins.environments import LightningEnvironment
from typing_extensions import override

from itwinai.compat import cloudpickle as compat_cloudpickle
from itwinai.compat import python as compat_python
from itwinai.errors import ConfigurationError, PayloadError, WorkerError
from itwinai.interfaces import Worker
from itwinai.io.atomic import write_whole
from itwinai.launchers import worker
from itwinai.launchers.base import PayloadLauncher, on_signals, preemption_signals, stopped_by
from itwinai.launchers.environment import NOTEBOOK, RankInfo, WorkerKind, in_notebook
from itwinai.launchers.environment_variables import environment_variables
from itwinai.launchers.fork import ForkedProcess, fork, why_not_fork
from itwinai.launchers.fork_server import ForkedWorker, ForkServerClient, can_fork, title_worker
from itwinai.launchers.payload import Payload, Result
from itwinai.launchers.payload import run as run_payload
from itwinai.launchers.script import HISTORY, LaunchInstructions, Rerun, know_classes, script_command
from itwinai.launchers.state_sync import named_tensors
from itwinai.launchers.worker import Start, die_with_caller, python_that_runs
from itwinai.launchers.worker_failure import Failure, WorkerGroupError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

# After the first failure the others get this long to report theirs and to run their hooks on exceptions. Together
# with KILL_AFTER it stays well below the 30 s in which a failed job has to end.
GRACE = 8.0
KILL_AFTER = 4.0


class LocalLauncher(PayloadLauncher):
    """Starts the workers of this node as processes, and ends all of them when one fails.

    A worker is a copy of this process, forked off it (``fork``); or a new process that runs the script again as far as
    this launch (``script``); or one that is sent the trainer and its arguments as a pickle (``payload``). ``auto`` is
    a fork unless this process has threads or a device in use; then a payload if everything can be sent, for what a
    script does before its call is better not done again; then the script.

    Args:
        environment: says which node this is, and where rank 0 of the group is.
        num_processes: number of workers on this node.
        num_nodes: number of nodes.
        variables: environment variables for the workers, beside those of this process.
        kind: what the workers are made of.
    """

    def __init__(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int = 1,
        variables: Mapping[str, str] | None = None,
        kind: WorkerKind = "auto",
    ) -> None:
        self.environment = environment
        self.num_processes = num_processes
        self.num_nodes = num_nodes
        self.variables = dict(variables or {})
        self.kind = kind
        self.processes: dict[int, subprocess.Popen[bytes] | ForkedWorker | ForkedProcess] = {}
        self.fork_server: ForkServerClient | None = None
        self._passed_on: int | None = None
        self._by_script = False

    def run_workers(self, payload: Payload) -> Sequence[Result]:
        """Start one process per worker and wait for their results."""
        start_workers, how = self._choose(payload)
        self._by_script = start_workers == self._run_script
        folder = Path(tempfile.mkdtemp(prefix="itwinai-launch-"))  # readable by this user only
        rank_infos = self.rank_infos(how)
        try:
            self._passed_on = None
            with on_signals(preemption_signals(payload.trainer), self._pass_on) as handlers:
                self._wait(folder, partial(start_workers, folder, rank_infos, payload), handlers)
            return [pickle.loads((folder / f"result-{rank}.pickle").read_bytes()) for rank in rank_infos]
        finally:
            self._end()
            shutil.rmtree(folder, ignore_errors=True)

    def _choose(self, payload: Payload) -> tuple[Callable[..., None], str]:
        """Return what starts the workers, and how to name it in the line that announces them."""
        unsafe = why_not_fork() if self.kind in ("auto", "fork") else None
        if self.kind == "fork" and unsafe:
            raise ConfigurationError(
                f"launcher='fork' starts workers as copies of this process, which is not safe now: {unsafe}. "
                "Choose launcher='payload' or 'script', or call the trainer earlier in the script."
            )
        if self.kind in ("auto", "fork") and unsafe is None:
            return self._fork, "itwinai (fork)"
        reason = "" if unsafe is None else f", as {unsafe}"
        missing = _why_no_script()
        if self.kind == "script" and missing is not None:
            raise ConfigurationError(
                f"launcher='script' runs the script again in each worker, and that is not possible: {missing}. "
                "Choose launcher='fork' or 'payload'."
            )
        if self.kind != "script":
            try:
                return partial(self._send, payload.pack()), f"itwinai (payload{reason})"
            except PayloadError as error:
                if self.kind == "payload":
                    raise
                if missing is not None:
                    raise PayloadError(f"Workers cannot be copies of this process, as {unsafe}. {error}") from error
        return self._run_script, f"itwinai (script{reason})"

    @override
    def remember(self, number: int, outcome: Sequence[Result] | BaseException) -> None:
        if self._by_script and HISTORY.all_by_script:
            HISTORY.keep(number, outcome)
        else:
            HISTORY.all_by_script = False

    def rank_infos(self, launcher: str) -> dict[int, RankInfo]:
        """Return the ranks of this node's workers, by global rank.

        Args:
            launcher: who starts them, for the line that announces them.
        """
        node_rank = self.environment.node_rank()
        alone = self.num_nodes == 1
        if not alone:
            _check_meeting_point(self.environment, self.num_nodes)
        main_address = "127.0.0.1" if alone else self.environment.main_address
        main_port = free_port() if alone else self.environment.main_port
        rank_infos = [
            RankInfo(
                rank=node_rank * self.num_processes + local_rank,
                world_size=self.num_nodes * self.num_processes,
                local_rank=local_rank,
                local_world_size=self.num_processes,
                node_rank=node_rank,
                num_nodes=self.num_nodes,
                main_address=main_address,
                main_port=main_port,
                launcher=launcher,
            )
            for local_rank in range(self.num_processes)
        ]
        return {rank_info.rank: rank_info for rank_info in rank_infos}

    def kill(self, signum: int) -> None:
        """Send a signal to every worker that is still running."""
        for process in self.processes.values():
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signum)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "processes": {}, "fork_server": None}

    def _pass_on(self, signum: int) -> None:
        """Pass a signal on to the workers, so that they can end in an orderly way."""
        # This process does not stop by itself: it waits for the workers, which save first, and reports what they say.
        self._passed_on = signum
        self.kill(signum)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **self.variables}
        if in_notebook():
            environment[NOTEBOOK] = "1"
        if self.num_nodes == 1:
            # Gloo looks its own host name up, and laptops are often unable to resolve theirs.
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
        return environment

    def _fork(
        self, folder: Path, rank_infos: Mapping[int, RankInfo], payload: Payload, handlers: Mapping[int, Any]
    ) -> None:
        """Fork the workers off this process."""
        variables = self._environment()
        self._import(_strategy(payload).worker_imports())
        found = compat_python.objects_of(type, *worker.FILES)
        classes = [value for value in found if issubclass(type(value), type)]
        files = [value for value in found if not issubclass(type(value), type)]
        compat_cloudpickle.register_dynamic_classes(classes)
        worker.flush(files)
        for rank, rank_info in rank_infos.items():

            def work(pipe: int, rank: int = rank, rank_info: RankInfo = rank_info) -> None:
                title_worker(rank)
                die_with_caller(pipe)
                self.processes = {}

                def run(report: Callable[[BaseException], None]) -> Result:
                    return run_payload(payload, rank_info, report, traced=rank_info.local_rank == 0)

                worker.work(folder, rank, rank_info, variables, run)

            self.processes[rank] = fork(work, handlers, [*self.processes.values()], files)

    def _import(self, modules: Iterable[str]) -> None:
        """Import what workers need into this process, with the environment variables of workers."""
        with environment_variables(self.variables):
            for name in modules:
                with suppress(ModuleNotFoundError):  # if a worker needs it, it says so
                    import_module(name)

    def _send(
        self,
        packed: bytes,
        folder: Path,
        rank_infos: Mapping[int, RankInfo],
        payload: Payload,
        handlers: Mapping[int, Any],
    ) -> None:
        """Send the payload to new processes."""
        write_whole(folder / "payload.pickle", packed)
        start = Start(sys.path, os.getcwd(), self._environment(), rank_infos)
        write_whole(folder / "start.pickle", pickle.dumps(start))
        if can_fork():
            if self.fork_server is None or not self.fork_server.is_usable(self.variables):
                # Of these and what they import; modules of the user's own might start threads, say.
                trainer = payload.trainer
                owners = (*type(trainer).__mro__, *type(trainer.strategy).__mro__)
                modules = {owner.__module__ for owner in owners if owner.__module__.startswith("itwinai.")}
                modules.update(_strategy(payload).worker_imports())
                self.fork_server = ForkServerClient.start(sorted(modules), self.variables)
            for rank in rank_infos:
                self.processes[rank] = self.fork_server.start_worker(folder, rank)
            return
        for rank in rank_infos:
            self.processes[rank] = subprocess.Popen(
                [*python_that_runs("itwinai.launchers.worker"), str(folder), str(rank)],
                stdin=subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C comes to this process, which passes it on
            )

    def _run_script(
        self, folder: Path, rank_infos: Mapping[int, RankInfo], payload: Payload, handlers: Mapping[int, Any]
    ) -> None:
        """Run the script again in new processes, as far as this launch."""
        command = script_command()
        assert command is not None
        number = HISTORY.begun - 1
        weights = {name: tensor.detach() for name, tensor in named_tensors(payload.trainer.lightning_module).items()}
        instructions = LaunchInstructions(rank_infos, payload.rng_states, weights)
        write_whole(folder / "instructions.pickle", cloudpickle.dumps(instructions))
        for rank in rank_infos:
            rerun = Rerun(number, rank, str(folder), str(HISTORY.folder), os.getpid())
            self.processes[rank] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                env={**self._environment(), **rerun.variables()},
                start_new_session=True,
            )
        know_classes()

    def _wait(self, folder: Path, start: Callable[[Mapping[int, Any]], None], handlers: Mapping[int, Any]) -> None:
        """Start the workers and wait until all have ended; if one fails, end the others and raise its error.

        Args:
            folder: of the launch.
            start: starts them, given the signal handlers of this process outside the launch.
            handlers: those of preemption signals.
        """
        interrupts: list[int] = []
        try:
            # Ctrl-C waits until all workers are there: one that is just being started would be left behind.
            with on_signals((signal.SIGINT,), interrupts.append) as of_interrupt:
                start({**of_interrupt, **handlers})
            if self._passed_on is not None:  # it has come before some of them were there
                self.kill(self._passed_on)
            if interrupts:
                signal.raise_signal(signal.SIGINT)
            # Polled, not waited for: the failure of one worker ends the launch though the others hang in a collective.
            while any(process.poll() is None for process in self.processes.values()):
                if self._dead(folder) or any(folder.glob("failure-*.pickle")):
                    break
                time.sleep(0.02)
        except KeyboardInterrupt as interrupt:
            self.kill(signal.SIGINT)  # a terminal does not reach workers, which have sessions of their own
            with suppress(KeyboardInterrupt):  # pressed again: no more patience
                self._wait_for_exit(GRACE)
            raise WorkerGroupError(interrupt, self._trace(folder)) from None
        if not self._dead(folder) and not any(folder.glob("failure-*.pickle")):
            return
        self._wait_for_exit(GRACE)
        dead = self._dead(folder)
        if self._passed_on is not None and -self._passed_on in dead.values():
            raise WorkerGroupError(stopped_by(self._passed_on))  # it has come before they could do anything about it
        # No worker has been signalled by us yet: one that died without a report was killed from outside.
        raise WorkerGroupError(self._cause(folder, dead), self._trace(folder))

    def _trace(self, folder: Path) -> bytes | None:
        """Return what the first worker has changed until it failed, if it could tell."""
        found = next(iter(folder.glob("trace-*.pickle")), None)
        return None if found is None else found.read_bytes()

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
            if process.pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self.processes = {}


def _strategy(payload: Payload) -> Worker:
    strategy = payload.trainer.strategy
    assert isinstance(strategy, Worker)
    return strategy


def _why_no_script() -> str | None:
    if script_command() is None:
        return "this process was not started from a script (it is a notebook, a test runner or an interactive session)"
    return (
        None
        if HISTORY.all_by_script
        else "an earlier trainer call used another launcher, and a rerun of the script cannot reproduce it"
    )


def _death(rank: int, code: int) -> WorkerError:
    if code < 0:
        name = signal.Signals(-code).name
        why = " The kernel does that when memory runs out: see `dmesg`." if name == "SIGKILL" else ""
        return WorkerError(f"rank {rank} was killed by {name}, without a Python exception.{why}")
    return WorkerError(f"rank {rank} ended with exit code {code} before it had a result; its output is above.")


def _check_meeting_point(environment: ClusterEnvironment, num_nodes: int) -> None:
    """Raise an error if the workers of several nodes could only wait for each other at places of their own."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and type(environment) is LightningEnvironment:
        raise ConfigurationError(
            f"num_nodes={num_nodes}, but {' and '.join(missing)} {'are' if missing[1:] else 'is'} not set: the nodes "
            "cannot find each other. Start the run with torchrun or srun, or run the same command on each node with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK set. For more workers on this machine use devices.",
            argument="num_nodes",
        )


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
