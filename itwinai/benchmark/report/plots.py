"""Plots of quantities over the number of workers, and what all plots of a benchmark share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from itwinai.benchmark.records import SINGLE
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed
from itwinai.benchmark.statistics.summary import LOSS_TOLERANCE, Series
from itwinai.benchmark.statistics.summary import Axes as Varied
from itwinai.reporting.formatting import Unit, energy_unit, memory_unit, time_unit
from itwinai.reporting.plotting import COLORS, WIDE, axis_limits, label_text, legend_above, new_figure, picture_of
from itwinai.reporting.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GROUPS = 16
"""Groups that have plots of their own, if each takes a whole one."""

MOST_COMBINATIONS = 8
"""Combinations of values of axes that have a plot of their own."""

REFERENCE = "#5b6b7a"
"""Color of lines that are not measurements: the ideal."""

LONGEST = 1.6
"""How far an error bar may reach, as a multiple of the largest mean, for the axis to include it whole."""

BEYOND = 0.3
"""How far an axis continues beyond the largest mean, as a share of it, if an error bar is too long."""

FEWEST_RUNS = 3
"""Runs that have an error bar: the interval of two is so wide that nothing else could be seen."""

BAR: Mapping[str, Any] = {"elinewidth": 1.0, "capsize": 2.5}
"""How error bars are drawn: thinner than the lines."""

TICKS = 12
"""Most labels of an axis of workers."""

# The palest ones of the palette come last; black, which Okabe and Ito have too, is for the baseline.
_COLORS = tuple(COLORS[place] for place in (0, 1, 2, 3, 5, 4, 8, 7))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p")


# ------------------------------------------------------------------------------------------------------ shared


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn, the same in all plots.

    Attributes:
        color: of its lines and bars.
        marker: of its points, for print without colors.
        beside: offset from its number of workers, as part of a doubling, so that error bars do not hide each other.
    """

    color: str
    marker: str
    beside: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """A plot, with the ``name`` of its files and a ``title`` for the page."""

    name: str
    title: str
    figure: Figure

    @cached_property
    def picture(self) -> Picture:
        """The plot as it stands in the page."""
        return picture_of(self.title, self.figure, wide=True)


def looks_of(strategies: Sequence[str]) -> dict[str, Look]:
    """Return how strategies are drawn, by name."""
    others = [name for name in strategies if name != SINGLE]
    step = min(0.05, 0.4 / max(len(others), 1))
    looks = {}
    for index, name in enumerate(others):
        beside = step * (index - (len(others) - 1) / 2)
        looks[name] = Look(_COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)], beside)
    return {SINGLE: Look("#000000", "*"), **looks}


def file_name(*parts: str) -> str:
    """Return the name of a file from words: ``throughput-precision-bf16-mixed``."""
    words = "-".join(part for part in parts if part)
    return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in words).strip("-")[:120]


def set_workers(axes: Axes, workers: Iterable[int], label: str = "workers", most: int = TICKS) -> None:
    """Make the horizontal axis one of workers: doublings are equally wide, at most ``most`` numbers have labels."""
    from matplotlib.ticker import NullLocator

    counts = sorted(set(workers))
    axes.set_xscale("log", base=2)
    axes.set_xlim(counts[0] / 2**0.35, counts[-1] * 2**0.35)
    axes.xaxis.set_minor_locator(NullLocator())
    marked = spaced(counts, most)
    axes.set_xticks(marked, [f"{count:,}" for count in marked])
    axes.set_xlabel(label)


def spaced(counts: Sequence[int], most: int = TICKS) -> list[int]:
    """Return the ascending numbers that fit on an axis of doublings, including the first and the last."""
    apart = 0.999 * math.log2(counts[-1] / counts[0]) / max(most - 1, 1)
    kept = [counts[0]]
    for count in counts[1:]:
        if math.log2(count / kept[-1]) >= apart:
            kept.append(count)
    if kept[-1] != counts[-1]:
        kept[-1:] = [counts[-1]] if len(kept) > 1 else [kept[0], counts[-1]]
    return kept


def limited_end(ends: Sequence[float], means: Sequence[float]) -> float:
    """Return where an axis ends: at the last error bar, unless long bars would leave no room for the means."""
    largest = max(means)
    last = max([*ends, largest])
    return last if last - largest <= (LONGEST - 1) * abs(largest) else largest + BEYOND * abs(largest)


