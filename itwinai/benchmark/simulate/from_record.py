"""What a benchmark knows of one worker, and how far the model is off where more were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Cell, Measured
from itwinai.benchmark.simulate.links import Topology
from itwinai.benchmark.simulate.prediction import simulate
from itwinai.benchmark.simulate.strategies import STRATEGIES, exchange_of
from itwinai.benchmark.simulate.workload import Cores, Exchange, Workload
from itwinai.errors import ConfigurationError

Axes = tuple[tuple[str, str], ...]

_P95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Comparison:
    """A measured cell beside its prediction.

    Attributes:
        cell: what was measured.
        measured: seconds of a step, as a median over the repeats.
        predicted: seconds of a step; None if it cannot be predicted.
        reason: why ``predicted`` is None.
    """

    cell: Cell
    measured: float
    predicted: float | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """How much more than measured was predicted, as a share of it."""
        return None if self.predicted is None else self.predicted / self.measured - 1


def workloads_of(
    record: BenchmarkRecord,
    strategy: str = SINGLE,
    cores: Cores | None = None,
    optimizer: float | None = None,
    fixed: float = 0.0,
    backward_share: float = 2 / 3,
) -> dict[Axes, Workload]:
    """Return what one worker does, by what else was varied, from the cells with one worker.

    The strategy's own cell is taken where it was measured: engines do things of their own. Else the single process
    is, or the first strategy with one worker. The variation of steps is that of a normal distribution with the same
    median and 95 % quantile.

    Args:
        record: the benchmark.
        strategy: of the worker.
        cores: of a node, where workers compute on the CPU.
        optimizer: seconds of the optimizer's step, which the benchmark counts as computing time; by default what it has
            measured of it.
        fixed: seconds of the computing time that do not depend on the samples.
        backward_share: share of backward in what remains.

    Raises:
        ConfigurationError: no cell with one worker was measured.
    """

    def preference(cell: Cell) -> int:
        return 2 if cell.strategy == strategy else int(cell.strategy == SINGLE)

    found: dict[Axes, tuple[Cell, list[Measured]]] = {}
    for cell, runs in _runs(record).items():
        if cell.workers == 1 and (cell.axes not in found or preference(cell) > preference(found[cell.axes][0])):
            found[cell.axes] = cell, runs
    if not found:
        raise ConfigurationError(
            f"The benchmark '{record.name}' has measured no cell with one worker, from which the others could be "
            "predicted. Add 1 to its --workers and say --resume."
        )
    return {axes: _workload(runs, cores, optimizer, fixed, backward_share) for axes, (_, runs) in found.items()}


def compare(
    record: BenchmarkRecord, workloads: Callable[[str], dict[Axes, Workload]], topology: Topology, options: Exchange
) -> list[Comparison]:
    """Return the measured cells of several workers beside their predictions.

    Args:
        record: the benchmark.
        workloads: returns what one worker of a strategy does, by what else was varied.
        topology: what joins the workers.
        options: how gradients meet, but for name and stage.
    """
    comparisons = []
    order = [*STRATEGIES, *dict.fromkeys(measurement.cell.strategy for measurement in record.measurements)]
    several = [(cell, runs) for cell, runs in _runs(record).items() if cell.workers > 1]
    for cell, runs in sorted(several, key=lambda of: (order.index(of[0].strategy), of[0].scaling, of[0].workers)):
        measured = median(_step(run) for run in runs)
        of_strategy = workloads(cell.strategy)
        if cell.axes not in of_strategy:
            comparisons.append(Comparison(cell, measured, None, "one worker was not measured with the same settings"))
            continue
        try:
            exchange = exchange_of(cell.strategy, options)
            predicted = simulate(of_strategy[cell.axes], topology, exchange, [cell.workers], cell.scaling)[0].step
        except ConfigurationError as error:
            comparisons.append(Comparison(cell, measured, None, str(error)))
        else:
            comparisons.append(Comparison(cell, measured, predicted))
    return comparisons


def computes_on_cpu(record: BenchmarkRecord) -> bool:
    """Tell whether the workers of a benchmark compute on the CPU."""
    return any(run.device.upper() == "CPU" for runs in _runs(record).values() for run in runs)


def threads_of(record: BenchmarkRecord) -> int | None:
    """Return the threads that one worker of a benchmark has computed with; None if that was not noted."""
    known = [run.threads for cell, runs in _runs(record).items() for run in runs if cell.workers == 1 and run.threads]
    return known[0] if known else None


def _runs(record: BenchmarkRecord) -> dict[Cell, list[Measured]]:
    """Return what was measured, by cell."""
    runs: dict[Cell, list[Measured]] = {}
    for measurement in record.measurements:
        if measurement.measured is not None:
            runs.setdefault(measurement.cell, []).append(measurement.measured)
    return runs


def _workload(
    runs: Sequence[Measured], cores: Cores | None, optimizer: float | None, fixed: float, backward_share: float
) -> Workload:
    step = median(_step(run) for run in runs)
    told = [run.breakdown for run in runs if run.breakdown is not None]
    # What lies between steps is in none of the parts, and does not depend on the samples either.
    compute = min(median(one.data + one.compute for one in told), step) if told else step
    if optimizer is None:
        steps_of_it = [one.optimizer for one in told if one.optimizer is not None]
        # No more than is there, if both were measured in different steps.
        optimizer = min(median(steps_of_it), max(0.9 * compute - fixed, 0.0)) if steps_of_it else 0.0
    if optimizer + fixed >= compute:
        raise ConfigurationError(
            f"{optimizer + fixed:.3g} s of optimizer and other things do not fit into a step that computes for "
            f"{compute:.3g} s. With a benchmark, --optimizer and --other are parts of that."
        )
    first = runs[0]
    samples = [run.samples / run.steps for run in runs if run.samples]
    return Workload(
        compute=compute - optimizer - fixed,
        gradient_bytes=first.gradient_bytes,
        batch=round(median(samples)) if samples else None,
        parameters=first.parameters,
        optimizer=optimizer,
        other=step - compute + fixed,
        variation=max(median((run.step_p95 / run.step_p50 - 1) / _P95 for run in runs), 0.0),
        backward_share=backward_share,
        cores=cores,
    )


def _step(run: Measured) -> float:
    return run.seconds / run.steps
