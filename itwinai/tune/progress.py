"""The state of a running search: how far it is, and what has just happened."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from itwinai.errors import MissingMetricError
from itwinai.reporting.formatting import count_text, short_names, span_text, value_text
from itwinai.reporting.search.ranking import paths_of
from itwinai.trials.records import Report, SearchRecord, Status, TrialRecord

_ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is.

    Attributes:
        done: number of trials that have ended, in any way.
        failed: those of them that failed for good.
        running: number of trials that run.
        waiting: number of trials that wait or pause, or have not begun; None if there is no end of them.
        seconds: that the search has taken.
        left: seconds that are left; None where that cannot be told.
    """

    done: int
    failed: int
    running: int
    waiting: int | None
    seconds: float
    left: float | None

    def counts(self) -> str:
        """Return how many trials stand where."""
        if self.waiting is None:
            parts = [f"{count_text(self.done, 'trial')} done"]
        else:
            parts = [f"{self.done} of {count_text(self.done + self.running + self.waiting, 'trial')} done"]
        parts += [
            f"{count} {what}"
            for count, what in ((self.running, "running"), (self.waiting, "waiting"), (self.failed, "failed"))
            if count
        ]
        return ", ".join(parts)

    def times(self) -> str:
        """Return how long the search has taken, and how long it will."""
        left = f", about {span_text(self.left)} left" if self.left else ""
        return f"{span_text(self.seconds)}{left}"


def progress_of(
    record: SearchRecord, total: int | None, at_once: int | None = None, budget: float | None = None
) -> SearchProgress:
    """Return how far a search is.

    The trials that have ended say how long one takes; those that were stopped early count too, as others will be.

    Args:
        record: the search.
        total: number of trials; None if there is no end of them.
        at_once: number of trials that run at the same time; None for as many as are running.
        budget: seconds that it may still take; None if there is no limit.
    """
    running = [trial for trial in record.trials if trial.status == "running"]
    done = sum(trial.status in _ENDED for trial in record.trials)
    waiting = None if total is None else max(total - done - len(running), 0)
    ends = [] if budget is None else [max(budget, 0.0)]
    ended = [trial.seconds for trial in record.trials if trial.status in ("finished", "stopped")]
    if waiting == 0 and not running:
        ends.append(0.0)
    elif waiting is not None and ended:
        mean = sum(ended) / len(ended)
        of_running = [max(mean - trial.seconds, 0.0) for trial in running]
        places = max(min(at_once or len(running), waiting + len(running)), 1)
        ends.append(max([(sum(of_running) + waiting * mean) / places, *of_running]))
    return SearchProgress(
        done=done,
        failed=sum(trial.status == "failed" for trial in record.trials),
        running=len(running),
        waiting=waiting,
        seconds=record.seconds,
        left=min(ends, default=None),
    )


class View:
    """A search as it is shown.

    Args:
        record: the search.
    """

    def __init__(self, record: SearchRecord) -> None:
        self.record = record
        self.names = short_names(paths_of(record))
        self.ranked = record.ranked()

    @property
    def leader(self) -> tuple[TrialRecord, Report] | None:
        """The best trial and its best report; None with several objectives, where there is no best."""
        if len(self.record.objectives) > 1 or not self.ranked:
            return None
        best = self.ranked[0].best_report(self.record.objectives[0])
        return None if best is None else (self.ranked[0], best)

    def best_text(self) -> str:
        """Return the best value and whose it is; with several objectives, how many trials are on the front."""
        if self.leader is not None:
            trial, report = self.leader
            return f"best {self._objectives_text(report)} (trial {trial.number})"
        front = self.record.pareto_front()
        return f"{count_text(len(front), 'trial')} on the Pareto front" if front else ""

    def leader_text(self) -> str:
        """Return that a trial is the best so far."""
        assert self.leader is not None
        trial, report = self.leader
        value = f"{self._objectives_text(report)} at report {report.number}"
        return _spaced([f"trial {trial.number} leads", value, self.parameters_text(trial)])

    def values_text(self, trial: TrialRecord) -> str:
        """Return the last report of a trial, and its best value of one objective."""
        last = last_report(trial, [objective.metric for objective in self.record.objectives])
        if last is None:
            return "no value" if trial.reports else "no report"
        text = self._objectives_text(last)
        best = trial.best_report(self.record.objectives[0]) if len(self.record.objectives) == 1 else None
        if best is None:
            return text
        if best is last:
            return f"{text} (its best)"
        value = value_text(best.metrics[self.record.objectives[0].metric])
        return f"{text} (best {value} at report {best.number})"

    def parameters_text(self, trial: TrialRecord) -> str:
        """Return the parameters of a trial in one line."""
        return " ".join(f"{self.names[path]}={value_text(value)}" for path, value in trial.parameters.items())

    def _objectives_text(self, report: Report) -> str:
        return " ".join(
            f"{objective.metric}={value_text(report.metrics[objective.metric])}" for objective in self.record.objectives
        )


