"""What is drawn over the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from itwinai.benchmark.report.lines import Quantity
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Speed
from itwinai.benchmark.telling.amounts import Unit, energy_unit, memory_unit, time_unit


def throughput(speed: Speed) -> Quantity:
    """Return the speed of cells."""
    title = "Throughput: mean, with its 95 % interval from 3 runs on"
    return Quantity("throughput", title, "throughput", speed.of, Unit(speed.unit), marks_failed=True)


SPEEDUP = Quantity(
    "speedup",
    "Speed-up over the baseline",
    "speed-up",
    lambda cell: cell.speedup,
    Unit(""),
    "doublings",
    lambda count: count,
)

EFFICIENCY = Quantity(
    "efficiency",
    "Efficiency: speed-up by worker",
    "efficiency",
    lambda cell: cell.efficiency,
    Unit("%", 0.01),
    ideal=lambda _: 1.0,
)


def memory(cells: Sequence[CellSummary]) -> Quantity:
    """Return the memory of the worker that needs most."""
    return _in_handy_unit(
        "memory",
        "Peak memory of the worker that needs most",
        "memory",
        cells,
        lambda cell: cell.peak_memory,
        memory_unit,
    )


def energy(cells: Sequence[CellSummary]) -> Quantity:
    """Return the energy that a sample takes."""
    return _in_handy_unit(
        "energy", "Energy of a sample", "energy per sample", cells, lambda cell: cell.joules_per_sample, energy_unit
    )


def launch(cells: Sequence[CellSummary]) -> Quantity:
    """Return the time until the first step."""
    return _in_handy_unit(
        "launch", "From the command to the first step", "launch time", cells, lambda cell: cell.launch, time_unit
    )


LOSS = Quantity("loss", "Loss of the last step", "loss", lambda cell: cell.loss, Unit(""), "close", height=2.8)


def _in_handy_unit(
    name: str,
    title: str,
    label: str,
    cells: Sequence[CellSummary],
    of: Callable[[CellSummary], Estimate | None],
    unit: Callable[[float], Unit],
) -> Quantity:
    means = [found.mean for cell in cells if (found := of(cell)) is not None]
    return Quantity(name, title, label, of, unit(median(means) if means else 0.0), height=2.8)
