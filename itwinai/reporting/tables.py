"""Tables of a terminal, drawn by rich; the page shows the same `Table` as HTML."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from itwinai.errors import require
from itwinai.reporting.formatting import shortened
from itwinai.reporting.sections import Table
from itwinai.reporting.terminal import WIDTH

if TYPE_CHECKING:
    from rich.table import Table as RichTable

GAP = 2
"""Spaces between two columns."""

SHORTEST = 12
"""Characters of a name that are shown even where a line becomes too long."""


def rich_table(table: Table, styles: Sequence[str] = ()) -> RichTable:
    """Return a table for rich: figures below each other, text at the left, one line per row.

    Args:
        table: the table; cells of a row that are missing stay empty.
        styles: of the rows, as rich names them.

    Raises:
        MissingPackageError: rich is not installed.
    """
    require("rich", "Install it with `pip install rich`.", "A table in the terminal")
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for place, heading in enumerate(table.columns):
        justify = "right" if table.is_numeric(place) else "left"
        drawn.add_column(Text(heading), justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for index, cells in enumerate(table.rows):
        drawn.add_row(*map(Text, cells), style=styles[index] if styles else "")
    return drawn


def without_columns(table: Table, width: int, may_go: Sequence[int]) -> tuple[Table, list[str]]:
    """Return a table that fits a terminal, and the headings of the columns that it lacks therefore.

    Args:
        table: the table.
        width: characters of a line.
        may_go: places of the columns that can be left out; the last goes first, and no more than needed.
    """
    widths = [max(map(len, column)) + GAP for column in zip(table.columns, *table.rows, strict=True)]
    gone: list[int] = []
    for place in reversed(may_go):
        if sum(widths) - sum(widths[other] for other in gone) - GAP <= width:
            break
        gone.insert(0, place)
    kept = [place for place in range(len(table.columns)) if place not in gone]
    rows = [[row[place] for place in kept] for row in table.rows]
    return Table([table.columns[place] for place in kept], rows, table.title), [table.columns[place] for place in gone]


def table_text(table: Table, width: int = WIDTH) -> str:
    """Return a table as lines of a terminal, without colors.

    Names in the first column are cut, at both ends alike, until the lines fit. The last cell of a row that is shorter
    than the others is a text in place of figures, and has the rest of the line.

    Args:
        table: the table; its title is not shown.
        width: characters of a line.

    Raises:
        MissingPackageError: rich is not installed.
    """
    whole = [row for row in table.rows if len(row) == len(table.columns)]
    columns = list(zip(table.columns, *whole, strict=True))
    room = max(width - sum(max(map(len, column)) + GAP for column in columns[1:]), SHORTEST)
    rows = [[shortened(row[0], room, keep="both"), *row[1:]] for row in table.rows]
    figures = [row if len(row) == len(table.columns) else row[:-1] for row in rows]
    drawn = rich_table(Table(table.columns, figures))
    from rich.console import Console

    stream = io.StringIO()
    # Wider than any line: nothing but the names is cut.
    console = Console(file=stream, width=10_000, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(drawn)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    for index, row in enumerate(rows, start=1):
        if len(row) < len(table.columns):
            lines[index] += " " * GAP + shortened(row[-1], max(width - len(lines[index]) - GAP, SHORTEST))
    return "\n".join(lines)
