"""Take the contenders of a case by turns, chunk by chunk, and reduce what they report to medians.

Taking turns matters more than measuring long: the speed of a shared machine changes from second to second, and chunks
that lie next to each other see the same machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from tests.performance.cases import Case
from tests.performance.workers import Contender, running

Value = Literal["cpu", "wall", "collectives"]

METRIC_EPOCH_STEPS = 5


@dataclass(frozen=True)
class Sample:
    """One measurement of one contender.

    Attributes:
        contender: which one.
        repeat: number of the repeat; each has new processes. For collectives, number of the epoch.
        wall: wall time, in seconds per step, or in seconds to the first step.
        cpu: CPU time of rank 0's process in seconds per step; None where it is not measured.
        collectives: number of collectives in an epoch; None where they are not counted.
        votes: number of those besides in which workers agree whether to stop.
    """

    contender: str
    repeat: int
    wall: float | None = None
    cpu: float | None = None
    collectives: float | None = None
    votes: float | None = None


@dataclass(frozen=True)
class Summary:
    """What the samples of one contender say.

    Attributes:
        median: over all chunks of all repeats.
        p10: their 10th percentile: the step on a machine that nobody disturbs.
        ratio: the median as a multiple of that of the case's base.
        ratio_p10: the same for the 10th percentile.
        ratio_range: smallest and largest `ratio` of a single repeat: how far to trust it.
    """

    median: float
    p10: float
    ratio: float
    ratio_p10: float
    ratio_range: tuple[float, float]


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        repeats: times that every contender is started anew.
        chunks: chunks per repeat.
        steps: steps per chunk.
    """

    repeats: int = 5
    chunks: int = 10
    steps: int = 100


def measure_steps(case: Case, effort: Effort, tell: Callable[[str], None]) -> list[Sample]:
    """Measure the time of a step.

    Args:
        case: the case.
        effort: how much to measure.
        tell: is told of the progress.
    """
    samples = []
    for repeat in range(effort.repeats):
        tell(f"{case.name}: repeat {repeat + 1} of {effort.repeats}")
        with ExitStack() as stack:
            contenders = [
                stack.enter_context(running(case, name, effort.steps, effort.chunks)) for name in case.contenders
            ]
            _warm_up(contenders)
            for turn in range(effort.chunks):
                for contender in _rotated(contenders, turn):
                    report = contender.run_chunk()
                    samples.append(Sample(contender.name, repeat, wall=report["wall"], cpu=report["cpu"]))
            _finish(contenders)
    return samples


def measure_collectives(case: Case, tell: Callable[[str], None], epochs: int = 3) -> list[Sample]:
    """Count the collectives of each epoch.

    Args:
        case: the case.
        tell: is told of the progress.
        epochs: number of epochs.
    """
    samples = []
    for name in case.contenders:
        tell(f"{case.name}: {name}")
        with running(case, name, METRIC_EPOCH_STEPS, epochs) as contender:
            _warm_up([contender])
            for epoch in range(epochs):
                report = contender.run_chunk()
                samples.append(Sample(name, epoch, collectives=report["collectives"], votes=report["votes"]))
            _finish([contender])
    return samples


def _warm_up(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        contender.warm_up()


def _finish(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        contender.finish()


def _rotated(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """Let everybody come first at some time: who comes next inherits a machine that the one before has heated."""
    start = turn % len(contenders)
    return [*contenders[start:], *contenders[:start]]


@dataclass(frozen=True)
class Result:
    """All that was measured in one case."""

    case: Case
    samples: tuple[Sample, ...]

    def summaries(self, value: Value) -> dict[str, Summary]:
        """Reduce the samples to one summary for each contender that has any of this kind.

        Args:
            value: what to look at.
        """
        base = self._values(self.case.base, value)
        summaries = {}
        for name in self.case.contenders:
            own = self._values(name, value)
            if not own:
                continue
            if value == "collectives":  # judged by their number, not by a multiple of somebody else's
                base = {repeat: [1.0] for repeat in own}
            by_repeat = [statistics.median(own[repeat]) / statistics.median(base[repeat]) for repeat in own]
            all_own, all_base = sum(own.values(), []), sum(base.values(), [])
            summaries[name] = Summary(
                median=statistics.median(all_own),
                p10=percentile(all_own, 10),
                ratio=statistics.median(all_own) / statistics.median(all_base),
                ratio_p10=percentile(all_own, 10) / percentile(all_base, 10),
                ratio_range=(min(by_repeat), max(by_repeat)),
            )
        return summaries

    @property
    def deciding(self) -> dict[str, Summary]:
        """The summaries that the goal is about."""
        counted = self.case.quantity == "collectives of an epoch"
        return self.summaries("collectives" if counted else self.case.clock)

    def _values(self, contender: str, value: Value) -> dict[int, list[float]]:
        """Return what a contender reported, by repeat."""
        found: dict[int, list[float]] = {}
        for sample in self.samples:
            number = getattr(sample, value)
            if sample.contender == contender and number is not None:
                found.setdefault(sample.repeat, []).append(number)
        return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, with linear interpolation between neighbours."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
