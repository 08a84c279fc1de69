"""All parameters of all trials in one picture: one axis each, one line per trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import BEST, COLOUR_MAP, MANY, WIDE, label_text, new_axes, picture_of
from itwinai.reporting.search.objective_axis import Spread, spread_of
from itwinai.reporting.search.parameter_axis import Scale
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.sections import Picture
from itwinai.trials.records import Mode, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = 12
"""Most axes; with more their labels touch."""

LETTERS = 11
"""How many letters stand side by side over the axes, per inch."""

UNUSED = -0.13
"""Where a trial crosses the axis of a parameter that it does not have."""

LIGHTEST = 0.93
"""Where the colours end: the lightest can hardly be seen on white."""


@dataclass(frozen=True)
class _Shades:
    """Which colour the value of a trial has."""

    spread: Spread
    mode: Mode
    values: Mapping[int, float]

    def badness(self, trial: TrialRecord) -> float:
        """Return 0 for the best value and 1 for the worst that is shown."""
        place = self.spread.place(self.values[trial.number])
        return place if self.mode == "min" else 1 - place


def parallel_picture(standing: Standing, index: int, scales: Mapping[str, Scale]) -> Picture | None:
    """Return the trials as lines over the axes of their parameters, coloured by an objective.

    Args:
        standing: the search.
        index: of the objective.
        scales: the axes of the parameters by path, in order; the first `AXES` are drawn.
    """
    objective = standing.record.objectives[index]
    paths = list(scales)[:AXES]
    best = standing.best_of(index)
    if best is None or not paths:
        return None
    values = {trial.number: standing.values[trial.number][index] for trial in standing.ranked}
    shades = _Shades(spread_of(list(values.values()), objective), objective.mode, values)
    width = max(WIDE, 0.85 * (len(paths) + 1))
    figure, axes = new_axes(width, 4.4)
    axes.spines[:].set_visible(False)
    others = sorted((trial for trial in standing.ranked if trial is not best), key=shades.badness, reverse=True)
    _draw_lines(axes, [*others, best], paths, scales, shades)
    room = round(LETTERS * width / (len(paths) + 1))
    for at, path in enumerate(paths):
        _draw_axis(axes, at, scales[path], standing.names.get(path, path), room)
    _draw_values(axes, len(paths), shades, label_text(objective.metric, room))
    unused = any(path not in trial.parameters for trial in standing.ranked for path in paths)
    if unused:
        axes.text(-0.06, UNUSED, "not used", ha="right", va="center", fontsize="small", color="#5b6b7a")
    axes.set(xlim=(-0.35, len(paths) + 0.75), ylim=(UNUSED - 0.05 if unused else -0.04, 1.12))
    axes.set_xticks([])
    axes.set_yticks([])
    count = len(standing.ranked)
    trials = f"{count:,} trials by {shortened(objective.metric, 60)}"
    more = f"; the {len(paths)} parameters that matter most" if len(scales) > len(paths) else ""
    return picture_of(f"{trials}; the thick line is the best, trial {best.number}{more}", figure, wide=True)


def _draw_lines(
    axes: Axes, trials: Sequence[TrialRecord], paths: Sequence[str], scales: Mapping[str, Scale], shades: _Shades
) -> None:
    """Draw the trials, the last of them on top and thick."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    lines = []
    for trial in trials:
        line = [
            (float(at), scales[path].place(trial.parameters[path]) if path in trial.parameters else UNUSED)
            for at, path in enumerate(paths)
        ]
        lines.append([*line, (float(len(paths)), shades.spread.place(shades.values[trial.number]))])
    colours = [colormaps[COLOUR_MAP](LIGHTEST * shades.badness(trial)) for trial in trials]
    alpha = max(0.25, min(0.85, 25 / len(trials) ** 0.8))
    drawn = LineCollection(lines, colors=colours, linewidths=0.9, alpha=alpha)
    axes.add_collection(drawn)
    drawn.set_rasterized(len(trials) > MANY)
    axes.plot(*zip(*lines[-1], strict=True), color=BEST, linewidth=2.6, solid_joinstyle="round", zorder=5)


def _draw_axis(axes: Axes, at: int, scale: Scale, label: str, room: int) -> None:
    axes.vlines(at, 0, 1, color="#1c2733", linewidth=0.9, zorder=4)
    axes.text(at, 1.06, label_text(label, room), ha="center", va="bottom", fontsize=9, fontweight="bold")
    for place, text in scale.ticks():
        axes.plot([at - 0.025, at], [place, place], color="#1c2733", linewidth=0.9, zorder=4)
        axes.text(
            at - 0.05,
            place,
            label_text(text, min(room, 14), "end") if scale.kind == "choice" else text,
            ha="right",
            va="center",
            fontsize="small",
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )


def _draw_values(axes: Axes, at: int, shades: _Shades, label: str) -> None:
    """Draw the axis of the objective, where the lines end, as the bar of their colours."""
    from matplotlib import colormaps

    steps = [count / 99 for count in range(100)]
    bar = [[colormaps[COLOUR_MAP](LIGHTEST * (step if shades.mode == "min" else 1 - step))] for step in steps]
    axes.imshow(bar, extent=(at, at + 0.12, 0, 1), origin="lower", aspect="auto", interpolation="nearest", zorder=4)
    axes.text(at, 1.06, label, ha="center", va="bottom", fontsize=9, fontweight="bold")
    spread = shades.spread
    for place, text in Scale("log" if spread.log else "linear", spread.low, spread.high).ticks():
        axes.text(at + 0.17, place, text, ha="left", va="center", fontsize="small")
