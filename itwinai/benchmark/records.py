"""The record of a benchmark: its cells, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scaling = Literal["strong", "weak"]
"""``strong``: the global batch stays, and the workers divide it. ``weak``: the batch of each worker stays."""

Status = Literal["measured", "failed", "timed out"]

SINGLE = "single"
"""Strategy of the baseline: one process, as the trainer runs it by default."""


@dataclass(frozen=True)
class Cell:
    """One combination of what a benchmark varies.

    Attributes:
        strategy: as the trainer accepts it; or `SINGLE`.
        workers: their number, over all nodes.
        scaling: strong or weak. With one worker both are the same, and only the first of the settings is measured.
        axes: path in the config and value, as YAML, of all else that varies: ``("trainer.precision",
            "bf16-mixed")``.
    """

    strategy: str
    workers: int
    scaling: Scaling = "strong"
    axes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a step goes, in seconds, as a mean over the workers.

    Attributes:
        data: waiting for the next batch.
        compute: batch to the device, forward, backward, optimizer.
        communication: waiting for other workers; what is hidden behind backward is not counted.
        other: hooks, loggers, the loop itself.
        hidden: communication while backward computes; None if unknown.
        optimizer: the part of ``compute`` that is the optimizer's step, with clipping and schedulers; None if
            unknown.
    """

    data: float
    compute: float
    communication: float
    other: float
    hidden: float | None = None
    optimizer: float | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of each part, in the order in which they are shown; together they are the step."""
        return {name: getattr(self, name) for name in ("compute", "communication", "data", "other")}

    @property
    def step(self) -> float:
        """Seconds of all parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Measured:
    """What was measured in one run of a cell, without its first steps.

    Attributes:
        steps: number of steps: batches of each worker.
        seconds: that they took on the slowest worker, with what lies between them.
        samples: of all workers together; None if unknown.
        step_p50: median duration of a step, in seconds, as a mean over the workers.
        step_p95: 95 of 100 steps are shorter.
        breakdown: where the time of a step goes; None if the loop does not measure it.
        busy: by rank, seconds per step in which the worker does not wait for others.
        peak_memory: by rank, in bytes: of tensors on a GPU, or of the process; None if the system does not report it.
        launch: seconds from the start of the command to the first step.
        loss: of the last step, as a mean over the workers; None where the step returns none.
        joules: energy of all nodes in that time; None if it cannot be measured.
        no_joules: why ``joules`` is None.
        parameters: number of trainable parameters.
        gradient_bytes: size of the gradients of one worker.
        device: what the workers compute on, as people name it.
        nodes: number of nodes.
        threads: that each worker computes with; 0 if unknown.
    """

    steps: int
    seconds: float
    samples: int | None
    step_p50: float
    step_p95: float
    breakdown: Breakdown | None
    busy: tuple[float, ...]
    peak_memory: tuple[int | None, ...]
    launch: float
    loss: float | None
    joules: float | None
    no_joules: str
    parameters: int
    gradient_bytes: int
    device: str
    nodes: int = 1
    threads: int = 0

    @property
    def most_memory(self) -> int | None:
        """Peak memory of the worker that needs most; None if unknown."""
        return max((peak for peak in self.peak_memory if peak is not None), default=None)


@dataclass(frozen=True)
class Measurement:
    """One run of a cell.

    Attributes:
        cell: what was run.
        repeat: 0 for the first.
        status: how it ended.
        began: when, in seconds since 1970.
        seconds: that the whole run took.
        measured: None unless the run was successful.
        error: what went wrong, in a line or a few.
        output: file with the output of the run, below the folder of the benchmark.
        others: cores that other programs used right before the run; None if unknown.
    """

    cell: Cell
    repeat: int
    status: Status
    began: float
    seconds: float
    measured: Measured | None = None
    error: str = ""
    output: str = ""
    others: float | None = None


@dataclass(frozen=True)
class BenchmarkRecord:
    """A benchmark.

    Attributes:
        name: of the benchmark.
        settings: the settings, as people read it.
        facts: about the machine and the code, as people read it.
        measurements: in the order in which they were created.
        baseline: strategy that all others are compared with, at its fewest workers.
        extrapolate: numbers of workers to extrapolate to.
        repeats: planned runs of each cell; 0 if unknown.
        asked: number of planned runs; 0 if unknown. An interrupted benchmark has fewer.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    baseline: str = SINGLE
    extrapolate: Sequence[int] = ()
    repeats: int = 0
    asked: int = 0
