"""What the pictures of a search have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from itwinai.reporting.plotting import COLOURS
from itwinai.reporting.search.formatting import digits, shortened
from itwinai.reporting.search.ticks import round_numbers
from itwinai.trials.records import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

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


def dots(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[float],
    colours: str | Sequence[str],
    of: int | None = None,
) -> None:
    """Draw trials as dots, the smaller and paler the more there are.

    Args:
        axes: of the picture.
        places: of the dots on the horizontal axis.
        values: of the dots.
        colours: of each, or of all.
        of: number of all dots in the picture, if these are only some.
    """
    count = max(len(places) if of is None else of, 1)
    axes.scatter(
        places,
        values,
        s=max(12.0, min(38.0, 400 / count**0.6)),
        c=colours,
        alpha=max(0.3, min(0.85, 14 / count**0.6)),
        linewidths=0,
        rasterized=count > DRAWN_ONE_BY_ONE,
    )


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


def beyond(hidden: int, what: str) -> str:
    """Return what the title of a picture says of values that it does not show."""
    return f"; {hidden:,} {what} beyond the edge" if hidden else ""
