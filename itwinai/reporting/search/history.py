"""How a search went: the metric of each trial against its reports, and the best so far against time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from itwinai.reporting.formatting import shortened, span_text
from itwinai.reporting.plotting import (
    BEST,
    GOOD,
    MANY,
    axis_limits,
    beyond,
    dots,
    label_text,
    legend_above,
    new_axes,
    picture_of,
    whole_numbers,
)
from itwinai.reporting.search.axis import objective_axis
from itwinai.reporting.search.ranking import STATUS_COLORS, Standing
from itwinai.reporting.sections import Picture
from itwinai.trials.records import TrialRecord

Points = list[tuple[float, float]]

POINTS = 60
"""Most points of one trial that are drawn."""


def curves_picture(standing: Standing, index: int) -> Picture | None:
    """Return the metric of all trials against their reports; None if nothing was reported.

    Args:
        standing: the search.
        index: of the objective.
    """
    from matplotlib.collections import LineCollection

    objective = standing.record.objectives[index]
    curves = [(trial, _reported(trial, objective.metric)) for trial in standing.record.trials]
    curves = [(trial, points) for trial, points in curves if points]
    if not curves:
        return None
    vertical = objective_axis([value for _, points in curves for _, value in points], objective)
    figure, axes = new_axes()
    alpha = max(0.08, min(0.8, 12 / len(curves) ** 0.8))
    for status, color in STATUS_COLORS.items():
        if kept := [points for trial, points in curves if trial.status == status]:
            own = 0.8 if status == "failed" else alpha
            lines = LineCollection([_thinned(points) for points in kept], colors=color, linewidths=0.8, alpha=own)
            axes.add_collection(lines).set_rasterized(len(curves) > MANY)
            alone = [points[0] for points in kept if len(points) == 1]  # of which no line can be seen
            dots(axes, [at for at, _ in alone], [value for _, value in alone], color, of=len(curves))
            axes.plot([], [], color=color, label=f"{status} ({len(kept)})")
    if (best := standing.best_of(index)) is not None:
        points = _thinned(_reported(best, objective.metric))
        marker = "o" if len(points) == 1 else ""
        label = f"best: trial {best.number}"
        axes.plot(*zip(*points, strict=True), color=BEST, linewidth=2.2, marker=marker, label=label)
    axes.set_xlim(axis_limits(at for _, points in curves for at, _ in points))
    vertical.set_on(axes, "y")
    axes.set(xlabel="report", ylabel=label_text(objective.metric))
    whole_numbers(axes)
    legend_above(figure)
    return picture_of(f"{shortened(objective.metric, 60)} of each trial{beyond(vertical.hidden, 'values')}", figure)


def progress_picture(standing: Standing, index: int) -> Picture | None:
    """Return the best value so far against the time of the search, or against trials where times are unknown.

    One trial alone has no picture.

    Args:
        standing: the search.
        index: of the objective.
    """
    objective = standing.record.objectives[index]
    trials = sorted(standing.ranked, key=lambda trial: trial.number)
    if len(trials) < 2:
        return None
    timed = all(report.at is not None for trial in trials for report in trial.reports)
    reached = [_reached(standing, trial, index, timed) for trial in trials]
    events = sorted(_events(trials, objective.metric) if timed else reached)
    best: Points = []
    for at, value in events:
        if not best or objective.better(value, best[-1][1]):
            best.append((at, value))
    end = max(events[-1][0], standing.record.seconds if timed else 0.0)
    unit, name = _unit(end) if timed else (1.0, "trial")
    vertical = objective_axis([*(value for _, value in reached), best[-1][1]], objective)
    figure, axes = new_axes()
    xs = [at / unit for at, _ in reached]
    dots(axes, xs, [value for _, value in reached], [STATUS_COLORS[trial.status] for trial in trials])
    steps = [(at / unit, value) for at, value in [*best, (end, best[-1][1])]]
    axes.step(*zip(*steps, strict=True), where="post", color=BEST, label="best so far")
    axes.plot([], [], "o", color=GOOD, markersize=5, alpha=0.8, label="a trial")
    axes.set_xlim(axis_limits([*xs, *(at for at, _ in steps)]))
    vertical.set_on(axes, "y")
    axes.set(xlabel=name, ylabel=label_text(objective.metric))
    if not timed:
        whole_numbers(axes)
    legend_above(figure)
    when = f"after {span_text(best[-1][0])}" if timed else f"by trial {best[-1][0]:.0f}"
    title = f"Best {shortened(objective.metric, 60)} so far, last improved {when}"
    return picture_of(f"{title}{beyond(vertical.hidden, 'trials')}", figure)


def _reported(trial: TrialRecord, metric: str) -> Points:
    values = ((report.number, report.metrics.get(metric, math.nan)) for report in trial.reports)
    return [(float(count), value) for count, value in values if math.isfinite(value)]


def _events(trials: Iterable[TrialRecord], metric: str) -> Iterator[tuple[float, float]]:
    for trial in trials:
        for report in trial.reports:
            value = report.metrics.get(metric, math.nan)
            if math.isfinite(value) and report.at is not None:
                yield report.at, value


def _reached(standing: Standing, trial: TrialRecord, index: int, timed: bool) -> tuple[float, float]:
    """Return when a trial had reported what it has reached, and that."""
    metric, value = standing.record.objectives[index].metric, standing.values[trial.number][index]
    at = next((report.at for report in trial.reports if report.metrics.get(metric) == value), None)
    return (at if timed and at is not None else float(trial.number)), value


def _thinned(points: Points) -> Points:
    kept = points[:: math.ceil(len(points) / POINTS)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _unit(seconds: float) -> tuple[float, str]:
    """Return the seconds and the name of a unit in which a time is a handy number."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
