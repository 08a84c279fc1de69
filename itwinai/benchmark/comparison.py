"""Compare two benchmarks cell by cell: what became faster, and whether the difference is significant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from itwinai.benchmark.records import BenchmarkRecord, Cell, Measured
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.confidence_intervals import Estimate, differences, ratio_of
from itwinai.benchmark.statistics.groups import Speed
from itwinai.benchmark.statistics.ranking import SIGNIFICANT
from itwinai.benchmark.statistics.summary import LOSS_TOLERANCE, summarize

Verdict = Literal["faster", "slower", "=", "?"]
"""``=``: no significant difference. ``?``: unknown, with a single run of one of both."""


@dataclass(frozen=True)
class ComparedCell:
    """A cell that both benchmarks have measured.

    Attributes:
        cell: the cell.
        a: its summary in the first benchmark.
        b: its summary in the second.
        throughput: speed of B divided by that of A.
        p: p value of the difference, corrected for the number of cells (Holm); None with a single run of one of both.
        launch: time until the first step of B divided by that of A; None if unknown.
        memory: the same of memory.
    """

    cell: Cell
    a: CellSummary
    b: CellSummary
    throughput: Estimate
    p: float | None
    launch: Estimate | None
    memory: Estimate | None

    @property
    def verdict(self) -> Verdict:
        """What became of the speed, at a level of 5 %."""
        if self.p is None:
            return "?"
        if self.p >= SIGNIFICANT:
            return "="
        return "faster" if self.throughput.mean > 1 else "slower"

    @property
    def same_loss(self) -> bool | None:
        """Whether both end with the same loss; None if unknown."""
        if self.a.loss is None or self.b.loss is None:
            return None
        a, b = self.a.loss.mean, self.b.loss.mean
        # Two that are not a number are the same; one of them alone compares as false.
        return (a != a and b != b) or a == b or abs(b - a) <= LOSS_TOLERANCE * abs(a)


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks side by side.

    Attributes:
        a: the first one.
        b: the second one, which is compared with the first.
        speed: unit of speeds.
        cells: that both have measured, in the order of A.
        without: cells that both have run, but not both with a result.
        only_a: cells that only A has run.
        only_b: cells that only B has run.
        settings: settings that differ, with their values in A and in B; empty if one has none.
        facts: the same for facts about machine and code.
    """

    a: BenchmarkRecord
    b: BenchmarkRecord
    speed: Speed
    cells: tuple[ComparedCell, ...]
    without: tuple[Cell, ...]
    only_a: tuple[Cell, ...]
    only_b: tuple[Cell, ...]
    settings: Mapping[str, tuple[str, str]]
    facts: Mapping[str, tuple[str, str]]

    def count(self, verdict: Verdict) -> int:
        """Return how many cells have a verdict."""
        return sum(one.verdict == verdict for one in self.cells)


def compare(a: BenchmarkRecord, b: BenchmarkRecord) -> Comparison:
    """Compare two benchmarks cell by cell.

    Cells are the same if strategy, number of workers, scaling and axes are; with one worker there is no scaling. Speeds
    are samples per second if both have them, else batches per second, which are the same only if the batches are
    equally large.

    Args:
        a: the reference.
        b: what is compared with it.
    """
    first, second = _by_cell(a), _by_cell(b)
    both = [cell for cell in first if cell in second]
    with_result = [cell for cell in both if first[cell].runs and second[cell].runs]
    pairs = [(first[cell], second[cell]) for cell in with_result]
    speed = Speed(all(one.throughput is not None for pair in pairs for one in pair))
    p_values = differences([(speed.runs(one), speed.runs(other)) for one, other in pairs])
    cells = tuple(
        ComparedCell(
            cell=one.cell,
            a=one,
            b=other,
            throughput=ratio_of(speed.runs(other), speed.runs(one)),
            p=p,
            launch=_ratio(other, one, lambda measured: measured.launch),
            memory=_ratio(other, one, lambda measured: measured.most_memory),
        )
        for (one, other), p in zip(pairs, p_values, strict=True)
    )
    return Comparison(
        a,
        b,
        speed,
        cells,
        without=tuple(first[cell].cell for cell in both if cell not in with_result),
        only_a=tuple(one.cell for cell, one in first.items() if cell not in second),
        only_b=tuple(one.cell for cell, one in second.items() if cell not in first),
        settings=_differing(a.settings, b.settings),
        facts=_differing(a.facts, b.facts),
    )


def _by_cell(record: BenchmarkRecord) -> dict[Cell, CellSummary]:
    cells = {one.cell: one for one in summarize(record).cells}
    return {Cell(cell.strategy, 1, "strong", cell.axes) if cell.workers == 1 else cell: cells[cell] for cell in cells}


def _ratio(above: CellSummary, below: CellSummary, quantity: Callable[[Measured], float | None]) -> Estimate | None:
    values = [[value for one in cell.measured if (value := quantity(one))] for cell in (above, below)]
    return ratio_of(*values) if all(values) else None


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    pairs = {name: (a.get(name, ""), b.get(name, "")) for name in [*a, *b]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