def last_report(trial: TrialRecord, metrics: Sequence[str]) -> Report | None:
    """Return the last report of a trial in which all of some metrics are."""
    return next((report for report in reversed(trial.reports) if all(name in report.metrics for name in metrics)), None)


@dataclass(frozen=True)
class Event:
    """Something that has happened to a trial.

    Attributes:
        trial: its number.
        text: what, in one line.
        is_failure: whether it has failed.
    """

    trial: int
    text: str
    is_failure: bool = False


class Events:
    """Find out what has happened since the last time.

    Args:
        every: seconds between two events forever better values of the same trial.
    """

    def __init__(self, every: float = math.inf) -> None:
        self.every = every
        self._before: dict[int, tuple[Status, int]] | None = None
        self._best: tuple[int, float] | None = None
        self._printed_at = -math.inf

    def since_last(self, view: View) -> list[Event]:
        """Return the events since the last call; earlier ones are not shown."""
        present = {trial.number: (trial.status, trial.failures) for trial in view.record.trials}
        before = self._before
        self._before = present
        if is_hopeless(view.record):  # the search ends, and its error says why
            return []
        if before is None:
            self._best = _lead(view)
            return []
        leader = self._new_leader(view)
        events = [
            event
            for trial in view.record.trials
            if present[trial.number] != before.get(trial.number)
            for event in _events_of(view, trial, before.get(trial.number, ("waiting", 0)), trial.number == leader)
        ]
        if leader is not None and not any(event.trial == leader and not event.is_failure for event in events):
            events.append(Event(leader, view.leader_text()))
        return events

    def _new_leader(self, view: View) -> int | None:
        """Return the number of the best trial, if it is new enough to be shown."""
        lead = _lead(view)
        if lead is None or lead == self._best:
            return None
        is_same = self._best is not None and self._best[0] == lead[0]
        if is_same and time.monotonic() - self._printed_at < self.every:
            return None
        self._best, self._printed_at = lead, time.monotonic()
        return lead[0]


def is_hopeless(record: SearchRecord) -> bool:
    """Return whether a metric is wanted that no trial logs: the first error of this kind says it for all."""
    nothing = not any(trial.reports for trial in record.trials)
    return nothing and any(MissingMetricError.__name__ in trial.error for trial in record.trials)


def cleaned(text: str) -> str:
    """Return a text in one line, without colors and other characters for terminals."""
    return _CONTROL.sub(" ", _COLOR.sub("", text))


_COLOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def _lead(view: View) -> tuple[int, float] | None:
    if view.leader is None:
        return None
    trial, report = view.leader
    return trial.number, report.metrics[view.record.objectives[0].metric]


def _events_of(view: View, trial: TrialRecord, before: tuple[Status, int], leads: bool) -> Iterator[Event]:
    status, failures = before
    parameters = view.parameters_text(trial)
    if trial.status == "failed":
        often = f" {trial.failures} times" if trial.failures > 1 else ""
        head = f"trial {trial.number} failed{often}: {trial.error}"
        yield Event(trial.number, _spaced([head, parameters, span_text(trial.seconds)]), is_failure=True)
        return
    if trial.failures > failures:
        head = f"trial {trial.number} failed, and is retried: {trial.error}"
        yield Event(trial.number, _spaced([head, parameters]), is_failure=True)
    if trial.status in _ENDED and status not in _ENDED:
        head = f"trial {trial.number} {trial.status}{', the best so far' if leads else ''}"
        yield Event(trial.number, _spaced([head, view.values_text(trial), parameters, span_text(trial.seconds)]))


def _spaced(parts: Sequence[str]) -> str:
    return "  ".join(filter(None, parts))
