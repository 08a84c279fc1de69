"""The one style of all plots, and figures of matplotlib as pictures for a page."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from itwinai.reporting.formatting import shortened, value_text
from itwinai.reporting.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Line = tuple[Sequence[float], Sequence[float]]
"""Where the points of a line are, and their values."""

# Colors that differ for color-blind readers too: those of Okabe and Ito (2008), and two more.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#882255")

GOOD = COLORS[0]
BEST = COLORS[5]
FAILED = COLORS[3]
ACTIVE = COLORS[2]
PLAIN = "#8a97a3"
"""What a dot, a line or a bar means, wherever it stands: the best is orange, what failed is purple, the rest gray."""

COLOR_MAP = "viridis"
"""Even steps of lightness that color-blind readers can tell apart; the best is dark, the worst is light."""

FEWEST = 3
"""Points that make a line: fewer are shown as numbers, or as points beside longer lines."""

MANY = 300
"""Points and lines above which they are painted as one image, so that a page of many trials stays small."""

FEW_DECADES = 2.5
"""Decades up to which a logarithmic axis has marks at 2 and 5, and not only at powers of ten."""

MARKED = 12
"""Most points of a line that are marked one by one."""

MARGIN = 0.06
"""Room between the outermost values and the frame, as part of the axis: a line at the frame looks cut off."""

WIDE = 7.5
"""Inches of a picture that takes the whole width of a page: letters can be read on a narrow one too."""

DOTS_PER_INCH = 160
"""Of what is painted inside of a picture."""


def new_figure(width: float = 7.0, height: float = 3.0) -> Figure:
    """Return an empty figure; its size is in inches. No global state of matplotlib is touched.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    from itwinai.errors import require

    require("matplotlib", "Install it with `pip install 'itwinai[watch]'`.", "A picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)


def new_axes(width: float = 5.0, height: float = 2.9) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; its size is in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def axis_limits(values: Iterable[float], *, log: bool = False, from_zero: bool = False) -> tuple[float, float]:
    """Return the limits of an axis that shows all values, with a margin around them.

    Values that differ by no more than rounding stand in the middle: the axis would blow up the differences.

    Args:
        values: what the axis shows; those that are not finite are left out.
        log: whether the axis is logarithmic; all values are positive then.
        from_zero: begin at 0.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        margin = (high / low) ** MARGIN if high / low > 1 + 1e-6 else 1.5
        return low / margin, high * margin
    if from_zero and low >= 0:
        return 0.0, high * (1 + MARGIN) or 1.0
    size = max(abs(low), abs(high))
    margin = MARGIN * (high - low) if high - low > 1e-6 * size else size / 2 or 1.0
    return low - margin, high + margin


def legend_above(figure: Figure, handles: Sequence[Any] = (), columns: int = 4) -> None:
    """Put the legend above the axes, where it hides nothing.

    Args:
        figure: with labeled lines in its first axes.
        handles: what the legend names; by default those lines.
        columns: most names side by side.
    """
    named = list(handles) or figure.axes[0].get_legend_handles_labels()[0]
    rows = math.ceil(len(named) / columns)
    figure.legend(
        named,
        [str(one.get_label()) for one in named],
        loc="outside upper center",
        ncols=math.ceil(len(named) / max(rows, 1)),
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
        handlelength=1.6,
    )


def dots(
    axes: Axes, places: Sequence[float], values: Sequence[float], colors: str | Sequence[str], of: int | None = None
) -> None:
    """Draw dots, the smaller and paler the more there are.

    Args:
        axes: of the figure.
        places: of the dots on the horizontal axis.
        values: of the dots.
        colors: of each, or of all.
        of: number of all dots in the figure, if these are only some.
    """
    count = max(len(places) if of is None else of, 1)
    axes.scatter(
        places,
        values,
        s=max(12.0, min(38.0, 400 / count**0.6)),
        c=colors,
        alpha=max(0.3, min(0.85, 14 / count**0.6)),
        linewidths=0,
        rasterized=count > MANY,
    )


def label_text(text: str, most: int = 28, keep: Literal["start", "end"] = "start") -> str:
    """Return a text for a figure: cut, and with every ``$`` escaped, since matplotlib reads formulas between two.

    Args:
        text: the text.
        most: characters.
        keep: which part of a longer text stays.
    """
    return shortened(text, most, keep).replace("$", r"\$")


def whole_numbers(axes: Axes) -> None:
    """Mark only whole numbers on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def round_numbers(low: float, high: float, log: bool, most: int = 6) -> list[float]:
    """Return round numbers between two, both of them included, in rising order.

    Args:
        low: where the axis begins.
        high: where it ends; above ``low``.
        log: whether the axis is logarithmic.
        most: about how many of them.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator: LogLocator | MaxNLocator = MaxNLocator(most, steps=[1, 2, 5, 10])
    if log and high / low >= 4:
        few = math.log10(high / low) <= FEW_DECADES
        locator = LogLocator(subs=(1, 2, 5) if few else (1,), numticks=most + 1)
    # 3 * 0.1 is 0.30000000000000004.
    found = (float(f"{number:.12g}") for number in locator.tick_values(low, high))
    return [number for number in found if low <= number <= high]


def mark_round_numbers(axis: Axis, low: float, high: float) -> None:
    """Mark a logarithmic axis with numbers as people write them: 0.002 and not a power of ten."""
    from matplotlib.ticker import NullLocator

    marked = round_numbers(low, high, log=True)
    axis.set_ticks(marked, [value_text(value) for value in marked])
    axis.set_minor_locator(NullLocator())


def beyond(hidden: int, what: str) -> str:
    """Return what the title of a picture says of values that it does not show."""
    return f"; {hidden:,} {what if hidden > 1 else what[:-1]} beyond the edge" if hidden else ""


def lines_figure(
    lines: Mapping[str, Line],
    across: str,
    up: str = "",
    *,
    from_zero: bool = False,
    size: tuple[float, float] = (5.0, 2.8),
) -> Figure:
    """Return a figure of lines.

    Args:
        lines: by name. A single one has no legend: its name is the title of the picture.
        across: what the horizontal axis shows.
        up: what the vertical axis shows, if the names of the lines do not say it.
        from_zero: begin the vertical axis at 0.
        size: width and height in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure, axes = new_axes(*size)
    for index, (name, (places, values)) in enumerate(lines.items()):
        axes.plot(
            places,
            values,
            label=name,
            color=COLORS[index % len(COLORS)],
            linewidth=1.6,
            linestyle="-" if len(places) >= FEWEST else "",
            marker="o" if len(places) <= MARKED else None,
            markersize=4 if len(places) >= FEWEST else 6,
        )
    axes.set(xlabel=across, ylabel=up)
    axes.ticklabel_format(useOffset=False)
    across_values = [place for places, _ in lines.values() for place in places]
    if all(isinstance(place, int) for place in across_values):
        whole_numbers(axes)
    axes.set_xlim(axis_limits(across_values))
    axes.set_ylim(axis_limits((value for _, values in lines.values() for value in values), from_zero=from_zero))
    if len(lines) > 1:
        legend_above(figure, columns=3)
    return figure


def picture_of(title: str, figure: Figure, *, wide: bool = False) -> Picture:
    """Return a figure as it stands in a page.

    Args:
        title: what it shows.
        figure: the figure.
        wide: whether it takes the whole width of the page.
    """
    svg = svg_of(figure)
    # The page knows what to do with the class.
    return Picture(title, svg.replace("<svg", '<svg class="wide"', 1) if wide else svg, figure)


def svg_of(figure: Figure) -> str:
    """Return a figure as the text of an ``<svg>`` element, which scales with the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "itwinai"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
