"""An objective against each parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import BEST, beyond, dots, label_text, legend_above, new_axes, picture_of
from itwinai.reporting.search.axis import Axis, objective_axis
from itwinai.reporting.search.ranking import ORDER, STATUS_COLORS, Standing
from itwinai.reporting.sections import Picture

SHOWN = 12
"""Most parameters that have a picture."""

ROW = 0.05
"""Height of a dot, as part of the axis."""

BESIDE = 0.06
"""How far beside each other trials of one choice stand that would hide each other, in choices."""

MOST_BESIDE = 0.3
"""How far from their choice they stand at most."""


def slice_pictures(standing: Standing, index: int, parameters: Mapping[str, Axis]) -> Iterator[Picture]:
    """Yield a picture for each parameter that differs between trials: what was reached against its value.

    Args:
        standing: the search.
        index: of the objective.
        parameters: the axes of the parameters by path, in order; the first `SHOWN` are drawn.
    """
    for path, axis in list(parameters.items())[:SHOWN]:
        yield _slice(standing, index, path, axis)


def _slice(standing: Standing, index: int, path: str, horizontal: Axis) -> Picture:
    metric, name = standing.record.objectives[index].metric, standing.names.get(path, path)
    trials = [trial for trial in standing.ranked if path in trial.parameters]
    values = [standing.values[trial.number][index] for trial in trials]
    vertical = objective_axis(values, standing.record.objectives[index])
    places = [trial.parameters[path] for trial in trials]
    if horizontal.kind == "choice":
        heights = map(vertical.place, values)
        places = _strips(list(zip(map(horizontal.index, places), heights, strict=True)))
    best = standing.best_of(index)
    others = [at for at, trial in enumerate(trials) if trial is not best]
    statuses = [trials[at].status for at in others]
    figure, axes = new_axes(5.0, 2.8)
    xs, ys = [places[at] for at in others], [values[at] for at in others]
    dots(axes, xs, ys, [STATUS_COLORS[status] for status in statuses], of=len(trials))
    for status in ORDER:
        if status in statuses:
            axes.plot([], [], "o", markersize=5, color=STATUS_COLORS[status], label=status)
    if best in trials:
        at = trials.index(best)
        axes.scatter(places[at], values[at], s=110, marker="*", color=BEST, zorder=5, clip_on=False)
        axes.plot([], [], "*", markersize=8, color=BEST, linestyle="", label=f"best: trial {best.number}")
    legend_above(figure)
    horizontal.set_on(axes, "x")
    vertical.set_on(axes, "y")
    axes.set(xlabel=label_text(name, 60), ylabel=label_text(metric))
    title = f"{shortened(metric, 40)} against {shortened(name, 40)}"
    return picture_of(f"{title}{beyond(vertical.hidden, 'trials')}", figure)


def _strips(points: Sequence[tuple[int, float]]) -> list[float]:
    """Return where trials stand on an axis of choices: at their choice, or beside it if that place is taken.

    Args:
        points: index of the choice and height of each trial, from 0 to 1; the first ones keep their place.
    """
    taken = Counter[tuple[int, int]]()
    places = []
    for choice, height in points:
        row = (choice, round(height / ROW))
        side = min((taken[row] + 1) // 2 * BESIDE, MOST_BESIDE) * (1 if taken[row] % 2 else -1)
        places.append(choice + side)
        taken[row] += 1
    return places
