"""All workers stop before the same batch once one of them has received SIGTERM, at no cost per step.

A worker that stopped at once would leave the others waiting in their next collective operation forever. So every
worker has a thread that waits for one of them to ask for a stop, through the store by which the workers have found each
other. Then it holds its worker back at the next batch, and tells the others which batch that can be at the earliest.
The latest of all these is where all of them stop. A worker that is held back waits only for the threads of the others,
never for what they compute, so that it can be in the middle of a step with one that is not held back yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from itwinai.loops.store_monitor import ATTENTION

TIMEOUT = timedelta(seconds=20)
"""For the threads of all workers to answer. A scheduler seldom gives more than 30 s between SIGTERM and SIGKILL."""

_CLOSING = timedelta(seconds=15)
"""For rank 0 to close its loggers: more than a logger of ours waits for a server that does not answer."""

_LEAVING = 3.0
"""Seconds for the process of rank 0 to end after that."""


def end_after_rank_zero(store: dist.Store, rank: int) -> None:
    """Let the process of rank 0 end first when a signal has stopped the run.

    Launchers end all workers as soon as one has ended with an exit code other than 0, and after a signal all do. Rank 0
    is the last to be ready, as it alone has loggers to close.

    Args:
        store: what the workers have in common.
        rank: this worker; rank 0 calls this when it is ready.
    """
    if rank == 0:
        store.set("closed", "1")
        return
    with suppress(RuntimeError):  # it has taken too long, or is gone
        store.wait(["closed"], _CLOSING)
        time.sleep(_LEAVING)


class StopAgreement:
    """One worker's part in agreeing on where to stop.

    Args:
        store: what the workers have in common.
        rank: this worker.
        world_size: number of workers.
        position: gives the number of batches that this worker has begun.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, position: Callable[[], int]) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.position = position
        self.held_back = False
        self._asked = False
        self._stop_at: int | None = None
        self._decided = threading.Event()

    def ask(self) -> None:
        """Ask all workers to stop, from the next look on."""
        self._asked = True

    def stops_here(self) -> bool:
        """Return whether this worker has to stop before its next batch. Called only when it is held back."""
        if not self._decided.wait(TIMEOUT.total_seconds()):
            return True  # a worker that does not even answer will not continue either
        assert self._stop_at is not None
        return self.position() >= self._stop_at

    def poll(self, attention: bool) -> bool:
        """Take part in the agreement once someone has asked for it."""
        if not self._asked and not (attention and self.store.check(["asked"])):
            return True
        self.store.set("asked", "1")
        self.store.set(ATTENTION, "1")
        self.held_back = True
        # It may have looked just before it was held back, and be about to begin the batch at its position.
        self.store.set(f"earliest/{self.rank}", str(self.position() + 1))
        ranks = range(self.world_size)
        self.store.wait([f"earliest/{rank}" for rank in ranks], TIMEOUT)
        self._stop_at = max(int(self.store.get(f"earliest/{rank}")) for rank in ranks)
        self._decided.set()
        return False
