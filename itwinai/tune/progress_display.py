"""Show a search while it runs: a table that is kept up to date, or lines where there is no terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TextIO

from itwinai.errors import require
from itwinai.trials.records import SearchRecord
from itwinai.tune.progress import Events, SearchProgress, View, cleaned, is_hopeless, progress_of
from itwinai.tune.progress_table import frame

Show = Callable[[View, SearchProgress], None]
"""Shows where a search stands."""

_SHARE = 0.05
"""Most of the time of the searching process that this may cost."""


class SearchView:
    """Show the progress of a search.

    In a terminal that is a table, which is redrawn a few times per second, and stays when the search is over. Elsewhere
    it is lines: one for each trial that ends, fails or takes the lead, and from time to time one for all.

    Args:
        total: number of trials; None if there is no end of them.
        at_once: number of trials that run at the same time, from which the time that is left is worked out; by default
            those that are running.
        time_budget_s: seconds after which the search ends, from when the view is entered.
        stream: where to show it; by default standard output.
        every: where there is no terminal, seconds between two lines for all, and between two forever better values of
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
        self._screen: Show | None = None
        self._began = 0.0
        self._due = 0.0
        self._cost = 0.0
        self._waits: SearchRecord | None = None

    def __enter__(self) -> SearchView:
        stream = self.stream or sys.stdout
        self._began = time.monotonic()
        self._due, self._cost, self._waits = 0.0, 0.0, None
        screen = _table(stream) if _is_live(stream) else _lines(stream, self.every)
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
            record: the search; `SearchRecorder` calls this with it, if it is told to.
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
        self._screen(View(record), progress_of(record, self.total, self.at_once, budget))
        self._waits = None
        now = time.monotonic()
        cost = now - began
        # Of two, as the first look and some later ones take longer for reasons of their own.
        self._due = now + max(self.interval, min(cost, self._cost) / _SHARE)
        self._cost = cost


@contextmanager
def _lines(stream: TextIO, every: float) -> Iterator[Show]:
    """Print what happens in lines, without characters that only a terminal understands.

    Args:
        stream: where to write.
        every: seconds between two lines for all.
    """
    events, printed, latest = Events(every), time.monotonic(), ""

    def write(text: str) -> None:
        print(cleaned(text), file=stream, flush=True)

    def show(view: View, progress: SearchProgress) -> None:
        nonlocal printed, latest
        if not latest and progress.done:
            write(f"running: {progress.counts()}")
        for event in events.since_last(view):
            write(event.text)
        if is_hopeless(view.record):  # its error says all
            latest = ""
            return
        latest = "; ".join(filter(None, [progress.counts(), view.best_text(), progress.times()]))
        if time.monotonic() - printed >= every:
            write(latest)
            printed = time.monotonic()

    try:
        yield show
    finally:
        if latest:
            write(latest)


@contextmanager
def _table(stream: TextIO) -> Iterator[Show]:
    """Keep a table up to date, and print failures above it.

    Args:
        stream: the terminal.
    """
    require("rich", "Install it with `pip install 'itwinai[tune]'`.", "The table of `itwinai tune`")
    from rich.console import Console
    from rich.live import Live

    events, out, errors = Events(), sys.stdout, sys.stderr
    live = Live(console=Console(file=stream), auto_refresh=False, vertical_overflow="crop")

    def show(view: View, progress: SearchProgress) -> None:
        for event in events.since_last(view):
            if event.is_failure:
                live.console.print(cleaned(event.text), style="red", markup=False, highlight=False)
        live.update(frame(view, progress, live.console.size), refresh=True)

    # Output of others, mostly Ray, goes above the table.
    with live, _logging_to({id(out): sys.stdout, id(errors): sys.stderr}):
        yield show


@contextmanager
def _logging_to(streams: Mapping[int, TextIO]) -> Iterator[None]:
    """Send what is logged to some streams to others: handlers keep the stream that they have found first.

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
    """Return whether a stream is a terminal that can redraw a table."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
