"""What a callback reports of a run, in a form that a terminal and a page can both show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE = r"[-+<≤~]?\s?[\d.]|nan\b|-?inf\b"

_WIDEST = 24


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: the headings.
        rows: the cells as people read them, with units. A row may be shorter: its last cell has the room of the rest.
        title: what is in it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def is_numeric(self, place: int) -> bool:
        """Return whether a column holds short cells that begin with a figure, so that they are aligned at the right.

        Args:
            place: of the column.
        """
        whole = [row[place] for row in self.rows if len(row) == len(self.columns) or place < len(row) - 1]
        figures = [cell for cell in whole if cell not in ("", "-")]
        return bool(figures) and all(len(cell) <= _WIDEST and re.match(_FIGURE, cell) for cell in figures)


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        title: what it shows.
        svg: the picture itself.
        figure: that it was made of.
    """

    title: str
    svg: str
    figure: Figure | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Section:
    """One part of what is said about a run.

    Attributes:
        title: what it is about.
        facts: label and value, with its unit; these stand in the terminal too, so only what matters most.
        tables: for the page.
        pictures: for the page.
        advice: what to do next, each with the figures behind it, as `recommend` returns it; for terminal and page.
        missing: what could not be measured here, and why; for terminal and page.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    advice: Sequence[str] = ()
    missing: Sequence[str] = ()
