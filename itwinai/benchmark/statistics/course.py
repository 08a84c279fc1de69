"""How far a benchmark has come: an interrupted one says less than it was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.summary import Summary


@dataclass(frozen=True)
class Course:
    """How far a benchmark has come.

    Attributes:
        asked: number of runs that were asked for; 0 where that was not noted.
        made: number of runs that have ended, well or not.
        left_out: number of runs that are not made, as a run of the same cell has failed and none has succeeded.
        repeats: of each cell that were asked for; 0 where that was not noted.
    """

    asked: int
    made: int
    left_out: int
    repeats: int

    @property
    def unfinished(self) -> bool:
        """Whether runs are still to be made."""
        return self.asked > self.made + self.left_out

    def goes_on(self, cell: CellSummary) -> bool:
        """Tell whether runs of a cell are still to be made; of all of them, if nobody knows its repeats."""
        return self.unfinished and (not self.repeats or len(cell.runs) + len(cell.failed) < self.repeats)


def course_of(summary: Summary) -> Course:
    """Return how far a benchmark has come."""
    repeats = summary.record.repeats
    made = sum(len(one.runs) + len(one.failed) for one in summary.cells)
    # Where that was not noted, what any cell has is what those that have failed are not given.
    most = repeats or max((len(one.runs) + len(one.failed) for one in summary.cells), default=0)
    left_out = sum(max(most - len(one.failed), 0) for one in summary.cells if not one.runs)
    return Course(summary.record.asked, made, left_out, repeats)
