"""How a search went: the metric of each trial against its reports, and the best so far against time."""

from __future__ import annotations

import math
from collections.abc import Iterable

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
from itwinai.reporting.search.objective_axis import spread_of
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.search.style import BY_STATUS
from itwinai.reporting.sections import Picture
from itwinai.trials.records import TrialRecord

Points = list[tuple[float, float]]

POINTS = 60
"""Most points of one trial that are drawn."""


def courses_picture(standing: Standing, index: int) -> Picture | None:
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
    spread = spread_of([value for _, points in curves for _, value in points], objective)
    figure, axes = new_axes()
    alpha = max(0.08, min(0.8, 12 / len(curves) ** 0.8))
    for status, colour in BY_STATUS.items():
        kept = [points for trial, points in curves if trial.status == status]
        if kept:
            own = 0.8 if status == "failed" else alpha
            lines = LineCollection([_thinned(points) for points in kept], colors=colour, linewidths=0.8, alpha=own)
            axes.add_collection(lines).set_rasterized(len(curves) > MANY)
            alone = [points[0] for points in kept if len(points) == 1]  # of which no line can be seen
            dots(axes, [at for at, _ in alone], [value for _, value in alone], colour, of=len(curves))
            axes.plot([], [], color=colour, label=f"{status} ({len(kept)})")
    best = standing.best_of(index)
    if best is not None:
        points = _thinned(_reported(best, objective.metric))
        axes.plot(*zip(*points, strict=True), color=BEST, linewidth=2.2, label=f"best: trial {best.number}")
        if len(points) == 1:
            axes.plot(*points[0], "o", color=BEST)
    axes.set_xlim(axis_limits(at for _, points in curves for at, _ in points))
    spread.apply(axes)
    axes.set(xlabel="report", ylabel=label_text(objective.metric))
    whole_numbers(axes)
    legend_above(figure)
    title = f"{shortened(objective.metric, 60)} of each trial{beyond(spread.hidden, 'values')}"
    return picture_of(title, figure)


def progress_picture(standing: Standing, index: int) -> Picture | None:
    """Return the best value so far against the time of the search, or against trials where times are not known.

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
    reached = {trial.number: _reached(standing, trial, index, timed) for trial in trials}
    events = sorted(_events(trials, objective.metric) if timed else reached.values())
    best: Points = []
    for at, value in events:
        if not best or objective.better(value, best[-1][1]):
            best.append((at, value))
    end = max(events[-1][0], standing.record.seconds if timed else 0.0)
    unit, name = _unit(end) if timed else (1.0, "trial")
    spread = spread_of([*(value for _, value in reached.values()), *(value for _, value in best[-1:])], objective)
    figure, axes = new_axes()
    colours = [BY_STATUS[trial.status] for trial in trials]
    xs = [reached[trial.number][0] / unit for trial in trials]
    ys = [reached[trial.number][1] for trial in trials]
    dots(axes, xs, ys, colours)
    steps = [*best, (end, best[-1][1])]
    axes.step(
        [at / unit for at, _ in steps], [value for _, value in steps], where="post", color=BEST, label="best so far"
    )
    axes.plot([], [], "o", color=GOOD, markersize=5, alpha=0.8, label="a trial")
    axes.set_xlim(axis_limits([*xs, best[0][0] / unit, end / unit]))
    spread.apply(axes)
    axes.set(xlabel=name, ylabel=label_text(objective.metric))
    if not timed:
        whole_numbers(axes)
    legend_above(figure)
    when = span_text(best[-1][0]) if timed else f"trial {best[-1][0]:.0f}"
    title = f"Best {shortened(objective.metric, 60)} so far, last improved {'after' if timed else 'by'} {when}"
    return picture_of(f"{title}{beyond(spread.hidden, 'trials')}", figure)


def _reported(trial: TrialRecord, metric: str) -> Points:
    values = ((report.number, report.metrics.get(metric, math.nan)) for report in trial.reports)
    return [(float(count), value) for count, value in values if math.isfinite(value)]


def _events(trials: Iterable[TrialRecord], metric: str) -> Iterable[tuple[float, float]]:
    for trial in trials:
        for report in trial.reports:
            value = report.metrics.get(metric, math.nan)
            if math.isfinite(value) and report.at is not None:
                yield report.at, value


def _reached(standing: Standing, trial: TrialRecord, index: int, timed: bool) -> tuple[float, float]:
    """Return what a trial has reached, and when it had reported that."""
    metric, value = standing.record.objectives[index].metric, standing.values[trial.number][index]
    at = next((report.at for report in trial.reports if report.metrics.get(metric) == value), None)
    return (at if timed and at is not None else float(trial.number)), value


def _thinned(points: Points) -> Points:
    step = math.ceil(len(points) / POINTS)
    kept = points[::step]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _unit(seconds: float) -> tuple[float, str]:
    """Return the seconds and the name of a unit in which a time is a handy number."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
