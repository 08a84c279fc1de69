"""Lightning's signal handlers, which leave to others what SIGTERM means for several workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


IMPATIENT = 1.0
"""Seconds after a signal from which on the same one again ends the process at once. Launchers and schedulers both
pass on the same signal, so that a worker may get it twice."""


class SignalConnector(_SignalConnector):
    """Lightning's signal handlers, which leave to others what SIGTERM means for several workers.

    Lightning's own handler calls a collective operation, and the other workers may be inside another one.

    Attributes:
        on_sigterm: called when SIGTERM has come. Without it the run of this process alone stops, at the next batch.
        signum: the signal that has come last.
        others: signals that mean the same as SIGTERM, unless someone handles them.
        requeues: whether SLURM has asked to have its job queued again.
        is_patient: whether a second signal is not taken for hurry. SLURM sends SIGTERM again when the time is up, and
            SIGKILL half a minute later, which a run that is still saving can use.
        ends_with_run: whether this process ends with the run, as workers do. The signal that has stopped them reaches
            some late, and must not kill them before they have said how the run has ended.
    """

    on_sigterm: Callable[[], None] | None = None
    signum = signal.SIGTERM
    others: tuple[signal.Signals, ...] = ()
    requeues = False
    is_patient = False
    ends_with_run = False
    _first: dict[int, float]
    _process = 0

    @override
    def register_signal_handlers(self) -> None:
        self._first = {}
        self._process = os.getpid()
        self.requeues = False
        before = signal.getsignal(signal.SIGTERM)
        if exits_at_once := str(getattr(before, "__module__", "")).startswith("ray."):
            # `ray.init` handles SIGTERM with an exit, which would come before the run has saved.
            self._register_signal(signal.SIGTERM, signal.SIG_DFL)
        super().register_signal_handlers()
        if exits_at_once:
            self._original_handlers[signal.SIGTERM] = before
        for other in self.others:
            if not self._has_already_handler(other):  # the user's own meaning of SIGUSR1, say, comes first
                self._register_signal(other, self._sigterm_notifier_fn)

    @override
    def teardown(self) -> None:
        # Lightning puts back the handlers from before the run, here the default one, which kills. A scheduler signals
        # the caller and its workers, and the caller passes it on: one of both may come when the run is over already.
        if self.ends_with_run and self.received_sigterm:
            self._original_handlers.update(dict.fromkeys((signal.SIGTERM, *self.others), signal.SIG_IGN))
        super().teardown()

    def _slurm_sigusr_handler_fn(self, signum: Any, _: Any) -> None:
        # Lightning saves right here, while the workers may be inside an operation.
        self.requeues = True
        self._sigterm_notifier_fn(signum, _)

    def _sigterm_notifier_fn(self, signum: Any, _: Any) -> None:
        # Runs in the midst of whatever the main thread does, maybe a collective: it must not wait for other workers.
        is_copy = os.getpid() != self._process
        if is_copy and signum != signal.SIGTERM:
            return  # one that the user's code has forked, which SLURM signals as well, though nothing is to stop there
        now = time.monotonic()
        again = now - self._first.setdefault(signum, now) > IMPATIENT
        if is_copy or (again and not self.is_patient):
            # By the default handler and not by an exit code: whoever waits for this process sees which signal it was.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signal.Signals(signum)
        # In the caller of workers: these have sessions of their own, which a terminal does not reach.
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.received_sigterm:
            launcher.kill(signum)
        if self.on_sigterm is None:
            self.received_sigterm = True  # Lightning looks at it after each batch
        else:
            self.on_sigterm()


def replace_signal_connector(trainer: Trainer) -> None:
    """Let `SignalConnector` handle the trainer's signals."""
    trainer._signal_connector = SignalConnector(trainer)


def signal_connector(trainer: Trainer) -> SignalConnector:
    """Return the replaced signal connector of a trainer."""
    connector = trainer._signal_connector
    assert isinstance(connector, SignalConnector)
    return connector


def asks_to_requeue(trainer: Trainer) -> bool:
    """Return whether SLURM has asked to have the job queued again, as it does before the time limit."""
    connector = trainer._signal_connector
    return isinstance(connector, SignalConnector) and connector.requeues


def expect_late_signals(trainer: Trainer) -> None:
    """Let this worker end by itself when a signal has stopped the run, however late it reaches this process."""
    connector = trainer._signal_connector
    if isinstance(connector, SignalConnector):
        connector.ends_with_run = True
