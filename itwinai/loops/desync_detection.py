"""A worker that logs what another does not would wait for it forever. Here that is found out.

Workers that exchange different keys at the same time notice it by themselves (see `metric_sync`). But where only some
of them have anything to exchange, the others continue, and wait in the next step for those that wait for them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from itwinai.errors import LoggedKeysError
from itwinai.loops.store_monitor import ATTENTION

PATIENCE = 10.0
"""Seconds that a worker waits before it asks where the others are."""

CERTAINTY = 2.0
"""Seconds that another has to be past the exchange: it may have ended this moment."""


@dataclass(frozen=True)
class Waiting:
    """An exchange that this worker is in.

    Attributes:
        number: of the exchange, counted by this worker.
        position: where the worker is in its run.
        names: what it has to exchange.
        since: when it began, by the monotonic clock.
    """

    number: int
    position: int
    names: tuple[str, ...]
    since: float


class MissingWorkers:
    """One worker's part in finding out who does not come to an exchange.

    Args:
        store: what the workers have in common.
        rank: this worker.
        world_size: number of workers.
        position: gives a number that grows while this worker continues, and is the same for all where they are in step.
        fail: called, from the thread that looks, with the error.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        position: Callable[[], int],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.position = position
        self.fail = fail
        self.waiting: Waiting | None = None
        self._exchanges = 0
        self._missed: tuple[Waiting, float] | None = None

    @contextmanager
    def expecting_all(self, names: Sequence[str]) -> Iterator[None]:
        """Note that this worker waits for the others to exchange some values."""
        self._exchanges += 1
        self.waiting = Waiting(self._exchanges, self.position(), tuple(names), time.monotonic())
        try:
            yield
        finally:
            self.waiting = None

    def poll(self, attention: bool) -> bool:
        """Ask where the others are if this worker waits too long, and answer those who ask."""
        waiting = self.waiting
        if waiting is not None and time.monotonic() - waiting.since > PATIENCE:
            self._ask(waiting)
        if attention:
            self._answer()
        return True

    def _ask(self, waiting: Waiting) -> None:
        self.store.set(f"waits/{self.rank}", json.dumps([waiting.number, waiting.position]))
        self.store.set(ATTENTION, "1")
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        past = [rank for rank in others if self.store.check([f"past/{rank}/{self.rank}/{waiting.number}"])]
        if not past:
            return
        if self._missed is None or self._missed[0] is not waiting:
            self._missed = (waiting, time.monotonic())
        elif time.monotonic() - self._missed[1] > CERTAINTY and self.waiting is waiting:
            self.fail(
                LoggedKeysError(
                    f"rank {self.rank} logs {', '.join(map(repr, waiting.names))} with sync_dist=True, but "
                    f"{ranks(past)} continued without logging it, so rank {self.rank} would wait forever. Log the same "
                    "keys on all ranks (a neutral value where there is none), or remove sync_dist=True."
                )
            )

    def _answer(self) -> None:
        for other in range(self.world_size):
            if other == self.rank or not self.store.check([f"waits/{other}"]):
                continue
            number, position = json.loads(self.store.get(f"waits/{other}"))
            if self.position() > position:
                self.store.set(f"past/{self.rank}/{other}/{number}", "1")


def ranks(numbers: Sequence[int]) -> str:
    """Return ranks as text: ``rank 1``, ``ranks 1, 2``."""
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"
