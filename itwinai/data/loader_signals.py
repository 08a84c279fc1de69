"""Processes of a DataLoader that outlive the signals by which a scheduler stops their run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


class OutliveSignals:
    """The function that initializes the processes of a DataLoader: only their own run ends them.

    SLURM signals all processes of a step, these often first, and torch lets them die of SIGTERM. The run would get an
    error in place of its next batch, where it is about to save.

    Args:
        then: the loader's own function, if there is one.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Let this process ignore SIGUSR1 and SIGTERM, unless the latter comes from the process it loads for."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        # A handler cannot tell who has sent a signal, so a thread waits for it. Threads of libraries that are older, as
        # numpy's in a spawned process, do not block it, and would end the process without a handler.
        signal.signal(signal.SIGTERM, _do_nothing)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="itwinai-signals", daemon=True).start()
        if self.then is not None:
            self.then(worker_id)


def _do_nothing(number: int, frame: object) -> None:
    pass


def _end_with_parent(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)  # as torch ends it
