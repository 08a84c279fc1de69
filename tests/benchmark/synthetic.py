"""Benchmarks whose law is known: records as a run would leave them, with as much noise as is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from itwinai.benchmark.records import (
    SINGLE,
    BenchmarkRecord,
    Breakdown,
    Cell,
    Measured,
    Measurement,
    Scaling,
    Status,
)

Law = Callable[[int], float]
"""Seconds of a step by the number of workers."""

BEGAN = 1_700_000_000.0


def amdahl(one_worker: float = 0.1, serial_share: float = 0.05) -> Law:
    """Return Amdahl's law, for strong scaling: ``t1 (s + (1 - s) / N)``."""
    return lambda workers: one_worker * (serial_share + (1 - serial_share) / workers)


def communication(work: float = 0.1, latency: float = 2e-4, transfer: float = 4e-3) -> Law:
    """Return strong scaling with a ring all-reduce: ``w / N + l (N - 1) + b 2 (N - 1) / N``."""
    return lambda workers: work / workers + latency * (workers - 1) + transfer * 2 * (workers - 1) / workers


def weak_communication(work: float = 0.1, latency: float = 2e-4, transfer: float = 4e-3) -> Law:
    """Return weak scaling with a ring all-reduce: ``w + l (N - 1) + b 2 (N - 1) / N``."""
    return lambda workers: work + latency * (workers - 1) + transfer * 2 * (workers - 1) / workers


@dataclass(frozen=True)
class Line:
    """The cells of one strategy.

    Attributes:
        strategy: its name.
        law: how long its steps take.
        scaling: what ``law`` is meant for.
        workers: their numbers.
        axes: what else is varied.
        loss: of the last step, in all cells.
    """

    strategy: str
    law: Law
    scaling: Scaling = "strong"
    workers: Sequence[int] = (1, 2, 4, 8)
    axes: tuple[tuple[str, str], ...] = ()
    loss: float | None = 0.5


def synthetic_record(
    *lines: Line,
    repeats: int = 3,
    noise: float = 0.0,
    seed: int = 0,
    batch: int = 64,
    steps: int = 100,
    failed: Sequence[tuple[str, int]] = (),
    baseline: str = SINGLE,
    extrapolate: Sequence[int] = (16, 32, 64),
) -> BenchmarkRecord:
    """Return a benchmark that follows known laws.

    Args:
        lines: what is measured. A cell with one worker is measured once only, as in a real benchmark: for the first of
            the lines of its strategy and axes.
        repeats: runs of each cell.
        noise: standard deviation of a run's time, as a share of it.
        seed: of the noise.
        batch: samples of a step: of all workers with strong scaling, of each one with weak scaling.
        steps: of each run.
        failed: strategy and number of workers of the cells that fail in all repeats.
        baseline: strategy of the baseline.
        extrapolate: numbers of workers to extrapolate to.
    """
    generator = np.random.default_rng(seed)
    measurements: list[Measurement] = []
    for repeat in range(repeats):
        for line, cell in _cells(lines):
            began = BEGAN + 60 * len(measurements)
            if (cell.strategy, cell.workers) in failed:
                measurements.append(failure(cell, repeat, began=began))
                continue
            seconds = line.law(cell.workers) * float(np.exp(noise * generator.standard_normal() - noise**2 / 2))
            samples = steps * batch * (cell.workers if cell.scaling == "weak" else 1)
            measured = made_up(seconds, cell.workers, steps=steps, samples=samples, loss=line.loss)
            measurements.append(Measurement(cell, repeat, "measured", began, steps * seconds + 5, measured))
    return BenchmarkRecord(
        "synthetic",
        {"strategies": ", ".join(dict.fromkeys(line.strategy for line in lines)), "repeats": str(repeats)},
        {"device": "made up"},
        measurements,
        baseline,
        extrapolate,
        repeats,
    )


def made_up(
    step_time: float,
    workers: int = 1,
    *,
    steps: int = 100,
    samples: int | None = 6400,
    loss: float | None = 0.5,
    joules: float | None = None,
) -> Measured:
    """Return what a run would have measured whose steps all take ``step_time`` seconds."""
    communicating = 0.1 if workers > 1 else 0.0
    shares = {"data": 0.1, "compute": 0.7 - communicating, "communication": communicating, "other": 0.2}
    return Measured(
        steps=steps,
        seconds=steps * step_time,
        samples=samples,
        step_p50=step_time,
        step_p95=1.2 * step_time,
        breakdown=Breakdown(**{name: share * step_time for name, share in shares.items()}),
        busy=tuple(step_time * (0.9 + 0.01 * (rank % 2)) for rank in range(workers)),
        peak_memory=tuple(2**30 + 2**20 * rank for rank in range(workers)),
        launch=4.0,
        loss=loss,
        joules=joules,
        no_joules="" if joules is not None else "this machine does not tell",
        parameters=1_000_000,
        gradient_bytes=4_000_000,
        device="made up",
    )


def failure(cell: Cell, repeat: int = 0, *, status: Status = "failed", began: float = BEGAN) -> Measurement:
    """Return a run that has not ended well."""
    return Measurement(cell, repeat, status, began, 3.0, error="RuntimeError: out of memory")


def _cells(lines: Sequence[Line]) -> Iterator[tuple[Line, Cell]]:
    alone = set()
    for line in lines:
        for workers in line.workers:
            if workers == 1:
                if (line.strategy, line.axes) in alone:
                    continue
                alone.add((line.strategy, line.axes))
            yield line, Cell(line.strategy, workers, line.scaling, line.axes)
