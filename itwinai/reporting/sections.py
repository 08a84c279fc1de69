"""What a callback has to say about a run, in a form that a terminal and a page can both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: the headings.
        rows: the cells, as people shall read them, with units.
        title: what is in it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


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
        advice: sentences that say what to do next, each with the figures behind it; for terminal and page.
        missing: what could not be measured here, and why; for terminal and page.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    advice: Sequence[str] = ()
    missing: Sequence[str] = ()
