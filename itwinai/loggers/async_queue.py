"""Send records in a thread, in order and in batches, and lose none when their destination is away."""

from __future__ import annotations

import atexit
import functools
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

Record = TypeVar("Record")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two attempts to reach a destination that is away; each pause is twice the one before."""

EXIT_TIMEOUT = 10.0
"""Seconds that the end of the process waits for records that were not flushed."""


class Delivery(Generic[Record]):
    """A queue of records and the thread that empties it.

    The thread starts with the first record, in the process that puts it. Copies in other processes, pickled or forked,
    begin with an empty queue: what is in this one is sent from here.

    Args:
        send: sends some records, at most ``batch``. It may be called with the same ones again.
        is_transient: tells whether an exception that ``send`` raised may pass, so that the same records are tried
            again. After any other nothing more is sent.
        set_aside: keeps records that cannot be sent, and is told why.
        destination: its name in messages, without secrets.
        batch: most records that are sent at once.
        interval: most seconds for which a record waits for others to be sent with it.
        bound: number of records in the queue from which on `put` waits.
    """

    def __init__(
        self,
        send: Callable[[list[Record]], None],
        is_transient: Callable[[Exception], bool],
        set_aside: Callable[[list[Record], str], None],
        destination: str,
        *,
        batch: int = 1000,
        interval: float = 1.0,
        bound: int = 1_000_000,
    ) -> None:
        self.send = send
        self.is_transient = is_transient
        self.set_aside = set_aside
        self.destination = destination
        self.batch = batch
        self.interval = interval
        self.bound = bound
        self._forget()

    def _forget(self) -> None:
        self._queue: deque[Record] = deque()
        self._sending: list[Record] = []  # neither in the queue nor sent
        self._changed = threading.Condition()  # guards _sending and _failure; never held while anything is sent
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._failure: Exception | None = None
        self._sent = 0  # batches
        self._away: tuple[float, str] | None = None  # since when, and why
        self._said_away = False
        self._said_full = False

    def put(self, record: Record) -> None:
        """Queue a record; it takes about a microsecond.

        Raises:
            Exception: what ``send`` has raised, unless it was transient.
        """
        if self._process != os.getpid():
            self._start()
        if self._failure is not None:
            raise self._failure
        if len(self._queue) >= self.bound:
            self._wait_for_room()
        self._queue.append(record)
        if len(self._queue) == self.batch:  # every other record waits for the interval to end
            self._wake.set()

    def flush(self, timeout: float, patience: float = math.inf) -> bool:
        """Wait until everything is sent, and set aside what is not sent in time.

        The batch that is on its way then counts among the latter: whether it arrives is unknown.

        Args:
            timeout: in seconds.
            patience: seconds without any progress after which the wait ends before the timeout.

        Returns:
            Whether everything was sent.

        Raises:
            Exception: what ``send`` has raised, unless it was transient.
        """
        if self._process != os.getpid():
            return True
        reason = "the wait was interrupted"
        try:
            self._wait_while_sending(time.monotonic() + timeout, patience)
            reason = self._reason(f"not sent within {min(timeout, patience):g} s")
        finally:
            sent = not self._set_rest_aside(reason)
        if self._failure is not None:
            raise self._failure
        return sent

    def close(self) -> None:
        """End the thread; what was not sent is set aside. The next `put` starts another one."""
        if self._process != os.getpid():
            return
        self._set_rest_aside(self._reason("closed"))
        atexit.unregister(self._at_exit)
        with self._changed:  # the thread must not take from the new queue
            wake = self._wake
            self._forget()
        wake.set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _start(self) -> None:
        if self._process:  # forked off with a queue that its owner empties
            self._forget()
        with self._changed:
            if self._process:  # another thread was faster
                return
            self._thread = threading.Thread(target=self._run, name="itwinai-delivery", daemon=True)
            self._thread.start()
            atexit.register(self._at_exit)
            self._process = os.getpid()

    def _wait_while_sending(self, deadline: float, patience: float) -> None:
        """Wait until nothing is left, or cannot be sent, or nothing was sent for some time."""
        with self._changed:
            self._wake.set()
            while self._unsent() and self._failure is None:
                moved = functools.partial(self._has_moved_since, self._sent)
                if not self._changed.wait_for(moved, min(deadline - time.monotonic(), patience)):
                    return

    def _has_moved_since(self, sent: int) -> bool:
        return self._sent != sent or self._failure is not None or not self._unsent()

    def _unsent(self) -> int:
        return len(self._queue) + len(self._sending)

    def _reason(self, otherwise: str) -> str:
        if self._failure is not None:
            return str(self._failure)
        return self._away[1] if self._away else otherwise

    def _wait_for_room(self) -> None:
        if not self._said_full:
            self._said_full = True
            log.warning(
                "%d records wait for %s, which is slower than this run: from now on the run waits too.",
                len(self._queue),
                self.destination,
            )
        with self._changed:
            self._wake.set()
            self._changed.wait_for(lambda: self._failure is not None or len(self._queue) < self.bound)
        if self._failure is not None:
            raise self._failure

    def _set_rest_aside(self, reason: str) -> bool:
        """Set aside what was not sent; return whether there was something."""
        with self._changed:
            rest = self._sending
            self._sending = []  # another list: thereby the thread sees that these are not its any more
            rest = [*rest, *_emptied(self._queue, len(self._queue))]
            self._changed.notify_all()
        if rest:
            self.set_aside(rest, reason)
        return bool(rest)

    def _at_exit(self) -> None:
        if self._process == os.getpid():  # not in a process that was forked off
            try:
                self.flush(EXIT_TIMEOUT)
            finally:
                self.close()

    # ------------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        wake = self._wake
        while self._thread is threading.current_thread():
            wake.wait(self.interval)
            wake.clear()
            while records := self._next_batch():
                self._deliver(records, wake)

    def _next_batch(self) -> list[Record]:
        with self._changed:
            if self._thread is not threading.current_thread() or self._failure is not None:
                return []
            self._sending = _emptied(self._queue, min(self.batch, len(self._queue)))
            return self._sending

    def _deliver(self, records: list[Record], wake: threading.Event) -> None:
        """Send records, and retry until it works or they are set aside."""
        pause = FIRST_PAUSE
        while self._sending is records:
            try:
                self.send(records)
            except Exception as error:  # raised by the next put or flush
                if not self.is_transient(error):
                    self._done(records, error)
                    return
                self._note_away(str(error))
                wake.wait(pause * random.uniform(0.8, 1.2))  # not all runs of a cluster at the same moment
                wake.clear()
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._note_back()
                self._done(records, None)
                return

    def _done(self, records: list[Record], error: Exception | None) -> None:
        with self._changed:
            if self._sending is records:
                self._failure = error
                if error is None:
                    self._sending = []
                    self._sent += 1
                self._changed.notify_all()

    def _note_away(self, reason: str) -> None:
        if self._away is None:  # not said: a connection that was idle may just have been closed
            self._away = time.monotonic(), reason
            return
        if not self._said_away:
            self._said_away = True
            log.warning(
                "%s is away: %s. The run continues; what it logs waits here and is tried again.",
                self.destination,
                reason,
            )
        self._away = self._away[0], reason

    def _note_back(self) -> None:
        if self._away is not None and self._said_away:
            seconds = time.monotonic() - self._away[0]
            log.warning("%s is back after %.0f s; %d records have waited.", self.destination, seconds, self._unsent())
        self._away, self._said_away = None, False


def _emptied(queue: deque[Record], number: int) -> list[Record]:
    """Take a number of records out of a queue, to which others may append at the same time."""
    return [queue.popleft() for _ in range(number)]
