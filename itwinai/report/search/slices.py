"""An objective against each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from itwinai.report.pictures import svg_of
from itwinai.report.search.names import shortened
from itwinai.report.search.scales import Scale
from itwinai.report.search.standing import ORDER, Standing
from itwinai.report.search.style import (
    BEST,
    BY_STATUS,
    DRAWN_ONE_BY_ONE,
    beyond,
    empty_picture,
    lettering,
    mark_round_numbers,
)
from itwinai.report.search.values import spread_of
from itwinai.report.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Most parameters that have a picture."""

GOLDEN = (math.sqrt(5) - 1) / 2


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
    places = [
        _beside(scale.index(trial.parameters[path]), count) if scale.kind == "choice" else trial.parameters[path]
        for count, trial in enumerate(trials)
    ]
    figure, axes = empty_picture(5.0, 2.8)
    many = len(trials) > DRAWN_ONE_BY_ONE
    colours = [BY_STATUS[trial.status] for trial in trials]
    alpha = max(0.25, min(0.75, 12 / max(len(trials), 1) ** 0.6))
    axes.scatter(places, values, s=16, c=colours, alpha=alpha, linewidths=0, rasterized=many)
    for status in ORDER:
        if any(trial.status == status for trial in trials):
            axes.plot([], [], "o", markersize=4, color=BY_STATUS[status], label=status)
    best = standing.best_of(index)
    if best in trials:
        at = trials.index(best)
        axes.scatter(places[at], values[at], s=90, marker="*", color=BEST, zorder=5)
        axes.plot([], [], "*", markersize=8, color=BEST, label="best")
    figure.legend(loc="outside upper right", ncols=4, frameon=False, fontsize="small", columnspacing=1, handlelength=1)
    spread.apply(axes)
    if scale.kind == "choice":
        _set_choices(axes, scale)
    else:
        _show_range(axes, scale)
        if scale.kind == "log":
            mark_round_numbers(axes.xaxis, scale.low, scale.high)
    axes.set(xlabel=lettering(standing.names.get(path, path), 60), ylabel=lettering(objective.metric, 28))
    title = f"{shortened(objective.metric, 40)} against {shortened(standing.names.get(path, path), 40)}"
    return Picture(f"{title}{beyond(spread.hidden, 'trials')}", svg_of(figure))


def _beside(place: int, count: int) -> float:
    """Return where a trial stands in the strip of its choice: trials with one choice do not hide each other."""
    # Multiples of the golden ratio fill the strip evenly, and the same trials give the same picture.
    return place + 0.5 * ((count * GOLDEN) % 1 - 0.5)


def _show_range(axes: Axes, scale: Scale) -> None:
    """Show all that could be drawn, for what was not tried to be seen too."""
    low, high = scale.low, scale.high
    if scale.kind == "log":
        margin = (high / low) ** 0.04
        axes.set(xscale="log", xlim=(low / margin, high * margin))
    else:
        margin = 0.04 * (high - low)
        axes.set_xlim(low - margin, high + margin)


def _set_choices(axes: Axes, scale: Scale) -> None:
    labels = scale.labels
    step = math.ceil(len(labels) / 12)
    at = range(0, len(labels), step)
    crowded = sum(len(labels[place]) for place in at) > 48
    names = [lettering(labels[place], 14, its_end=True) for place in at]
    axes.set_xticks(list(at), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.5, len(labels) - 0.5)
