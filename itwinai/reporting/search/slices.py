"""An objective against each parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import (
    BEST,
    axis_limits,
    beyond,
    dots,
    label_text,
    legend_above,
    mark_round_numbers,
    new_axes,
    picture_of,
)
from itwinai.reporting.search.objective_axis import spread_of
from itwinai.reporting.search.parameter_axis import Scale
from itwinai.reporting.search.ranking import ORDER, Standing
from itwinai.reporting.search.style import BY_STATUS
from itwinai.reporting.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Most parameters that have a picture."""

ROW = 0.05
"""Height of a dot, as part of the axis."""

BESIDE = 0.06
"""How far beside each other trials of one choice stand that would hide each other, in choices."""

MOST_BESIDE = 0.3
"""How far from their choice they stand at most."""


def slice_pictures(standing: Standing, index: int, scales: Mapping[str, Scale]) -> Iterator[Picture]:
    """Yield a picture for each parameter that differs between trials: what was reached against its value.

    Args:
        standing: the search.
        index: of the objective.
        scales: the axes of the parameters by path, in order; the first `SHOWN` are drawn.
    """
    for path, scale in list(scales.items())[:SHOWN]:
        yield _slice(standing, index, path, scale)


def _slice(standing: Standing, index: int, path: str, scale: Scale) -> Picture:
    objective = standing.record.objectives[index]
    trials = [trial for trial in standing.ranked if path in trial.parameters]
    values = [standing.values[trial.number][index] for trial in trials]
    spread = spread_of(values, objective)
    figure, axes = new_axes(5.0, 2.8)
    if scale.kind == "choice":
        _set_choices(axes, scale)
        places = _strips(
            [(scale.index(trial.parameters[path]), spread.place(values[at])) for at, trial in enumerate(trials)]
        )
    else:
        places = [trial.parameters[path] for trial in trials]
        axes.set_xscale(scale.kind)
        axes.set_xlim(axis_limits((scale.low, scale.high), log=scale.kind == "log"))
        if scale.kind == "log":
            mark_round_numbers(axes.xaxis, scale.low, scale.high)
    best = standing.best_of(index)
    others = [at for at, trial in enumerate(trials) if trial is not best]
    dots(
        axes,
        [places[at] for at in others],
        [values[at] for at in others],
        [BY_STATUS[trials[at].status] for at in others],
        of=len(trials),
    )
    for status in ORDER:
        if any(trials[at].status == status for at in others):
            axes.plot([], [], "o", markersize=5, color=BY_STATUS[status], label=status)
    if best in trials:
        at = trials.index(best)
        axes.scatter(places[at], values[at], s=110, marker="*", color=BEST, zorder=5, clip_on=False)
        axes.plot([], [], "*", markersize=8, color=BEST, linestyle="", label=f"best: trial {best.number}")
    legend_above(figure)
    spread.apply(axes)
    axes.set(xlabel=label_text(standing.names.get(path, path), 60), ylabel=label_text(objective.metric, 28))
    title = f"{shortened(objective.metric, 40)} against {shortened(standing.names.get(path, path), 40)}"
    return picture_of(f"{title}{beyond(spread.hidden, 'trials')}", figure)


def _strips(points: Sequence[tuple[int, float]]) -> list[float]:
    """Return where trials stand on an axis of choices: at their choice, or beside it if that place is taken.

    Args:
        points: index of the choice and height of each trial, from 0 to 1; the first ones keep their place.
    """
    taken = Counter[tuple[int, int]]()
    places = []
    for choice, height in points:
        row = (choice, round(height / ROW))
        step = (taken[row] + 1) // 2
        side = min(step * BESIDE, MOST_BESIDE) * (1 if taken[row] % 2 else -1)
        places.append(choice + side)
        taken[row] += 1
    return places


def _set_choices(axes: Axes, scale: Scale) -> None:
    labels = scale.labels
    step = math.ceil(len(labels) / 12)
    at = range(0, len(labels), step)
    crowded = sum(len(labels[place]) for place in at) > 48
    names = [label_text(labels[place], 14, "end") for place in at]
    axes.set_xticks(list(at), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.5, len(labels) - 0.5)
