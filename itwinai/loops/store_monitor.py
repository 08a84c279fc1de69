"""A thread beside the training looks at the store of the workers a few times per second, so that no step need do so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import torch.distributed as dist

log = logging.getLogger(__name__)

POLLING = 0.25
"""Seconds between two looks."""

CROWD = 128
"""Number of workers from which on each looks less often: they all ask the one that holds the store."""

LEAVING = 5.0
"""Seconds for all workers to leave the store, before the one that holds it continues."""

ATTENTION = "attention"
"""Set in the store when there is something to look at, so that one question is enough as long as there is nothing."""


class StoreCheck(Protocol):
    """Something that is looked up in the store again and again."""

    def poll(self, attention: bool) -> bool:
        """Look once.

        Args:
            attention: whether some worker has put something into the store.

        Returns:
            False when there is nothing more to look after.
        """


class StoreMonitor:
    """Looks after several things in a thread of its own, so that the training need not.

    The worker that holds the store must not end while others look at it, so that all leave together.

    Args:
        store: what the workers have in common. Only the checks may use this connection.
        rank: this worker.
        world_size: number of workers.
        checks: what to look after.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, checks: Sequence[StoreCheck]) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.checks = list(checks)
        self.polling = POLLING * max(1.0, world_size / CROWD)
        self._hurry = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="itwinai-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def hurry(self) -> None:
        """Look at once. Does not wait, so that a signal handler may call it."""
        self._hurry.set()

    def end(self) -> None:
        """Look no longer."""
        self._ended = True
        self._hurry.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended:
                self._hurry.wait(self.polling)
                self._hurry.clear()
                attention = self.store.check([ATTENTION])
                if attention and self.store.check(["leaving"]):
                    break
                self.checks = [check for check in self.checks if check.poll(attention)]
            self._leave()
        except RuntimeError as error:  # the worker that holds the store is gone already
            log.debug("the thread that looks after the workers has ended: %s", error)

    def _leave(self) -> None:
        for key in (f"left/{self.rank}", "leaving", ATTENTION):
            self.store.set(key, "1")
        if self.rank != 0:
            return
        keys, until = [f"left/{rank}" for rank in range(self.world_size)], time.monotonic() + LEAVING
        # store.wait would print two lines of torch's own if a worker was killed.
        while not self.store.check(keys) and time.monotonic() < until:
            time.sleep(0.02)
