"""The repeats of a cell, summarized: means with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.records import Breakdown, Cell, Measured, Measurement
from itwinai.benchmark.statistics.confidence_intervals import Estimate, mean_of
from itwinai.reporting.formatting import count_text


@dataclass(frozen=True)
class CellSummary:
    """What was measured of a cell, over its repeats.

    All estimates are means over those runs that tell, and None if none does. Their intervals are cut off at 0, but for
    the loss, which may be negative.

    Attributes:
        cell: what was run.
        runs: the repeats that have ended well.
        failed: the others.
        baseline: the cell that this one is compared with; None if there is none, or it has failed.
        speedup: how many times the throughput of one worker of the baseline this one reaches: a baseline of two workers
            has a speed-up of 2, by definition. With weak scaling that is the scaled speed-up. None without baseline.
        efficiency: speed-up by worker; 1 is ideal.
    """

    cell: Cell
    runs: tuple[Measurement, ...] = ()
    failed: tuple[Measurement, ...] = ()
    baseline: Cell | None = None
    speedup: Estimate | None = None
    efficiency: Estimate | None = None

    @property
    def measured(self) -> tuple[Measured, ...]:
        """What was measured in each of ``runs``."""
        return tuple(run.measured for run in self.runs if run.measured is not None)

    @property
    def tries(self) -> int:
        """Number of its runs, successful or not."""
        return len(self.runs) + len(self.failed)

    @property
    def throughput(self) -> Estimate | None:
        """Samples per second of all workers; None if a run does not tell its samples: see ``steps_per_second``."""
        if any(not one.samples for one in self.measured):
            return None
        return self._over(lambda one: (one.samples or 0) / one.seconds)

    @property
    def steps_per_second(self) -> Estimate | None:
        """Steps per second: batches of each worker."""
        return self._over(lambda one: one.steps / one.seconds)

    @property
    def step_time(self) -> Estimate | None:
        """Mean of ``step_times``."""
        return self._over(lambda one: one.seconds / one.steps)

    @property
    def step_times(self) -> tuple[float, ...]:
        """Seconds of a step with all that lies between steps, on the slowest worker: the mean of each run."""
        return tuple(one.seconds / one.steps for one in self.measured)

    @property
    def step_p50(self) -> Estimate | None:
        """Median duration of a step, in seconds."""
        return self._over(lambda one: one.step_p50)

    @property
    def step_p95(self) -> Estimate | None:
        """Duration that 95 of 100 steps do not reach, in seconds."""
        return self._over(lambda one: one.step_p95)

    @property
    def launch(self) -> Estimate | None:
        """Seconds from the start of the command to the first step."""
        return self._over(lambda one: one.launch)

    @property
    def loss(self) -> Estimate | None:
        """Loss of the last step."""
        values = [one.loss for one in self.measured if one.loss is not None]
        return mean_of(values) if values else None

    @property
    def breakdown(self) -> Breakdown | None:
        """Where the time of a step goes, in seconds; without what a run does not tell."""
        told = [one.breakdown for one in self.measured if one.breakdown is not None]
        hidden = [one.hidden for one in told if one.hidden is not None]
        optimizer = [one.optimizer for one in told if one.optimizer is not None]
        if not told:
            return None
        return Breakdown(
            data=fmean(one.data for one in told),
            compute=fmean(one.compute for one in told),
            communication=fmean(one.communication for one in told),
            other=fmean(one.other for one in told),
            hidden=fmean(hidden) if len(hidden) == len(told) else None,
            optimizer=fmean(optimizer) if len(optimizer) == len(told) else None,
        )

    def share(self, part: str) -> float | None:
        """Return the share of a step that a part of the breakdown takes; None if unknown."""
        one = self.breakdown
        return one.parts[part] / one.step if one is not None and one.step > 0 else None

    @property
    def peak_memory(self) -> Estimate | None:
        """Memory of the worker that has needed most, in bytes."""
        return self._over(lambda one: one.most_memory)

    @property
    def imbalance(self) -> Estimate | None:
        """How much longer than the mean the busiest worker is busy, as a share of the mean; None with one worker."""
        return self._over(lambda one: _imbalance(one.busy))

    @property
    def threads(self) -> int:
        """Threads that each worker computes with; 0 where that was not noted, or is not the same in all runs."""
        found = {one.threads for one in self.measured}
        return found.pop() if len(found) == 1 else 0

    @property
    def others(self) -> float | None:
        """Cores that other programs used right before the runs, as a mean; None where that was not noted."""
        noted = [run.others for run in (*self.runs, *self.failed) if run.others is not None]
        return fmean(noted) if noted else None

    @property
    def joules_per_sample(self) -> Estimate | None:
        """Energy of a sample, in joules; if it is None, ``no_joules`` says why."""
        return self._over(lambda one: one.joules / one.samples if one.joules is not None and one.samples else None)

    @property
    def no_joules(self) -> str:
        """Why energy is not known; empty if it is known of all runs, or nothing was measured at all."""
        reasons = (one.no_joules or "the runs do not tell their number of samples" for one in self.measured)
        untold = (one.joules is None or not one.samples for one in self.measured)
        return next((reason for reason, missing in zip(reasons, untold, strict=True) if missing), "")

    def rates(self, by_samples: bool) -> list[float]:
        """Return how much each run has done per second, in a unit that all cells of the same axes share.

        Args:
            by_samples: in samples; else in global batches of strong scaling, which are batches of one worker with weak
                scaling. This is for runs that do not tell their samples.
        """
        if by_samples:
            return [(one.samples or 0) / one.seconds for one in self.measured]
        batches = self.cell.workers if self.cell.scaling == "weak" else 1
        return [batches * one.steps / one.seconds for one in self.measured]

    def _over(self, quantity: Callable[[Measured], float | None]) -> Estimate | None:
        values = [value for one in self.measured if (value := quantity(one)) is not None]
        return mean_of(values).not_negative() if values else None


def cell_text(cell: Cell) -> str:
    """Return a cell in words, as in ``ddp with 2 workers, weak scaling, trainer.precision=bf16-mixed``."""
    workers = count_text(cell.workers, "worker")
    scaling = [f"{cell.scaling} scaling"] if cell.workers > 1 else []
    return ", ".join([f"{cell.strategy} with {workers}", *scaling, *(f"{path}={value}" for path, value in cell.axes)])


def _imbalance(busy: Sequence[float]) -> float | None:
    return max(busy) / fmean(busy) - 1 if len(busy) > 1 and fmean(busy) > 0 else None
