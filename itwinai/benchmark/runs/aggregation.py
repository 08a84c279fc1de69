"""What each worker has measured, brought together."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from itwinai.benchmark.records import Breakdown, Measured
from itwinai.profiling.step_timer import Phase, StepSplit, percentile

COMPUTING = (Phase.TRANSFER, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.MANUAL)


@dataclass(frozen=True)
class WorkerTimes:
    """What one worker has measured.

    Attributes:
        seconds: that the measured steps took.
        durations: of each of them, in nanoseconds, from the end of the step before.
        split: where their time went; None if the loop does not tell.
        peak_memory: in bytes; None where the system does not tell.
        first_step: when the first step of the run began, in seconds since 1970.
        loss: of the last step; None if it returned none.
        watts: power of a node in that time, by source; None for workers that do not measure their node.
        missing: what of the energy could not be measured, and why.
    """

    seconds: float
    durations: array[int]
    split: StepSplit | None
    peak_memory: int | None
    first_step: float
    loss: float | None
    watts: dict[str, float] | None
    missing: tuple[str, ...]


def aggregate(workers: list[WorkerTimes], samples: int | None, began: float, facts: dict[str, Any]) -> Measured:
    """Return the combined measurements of all workers."""
    seconds = max(worker.seconds for worker in workers)
    durations = [sorted(worker.durations) for worker in workers]
    splits = [worker.split for worker in workers if worker.split is not None]
    losses = [worker.loss for worker in workers if worker.loss is not None]
    watts = [worker.watts for worker in workers if worker.watts is not None]
    joules = sum(power for node in watts for power in node.values()) * seconds if all(watts) and watts else None
    missing = sorted({reason for worker in workers for reason in worker.missing})
    steps = len(workers[0].durations)
    return Measured(
        steps=steps,
        seconds=seconds,
        samples=samples,
        step_p50=_mean([percentile(one, 50) / 1e9 for one in durations]),
        step_p95=_mean([percentile(one, 95) / 1e9 for one in durations]),
        breakdown=_breakdown(splits, seconds / steps) if len(splits) == len(workers) else None,
        busy=tuple(_busy(split) for split in splits),
        peak_memory=tuple(worker.peak_memory for worker in workers),
        launch=max(worker.first_step for worker in workers) - began,
        loss=_mean(losses) if losses else None,
        joules=joules,
        no_joules="" if joules is not None else "; ".join(missing) or "the steps were over before a meter had moved",
        **facts,
    )


def _breakdown(splits: list[StepSplit], step: float) -> Breakdown:
    """Return where the time of a step goes, so that its parts add up to the step, with what lies between two steps."""
    data = _mean([_seconds(split, Phase.DATA) for split in splits])
    communication = _mean([_seconds(split, Phase.COMMUNICATION) for split in splits])
    compute = _mean([_seconds(split, *COMPUTING) for split in splits])
    hidden = [split.communication * split.overlap for split in splits if split.communication and split.overlap]
    known = any(split.communication is not None for split in splits)
    return Breakdown(
        data=data,
        compute=compute,
        communication=communication,
        other=max(0.0, step - data - compute - communication),
        hidden=sum(hidden) / len(splits) if known else None,
        optimizer=_mean([_seconds(split, Phase.OPTIMIZER) for split in splits]),
    )


def _seconds(split: StepSplit, *phases: Phase) -> float:
    """Return how long some phases take in a mean step; only some steps were split, which may have been longer."""
    return split.step * sum(split.share(phase) for phase in phases)


def _busy(split: StepSplit) -> float:
    return split.step - _seconds(split, Phase.COMMUNICATION)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
