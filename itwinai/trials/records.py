"""What is known of the trials of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["min", "max"]

Status = Literal["waiting", "running", "paused", "finished", "stopped", "failed"]
"""``finished`` trials have ended by themselves, ``stopped`` ones were ended by the scheduler or the user."""


@dataclass(frozen=True)
class Objective:
    """A metric to minimize or maximize.

    Attributes:
        metric: name of a logged metric.
        mode: ``min`` or ``max``.
    """

    metric: str
    mode: Mode

    def better(self, first: float, second: float) -> bool:
        """Return whether one value is better than another; any number is better than one that is not finite."""
        if not math.isfinite(second):
            return math.isfinite(first)
        return first < second if self.mode == "min" else first > second


@dataclass(frozen=True)
class Range:
    """What the values of a parameter were drawn from.

    Attributes:
        low: the lowest number; None for choices, and where there is no bound.
        high: the highest number; None for choices, and where there is no bound.
        log: whether numbers were drawn by their logarithm.
        choices: what was chosen from; empty for numbers.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Sequence[Any] = ()


@dataclass(frozen=True)
class Report:
    """What a trial has reported at one moment.

    Attributes:
        number: 1 for the trial's first.
        seconds: that the trial had run until then, over all its starts.
        metrics: the metrics, by name.
        at: seconds that the search had taken until then, over all its starts; None where that is not known.
    """

    number: int
    seconds: float
    metrics: Mapping[str, float]
    at: float | None = None


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: 0 for the search's first.
        name: under which its folder, its run of a logger and its lines in the terminal are found.
        parameters: what was drawn for it, by path in the config; parameters whose condition was not met are left out.
        status: where it stands.
        reports: what it has reported, in order.
        seconds: that it has run, over all its starts.
        failures: how often it has failed.
        error: the last error, in one line, if it has failed.
        folder: where its files are.
        checkpoint: path of its best checkpoint, or of the last with several objectives; empty if there is none.
    """

    number: int
    name: str
    parameters: Mapping[str, Any]
    status: Status = "waiting"
    reports: Sequence[Report] = ()
    seconds: float = 0.0
    failures: int = 0
    error: str = ""
    folder: str = ""
    checkpoint: str = ""

    def best_report(self, objective: Objective) -> Report | None:
        """Return the report with the best value of a metric that is a finite number; None if there is none."""
        best: Report | None = None
        for report in self.reports:
            value = report.metrics.get(objective.metric, math.nan)
            if math.isfinite(value) and (best is None or objective.better(value, best.metrics[objective.metric])):
                best = report
        return best


@dataclass(frozen=True)
class SearchRecord:
    """A whole search.

    Attributes:
        name: of the search.
        objectives: what was searched for, one or several.
        parameters: the paths that were searched over, in the order of the space.
        trials: the trials, in order of their numbers.
        seconds: that the search took, over all its starts.
        folder: where everything is.
        settings: searcher, scheduler, resources... as label and value, for people.
        ranges: what the parameters were drawn from, by path; those that are not known are left out.
    """

    name: str
    objectives: Sequence[Objective]
    parameters: Sequence[str]
    trials: Sequence[TrialRecord]
    seconds: float = 0.0
    folder: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def values(self, trial: TrialRecord) -> tuple[float, ...] | None:
        """Return the values of a trial, one per objective; None if it has not reported all of them.

        With one objective that is the best of all reports, whose checkpoint is kept. With several, values of different
        reports do not belong together, and it is the last report that has all of them.
        """
        if len(self.objectives) == 1:
            best = trial.best_report(self.objectives[0])
            return None if best is None else (best.metrics[self.objectives[0].metric],)
        for report in reversed(trial.reports):
            values = tuple(report.metrics.get(objective.metric, math.nan) for objective in self.objectives)
            if all(map(math.isfinite, values)):
                return values
        return None

    def ranked(self) -> list[TrialRecord]:
        """Return the trials that have reached something, the best first.

        With several objectives those come first that no other dominates (the Pareto front), then those that only they
        dominate, and so on; within a front in order of the first objective.
        """
        costs = self._costs()
        fronts = _fronts(costs)
        reached = [trial for trial in self.trials if trial.number in costs]
        return sorted(reached, key=lambda trial: (fronts[trial.number], costs[trial.number], trial.number))

    def pareto_front(self) -> list[TrialRecord]:
        """Return the trials that no other is better than in one objective and at least as good as in all others."""
        ranked = self.ranked()
        if len(self.objectives) == 1:
            return ranked[:1]
        fronts = _fronts(self._costs())
        return [trial for trial in ranked if fronts[trial.number] == 0]

    def fronts(self) -> dict[int, int]:
        """Return in which front each trial is that has reached something, by number: 0 for the Pareto front.

        With one objective all are in front 0.
        """
        return _fronts(self._costs())

    def _costs(self) -> dict[int, tuple[float, ...]]:
        """Return what the trials have reached, by number, so that lower is better."""
        signs = [1.0 if objective.mode == "min" else -1.0 for objective in self.objectives]
        return {
            trial.number: tuple(sign * value for sign, value in zip(signs, values, strict=True))
            for trial in self.trials
            if (values := self.values(trial)) is not None
        }


def _fronts(costs: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
    """Return in which front each point is: 0 for those that no other dominates.

    Lower costs are better. With one cost all are in front 0: their order says everything. In order of their costs no
    point is dominated by a later one, so that each belongs to the first front with no point that dominates it (Zhang
    et al., An Efficient Approach to Nondominated Sorting, IEEE Trans. Evol. Comput. 19(2), 2015).
    """
    if all(len(cost) == 1 for cost in costs.values()):
        return dict.fromkeys(costs, 0)
    fronts: list[list[tuple[float, ...]]] = []
    found: dict[int, int] = {}
    for number, cost in sorted(costs.items(), key=lambda item: item[1]):
        front = next(
            (place for place, points in enumerate(fronts) if not any(_dominates(other, cost) for other in points)),
            len(fronts),
        )
        if front == len(fronts):
            fronts.append([])
        fronts[front].append(cost)
        found[number] = front
    return found


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(one <= other for one, other in zip(first, second, strict=True))
