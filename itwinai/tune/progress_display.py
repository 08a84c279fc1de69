"""What people see of a search while it runs: a table that is kept up to date, or lines where there is no terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from itwinai.errors import require
from itwinai.trials.records import SearchRecord
from itwinai.tune.progress import Events, SearchProgress, View, cleaned, progress_of
from itwinai.tune.progress_table import frame

if TYPE_CHECKING:
    from rich.live import Live

_SHARE = 0.05
"""Most of the time of the process that searches which this may cost."""


class SearchView:
    """Show how a search goes on.

    In a terminal that is a table, which is drawn anew some times per second, and stays when the search is over.
    Elsewhere there are lines: one for each trial that ends or fails, and for each that takes the lead, and from time to
    time one for all.

    Args:
        total: number of trials; None if there is no end of them.
        at_once: number of trials that run at the same time, from which the time that is left is worked out; by default
            those that are running.
        time_budget_s: seconds after which the search ends, from when the view is entered.
        stream: where to show it; by default standard output.
        every: where there is no terminal, seconds between two lines for all, and between two for ever better values of
            the same trial.
        interval: least seconds between two looks at the search; more where it is large.
    """

    def __init__(
        self,
        total: int | None = None,
        at_once: int | None = None,
        time_budget_s: float | None = None,
        stream: TextIO | None = None,
        every: float = 30.0,
        interval: float = 0.25,
    ) -> None:
        self.total = total
        self.at_once = at_once
        self.time_budget_s = time_budget_s
        self.stream = stream
        self.every = every
        self.interval = interval
        self._stack = ExitStack()
        self._screen: _Screen | None = None
        self._began = 0.0
        self._due = 0.0
        self._cost = 0.0
        self._waits: SearchRecord | None = None

    def __enter__(self) -> SearchView:
        stream = self.stream or sys.stdout
        self._began = time.monotonic()
        self._due, self._cost, self._waits = 0.0, 0.0, None
        screen: _Screen = _Table(stream) if _is_live(stream) else _Lines(stream, self.every)
        self._screen = self._stack.enter_context(screen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._waits is not None:
                self._show(self._waits)
        finally:
            self._screen = None
            self._stack.__exit__(kind, error, trace)

    def show(self, record: SearchRecord) -> None:
        """Show where a search stands, at once or soon.

        Args:
            record: the search; `SearchCourse` calls this with it, if it is told to.
        """
        if time.monotonic() < self._due:
            self._waits = record
        else:
            self._show(record)

    def _show(self, record: SearchRecord) -> None:
        if self._screen is None:
            return
        began = time.monotonic()
        budget = None if self.time_budget_s is None else self.time_budget_s - (began - self._began)
        self._screen.show(View(record), progress_of(record, self.total, self.at_once, budget))
        self._waits = None
        now = time.monotonic()
        cost = now - began
        # Of two, as the first look and some later ones take longer for reasons of their own.
        self._due = now + max(self.interval, min(cost, self._cost) / _SHARE)
        self._cost = cost


class _Screen(Protocol):
    """Something that shows a search."""

    def __enter__(self) -> _Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, view: View, progress: SearchProgress) -> None: ...


class _Lines:
    """Tell what happens in lines, without any characters that only a terminal understands.

    Args:
        stream: where to write.
        every: seconds between two lines for all.
    """

    def __init__(self, stream: TextIO, every: float) -> None:
        self.stream = stream
        self.every = every
        self._events = Events(every)
        self._told = time.monotonic()
        self._latest: str | None = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._latest is not None:
            self._write(self._latest)

    def show(self, view: View, progress: SearchProgress) -> None:
        """Write a line for each thing that has happened since the last time."""
        if self._latest is None and progress.done:
            self._write(f"goes on: {progress.counts()}")
        for event in self._events.since_last(view):
            self._write(event.text)
        self._latest = "; ".join(filter(None, [progress.counts(), view.best_text(), progress.times()]))
        if time.monotonic() - self._told >= self.every:
            self._write(self._latest)
            self._told = time.monotonic()

    def _write(self, text: str) -> None:
        print(cleaned(text), file=self.stream, flush=True)


class _Table:
    """Keep a table up to date, and write of failures above it.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        require("rich", "Install it with `pip install 'itwinai[tune]'`.", "The table of `itwinai tune`")
        from rich.console import Console
        from rich.live import Live

        self._events = Events()
        self._stack = ExitStack()
        self._live: Live = Live(console=Console(file=stream), auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> _Table:
        # What is printed and logged meanwhile, by Ray above all, goes above the table.
        out, errors = sys.stdout, sys.stderr
        with ExitStack() as stack:
            stack.enter_context(self._live)
            stack.enter_context(_logging_to({id(out): sys.stdout, id(errors): sys.stderr}))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def show(self, view: View, progress: SearchProgress) -> None:
        """Draw the table anew."""
        for event in self._events.since_last(view):
            if event.is_failure:
                self._live.console.print(cleaned(event.text), style="red", markup=False, highlight=False)
        self._live.update(frame(view, progress, self._live.console.size), refresh=True)


@contextmanager
def _logging_to(streams: Mapping[int, TextIO]) -> Iterator[None]:
    """Let what is logged to some streams go to others: handlers keep the stream that they have found at first.

    Args:
        streams: the new ones, by the identity of the old ones.
    """
    known = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in known if isinstance(logger, logging.Logger) for handler in logger.handlers}
    moved = [
        (handler, handler.setStream(streams[id(handler.stream)]))
        for handler in handlers
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams
    ]
    try:
        yield
    finally:
        for handler, before in moved:
            if before is not None:
                handler.setStream(before)


def _is_live(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that can draw a table anew."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
