"""Quantities over the number of workers, one line for each strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from itwinai.benchmark.report.style import (
    BAR,
    FEWEST_RUNS,
    REFERENCE,
    Drawn,
    Look,
    file_name,
    limited_end,
    limited_ratios,
    mark_cut,
    panels,
    set_workers,
)
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Group
from itwinai.benchmark.statistics.summary import LOSS_TOLERANCE, Series
from itwinai.benchmark.statistics.summary import Axes as Varied
from itwinai.benchmark.telling.amounts import Unit
from itwinai.reporting.plotting import WIDE, axis_limits, legend_above, new_figure
from itwinai.reporting.search.style import lettering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scale = Literal["from zero", "doublings", "close"]
"""``from zero``: differences are seen as shares. ``doublings``: ratios are, and the ideal is a straight line.
``close``: only differences count, but those of rounding."""

MOST_COMBINATIONS = 8
"""Of the values of axes, that have a picture of their own."""


@dataclass(frozen=True)
class Quantity:
    """What is drawn over the number of workers.

    Attributes:
        name: of the files.
        title: of the picture.
        label: of the vertical axis, without unit.
        of: what a cell has of it, in the SI unit; None where it is not known.
        unit: of the vertical axis.
        scale: of the vertical axis.
        ideal: what it would be at best, by number of workers; None if there is no such thing.
        marks_failed: whether cells without a result are marked.
        height: of the picture, in inches.
    """

    name: str
    title: str
    label: str
    of: Callable[[CellSummary], Estimate | None]
    unit: Unit
    scale: Scale = "from zero"
    ideal: Callable[[float], float] | None = None
    marks_failed: bool = False
    height: float = 3.2


def line_pictures(quantity: Quantity, groups: Sequence[Group], looks: Mapping[str, Look]) -> list[Drawn]:
    """Return pictures of a quantity: one for each combination of axes, in it one panel for each scaling.

    All of them have the same vertical axis, so that they can be compared. A single value has no picture.

    Args:
        quantity: the quantity.
        groups: the groups of the benchmark.
        looks: how the strategies are drawn, by name.
    """
    values = {cell.cell: found for group in groups for cell in group.cells if (found := known(quantity, cell))}
    if len(values) < 2:
        return []
    combinations: dict[Varied, list[Group]] = {}
    for group in groups:
        if any(cell.cell in values for cell in group.cells):
            combinations.setdefault(group.axes, []).append(group)
    counts = sorted({cell.cell.workers for members in combinations.values() for one in members for cell in one.cells})
    drawn = list(combinations.values())[:MOST_COMBINATIONS]
    return [_picture(quantity, members, looks, list(values.values()), counts) for members in drawn]


def known(quantity: Quantity, cell: CellSummary) -> Estimate | None:
    """Return what a cell has of a quantity; None if that is not known, or no number."""
    found = quantity.of(cell)
    return found if found is not None and math.isfinite(found.mean) else None


def _picture(
    quantity: Quantity,
    groups: Sequence[Group],
    looks: Mapping[str, Look],
    estimates: Sequence[Estimate],
    every: Sequence[int],
) -> Drawn:
    figure = new_figure(WIDE, quantity.height)
    drawn = panels(figure, len(groups))
    shown: dict[str, None] = {}
    for axes, group in zip(drawn, groups, strict=True):
        for line in group.series:
            if _line(axes, quantity, line, looks[line.strategy]) or quantity.marks_failed:
                shown[line.strategy] = None
        counts = {cell.cell.workers for cell in group.cells}
        set_workers(axes, counts)
        _ideal(axes, quantity, sorted(counts))
        axes.set_title(lettering(group.name, 60), fontsize="medium")
    unit = f" ({quantity.unit.name})" if quantity.unit.name else ""
    drawn[0].set_ylabel(f"{quantity.label}{unit}")
    _set_scale(drawn[0], quantity, estimates, every)
    _mark_cut(drawn, quantity, groups, looks)
    failed = quantity.marks_failed and _mark_failed(drawn, groups, looks)
    for name in shown:
        look = looks[name]
        drawn[0].plot([], [], color=look.colour, marker=look.marker, linewidth=1.6, label=lettering(name, 24))
    if quantity.ideal is not None:
        drawn[0].plot([], [], color=REFERENCE, linestyle="--", linewidth=1.2, label="ideal")
    if failed:
        drawn[0].plot([], [], color=REFERENCE, marker="x", linestyle="", label="failed")
    legend_above(figure, columns=6)
    axes_name = groups[0].axes_name
    title = f"{quantity.title}, {axes_name}" if axes_name else quantity.title
    return Drawn(file_name(quantity.name, axes_name), title, figure)


def _line(axes: Axes, quantity: Quantity, line: Series, look: Look) -> bool:
    points = [(cell.cell.workers, one) for cell in line.cells if (one := known(quantity, cell)) is not None]
    if not points:
        return False
    means = [quantity.unit.of(one.mean) for _, one in points]
    ends = [[quantity.unit.of(end) for end in _ends(one)] for _, one in points]
    axes.errorbar(
        [count * 2**look.beside for count, _ in points],
        means,
        yerr=[[abs(end[side] - mean) for mean, end in zip(means, ends, strict=True)] for side in (0, 1)],
        color=look.colour,
        marker=look.marker,
        markersize=9 if look.marker == "*" else 5.5,
        linewidth=1.6,
        **BAR,
    )
    return True


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Return the ends of an error bar, which is none where too little is known of the spread."""
    low, high = estimate.low, estimate.high
    if estimate.n < FEWEST_RUNS or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return estimate.mean, estimate.mean
    return low, high


