"""Where a step goes: one bar for each cell, in absolute time and as shares, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from itwinai.benchmark.records import Breakdown
from itwinai.benchmark.report.findings import PARTS
from itwinai.benchmark.report.plots import MOST_GROUPS, Drawn, file_name
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Group
from itwinai.reporting.formatting import percent_text, time_text, time_unit
from itwinai.reporting.plotting import COLORS, WIDE, axis_limits, label_text, legend_above, new_figure
from itwinai.reporting.sections import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN: Mapping[str, tuple[str, str]] = {
    "compute": (COLORS[0], ""),
    "communication": (COLORS[1], "////"),
    "data": (COLORS[2], "...."),
    "other": ("#c3ccd4", ""),
}
"""Color and hatch of the parts, for print too."""

SHORT = ("compute", "other workers", "data", "other")
"""Names of the parts, in the same order, where there is little room."""

GAP = 0.9
"""Between two strategies, in bars."""

LETTER = 0.068
"""Mean width of a letter, in inches."""

MOST_BARS = 48
"""Of a plot; more could not be told apart."""


def breakdown_plots(groups: Sequence[Group]) -> list[Drawn]:
    """Return a plot for each group with a known breakdown, up to `MOST_GROUPS`."""
    drawn = []
    for group in groups[:MOST_GROUPS]:
        known = [(cell, one) for cell in group.cells if (one := cell.breakdown) is not None and one.step > 0]
        if known:
            drawn.append(_plot(group, known[:MOST_BARS]))
    return drawn


def breakdown_table(cells: Sequence[CellSummary], settings: Mapping[str, Sequence[str]]) -> Table | None:
    """Return the parts of the steps with their shares; None if unknown.

    Args:
        cells: the cells.
        settings: first columns by heading: one value for each cell.
    """
    rows = []
    for index, cell in enumerate(cells):
        if (one := cell.breakdown) is not None and one.step:
            parts = [f"{time_text(seconds)} ({percent_text(seconds / one.step)})" for seconds in one.parts.values()]
            own = [time_text(one.step), *parts, time_text(one.hidden)]
            rows.append([*(column[index] for column in settings.values()), *own])
    return Table([*settings, "step", *SHORT, "hidden"], rows, "Parts of a step") if rows else None


def _plot(group: Group, cells: Sequence[tuple[CellSummary, Breakdown]]) -> Drawn:
    figure = new_figure(WIDE, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.25, 1))
    places = _places([cell for cell, _ in cells])
    parts, steps = [one for _, one in cells], [one.step for _, one in cells]
    unit = time_unit(max(steps))
    _stack(upper, places, parts, [unit.size] * len(cells))
    _stack(lower, places, parts, [step / 100 for step in steps])
    upper.set_ylabel(f"step ({unit.name})")
    upper.set_ylim(axis_limits([unit.of(step) for step in steps], from_zero=True))
    lower.set(ylabel="share (%)", ylim=(0, 100))
    _name_bars(lower, places, [cell for cell, _ in cells])
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
    legend_above(figure)
    title = f"Parts of a step, mean over the workers{f', {group.name}' if group.name else ''}"
    return Drawn(file_name("breakdown", group.name), title, figure)


def _places(cells: Sequence[CellSummary]) -> list[float]:
    """Return the places of the bars: those of a strategy side by side."""
    places: list[float] = []
    for before, cell in zip([None, *cells], cells, strict=False):
        gap = 1.0 if before is None or before.cell.strategy == cell.cell.strategy else 1.0 + GAP
        places.append(places[-1] + gap if places else 0.0)
    return places


def _stack(axes: Axes, places: Sequence[float], parts: Sequence[Breakdown], sizes: Sequence[float]) -> None:
    bottom = [0.0] * len(places)
    for part, (color, hatch) in DRAWN.items():
        heights = [one.parts[part] / size for one, size in zip(parts, sizes, strict=True)]
        look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
        axes.bar(places, heights, 0.86, bottom, label=PARTS[part], **look)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]


def _name_bars(axes: Axes, places: Sequence[float], cells: Sequence[CellSummary]) -> None:
    """Write the number of workers below each bar, and the strategy below all of its bars."""
    axes.set_xticks(list(places), [f"{cell.cell.workers:,}" for cell in cells])
    margin = max(0.8, (10 - len(places)) / 2)
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    spans: dict[str, list[float]] = {}
    for place, cell in zip(places, cells, strict=True):
        spans.setdefault(cell.cell.strategy, []).append(place)
    bar = (WIDE - 0.7) / (places[-1] - places[0] + 2 * margin)
    tilted = any(LETTER * len(name) > bar * (own[-1] - own[0] + 1 + GAP) for name, own in spans.items())
    for name, own in spans.items():
        axes.annotate(
            label_text(name, 24),
            ((own[0] + own[-1]) / 2, 0),
            (0, -20),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if tilted else "center",
            va="top",
            rotation=18 if tilted else 0,
            fontsize="small",
        )
