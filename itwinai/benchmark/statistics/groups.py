"""Groups of cells that can be compared with each other, the names of cells in text, and the unit of speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.records import Cell, Scaling
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.confidence_intervals import Estimate, mean_of
from itwinai.benchmark.statistics.summary import Axes, Series, Summary
from itwinai.reporting.formatting import count_text, joined, short_names


@dataclass(frozen=True)
class Group:
    """The series of one scaling and one combination of axes: one panel of a plot.

    Attributes:
        scaling: of all of them.
        axes: of all of them.
        series: one for each strategy.
        scaling_name: name of its scaling; empty if all groups have the same.
        axes_name: name of its axes; empty if all groups have the same.
    """

    scaling: Scaling
    axes: Axes
    series: tuple[Series, ...]
    scaling_name: str
    axes_name: str

    @property
    def name(self) -> str:
        """What distinguishes this group; empty if there are no others."""
        return _listed(self.scaling_name, self.axes_name)

    @property
    def cells(self) -> list[CellSummary]:
        """All cells, by strategy and number of workers."""
        return [cell for line in self.series for cell in line.cells]


@dataclass(frozen=True)
class Naming:
    """The names of the cells of a benchmark, with only what distinguishes them.

    Attributes:
        several_scalings: whether there are several.
        axes: short names of the paths that have several values.
    """

    several_scalings: bool
    axes: Mapping[str, str]

    def scaling(self, scaling: Scaling) -> str:
        """Return the name of a scaling; empty if there is only one."""
        return f"{scaling} scaling" if self.several_scalings else ""

    def values(self, axes: Axes) -> str:
        """Return the values of the axes that have several."""
        return ", ".join(f"{self.axes[path]}={value}" for path, value in axes if path in self.axes)

    def setting(self, cell: Cell) -> str:
        """Return scaling and axes of a cell; with one worker there is no scaling."""
        return _listed(self.scaling(cell.scaling) if cell.workers > 1 else "", self.values(cell.axes))

    def cells(self, cells: Sequence[Cell]) -> str:
        """Return cells as text: ``ddp with 2 and 4 workers (weak scaling); ray with 8 workers (weak scaling)``."""
        workers: dict[tuple[str, str], list[int]] = {}
        for cell in cells:
            workers.setdefault((cell.strategy, self.setting(cell)), []).append(cell.workers)
        return "; ".join(
            f"{strategy} with {joined([str(number) for number in numbers])} worker{'' if numbers == [1] else 's'}"
            + (f" ({setting})" if setting else "")
            for (strategy, setting), numbers in workers.items()
        )


def naming_of(cells: Sequence[Cell]) -> Naming:
    """Return the naming for text about these cells."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for path, value in cell.axes:
            values.setdefault(path, set()).add(value)
    names = short_names(list(values))
    several = len({cell.scaling for cell in cells if cell.workers > 1}) > 1
    return Naming(several, {path: names[path] for path, found in values.items() if len(found) > 1})


def groups_of(summary: Summary) -> list[Group]:
    """Return the groups of a benchmark, in the order in which they were first run."""
    naming = naming_of([one.cell for one in summary.cells])
    members: dict[tuple[Scaling, Axes], list[Series]] = {}
    for line in summary.series:
        members.setdefault((line.scaling, line.axes), []).append(line)
    return [
        Group(scaling, axes, tuple(lines), naming.scaling(scaling), naming.values(axes))
        for (scaling, axes), lines in members.items()
    ]


def strategies_of(cells: Sequence[CellSummary]) -> list[str]:
    """Return the strategies in the order in which they were first run."""
    return list(dict.fromkeys(one.cell.strategy for one in cells))


def named(cell: Cell) -> str:
    """Return strategy and workers of a cell: ``ddp with 2 workers``."""
    return f"{cell.strategy} with {count_text(cell.workers, 'worker')}"


@dataclass(frozen=True)
class Speed:
    """The unit of speeds: samples per second, or batches per second if the samples are unknown.

    Attributes:
        by_samples: whether it is samples. Batches are those of all workers with strong scaling, and of one worker with
            weak scaling, so that more of them are always more work.
    """

    by_samples: bool

    @property
    def unit(self) -> str:
        """The unit."""
        return "samples/s" if self.by_samples else "batches/s"

    def runs(self, cell: CellSummary) -> list[float]:
        """Return the speed of each run of a cell; empty if unknown."""
        return [] if self.by_samples and cell.throughput is None else cell.rates(self.by_samples)

    def of(self, cell: CellSummary) -> Estimate | None:
        """Return the speed of a cell; None if unknown."""
        runs = self.runs(cell)
        return mean_of(runs).not_negative() if runs else None


def speed_of(cells: Sequence[CellSummary]) -> Speed:
    """Return the unit of the speeds of these cells: samples, if those of any cell are known."""
    measured = [one for one in cells if one.runs]
    return Speed(not measured or any(one.throughput is not None for one in measured))


def batch_of(cell: CellSummary) -> float | None:
    """Return the samples of one step of one worker; None if unknown."""
    batches = [one.samples / one.steps / cell.cell.workers for one in cell.measured if one.samples]
    return fmean(batches) if batches else None


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
