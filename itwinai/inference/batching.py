"""Batches of what several threads ask for at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from typing import Any

from itwinai.errors import PredictorError
from itwinai.inference import rows as of_rows
from itwinai.inference.rows import Layout

Run = Callable[[Any, int], tuple[Any, Layout]]
"""Runs a batch with a number of rows, and returns where the rows of the output are."""


class Request:
    """Rows that a caller waits for.

    Args:
        inputs: nested tensors.
        rows: how many rows they have.
    """

    def __init__(self, inputs: Any, rows: int) -> None:
        self.inputs = inputs
        self.rows = rows
        self.form: Hashable = of_rows.form_of(inputs, sizes=True)
        self.future: Future[tuple[Any, Layout]] = Future()
        self.taken = 0
        self.came_at = time.monotonic()
        self._outputs: list[Any] = []
        self._done = 0

    @property
    def left(self) -> int:
        """Number of rows that no batch has yet."""
        return self.rows - self.taken

    def deliver(self, output: Any, layout: Layout, rows: int) -> None:
        """Take the output for the next rows."""
        self._outputs.append(output)
        self._done += rows
        if self._done < self.rows:
            return
        try:
            result = of_rows.join_outputs(self._outputs, layout)
        except Exception as error:
            self.fail(error)
            return
        with suppress(InvalidStateError):  # the caller waits no longer
            self.future.set_result((result, layout))

    def fail(self, error: BaseException) -> None:
        """Give the caller an error, and ask for no more rows."""
        self.taken = self.rows
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Batching:
    """Runs batches in a thread of its own: large requests in several, small ones of equal form together.

    The thread exists while there is an object: it ends with `close`, with the object, and with the interpreter. A
    forked process gets a thread of its own when it asks for something.

    Args:
        run: runs a batch; it is never called twice at a time.
        batch_size: most rows of a batch.
        max_wait: seconds that a batch which is not full waits for other requests.
    """

    def __init__(self, run: Run, batch_size: int, max_wait: float) -> None:
        self._run = run
        self._batch_size = batch_size
        self._max_wait = max_wait
        self._closed = False
        self._threads: dict[int, _Thread] = {}

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def submit(self, request: Request) -> None:
        """Ask for a request's rows.

        Raises:
            PredictorError: it is closed.
        """
        if self._closed:
            raise PredictorError("This Predictor is closed. Load it again.")
        thread = self._thread()
        with thread.changed:
            thread.pending.append(request)
            thread.changed.notify()
            if not thread.is_working:
                self._start(thread, self._work, thread)
                thread.is_working = True

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the thread, between two batches, and return its result."""
        if self._closed:
            raise PredictorError("This Predictor is closed. Load it again.")
        return self._start(self._thread(), function).result()

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        self._closed = True
        if (thread := self._threads.get(os.getpid())) is not None:
            with thread.changed:
                thread.changed.notify()
            thread.executor.shutdown()

    def _thread(self) -> _Thread:
        # Neither the thread nor its locks outlive a fork.
        pid = os.getpid()
        return self._threads.get(pid) or self._threads.setdefault(pid, _Thread())

    def _start(self, thread: _Thread, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            return thread.executor.submit(function, *arguments)
        except RuntimeError as error:  # just closed, or the interpreter is shutting down
            raise PredictorError(f"This Predictor is closed: {error}.") from None

    # ------------------------------------------------------------------------------------------ in the thread

    def _work(self, thread: _Thread) -> None:
        """Run batches until nothing is left to do."""
        while batch := self._next(thread):
            self._run_batch(batch)
            with thread.changed:  # what has rows left waits for its turn, so that small requests are not kept waiting
                thread.pending.extend(request for request, _, _ in batch if request.left)

    def _next(self, thread: _Thread) -> list[tuple[Request, int, int]]:
        """Return what the next batch is made of: requests, and the first and last row of each."""
        with thread.changed:
            self._forget_cancelled(thread)
            if not thread.pending:
                thread.is_working = False
                return []
            first = thread.pending[0]
            until = first.came_at + self._max_wait
            while (
                self._waiting(thread, first) < self._batch_size
                and not self._closed
                and (seconds := until - time.monotonic()) > 0
            ):
                thread.changed.wait(seconds)
            batch: list[tuple[Request, int, int]] = []
            room = self._batch_size
            for request in [one for one in thread.pending if one.form == first.form]:
                start, stop = request.taken, request.taken + min(room, request.left)
                batch.append((request, start, stop))
                request.taken = stop
                room -= stop - start
                thread.pending.remove(request)
                if room <= 0:
                    break
            return batch

    def _waiting(self, thread: _Thread, first: Request) -> int:
        return sum(request.left for request in thread.pending if request.form == first.form)

    def _forget_cancelled(self, thread: _Thread) -> None:
        for request in [one for one in thread.pending if one.future.cancelled()]:
            thread.pending.remove(request)

    def _run_batch(self, batch: Sequence[tuple[Request, int, int]]) -> None:
        counts = [stop - start for _, start, stop in batch]
        try:
            joined = of_rows.join([of_rows.take(request.inputs, start, stop) for request, start, stop in batch])
            output, layout = self._run(joined, sum(counts))
            ends = list(accumulate(counts))
            parts = [of_rows.split(output, layout, end - count, end) for count, end in zip(counts, ends, strict=True)]
        except BaseException as error:
            if len(batch) == 1:
                batch[0][0].fail(error)
                return
            for part in batch:  # one of them is wrong, or they are too many
                self._run_batch([part])
            return
        # All at once: the callers who wake up compete with this thread for the interpreter.
        for (request, _, _), part, count in zip(batch, parts, counts, strict=True):
            request.deliver(part, layout, count)


class _Thread:
    """The thread of a process, with what it has to do."""

    def __init__(self) -> None:
        self.pending: deque[Request] = deque()
        self.is_working = False  # and looks for what is pending before it stops
        self.changed = threading.Condition()
        # Its thread starts with the first task. The interpreter waits for it at its end.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="itwinai-predictor")
