"""How a trial trains, and the line to it: in its own process, or, to launch Ray workers, in a thread of the actor."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle

from itwinai.errors import TrialError
from itwinai.io.atomic import write_whole
from itwinai.launchers.worker import Start
from itwinai.trials.channel import ChannelServer, Message
from itwinai.trials.session import Decision, RemoteSession

if TYPE_CHECKING:
    from itwinai.launchers.fork_server import ForkedWorker, ForkServerClient
    from itwinai.launchers.ray_worker_pool import RayWorkerPool
    from itwinai.launchers.worker_failure import Failure
    from itwinai.tune.trial_spec import Assignment, TrialSpec

_LOOK_EVERY = 0.05
_END_WITHIN = 30.0
_KILL_AFTER = 5.0


class TrialExecutor(ABC):
    """A trial that trains, and waits for an answer after each report.

    Args:
        spec: the search.
        drawn: what the searcher has drawn.
        name: of the trial.
        resume: checkpoint to resume from.
    """

    def __init__(self, spec: TrialSpec, drawn: Mapping[str, Any], name: str, resume: str | None) -> None:
        import ray

        self.name = name
        self.server = ChannelServer(ray.util.get_node_ip_address())
        self._waits = False
        session = RemoteSession(self.server.address, spec.folder_of(name), resume)
        self.output = spec.output_of(name)
        self._start(spec, spec.assignment(drawn, name, session))

    def next_report(self) -> Message | None:
        """Let the trial continue, and return what it reports next; None when it has ended.

        Raises:
            TrialError: its code has raised an exception, or its process was killed.
        """
        self._answer(Decision.CONTINUE)
        message = self._next_message()
        if message is None:
            self._raise_failure()
        return message

    def saved(self) -> Message:
        """Let the trial, which waits for an answer, save a checkpoint, and return the message that says where."""
        if not self._waits:
            return {}
        self._answer(Decision.SAVE)
        message = self._next_message()
        return message if message is not None and "saved" in message else {}

    def stop(self) -> None:
        """End the trial: in an orderly way if it waits for an answer, and in any case soon."""
        self._answer(Decision.STOP)
        self._end()
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self.server.close()

    @abstractmethod
    def _start(self, spec: TrialSpec, assignment: Assignment) -> None: ...

    @abstractmethod
    def _has_ended(self) -> bool: ...

    @abstractmethod
    def _end(self) -> None: ...

    @abstractmethod
    def _raise_failure(self) -> None: ...

    def _raise(self, failure: Failure) -> NoReturn:
        self.close()
        with open(self.output, "a") as log:
            log.write(failure.text)
        raise TrialError(failure.summary, failure.text, self.output)

    def _answer(self, decision: Decision) -> None:
        if self._waits:
            self._waits = False
            self.server.reply({"decision": decision.value})

    def _next_message(self) -> Message | None:
        """Return the next message; None if the trial ends before there is one."""
        while True:
            ended = self._has_ended()
            message = self.server.receive(0 if ended else _LOOK_EVERY)
            if message is not None:
                self._waits = True
                return message
            if ended:
                return None


class ProcessExecutor(TrialExecutor):
    """A trial in a process of its own, forked off one that has imported everything.

    Args:
        spec: see `TrialExecutor`.
        drawn: see `TrialExecutor`.
        name: see `TrialExecutor`.
        resume: see `TrialExecutor`.
        fork_server: what the process is forked off.
    """

    def __init__(
        self,
        spec: TrialSpec,
        drawn: Mapping[str, Any],
        name: str,
        resume: str | None,
        fork_server: ForkServerClient,
    ) -> None:
        self.fork_server = fork_server
        super().__init__(spec, drawn, name, resume)

    def close(self) -> None:
        """Leave no process and no file behind."""
        super().close()
        if self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, spec: TrialSpec, assignment: Assignment) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="itwinai-trial-"))
        write_whole(self.folder / "payload.pickle", cloudpickle.dumps(assignment))
        entry = "itwinai.tune.trial_worker:run"
        start = Start(spec.sys_path, spec.working_folder, spec.variables(), {0: None}, entry)
        write_whole(self.folder / "start.pickle", pickle.dumps(start))
        with open(self.output, "ab") as log:
            streams = log.fileno(), log.fileno()
            self.process: ForkedWorker = self.fork_server.start_worker(self.folder, 0, streams)

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def _end(self) -> None:
        try:
            self.process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_KILL_AFTER)

    def _raise_failure(self) -> None:
        failed = self.folder / "failure-0.pickle"
        code = self.process.returncode
        if failed.exists():
            self._raise(pickle.loads(failed.read_bytes()))
        if code:
            self.close()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise TrialError(f"the process of the trial {how}", "", self.output)


class ThreadExecutor(TrialExecutor):
    """A trial in a thread of the actor, whose placement group its Ray workers are in.

    Args:
        spec: see `TrialExecutor`.
        drawn: see `TrialExecutor`.
        name: see `TrialExecutor`.
        resume: see `TrialExecutor`.
        pool: keeps the Ray workers from one trial to the next.
    """

    def __init__(
        self, spec: TrialSpec, drawn: Mapping[str, Any], name: str, resume: str | None, pool: RayWorkerPool
    ) -> None:
        self.pool = pool
        self._error: BaseException | None = None
        super().__init__(spec, drawn, name, resume)

    def _start(self, spec: TrialSpec, assignment: Assignment) -> None:
        self.thread = threading.Thread(target=self._run, args=(assignment,), name="itwinai-trial", daemon=True)
        self.thread.start()

    def _run(self, assignment: Assignment) -> None:
        from itwinai.tune.trial_worker import train

        assignment.session.worker_pool = self.pool
        try:
            train(assignment)
        except BaseException as error:
            self._error = error

    def _has_ended(self) -> bool:
        return not self.thread.is_alive()

    def _end(self) -> None:
        self.thread.join(_END_WITHIN)

    def _raise_failure(self) -> None:
        if self._error is not None:
            from itwinai.launchers.worker_failure import Failure

            self._raise(Failure.of(0, self._error))