def _ideal(axes: Axes, quantity: Quantity, counts: Sequence[int]) -> None:
    if quantity.ideal is not None:
        left, right = axes.get_xlim()
        places = counts if len(counts) > 1 else (left, right)
        values = [quantity.unit.of(quantity.ideal(place)) for place in places]
        axes.plot(places, values, color=REFERENCE, linestyle="--", linewidth=1.2, zorder=1.5)


def _set_scale(axes: Axes, quantity: Quantity, estimates: Sequence[Estimate], counts: Sequence[int]) -> None:
    """Set the vertical axis, which all panels and all pictures of the quantity share."""
    means = [quantity.unit.of(one.mean) for one in estimates]
    ends = [[quantity.unit.of(end) for end in _ends(one)] for one in estimates]
    ideal = [quantity.unit.of(quantity.ideal(count)) for count in counts] if quantity.ideal is not None else []
    if quantity.scale == "doublings" and min(means) > 0:
        low, high = limited_ratios([end for both in ends for end in both], means)
        low, high = axis_limits([low, high, *ideal], log=True)
        axes.set_yscale("log", base=2)
        axes.set_ylim(low, high)
        marked = [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        axes.set_yticks(marked, [f"{mark:,g}" for mark in marked])
        axes.minorticks_off()
        return
    top = limited_end([high for _, high in ends], means)
    if quantity.scale == "from zero":
        axes.set_ylim(axis_limits([top, *ideal], from_zero=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        return
    axes.ticklabel_format(axis="y", useOffset=False)
    bottom = -limited_end([-low for low, _ in ends], [-mean for mean in means])
    # Differences within the tolerance of losses look like what they are: nothing.
    margin = max(0.08 * (top - bottom), 2 * LOSS_TOLERANCE * max(abs(top), abs(bottom))) or 1.0
    axes.set_ylim(bottom - margin, top + margin)


def _mark_cut(drawn: Sequence[Axes], quantity: Quantity, groups: Sequence[Group], looks: Mapping[str, Look]) -> None:
    """Mark the error bars that go on beyond the frame."""
    for axes, group in zip(drawn, groups, strict=True):
        for cell in group.cells:
            if (one := known(quantity, cell)) is not None:
                look = looks[cell.cell.strategy]
                low, high = (quantity.unit.of(end) for end in _ends(one))
                mark_cut(axes, cell.cell.workers * 2**look.beside, (low, high), look.colour)


def _mark_failed(drawn: Sequence[Axes], groups: Sequence[Group], looks: Mapping[str, Look]) -> bool:
    """Mark the cells of which no run has ended well, at the bottom; tell whether there are any."""
    found = False
    for axes, group in zip(drawn, groups, strict=True):
        for cell in group.cells:
            if not cell.runs:
                look = looks[cell.cell.strategy]
                place = cell.cell.workers * 2**look.beside
                axes.plot(
                    place, 0.03, marker="x", color=look.colour, transform=axes.get_xaxis_transform(), clip_on=False
                )
                found = True
    return found
