"""What all launchers do: pack the payload, have it run by workers, apply the result or hand over the failure."""

from __future__ import annotations

import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from itwinai import compat
from itwinai.launchers import payload as payloads
from itwinai.launchers.failure import WorkersFailed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class PayloadLauncher(compat.Launcher):
    """Runs an entry point of a trainer in a group of new workers."""

    @property
    def is_interactive_compatible(self) -> bool:
        """Nothing of the caller's process is forked or executed again, so notebooks work."""
        return True

    @abstractmethod
    def run_workers(self, packed: bytes, trainer: Trainer) -> Sequence[payloads.Result]:
        """Start the workers, supervise them, and return their results.

        Args:
            packed: the packed payload, the same for every worker.
            trainer: the caller's trainer, which may not be changed.

        Raises:
            WorkersFailed: the group ended without a result; no process of it is left.
        """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Run an entry point in the workers and make the caller's objects look as if it had run here.

        Args:
            function: a bound method of ``trainer``.
            *args: its positional arguments.
            trainer: the caller's trainer.
            **kwargs: its keyword arguments.

        Returns:
            What the entry point returns; None after a failure, which `ItwinaiTrainer` then raises.
        """
        if trainer is None:
            raise TypeError(f"{type(self).__name__}.launch() needs the trainer whose method it runs.")
        payload = payloads.Payload(trainer, function, args, kwargs)
        try:
            results = self.run_workers(payload.pack(), trainer)
        except WorkersFailed as failed:
            # The workers have run the hooks on exceptions already. Raised from here, Lightning would run them again
            # on the caller's untrained copies, and a callback might save those over a good checkpoint.
            if hasattr(trainer, "launch_failure"):
                trainer.launch_failure = failed.error
                return None
            raise failed.error from failed.error.__cause__
        return payloads.apply(payload, results)


@contextmanager
def on_sigterm(act: Callable[[int], None]) -> Iterator[None]:
    """Let SIGTERM do something else meanwhile, unless this is not the main thread, which alone gets signals.

    Args:
        act: what to do; it gets the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _frame: FrameType | None) -> None:
        act(signum)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
