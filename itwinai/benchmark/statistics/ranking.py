"""Rank the strategies of a group by speed, and test whether the differences are significant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from itwinai.benchmark.records import Cell
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.confidence_intervals import Estimate, differences, ratio_of
from itwinai.benchmark.statistics.groups import Group, Speed
from itwinai.benchmark.statistics.summary import Series

SIGNIFICANT = 0.05
"""p value below which a difference is significant."""


@dataclass(frozen=True)
class Rival:
    """A cell that another one is compared with.

    Attributes:
        cell: the cell.
        ratio: speed of the other one divided by that of this cell.
        p: p value of the difference, for all rivals together; None with a single run of one of both.
    """

    cell: CellSummary
    ratio: Estimate
    p: float | None

    @property
    def differs(self) -> bool:
        """Whether the difference is significant."""
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """The strategies of a group, at the largest number of workers that was measured.

    Attributes:
        group: the group.
        best: the fastest cell.
        line: the series that it is in.
        rivals: the other cells with that many workers, the fastest first.
        fewer: the fastest cell with fewer workers, with its speed divided by that of the best one; None unless it is
            significantly faster.
    """

    group: Group
    best: CellSummary
    line: Series
    rivals: tuple[Rival, ...]
    fewer: Rival | None

    @property
    def ties(self) -> list[Rival]:
        """The rivals without a significant difference."""
        return [rival for rival in self.rivals if not rival.differs]


def rankings_of(groups: Sequence[Group], speed: Speed, excluded: Collection[Cell] = ()) -> list[Ranking]:
    """Return the ranking of each group in which anything was measured.

    Args:
        groups: of a benchmark.
        speed: unit of speeds.
        excluded: cells that do not take part.
    """
    found = (_ranking(group, speed, excluded) for group in groups)
    return [ranking for ranking in found if ranking is not None]


def compared(best: CellSummary, others: Sequence[CellSummary], speed: Speed) -> list[Rival]:
    """Return how a cell compares with others, with p values for all of these comparisons together."""
    own = speed.runs(best)
    p_values = differences([(own, speed.runs(other)) for other in others])
    return [Rival(other, ratio_of(own, speed.runs(other)), p) for other, p in zip(others, p_values, strict=True)]


def _ranking(group: Group, speed: Speed, excluded: Collection[Cell]) -> Ranking | None:
    cells = {one.cell: one for one in group.cells if one.cell not in excluded}
    means = {cell: estimate.mean for cell, one in cells.items() if (estimate := speed.of(one)) is not None}
    if not means:
        return None
    most = max(cell.workers for cell in means)
    order = sorted(means, key=lambda cell: -means[cell])
    best, *others = [cells[cell] for cell in order if cell.workers == most]
    smaller = [cells[cell] for cell in order if cell.workers < most]
    line = next(line for line in group.series if best in line.cells)
    fewer = next(iter(compared(best, smaller, speed)), None)
    if fewer is not None and fewer.differs and fewer.ratio.mean < 1:
        fewer = Rival(fewer.cell, ratio_of(speed.runs(fewer.cell), speed.runs(best)), fewer.p)
    else:
        fewer = None
    return Ranking(group, best, line, tuple(compared(best, others, speed)), fewer)