def limited_ratios(ends: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    """Return where an axis of ratios begins and ends, each as `limited_end` does."""
    first, last = min([*ends, *means]), max([*ends, *means])
    return (
        first if first >= min(means) / LONGEST else min(means) / (1 + BEYOND),
        last if last <= LONGEST * max(means) else max(means) * (1 + BEYOND),
    )


def mark_cut(axes: Axes, place: float, ends: tuple[float, float], color: str, across: bool = False) -> None:
    """Put an arrow at the frame where an error bar continues beyond it.

    Args:
        axes: of the plot, with limits.
        place: of the bar on the other axis.
        ends: of the bar.
        color: of the bar.
        across: whether the bar is horizontal.
    """
    low, high = sorted(axes.get_xlim() if across else axes.get_ylim())
    arrows = ((0, ends[0] < low, "<" if across else "v"), (1, ends[1] > high, ">" if across else "^"))
    for side, cut, marker in arrows:
        if cut:
            where = (side, place) if across else (place, side)
            transform = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
            axes.plot(*where, marker=marker, color=color, markersize=7, transform=transform, clip_on=False, zorder=4)


# ------------------------------------------------------------------------------------------------------ quantities


@dataclass(frozen=True)
class Quantity:
    """What is drawn over the number of workers.

    Attributes:
        name: of the files.
        title: of the plot.
        label: of the vertical axis, without unit.
        of: what a cell has of it, in the SI unit; None if unknown.
        unit: of the vertical axis.
        scale: of the vertical axis. ``from zero`` shows differences as shares; ``doublings`` shows ratios, and the
            ideal is a straight line; ``close`` shows differences only, but those of rounding.
        ideal: the best possible, by number of workers.
        marks_failed: whether cells without a result are marked.
        height: of the plot, in inches.
    """

    name: str
    title: str
    label: str
    of: Callable[[CellSummary], Estimate | None]
    unit: Unit = Unit("")
    scale: Literal["from zero", "doublings", "close"] = "from zero"
    ideal: Callable[[float], float] | None = None
    marks_failed: bool = False
    height: float = 3.2

    def known(self, cell: CellSummary) -> Estimate | None:
        """Return what a cell has of it; None if unknown or not finite."""
        found = self.of(cell)
        return found if found is not None and math.isfinite(found.mean) else None

    def ends(self, estimate: Estimate) -> tuple[float, float]:
        """Return the ends of an error bar in its unit; both are the mean if too little is known of the spread."""
        low, high = estimate.low, estimate.high
        if estimate.n < FEWEST_RUNS or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            low = high = estimate.mean
        return self.unit.of(low), self.unit.of(high)


SPEEDUP = Quantity(
    "speedup", "Speed-up over the baseline", "speed-up", lambda cell: cell.speedup, Unit(""), "doublings", float
)
EFFICIENCY = Quantity(
    "efficiency",
    "Efficiency: speed-up per worker",
    "efficiency",
    lambda cell: cell.efficiency,
    Unit("%", 0.01),
    ideal=lambda _: 1.0,
)
LOSS = Quantity("loss", "Loss of the last step", "loss", lambda cell: cell.loss, Unit(""), "close", height=2.8)


def throughput(speed: Speed) -> Quantity:
    """Return the speed of cells as a quantity."""
    title = "Throughput: mean, with a 95 % interval for 3 runs or more"
    return Quantity("throughput", title, "throughput", speed.of, Unit(speed.unit), marks_failed=True)


def memory(cells: Sequence[CellSummary]) -> Quantity:
    """Return the memory of the worker that needs most as a quantity."""
    title = "Peak memory of the worker that needs most"
    return _in_handy_unit("memory", title, "memory", cells, lambda cell: cell.peak_memory, memory_unit)


def energy(cells: Sequence[CellSummary]) -> Quantity:
    """Return the energy of a sample as a quantity."""
    label = "energy per sample"
    return _in_handy_unit(
        "energy", "Energy of a sample", label, cells, lambda cell: cell.joules_per_sample, energy_unit
    )


def launch(cells: Sequence[CellSummary]) -> Quantity:
    """Return the time until the first step as a quantity."""
    title = "From the command to the first step"
    return _in_handy_unit("launch", title, "launch time", cells, lambda cell: cell.launch, time_unit)


def _in_handy_unit(
    name: str,
    title: str,
    label: str,
    cells: Sequence[CellSummary],
    of: Callable[[CellSummary], Estimate | None],
    unit: Callable[[float], Unit],
) -> Quantity:
    means = [found.mean for cell in cells if (found := of(cell)) is not None]
    return Quantity(name, title, label, of, unit(median(means) if means else 0.0), height=2.8)


# ------------------------------------------------------------------------------------------------------ lines


def line_plots(quantity: Quantity, groups: Sequence[Group], looks: Mapping[str, Look]) -> list[Drawn]:
    """Return plots of a quantity: one for each combination of axes, with a panel for each scaling.

    All have the same vertical axis, so that they can be compared. A single value has no plot.

    Args:
        quantity: what to draw.
        groups: of the benchmark.
        looks: of the strategies, by name.
    """
    values = {cell.cell: found for group in groups for cell in group.cells if (found := quantity.known(cell))}
    if len(values) < 2:
        return []
    combinations: dict[Varied, list[Group]] = {}
    for group in groups:
        if any(cell.cell in values for cell in group.cells):
            combinations.setdefault(group.axes, []).append(group)
    counts = sorted({cell.cell.workers for members in combinations.values() for one in members for cell in one.cells})
    drawn = list(combinations.values())[:MOST_COMBINATIONS]
    return [_line_plot(quantity, members, looks, list(values.values()), counts) for members in drawn]


def _line_plot(
    quantity: Quantity,
    groups: Sequence[Group],
    looks: Mapping[str, Look],
    estimates: Sequence[Estimate],
    every: Sequence[int],
) -> Drawn:
    figure = new_figure(WIDE, quantity.height)
    panels = list(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0])
    shown: dict[str, None] = {}
    for axes, group in zip(panels, groups, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        for line in group.series:
            if _line(axes, quantity, line, looks[line.strategy]) or quantity.marks_failed:
                shown[line.strategy] = None
        counts = sorted({cell.cell.workers for cell in group.cells})
        set_workers(axes, counts)
        if quantity.ideal is not None:
            places = counts if len(counts) > 1 else axes.get_xlim()
            ideal = [quantity.unit.of(quantity.ideal(place)) for place in places]
            axes.plot(places, ideal, color=REFERENCE, linestyle="--", linewidth=1.2, zorder=1.5)
        axes.set_title(label_text(group.name, 60), fontsize="medium")
    unit = f" ({quantity.unit.name})" if quantity.unit.name else ""
    panels[0].set_ylabel(f"{quantity.label}{unit}")
    _set_scale(panels[0], quantity, estimates, every)
    failed = False
    for axes, group in zip(panels, groups, strict=True):
        for cell in group.cells:
            look = looks[cell.cell.strategy]
            place = cell.cell.workers * 2**look.beside
            if (one := quantity.known(cell)) is not None:
                mark_cut(axes, place, quantity.ends(one), look.color)
            elif quantity.marks_failed and not cell.runs:  # at the bottom
                bottom = axes.get_xaxis_transform()
                axes.plot(place, 0.03, marker="x", color=look.color, transform=bottom, clip_on=False)
                failed = True
    for name in shown:
        look = looks[name]
        panels[0].plot([], [], color=look.color, marker=look.marker, linewidth=1.6, label=label_text(name, 24))
    if quantity.ideal is not None:
        panels[0].plot([], [], color=REFERENCE, linestyle="--", linewidth=1.2, label="ideal")
    if failed:
        panels[0].plot([], [], color=REFERENCE, marker="x", linestyle="", label="failed")
    legend_above(figure, columns=6)
    axes_name = groups[0].axes_name
    title = f"{quantity.title}, {axes_name}" if axes_name else quantity.title
    return Drawn(file_name(quantity.name, axes_name), title, figure)


def _line(axes: Axes, quantity: Quantity, line: Series, look: Look) -> bool:
    points = [(cell.cell.workers, one) for cell in line.cells if (one := quantity.known(cell)) is not None]
    if not points:
        return False
    means = [quantity.unit.of(one.mean) for _, one in points]
    ends = [quantity.ends(one) for _, one in points]
    axes.errorbar(
        [count * 2**look.beside for count, _ in points],
        means,
        yerr=[[abs(end[side] - mean) for mean, end in zip(means, ends, strict=True)] for side in (0, 1)],
        color=look.color,
        marker=look.marker,
        markersize=9 if look.marker == "*" else 5.5,
        linewidth=1.6,
        **BAR,
    )
    return True


def _set_scale(axes: Axes, quantity: Quantity, estimates: Sequence[Estimate], counts: Sequence[int]) -> None:
    """Set the vertical axis, which all panels and all plots of the quantity share."""
    means = [quantity.unit.of(one.mean) for one in estimates]
    ends = [quantity.ends(one) for one in estimates]
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
