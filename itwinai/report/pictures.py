"""Turn figures of matplotlib into pictures that can stand in a page."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[Sequence[float], Sequence[float]]
"""Where the points of a line are, and their values."""

# Colours that differ for colour-blind readers too: those of Okabe and Ito (2008), and two more.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#882255")


def new_figure(width: float = 7.0, height: float = 3.0) -> Figure:
    """Return an empty figure; its size is in inches. No global state of matplotlib is touched.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    from itwinai.errors import require

    require("matplotlib", "Install it with `pip install 'itwinai[watch]'`.", "A picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def lines_picture(
    lines: Mapping[str, Line],
    across: str,
    up: str = "",
    *,
    from_zero: bool = False,
    size: tuple[float, float] = (5.0, 2.6),
) -> str:
    """Return a picture of lines as an ``<svg>`` element.

    Args:
        lines: by name.
        across: what the horizontal axis shows.
        up: what the vertical axis shows, if the names of the lines do not say it.
        from_zero: begin the vertical axis at 0.
        size: width and height in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = new_figure(*size)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    for index, (name, (places, values)) in enumerate(lines.items()):
        marker = "o" if len(places) < 3 else None
        axes.plot(places, values, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1.4, marker=marker)
    axes.set(xlabel=across, ylabel=up)
    axes.ticklabel_format(useOffset=False)
    if all(isinstance(place, int) for places, _ in lines.values() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if limits := _limits_of_constant(value for _, values in lines.values() for value in values):
        axes.set_ylim(*limits)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(axes, len(lines))
    return svg_of(figure)


def _limits_of_constant(values: Iterable[float]) -> tuple[float, float] | None:
    """Return limits for values that differ by no more than rounding, which an axis would otherwise blow up."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    size = max(abs(low), abs(high))
    if high - low > 1e-6 * size:
        return None
    return (low - size / 2, high + size / 2) if size else (-1.0, 1.0)


def _add_legend(axes: Axes, lines: int) -> None:
    """Say which line is which, beside the lines if there are too many to find room between them."""
    if lines > 4:
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(frameon=False, fontsize="small")


def svg_of(figure: Figure) -> str:
    """Return a figure as the text of an ``<svg>`` element, which scales with the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "itwinai"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
