"""All workers end an epoch after the same batch, or an error says which of them does not.

A worker whose loader has fewer batches, or that alone has been told to stop, would wait in one collective operation
while the others wait in another: forever, or until the library that moves the data ends the process. Where it is not
certain that all end alike, a worker therefore asks the others before it continues, through the store by which they have
found each other. The thread that looks at the store answers for its worker, which may be waiting already.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from itwinai.errors import UnequalStepsError
from itwinai.loops.store_monitor import ATTENTION, POLLING

FIRST_PAUSE = 0.002
"""Seconds until the first look for answers; the others are mostly about to come."""


@dataclass(frozen=True)
class EpochPosition:
    """How far a worker is.

    Attributes:
        epoch: the epoch.
        batches: number of its batches that were begun.
        ended: whether the epoch has ended after these, as planned.
    """

    epoch: int
    batches: int
    ended: bool = False

    def is_past(self, other: EpochPosition) -> bool:
        """Return whether a worker that is here does not stop at another place any more."""
        return (self.epoch, self.batches, self.ended) > (other.epoch, other.batches, other.ended)


class EpochEnds:
    """One worker's part in finding out whether all end an epoch after the same batch.

    Args:
        store: what the workers have in common.
        rank: this worker.
        world_size: number of workers.
        place: gives this worker's place.
        hurry: lets the thread that calls `look` do so at once.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        place: Callable[[], EpochPosition],
        hurry: Callable[[], None],
    ) -> None:
        self.store = store
        self.rank = rank
        self.others = [other for other in range(world_size) if other != rank]
        self.place = place
        self.hurry = hurry
        self._asked: EpochPosition | None = None
        self._reason = ""
        self._published = False
        self._agreed_until = EpochPosition(-1, -1)
        self._answered = threading.Event()
        self._answers: dict[int, tuple[EpochPosition, str]] = {}

    def agree(self, reason: str) -> None:
        """Wait until all workers want to end the epoch where this one is.

        Args:
            reason: why this one does, for the message.

        Raises:
            UnequalStepsError: another continues, or ends elsewhere.
        """
        here = self.place()
        if here == self._agreed_until:
            return
        self._answers, self._reason, self._published = {}, reason, False
        self._answered.clear()
        self._asked = here
        pause = FIRST_PAUSE
        self.hurry()
        while not self._answered.wait(pause):
            self.hurry()
            pause = min(2 * pause, POLLING)
        elsewhere = {rank: answer for rank, answer in self._answers.items() if answer[0] != here}
        if elsewhere:
            raise UnequalStepsError(_describe(self.rank, here, reason, elsewhere))
        self._asked, self._agreed_until = None, here

    def poll(self, attention: bool) -> bool:
        """Ask for this worker, and answer those who ask."""
        asked = self._asked
        if asked is not None and not self._published:
            self.store.set(_key("asked", asked.epoch, self.rank), json.dumps([asked.batches, self._reason]))
            self.store.set("ends", "1")
            self.store.set(ATTENTION, "1")
            self._published = attention = True
        if attention and self.store.check(["ends"]):
            self._answer(asked)
            if asked is not None:
                self._read_answers(asked)
        return True

    def _answer(self, asked: EpochPosition | None) -> None:
        """Tell the others if this worker is past the place that they ask about, and does not ask itself."""
        here = self.place()
        for other in self.others:
            for epoch in {here.epoch, here.epoch - 1}:
                if epoch < 0 or not self.store.check([_key("asked", epoch, other)]):
                    continue
                batches, _ = json.loads(self.store.get(_key("asked", epoch, other)))
                question = EpochPosition(epoch, batches)
                own = self._agreed_until if asked is None else asked
                if own != question and own.epoch <= epoch and here.is_past(question):
                    text = json.dumps([here.epoch, here.batches, here.ended])
                    self.store.set(_key("past", epoch, self.rank), text)

    def _read_answers(self, asked: EpochPosition) -> None:
        for other in self.others:
            if self.store.check([_key("asked", asked.epoch, other)]):
                batches, reason = json.loads(self.store.get(_key("asked", asked.epoch, other)))
                self._answers[other] = EpochPosition(asked.epoch, batches), reason
            elif self.store.check([_key("past", asked.epoch, other)]):
                self._answers[other] = EpochPosition(*json.loads(self.store.get(_key("past", asked.epoch, other)))), ""
        if len(self._answers) == len(self.others):
            self._answered.set()


def _key(kind: str, epoch: int, rank: int) -> str:
    return f"{kind}/{epoch}/{rank}"


def _describe(rank: int, here: EpochPosition, reason: str, elsewhere: dict[int, tuple[EpochPosition, str]]) -> str:
    others = []
    for other, (place, why) in sorted(elsewhere.items()):
        if why:
            others.append(f"rank {other} ends it after {place.batches}, because {why}")
        elif place.epoch != here.epoch:
            others.append(f"rank {other} continues with epoch {place.epoch}")
        elif place.ended:
            others.append(f"rank {other} continues after the epoch")
        else:
            others.append(f"rank {other} continues with batch {place.batches}")
    return (
        f"rank {rank} ends epoch {here.epoch} after {here.batches} batches, because {reason}; {'; '.join(others[:8])}. "
        "Workers train in step, and would wait for each other forever. Give all as many batches (limit_train_batches, "
        "or a dataset that divides itself evenly), and stop all at once: "
        "trainer.should_stop = trainer.strategy.reduce_boolean_decision(stop, all=False), called on all workers."
    )
