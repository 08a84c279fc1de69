"""What the pictures of a search have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itwinai.report.pictures import COLOURS, new_figure
from itwinai.report.search.names import digits, shortened
from itwinai.report.search.ticks import round_numbers
from itwinai.trials.records import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BEST = COLOURS[5]
GOOD = COLOURS[0]
PLAIN = "#8a97a3"
FAILED = COLOURS[3]

GOING_ON = COLOURS[2]

BY_STATUS: dict[Status, str] = {
    "stopped": PLAIN,
    "waiting": GOING_ON,
    "paused": GOING_ON,
    "running": GOING_ON,
    "failed": FAILED,
    "finished": GOOD,
}
"""Colours of the trials; those that come later are drawn over those before."""

COLOUR_MAP = "viridis"
"""Even steps of lightness, and told apart by colour-blind readers; the best is dark, the worst is light."""

DRAWN_ONE_BY_ONE = 300
"""Most points and lines that are kept as such; more of them are painted, for a page of many trials to stay small."""

DOTS_PER_INCH = 160
"""Of what is painted."""


def empty_picture(width: float = 5.0, height: float = 2.9) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; its size is in inches."""
    figure = new_figure(width, height)
    figure.set_dpi(DOTS_PER_INCH)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def lettering(text: str, most: int = 28, its_end: bool = False) -> str:
    """Return a text that stands in a picture as it is: matplotlib takes what is between two ``$`` for a formula.

    Args:
        text: the text.
        most: characters.
        its_end: whether a longer text keeps its end, as the path of a class should, and not its beginning.
    """
    short = shortened(text[::-1], most)[::-1] if its_end else shortened(text, most)
    return short.replace("$", r"\$")


def whole_numbers(axes: Axes) -> None:
    """Mark whole numbers only on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def mark_round_numbers(axis: Axis, low: float, high: float) -> None:
    """Mark a logarithmic axis with numbers as people write them: 0.002 and not a power of ten."""
    from matplotlib.ticker import NullLocator

    marked = round_numbers(low, high, log=True)
    axis.set_ticks(marked, [digits(value) for value in marked])
    axis.set_minor_locator(NullLocator())


def wide(svg: str) -> str:
    """Return a picture that takes the whole width of the page."""
    return svg.replace("<svg", '<svg class="wide"', 1)  # the page knows what to do with it


def beyond(hidden: int, what: str) -> str:
    """Return what the title of a picture says of values that it does not show."""
    return f"; {hidden:,} {what} beyond the edge" if hidden else ""
