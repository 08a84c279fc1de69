"""Scaling laws as plots and tables: measured, and extrapolated to more workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from itwinai.benchmark.report.plots import MOST_GROUPS, REFERENCE, Drawn, Look, file_name, set_workers
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed
from itwinai.benchmark.statistics.scaling_law import FittedLaw
from itwinai.benchmark.statistics.scaling_models import PARAMETERS
from itwinai.benchmark.statistics.summary import Summary
from itwinai.reporting.formatting import estimate_text, percent_text, time_text
from itwinai.reporting.plotting import WIDE, axis_limits, label_text, legend_above, new_figure, round_numbers
from itwinai.reporting.sections import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Most panels side by side."""

MARKED = 7
"""Most labels below a panel."""

POINTS = 24
"""Of a curve: on an axis of doublings it looks smooth."""

BEYOND = 4.0
"""Factor beyond all means up to which a band is drawn: the ends of a wider one are in the table."""

Named = Callable[[FittedLaw], str]


def law_plots(
    groups: Sequence[Group], laws: Sequence[FittedLaw], extrapolate: Sequence[int], looks: Mapping[str, Look]
) -> list[Drawn]:
    """Return a plot for each group, up to `MOST_GROUPS`, with a panel for each line that has a law.

    Args:
        groups: of the benchmark.
        laws: of its lines.
        extrapolate: numbers of workers to extrapolate to.
        looks: of the strategies, by name.
    """
    found = [(group, [law for law in laws if law.series in group.series]) for group in groups[:MOST_GROUPS]]
    return [_plot(group, own, extrapolate, looks) for group, own in found if own]


def law_table(laws: Sequence[FittedLaw], named: Named) -> Table:
    """Return the laws with their parameters; ``named`` returns the name of a line."""
    rows = []
    for law in laws:
        for place, (name, value) in enumerate(law.parameters.items()):
            first = [named(law), f"{law.name}: {law.formula}"] if place == 0 else ["", ""]
            shown = percent_text(value) if name.endswith("share") else time_text(value)
            rows.append([*first, name, shown, PARAMETERS[name]])
    columns = ("line", "t: seconds of a step", "parameter", "value", "meaning")
    return Table(columns, rows, "Laws and their parameters")


def prediction_table(laws: Sequence[FittedLaw], summary: Summary, named: Named) -> Table:
    """Return the predictions of the laws for more workers; ``named`` returns the name of a line."""
    speed = _speed(laws)
    rows = []
    for law in laws:
        baseline = next((cell.baseline for cell in law.series.cells if cell.baseline is not None), None)
        compared = summary.of(baseline) if baseline is not None else None
        for workers in sorted(set(summary.record.extrapolate)):
            speedup = law.speedup(workers, compared) if compared is not None else None
            efficiency = speedup.times(1 / workers) if speedup is not None else None
            rate, step = estimate_text(_rate(law, workers, speed)), time_text(law.step_time(workers))
            scaling = [estimate_text(speedup), percent_text(efficiency)]
            rows.append([named(law), f"{workers:,}", _distance(law, workers), rate, step, *scaling])
    columns = ("line", "workers", "beyond", speed.unit, "step", "speed-up", "efficiency")
    return Table(columns, rows, "Predictions of the laws; beyond: times the largest measured number of workers")


def _distance(law: FittedLaw, workers: int) -> str:
    """Return how far a number of workers is from the measured ones."""
    most = max(law.workers)
    if workers in law.workers:
        return "measured"
    return f"{workers / most:.3g} times" if workers > most else "between"


def _speed(laws: Sequence[FittedLaw]) -> Speed:
    return Speed(any(law.throughput(1) is not None for law in laws))


def _rate(law: FittedLaw, workers: int, speed: Speed) -> Estimate | None:
    """Return the speed by a law, in the unit of the cells."""
    if speed.by_samples:
        return law.throughput(workers)
    time = law.step_time(workers)
    batches = workers if law.series.scaling == "weak" else 1
    if not time.low or not time.high:
        return Estimate(batches / time.mean, None, None, time.n)
    return Estimate(batches / time.mean, batches / time.high, batches / time.low, time.n)


