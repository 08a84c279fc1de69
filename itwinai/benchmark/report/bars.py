"""Where a step goes: one bar for each cell, in absolute time and as shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from itwinai.benchmark.records import Breakdown
from itwinai.benchmark.report.style import MOST_GROUPS, Drawn, file_name
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Group
from itwinai.benchmark.telling.amounts import UNKNOWN, seconds_text, share_text, time_unit
from itwinai.benchmark.telling.parts import PARTS, seconds_of, whole_of
from itwinai.reporting.plotting import COLOURS, WIDE, axis_limits, legend_above, new_figure
from itwinai.reporting.search.style import lettering
from itwinai.reporting.sections import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN: Mapping[str, tuple[str, str]] = {
    "compute": (COLOURS[0], ""),
    "communication": (COLOURS[1], "////"),
    "data": (COLOURS[2], "...."),
    "other": ("#c3ccd4", ""),
}
"""Colour and hatch of the parts, for print too, by their attribute of a `Breakdown`."""

SHORT = ("compute", "other workers", "data", "other")
"""Names of the parts, in the same order, where there is little room."""

GAP = 0.9
"""Between two strategies, in bars."""

LETTER = 0.068
"""Mean width of a letter, in inches."""

MOST_BARS = 48
"""Of a picture; beyond, they could not be told apart."""


def breakdown_pictures(groups: Sequence[Group]) -> list[Drawn]:
    """Return a picture for each group of which something is known, up to `MOST_GROUPS`.

    Args:
        groups: the groups of the benchmark.
    """
    drawn = []
    for group in groups[:MOST_GROUPS]:
        cells = [(cell, cell.breakdown) for cell in group.cells]
        known = [(cell, one) for cell, one in cells if one is not None and whole_of(one) > 0]
        if known:
            drawn.append(_picture(group, known[:MOST_BARS]))
    return drawn


def breakdown_table(cells: Sequence[CellSummary], settings: Mapping[str, Sequence[str]]) -> Table | None:
    """Return the parts of the steps with their shares; None if nothing is known of them.

    Args:
        cells: the cells.
        settings: columns that stand first, by heading: one value for each cell.
    """
    rows = []
    for index, cell in enumerate(cells):
        one = cell.breakdown
        if one is None or not (whole := whole_of(one)):
            continue
        parts = [f"{seconds_text(seconds)} ({share_text(seconds / whole)})" for seconds in seconds_of(one).values()]
        hidden = UNKNOWN if one.hidden is None else seconds_text(one.hidden)
        rows.append([*(column[index] for column in settings.values()), seconds_text(whole), *parts, hidden])
    if not rows:
        return None
    return Table([*settings, "step", *SHORT, "hidden"], rows, "Parts of a step")


def _picture(group: Group, cells: Sequence[tuple[CellSummary, Breakdown]]) -> Drawn:
    figure = new_figure(WIDE, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.25, 1))
    places = _places([cell for cell, _ in cells])
    wholes = [whole_of(one) for _, one in cells]
    unit = time_unit(max(wholes))
    _stack(upper, places, [one for _, one in cells], [unit.size] * len(cells))
    _stack(lower, places, [one for _, one in cells], [whole / 100 for whole in wholes])
    upper.set_ylabel(f"step ({unit.name})")
    upper.set_ylim(axis_limits([unit.of(whole) for whole in wholes], from_zero=True))
    lower.set(ylabel="share (%)", ylim=(0, 100))
    _name_bars(lower, places, [cell for cell, _ in cells])
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
    legend_above(figure)
    title = f"Parts of a step, mean over the workers{f', {group.name}' if group.name else ''}"
    return Drawn(file_name("breakdown", group.name), title, figure)


def _places(cells: Sequence[CellSummary]) -> list[float]:
    """Return where the bars stand: those of a strategy side by side."""
    places: list[float] = []
    for before, cell in zip([None, *cells], cells, strict=False):
        gap = 1.0 if before is None or before.cell.strategy == cell.cell.strategy else 1.0 + GAP
        places.append(places[-1] + gap if places else 0.0)
    return places


def _stack(axes: Axes, places: Sequence[float], parts: Sequence[Breakdown], sizes: Sequence[float]) -> None:
    bottom = [0.0] * len(places)
    for part, (colour, hatch) in DRAWN.items():
        heights = [getattr(one, part) / size for one, size in zip(parts, sizes, strict=True)]
        axes.bar(
            places,
            heights,
            0.86,
            bottom,
            label=PARTS[part],
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
        )
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]


def _name_bars(axes: Axes, places: Sequence[float], cells: Sequence[CellSummary]) -> None:
    """Write the number of workers below each bar, and the strategy below all of its bars."""
    axes.set_xticks(list(places), [f"{cell.cell.workers:,}" for cell in cells])
    margin = max(0.8, (10 - len(places)) / 2)
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    spans = list(_spans(places, cells))
    bar = (WIDE - 0.7) / (places[-1] - places[0] + 2 * margin)
    tilted = any(LETTER * len(name) > bar * (last - first + 1 + GAP) for name, first, last in spans)
    for name, first, last in spans:
        axes.annotate(
            lettering(name, 24),
            ((first + last) / 2, 0),
            (0, -20),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if tilted else "center",
            va="top",
            rotation=18 if tilted else 0,
            fontsize="small",
        )


def _spans(places: Sequence[float], cells: Sequence[CellSummary]) -> Iterator[tuple[str, float, float]]:
    for name in dict.fromkeys(cell.cell.strategy for cell in cells):
        own = [place for place, cell in zip(places, cells, strict=True) if cell.cell.strategy == name]
        yield name, own[0], own[-1]
