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
"""p value from which on a difference is no longer told from chance."""


@dataclass(frozen=True)
class Rival:
    """A cell that another one is compared with.

    Attributes:
        cell: the cell.
        ratio: how many times as fast the other one is.
        p: how likely so large a difference is by chance, for all rivals together; None if one of both was run once
            only.
    """

    cell: CellSummary
    ratio: Estimate
    p: float | None

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """The strategies of a group, at the largest number of workers that any was measured with.

    Attributes:
        group: the group.
        best: the fastest cell.
        line: the series that it is in.
        rivals: the other cells with that many workers, the fastest first, and how much faster the best one is.
        fewer: the fastest cell with fewer workers, and how many times as fast as the best one *it* is; None unless it
            really is faster.
    """

    group: Group
    best: CellSummary
    line: Series
    rivals: tuple[Rival, ...]
    fewer: Rival | None

    @property
    def ties(self) -> list[Rival]:
        """The rivals that no difference to could be shown of."""
        return [rival for rival in self.rivals if not rival.differs]


def rankings_of(groups: Sequence[Group], speed: Speed, excluded: Collection[Cell] = ()) -> list[Ranking]:
    """Return who is fastest in each group; groups in which nothing was measured are left out.

    Args:
        groups: the groups of a benchmark.
        speed: what speeds are told in.
        excluded: cells that take no part.
    """
    found = (_ranking(group, speed, excluded) for group in groups)
    return [ranking for ranking in found if ranking is not None]


def compared(best: CellSummary, others: Sequence[CellSummary], speed: Speed) -> list[Rival]:
    """Return how a cell compares with others, with p values for all of these comparisons together.

    Args:
        best: the cell.
        others: cells that were measured.
        speed: what speeds are told in.
    """
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
    first, *others = [cells[cell] for cell in order if cell.workers == most]
    smaller = [cells[cell] for cell in order if cell.workers < most]
    line = next(line for line in group.series if first in line.cells)
    return Ranking(group, first, line, tuple(compared(first, others, speed)), _faster(first, smaller, speed))


def _faster(best: CellSummary, others: Sequence[CellSummary], speed: Speed) -> Rival | None:
    """Return the fastest of other cells, the first of them, if it is faster than the best one."""
    for rival in compared(best, others, speed)[:1]:
        if rival.differs and rival.ratio.mean < 1:
            return Rival(rival.cell, ratio_of(speed.runs(rival.cell), speed.runs(best)), rival.p)
    return None
