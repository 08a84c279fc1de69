"""Tables of a terminal: names at the left, figures below each other."""

from __future__ import annotations

from collections.abc import Sequence

from itwinai.reporting.search.formatting import shortened
from itwinai.reporting.terminal import WIDTH

SHORTEST = 12
"""Characters of a name that are shown even where a line becomes too long."""


def aligned(heading: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], numbered: bool = False) -> list[str]:
    """Return the lines of a table that is no wider than a terminal, if that can be: names are cut for that.

    Args:
        heading: of the columns.
        rows: the cells of each row, and a text that stands in place of further cells, if there is one; it is cut too.
        numbered: the first column holds no names, but numbers, which stand at the right like the others.
    """
    whole = [cells for cells, text in rows if not text]
    widths = [max(map(len, column)) for column in list(zip(heading, *whole, strict=True))[1:]]
    room = max(WIDTH - sum(widths) - 2 * len(widths), SHORTEST)
    names = [_with_both_ends(cells[0], room) for cells, _ in rows]
    width = max(map(len, [heading[0], *names]))
    justified = str.rjust if numbered else str.ljust
    lines = [_line(justified(heading[0], width), heading[1:], widths)]
    for name, (cells, text) in zip(names, rows, strict=True):
        line = _line(justified(name, width), cells[1:], widths)
        lines.append(f"{line}  {shortened(text, max(WIDTH - len(line) - 2, SHORTEST))}" if text else line)
    return lines


def _with_both_ends(name: str, most: int) -> str:
    """Return a name of at most so many characters: strategies often differ at their end, as stages of ZeRO do."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[head + 1 - most :]}"


def _line(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([name, *(text.rjust(width) for text, width in zip(cells, widths, strict=False))])
