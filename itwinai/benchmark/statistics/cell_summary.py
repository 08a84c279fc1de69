"""The repeats of a cell, summarized: means with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.records import Breakdown, Cell, Measured, Measurement
from itwinai.benchmark.statistics.confidence_intervals import Estimate, mean_of
from itwinai.reporting.formatting import count_text


@dataclass(frozen=True)
class CellSummary:
    """What was measured of a cell, over its repeats.

    Estimates are means over the runs that measured a quantity, and None if none did. Their intervals are cut off at 0,
    but for the loss, which may be negative.

    Attributes:
        cell: what was run.
        runs: the successful repeats.
        failed: the others.
        baseline: the cell that this one is compared with; None if there is none, or it has failed.
        speedup: throughput relative to one worker of the baseline: a baseline of two workers has a speed-up of 2, by
            definition. With weak scaling it is the scaled speed-up. None without baseline.
        efficiency: speed-up per worker; 1 is ideal.
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
        """Samples per second of all workers; None if the samples of a run are unknown."""
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
        """Mean seconds of a step of each run, with the time between steps, on the slowest worker."""
        return tuple(one.seconds / one.steps for one in self.measured)

    @property
    def step_p50(self) -> Estimate | None:
        """Median duration of a step, in seconds."""
        return self._over(lambda one: one.step_p50)

    @property
    def step_p95(self) -> Estimate | None:
        """95 % quantile of the duration of a step, in seconds."""
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
        """Where the time of a step goes, in seconds; None if no run measured it."""
        known = [one.breakdown for one in self.measured if one.breakdown is not None]
        means = {}
        for name in ("data", "compute", "communication", "other", "hidden", "optimizer"):
            values = [value for one in known if (value := getattr(one, name)) is not None]
            means[name] = fmean(values) if values and len(values) == len(known) else None
        return Breakdown(**means) if known else None  # type: ignore[arg-type]

    def share(self, part: str) -> float | None:
        """Return the share of a step that a part of the breakdown takes; None if unknown."""
        one = self.breakdown
        return one.parts[part] / one.step if one is not None and one.step > 0 else None

    @property
    def peak_memory(self) -> Estimate | None:
        """Memory of the worker that needs most, in bytes."""
        return self._over(lambda one: one.most_memory)

    @property
    def imbalance(self) -> Estimate | None:
        """How much longer than the mean the busiest worker is busy, as a share of the mean; None with one worker."""
        return self._over(
            lambda one: max(one.busy) / fmean(one.busy) - 1 if len(one.busy) > 1 and fmean(one.busy) > 0 else None
        )

    @property
    def threads(self) -> int:
        """Threads of each worker; 0 if unknown, or not the same in all runs."""
        found = {one.threads for one in self.measured}
        return found.pop() if len(found) == 1 else 0

    @property
    def others(self) -> float | None:
        """Mean cores that other programs used right before the runs; None if unknown."""
        noted = [run.others for run in (*self.runs, *self.failed) if run.others is not None]
        return fmean(noted) if noted else None

    @property
    def joules_per_sample(self) -> Estimate | None:
        """Energy of a sample, in joules; if it is None, ``no_joules`` says why."""
        return self._over(lambda one: one.joules / one.samples if one.joules is not None and one.samples else None)

    @property
    def no_joules(self) -> str:
        """Why energy is unknown; empty if it is known of all runs, or nothing was measured at all."""
        without = (one for one in self.measured if one.joules is None or not one.samples)
        return next((one.no_joules or "the number of samples is unknown" for one in without), "")

    def rates(self, by_samples: bool) -> list[float]:
        """Return how much each run did per second, in a unit that all cells of the same axes share.

        Args:
            by_samples: in samples; else in global batches of strong scaling, which are batches of one worker with weak
                scaling. This is for runs whose samples are unknown.
        """
        if by_samples:
            return [(one.samples or 0) / one.seconds for one in self.measured]
        batches = self.cell.workers if self.cell.scaling == "weak" else 1
        return [batches * one.steps / one.seconds for one in self.measured]

    def _over(self, quantity: Callable[[Measured], float | None]) -> Estimate | None:
        values = [value for one in self.measured if (value := quantity(one)) is not None]
        return mean_of(values).not_negative() if values else None


def cell_text(cell: Cell) -> str:
    """Return a cell as text: ``ddp with 2 workers, weak scaling, trainer.precision=bf16-mixed``."""
    workers = count_text(cell.workers, "worker")
    scaling = [f"{cell.scaling} scaling"] if cell.workers > 1 else []
    return ", ".join([f"{cell.strategy} with {workers}", *scaling, *(f"{path}={value}" for path, value in cell.axes)])