def _plot(group: Group, laws: Sequence[FittedLaw], extrapolate: Sequence[int], looks: Mapping[str, Look]) -> Drawn:
    lines = math.ceil(len(laws) / COLUMNS)
    columns = math.ceil(len(laws) / lines)
    figure = new_figure(WIDE, 1.0 + 2.5 * lines)
    every = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    speed = _speed(laws)
    measured = sorted({count for law in laws for count in law.workers})
    counts = sorted({*measured, *extrapolate})
    means, ends = [], []
    for axes, law in zip(every, laws, strict=False):
        shown = _panel(axes, law, counts, speed, looks[law.series.strategy])
        means += [one.mean for one in shown]
        means += [rate for cell in law.series.cells for rate in speed.runs(cell)]
        ends += [end for one in shown for end in (one.low, one.high) if end is not None]
    set_workers(every[0], counts, "", MARKED)
    for axes in every[len(laws) :]:
        axes.set_visible(False)
    for axes in every[len(laws) - columns : len(laws)]:
        axes.tick_params(labelbottom=True)
    _set_speeds(every[0], means, ends)
    figure.supxlabel("workers", fontsize="medium")
    figure.supylabel(speed.unit, fontsize="medium")
    _explain(figure, every[0])
    title = f"Measured, and extrapolated by the laws{f', {group.name}' if group.name else ''}"
    return Drawn(file_name("law", group.name), title, figure)


def _set_speeds(axes: Axes, means: Sequence[float], ends: Sequence[float]) -> None:
    """Set the vertical axis so that all means are seen, and bands as far as there is room."""
    shown = [end for end in ends if min(means) / BEYOND <= end <= max(means) * BEYOND]
    low, high = axis_limits([*means, *shown], log=True)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    marked = round_numbers(low, high, log=True)
    axes.set_yticks(marked, [f"{mark:,.10g}" for mark in marked])
    axes.minorticks_off()


def _panel(axes: Axes, law: FittedLaw, counts: Sequence[int], speed: Speed, look: Look) -> list[Estimate]:
    """Draw a law and what was measured; return its estimates at all places of the curve."""
    most = max(law.workers)
    every = sorted({*_places(min(law.workers), max(counts)), most})
    found = [(count, one) for count in every if (one := _rate(law, count, speed)) is not None]
    band = [(count, one.low, one.high) for count, one in found if one.low is not None and one.high is not None]
    if band:
        places, low, high = zip(*band, strict=True)
        axes.fill_between(places, low, high, color=look.color, alpha=0.18, linewidth=0)
    for inside, style in ((True, "-"), (False, "--")):
        part = [(count, one.mean) for count, one in found if (count <= most if inside else count >= most)]
        if len(part) > 1:
            axes.plot(*zip(*part, strict=True), color=look.color, linestyle=style, linewidth=1.5)
    for cell in law.series.cells:
        for rate in speed.runs(cell):
            axes.plot(cell.cell.workers, rate, marker=look.marker, color=look.color, markersize=5, alpha=0.75)
    if max(counts) > most:
        axes.axvspan(most, max(counts) * 2**0.35, color="#eef1f4", zorder=0, linewidth=0)
        axes.text(0.98, 0.03, "extrapolated", transform=axes.transAxes, ha="right", fontsize="small", color=REFERENCE)
    axes.set_title(label_text(law.series.strategy, 24), fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    return [one for _, one in found]


def _places(first: int, last: int) -> list[int]:
    """Return whole numbers that lie evenly on an axis of doublings."""
    step = (last / first) ** (1 / POINTS)
    return sorted({round(first * step**place) for place in range(POINTS + 1)})


def _explain(figure: Figure, axes: Axes) -> None:
    from matplotlib.patches import Patch

    axes.plot([], [], color=REFERENCE, marker="o", markersize=5, linestyle="", label="a run")
    axes.plot([], [], color=REFERENCE, label="law")
    axes.plot([], [], color=REFERENCE, linestyle="--", label="law, extrapolated")
    band = Patch(color=REFERENCE, alpha=0.25, linewidth=0, label="95 % interval")
    legend_above(figure, [*axes.get_legend_handles_labels()[0], band])
