"""Calibrate the model from a benchmark: the workload of one worker, and the error where more workers were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Cell, Measured
from itwinai.benchmark.simulate.prediction import simulate
from itwinai.benchmark.simulate.strategy_models import STRATEGIES, StrategyModel, strategy_model
from itwinai.benchmark.simulate.topology import Topology
from itwinai.benchmark.simulate.workload import Cores, Workload
from itwinai.errors import ConfigurationError

Axes = tuple[tuple[str, str], ...]

_P95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class PredictedCell:
    """A measured cell and its prediction, in seconds of a step; ``predicted`` is None for a ``reason``."""

    cell: Cell
    measured: float
    predicted: float | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Relative error; positive if the prediction is too long."""
        return None if self.predicted is None else self.predicted / self.measured - 1


def workloads_of(
    record: BenchmarkRecord,
    strategy: str = SINGLE,
    cores: Cores | None = None,
    optimizer: float | None = None,
    fixed: float = 0.0,
    backward_share: float = 2 / 3,
    variation: float | None = None,
) -> dict[Axes, Workload]:
    """Return the workload of one worker for each combination of axes, from the cells with one worker.

    Engines do work of their own, so the strategy's own cell is used if it was measured; otherwise the single process,
    or else the first strategy with one worker. The variation of steps is that of a normal distribution with the same
    median and 95 % quantile.

    Args:
        record: the benchmark.
        strategy: of the worker.
        cores: of a node, for workers on CPUs.
        optimizer: seconds of the optimizer's step, a part of the measured computing time; by default as measured.
        fixed: seconds of the computing time that do not depend on the samples.
        backward_share: share of backward in the rest.
        variation: of the steps; by default as measured.

    Raises:
        ConfigurationError: no cell with one worker was measured.
    """
    alone = [(cell, runs) for cell, runs in measured_runs(record).items() if cell.workers == 1]
    if not alone:
        raise ConfigurationError(
            f"The benchmark '{record.name}' has no measurement with one worker, from which to predict the others. "
            "Add 1 to its --workers and run it with --resume."
        )
    found: dict[Axes, list[Measured]] = {}
    for cell, runs in sorted(alone, key=lambda one: (one[0].strategy != strategy, one[0].strategy != SINGLE)):
        found.setdefault(cell.axes, runs)
    return {axes: _workload(runs, cores, optimizer, fixed, backward_share, variation) for axes, runs in found.items()}


def predict_cells(
    record: BenchmarkRecord, workloads: Callable[[str], dict[Axes, Workload]], topology: Topology, model: StrategyModel
) -> list[PredictedCell]:
    """Return the measured cells of several workers with their predictions.

    Args:
        record: the benchmark.
        workloads: returns the workloads of one worker of a strategy, by axes.
        topology: links between the workers.
        model: how gradients are exchanged; name and stage are those of each cell's strategy.
    """
    several = [(cell, runs) for cell, runs in measured_runs(record).items() if cell.workers > 1]
    order = [*STRATEGIES, *dict.fromkeys(cell.strategy for cell, _ in several)]
    several.sort(key=lambda one: (order.index(one[0].strategy), one[0].scaling, one[0].workers))
    return [
        _predicted_cell(
            cell, median(run.seconds / run.steps for run in runs), workloads(cell.strategy), topology, model
        )
        for cell, runs in several
    ]


def measured_runs(record: BenchmarkRecord) -> dict[Cell, list[Measured]]:
    """Return the successful runs of each cell."""
    runs: dict[Cell, list[Measured]] = {}
    for measurement in record.measurements:
        if measurement.measured is not None:
            runs.setdefault(measurement.cell, []).append(measurement.measured)
    return runs


def _predicted_cell(
    cell: Cell, measured: float, workloads: Mapping[Axes, Workload], topology: Topology, model: StrategyModel
) -> PredictedCell:
    if cell.axes not in workloads:
        return PredictedCell(cell, measured, None, "one worker was not measured with the same settings")
    try:
        own = strategy_model(cell.strategy, model)
        prediction = simulate(workloads[cell.axes], topology, own, [cell.workers], cell.scaling)[0]
    except ConfigurationError as error:
        return PredictedCell(cell, measured, None, str(error))
    return PredictedCell(cell, measured, prediction.step)


def _workload(
    runs: Sequence[Measured],
    cores: Cores | None,
    optimizer: float | None,
    fixed: float,
    backward_share: float,
    variation: float | None,
) -> Workload:
    step = median(run.seconds / run.steps for run in runs)
    breakdowns = [run.breakdown for run in runs if run.breakdown is not None]
    # The time between steps is in no part of the breakdown, and does not depend on the samples either.
    compute = min(median(one.data + one.compute for one in breakdowns), step) if breakdowns else step
    if optimizer is None:
        optimizers = [one.optimizer for one in breakdowns if one.optimizer is not None]
        # Both may have been measured in different steps: leave something to compute.
        optimizer = min(median(optimizers), max(0.9 * compute - fixed, 0.0)) if optimizers else 0.0
    if optimizer + fixed >= compute:
        raise ConfigurationError(
            f"--optimizer and --other take {optimizer + fixed:.3g} s together, but a step computes for only "
            f"{compute:.3g} s. With --from they are parts of that."
        )
    if variation is None:
        variation = max(median((run.step_p95 / run.step_p50 - 1) / _P95 for run in runs), 0.0)
    samples = [run.samples / run.steps for run in runs if run.samples]
    return Workload(
        compute=compute - optimizer - fixed,
        gradient_bytes=runs[0].gradient_bytes,
        batch=round(median(samples)) if samples else None,
        parameters=runs[0].parameters,
        optimizer=optimizer,
        other=step - compute + fixed,
        variation=variation,
        backward_share=backward_share,
        cores=cores,
    )
