"""All parameters of all trials in one picture: one axis each, one line per trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import BEST, COLOR_MAP, MANY, WIDE, label_text, new_axes, picture_of
from itwinai.reporting.search.axis import Axis, objective_axis
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.sections import Picture
from itwinai.trials.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = 12
"""Most axes; with more their labels touch."""

LETTERS = 11
"""How many letters stand side by side over the axes, per inch."""

UNUSED = -0.13
"""Where a trial crosses the axis of a parameter that it does not have."""

LIGHTEST = 0.93
"""Where the colors end: the lightest can hardly be seen on white."""

INK = "#1c2733"


def parallel_picture(standing: Standing, index: int, parameters: Mapping[str, Axis]) -> Picture | None:
    """Return the trials as lines over the axes of their parameters, colored by an objective.

    Args:
        standing: the search.
        index: of the objective.
        parameters: the axes of the parameters by path, in order; the first `AXES` are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    objective = standing.record.objectives[index]
    shown = dict(list(parameters.items())[:AXES])
    best = standing.best_of(index)
    if best is None or not shown:
        return None
    last = objective_axis([values[index] for values in standing.values.values()], objective)

    def height(trial: TrialRecord) -> float:
        return last.place(standing.values[trial.number][index])

    def color(place: float) -> tuple[float, ...]:
        badness = place if objective.mode == "min" else 1 - place
        return colormaps[COLOR_MAP](LIGHTEST * badness)

    def line(trial: TrialRecord) -> list[tuple[float, float]]:
        own = trial.parameters
        places = [axis.place(own[path]) if path in own else UNUSED for path, axis in shown.items()]
        return [*((float(at), place) for at, place in enumerate(places)), (float(len(shown)), height(trial))]

    width = max(WIDE, 0.85 * (len(shown) + 1))
    room = round(LETTERS * width / (len(shown) + 1))
    figure, axes = new_axes(width, 4.4)
    axes.spines[:].set_visible(False)
    # The best ones are drawn last, over the others.
    trials = sorted(standing.ranked, key=height, reverse=objective.mode == "min")
    alpha = max(0.25, min(0.85, 25 / len(trials) ** 0.8))
    colors = [color(height(trial)) for trial in trials]
    lines = LineCollection([line(trial) for trial in trials], colors=colors, linewidths=0.9, alpha=alpha)
    axes.add_collection(lines).set_rasterized(len(trials) > MANY)
    axes.plot(*zip(*line(best), strict=True), color=BEST, linewidth=2.6, solid_joinstyle="round", zorder=5)
    for at, (path, axis) in enumerate(shown.items()):
        _draw_axis(axes, at, axis, label_text(standing.names.get(path, path), room), min(room, 14))
    # The axis of the objective, where the lines end, is the bar of their colors.
    end = len(shown)
    bar = [[color(step / 99)] for step in range(100)]
    axes.imshow(bar, extent=(end, end + 0.12, 0, 1), origin="lower", aspect="auto", interpolation="nearest", zorder=4)
    axes.text(end, 1.06, label_text(objective.metric, room), ha="center", va="bottom", fontsize=9, fontweight="bold")
    for place, text in last.ticks():
        axes.text(end + 0.17, place, text, ha="left", va="center", fontsize="small")
    unused = any(path not in trial.parameters for trial in trials for path in shown)
    if unused:
        axes.text(-0.06, UNUSED, "not used", ha="right", va="center", fontsize="small", color="#5b6b7a")
    axes.set(xlim=(-0.35, end + 0.75), ylim=(UNUSED - 0.05 if unused else -0.04, 1.12), xticks=[], yticks=[])
    title = f"{len(trials):,} trials by {shortened(objective.metric, 60)}"
    more = f"; the {end} parameters that matter most" if len(parameters) > end else ""
    return picture_of(f"{title}; the thick line is the best, trial {best.number}{more}", figure, wide=True)


def _draw_axis(axes: Axes, at: int, axis: Axis, label: str, longest: int) -> None:
    axes.vlines(at, 0, 1, color=INK, linewidth=0.9, zorder=4)
    axes.text(at, 1.06, label, ha="center", va="bottom", fontsize=9, fontweight="bold")
    white = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for place, text in axis.ticks():
        shown = label_text(text, longest, "end") if axis.kind == "choice" else text
        axes.plot([at - 0.025, at], [place, place], color=INK, linewidth=0.9, zorder=4)
        axes.text(at - 0.05, place, shown, ha="right", va="center", fontsize="small", zorder=6, bbox=white)
