"""What the pictures of a benchmark have in common: a strategy looks the same in all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from itwinai.benchmark.records import SINGLE
from itwinai.reporting.plotting import COLOURS, picture_of
from itwinai.reporting.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 200
"""Of the pictures that are written as PNG: enough for print."""

MOST_GROUPS = 16
"""Scalings and combinations of axes that have pictures of their own, where each takes a whole one."""

REFERENCE = "#5b6b7a"
"""Of lines that are no measurement: the ideal."""

LONGEST = 1.6
"""Times the largest mean, that an error bar may reach for the axis to include it whole."""

BEYOND = 0.3
"""Share of the largest mean, that an axis goes on beyond it where an error bar is too long."""

FEWEST_RUNS = 3
"""Runs that have an error bar: the interval of two is so wide that nothing else could be seen."""

BAR: Mapping[str, Any] = {"elinewidth": 1.0, "capsize": 2.5}
"""How error bars are drawn: thinner than the lines."""

TICKS = 12
"""Most labels of an axis of workers."""

# The palest ones of the palette come last, and black, which Okabe and Ito have too, is for the baseline.
_COLOURS = tuple(COLOURS[place] for place in (0, 1, 2, 3, 5, 4, 8, 7))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p")


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn.

    Attributes:
        colour: of its lines and bars.
        marker: of its points, for print without colours.
        beside: how far it is drawn beside its number of workers, as part of a doubling, for error bars not to hide
            each other.
    """

    colour: str
    marker: str
    beside: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """A picture before it is written.

    Attributes:
        name: of its files.
        title: what it shows.
        figure: the picture.
    """

    name: str
    title: str
    figure: Figure

    @cached_property
    def picture(self) -> Picture:
        """The picture as it stands in the page."""
        return picture_of(self.title, self.figure, wide=True)

    @property
    def svg(self) -> str:
        """The picture as an ``<svg>`` element."""
        return self.picture.svg


def looks_of(strategies: Sequence[str]) -> dict[str, Look]:
    """Return how strategies are drawn, by name."""
    others = [name for name in strategies if name != SINGLE]
    step = min(0.05, 0.4 / max(len(others), 1))
    looks = {}
    for index, name in enumerate(others):
        beside = step * (index - (len(others) - 1) / 2)
        looks[name] = Look(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)], beside)
    return {SINGLE: Look("#000000", "*"), **looks}


def file_name(*parts: str) -> str:
    """Return the name of a file from words: ``throughput-precision-bf16-mixed``."""
    words = "-".join(part for part in parts if part)
    return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in words).strip("-")[:120]


def panels(figure: Figure, count: int) -> list[Axes]:
    """Return panels of a figure side by side, with one vertical axis for all."""
    found = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
    return found


def set_workers(axes: Axes, workers: Iterable[int], label: str = "workers", most: int = TICKS) -> None:
    """Make the horizontal axis one of workers: doublings are equally wide, and what was measured is marked.

    Args:
        axes: of the picture.
        workers: their numbers.
        label: of the axis.
        most: numbers that there is room for.
    """
    from matplotlib.ticker import NullLocator

    counts = sorted(set(workers))
    axes.set_xscale("log", base=2)
    axes.set_xlim(counts[0] / 2**0.35, counts[-1] * 2**0.35)
    axes.xaxis.set_minor_locator(NullLocator())
    marked = spaced(counts, most)
    axes.set_xticks(marked, [f"{count:,}" for count in marked])
    axes.set_xlabel(label)


def spaced(counts: Sequence[int], most: int = TICKS) -> list[int]:
    """Return those numbers of workers that have room on an axis of doublings, the first and the last among them.

    Args:
        counts: the numbers, in rising order.
        most: how many there is room for.
    """
    apart = 0.999 * math.log2(counts[-1] / counts[0]) / max(most - 1, 1)
    kept = [counts[0]]
    for count in counts[1:]:
        if math.log2(count / kept[-1]) >= apart:
            kept.append(count)
    if kept[-1] != counts[-1]:
        kept[-1:] = [counts[-1]] if len(kept) > 1 else [kept[0], counts[-1]]
    return kept


def limited_end(ends: Sequence[float], means: Sequence[float]) -> float:
    """Return where an axis ends: at the last error bar, unless the bars of few repeats would leave no room for means.

    Args:
        ends: of the error bars.
        means: what was measured.
    """
    largest = max(means)
    last = max([*ends, largest])
    return last if last - largest <= (LONGEST - 1) * abs(largest) else largest + BEYOND * abs(largest)


def limited_ratios(ends: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    """Return where an axis of ratios begins and ends, both as `limited_end` does for one side.

    Args:
        ends: of the error bars.
        means: what was measured; positive.
    """
    first, last = min([*ends, *means]), max([*ends, *means])
    return (
        first if first >= min(means) / LONGEST else min(means) / (1 + BEYOND),
        last if last <= LONGEST * max(means) else max(means) * (1 + BEYOND),
    )


def mark_cut(axes: Axes, place: float, ends: tuple[float, float], colour: str, across: bool = False) -> None:
    """Put an arrow at the frame where an error bar goes on beyond it.

    Args:
        axes: of the picture, with limits.
        place: of the bar on the other axis.
        ends: of the bar.
        colour: of the bar.
        across: whether the bar is a horizontal one.
    """
    low, high = sorted(axes.get_xlim() if across else axes.get_ylim())
    arrows = ((0, ends[0] < low, "<" if across else "v"), (1, ends[1] > high, ">" if across else "^"))
    for side, cut, marker in arrows:
        if cut:
            where = (side, place) if across else (place, side)
            transform = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
            axes.plot(*where, marker=marker, color=colour, markersize=7, transform=transform, clip_on=False, zorder=4)
