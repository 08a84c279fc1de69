"""What all launchers do: pack the payload, have it run by workers, apply the result or hand over the failure."""

from __future__ import annotations

import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from itwinai.compat import lightning_launching, lightning_logging, lightning_trainer
from itwinai.errors import WorkerError
from itwinai.interfaces import Restartable, ServingWorkers
from itwinai.launchers import payload as payloads
from itwinai.launchers.script import HISTORY, Rerun, earlier_outcome, join_launch
from itwinai.launchers.worker_failure import WorkerGroupError
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class PayloadLauncher(lightning_launching.Launcher):
    """Runs an entry point of a trainer in a group of new workers."""

    def __getstate__(self) -> dict[str, Any]:
        # During a launch it has a method of the caller, which workers do not need.
        return {name: value for name, value in vars(self).items() if name != "launch"}

    @property
    def is_interactive_compatible(self) -> bool:
        """Nothing of the caller's process is forked or executed again, so notebooks work."""
        return True

    @abstractmethod
    def run_workers(self, payload: payloads.Payload) -> Sequence[payloads.Result]:
        """Start the workers, supervise them, and return their results.

        Args:
            payload: what they run, with the caller's own objects, which may not be changed.

        Raises:
            WorkerGroupError: the group ended without a result; no process of it is left.
        """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Run an entry point in the workers and make the caller's objects look as if it had run here.

        Args:
            function: a bound method of ``trainer``.
            *args: its positional arguments.
            trainer: the caller's trainer.
            **kwargs: its keyword arguments.

        Returns:
            What the entry point returns.

        Raises:
            BaseException: what a worker has raised, or what has become of it.
        """
        try:
            return self.launch_group(function, *args, trainer=trainer, **kwargs)
        except WorkerGroupError as failed:
            raise failed.error from failed.error.__cause__

    def launch_group(
        self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Like `launch`, but raise failures of workers as `WorkerGroupError`, and other errors unchanged."""
        if trainer is None:
            raise TypeError(f"{type(self).__name__}.launch() needs the trainer whose method it runs.")
        lightning_logging.open_runs(trainer)
        payload = payloads.Payload(trainer, function, args, kwargs)
        number, rerun = HISTORY.begin(), Rerun.of_this_process()
        if rerun is not None and number == rerun.number:
            join_launch(rerun, payload)
        with ExitStack() as contexts:
            for callback in lightning_trainer.callbacks(trainer):
                if isinstance(callback, ServingWorkers):
                    contexts.enter_context(callback.serving_workers())
            try:
                results = self._results(payload, number, rerun)
            except WorkerGroupError as failed:
                if failed.trace is not None:  # the weights are those of the moment of the failure, as after a local run
                    payloads.write_back(failed.trace, trainer, payload.given)
                    lightning_trainer.attach(trainer, trainer.lightning_module, payload.datamodule)
                raise
            return payloads.apply(payload, results)

    def _results(self, payload: payloads.Payload, number: int, rerun: Rerun | None) -> Sequence[payloads.Result]:
        """Return the results of a launch; in a process that runs the script again, those that the caller has kept."""
        if rerun is not None:
            outcome = earlier_outcome(rerun, number)
            if isinstance(outcome, BaseException):
                raise WorkerGroupError(outcome)
            return outcome
        try:
            results = self._run_until_done(payload)
        except WorkerGroupError as failed:
            self.remember(number, failed.error)
            raise
        self.remember(number, results)
        return results

    def remember(self, number: int, outcome: Sequence[payloads.Result] | BaseException) -> None:
        """Keep the outcome of a launch if later workers may run the script again."""
        HISTORY.all_by_script = False

    def _run_until_done(self, payload: payloads.Payload) -> Sequence[payloads.Result]:
        """Run the payload in new workers, again while workers die and the trainer allows restarts."""
        trainer = payload.trainer
        for left in range(trainer.max_restarts if isinstance(trainer, Restartable) else 0, -1, -1):
            try:
                return self.run_workers(payload)
            except WorkerGroupError as failed:
                # What the user's code has raised it would raise again.
                if left == 0 or not isinstance(failed.error, WorkerError):
                    raise
                assert isinstance(trainer, Restartable)
                warn_user(
                    f"{failed.error} Restarting all workers from the newest valid checkpoint "
                    f"(restart {trainer.max_restarts - left + 1} of {trainer.max_restarts})."
                )
                trainer.prepare_restart()
        raise AssertionError("not reached")


@contextmanager
def raising_worker_failures(trainer: Trainer) -> Iterator[None]:
    """Raise what ends the workers of a launch at the end of this context, around an entry point of the trainer.

    The workers have run the hooks on exceptions already. Where the launcher raises it, Lightning catches it and runs
    them again, on the caller's untrained copies, and a callback might save those over a good checkpoint.

    Args:
        trainer: whose strategy may launch workers.

    Raises:
        BaseException: what a worker has raised, or what has become of it; SystemExit for Ctrl-C, as Lightning ends a
            local run.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, PayloadLauncher):
        yield
        return
    failures: list[BaseException] = []

    def launch(*args: Any, **kwargs: Any) -> Any:
        try:
            return launcher.launch_group(*args, **kwargs)
        except WorkerGroupError as failed:
            failures.append(failed.error)
            return None

    vars(launcher)["launch"] = launch
    try:
        yield
    finally:
        del vars(launcher)["launch"]
    if failures:
        lightning_trainer.mark_interrupted(trainer)
        if isinstance(failures[0], KeyboardInterrupt):
            raise SystemExit(1)
        if type(failures[0]) is SystemExit:
            note = "".join(getattr(failures[0], "__notes__", [])[-1:])
            who = note.strip("[]") or "a worker"
            rank_zero_info(f"itwinai: the run ended because {who} called sys.exit({failures[0].code!r})")
        raise failures[0]


@contextmanager
def on_signals(signals: Sequence[signal.Signals], act: Callable[[int], None]) -> Iterator[dict[int, Any]]:
    """Handle signals with ``act`` inside the context; does nothing outside the main thread, which alone gets signals.

    The context gives what they did before.

    Args:
        signals: which.
        act: what to do; it gets the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return

    def handle(signum: int, _frame: FrameType | None) -> None:
        act(signum)

    # Back to what was there, and not to the default: notebooks, Ray and pytest have handlers of their own.
    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in signals}
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped_by(signum: int) -> SIGTERMException:
    """Return the exception that ends a run after a signal, with the exit code of the signal."""
    stopped = SIGTERMException()
    vars(stopped)["signum"] = signum  # survives the way from a worker to its caller, as `code` does not
    return stopped


def preemption_signals(trainer: Trainer) -> Sequence[signal.Signals]:
    """Return the signals that ask a trainer's run to stop in an orderly way."""
    signals: Sequence[signal.Signals] = getattr(trainer, "preemption_signals", (signal.SIGTERM,))
    return signals
