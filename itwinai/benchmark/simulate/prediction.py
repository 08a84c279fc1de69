"""The time of a step with more workers, and where it goes: computing, communication, stragglers, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, get_args

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.simulate.overlap import communicate
from itwinai.benchmark.simulate.strategy_models import StrategyModel
from itwinai.benchmark.simulate.topology import Topology
from itwinai.benchmark.simulate.workload import Workload
from itwinai.errors import ConfigurationError

Precision = Literal["fp32", "mixed"]
"""``fp32``: all in 32 bits, also with autocast. ``mixed``: parameters and gradients in 16 bits, and the optimizer keeps
the parameters in 32 bits."""

PRECISIONS: tuple[str, ...] = get_args(Precision)

# Bytes per parameter of parameters, gradients and the state of Adam, which has two moments.
_BYTES = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}


@dataclass(frozen=True)
class Prediction:
    """A predicted step. All times are seconds for one batch of each worker.

    Attributes:
        model: how gradients are exchanged.
        workers: over all nodes.
        scaling: strong or weak.
        compute: forward and backward.
        other: time that depends neither on samples nor on workers.
        optimizer: its step, as a mean over the accumulated batches.
        exposed: communication during which nothing is computed, and by which computing slows down.
        hidden: communication that costs nothing, because workers compute at the same time.
        waiting: for the slowest worker.
        speedup: samples per second relative to one worker.
        losses: seconds by which the step is longer than with ideal scaling, by cause; they add up to the whole
            difference. Negative is a gain: an optimizer whose work is divided.
        samples: of all workers; None if unknown.
        memory: bytes of parameters, gradients and optimizer state on each worker; None if the number of parameters is
            unknown.
    """

    model: StrategyModel
    workers: int
    scaling: Scaling
    compute: float
    other: float
    optimizer: float
    exposed: float
    hidden: float
    waiting: float
    speedup: float
    losses: Mapping[str, float]
    samples: int | None = None
    memory: float | None = None

    @property
    def step(self) -> float:
        """Duration of the step."""
        return self.compute + self.other + self.optimizer + self.exposed + self.waiting

    @property
    def efficiency(self) -> float:
        """Speed-up per worker; 1 is ideal."""
        return self.speedup / self.workers

    @property
    def throughput(self) -> float | None:
        """Samples per second of all workers; None if the batch is unknown."""
        return None if self.samples is None else self.samples / self.step


def simulate(
    workload: Workload,
    topology: Topology,
    model: StrategyModel,
    workers: Sequence[int],
    scaling: Scaling = "strong",
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Predict the step for each number of workers.

    Args:
        workload: of one worker.
        topology: links between the workers.
        model: how they exchange gradients.
        workers: numbers of workers.
        scaling: ``strong`` divides the batch among the workers, ``weak`` gives each of them the whole batch.
        precision: of the model, for its memory.

    Raises:
        ConfigurationError: a number of workers is too large for the batch, or needs an unknown link.
    """
    return [_predict(workload, topology, model, number, scaling, precision) for number in workers]


def _predict(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, scaling: Scaling, precision: Precision
) -> Prediction:
    local = topology.local(workers)
    share = workload.share(workers, scaling)
    alone, slowdown = (workload.cores.slowdown(number) if workload.cores else 1.0 for number in (1, local))
    slower = slowdown / alone  # the measured time includes the threads of one worker already
    compute, other = workload.compute * share * slower, workload.other * slower
    every = model.accumulate
    whole_optimizer = workload.optimizer / every
    divided_optimizer = whole_optimizer / (workers if model.stage else 1)
    waiting = waiting_time(compute, workload.variation, workers, every if model.keeps_gradients else 1)

    overlap, cost = communicate(workload, topology, model, workers, compute)
    # Cores that move bytes cannot compute at the same time.
    price = overlap.hidden * (workload.cores.cost_of_hiding(local) if workload.cores else 0.0)
    exposed, hidden = overlap.exposed + price, overlap.hidden - price
    by_latency = cost.latency / cost.total if cost.total else 0.0

    grown, parts = (1, workers) if scaling == "strong" else (workers, 1)  # of the batch
    one = workload.compute + workload.other + whole_optimizer
    step = compute + other + divided_optimizer * slower + exposed + waiting
    return Prediction(
        model=model,
        workers=workers,
        scaling=scaling,
        compute=compute,
        other=other,
        optimizer=divided_optimizer * slower,
        exposed=exposed,
        hidden=hidden,
        waiting=waiting,
        speedup=one / step * grown,
        losses={
            "latency": exposed * by_latency,
            "bandwidth": exposed * (1 - by_latency),
            "stragglers": waiting,
            "optimizer": divided_optimizer - whole_optimizer / parts,
            "other": workload.other * (1 - 1 / parts),
            "uneven batch": workload.compute * (share - 1 / parts),
            "cores": (slower - 1) * (workload.compute * share + workload.other + divided_optimizer),
        },
        samples=workload.batch and workload.batch * grown,
        memory=workload.parameters and model_memory(workload.parameters, workers, model.stage, precision),
    )


def model_memory(parameters: int, workers: int, stage: int, precision: Precision = "fp32") -> float:
    """Return the bytes of parameters, gradients and Adam's state on each worker; activations come on top.

    Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", 2020, sections 3.1 and
    5: stage 1 divides the optimizer's state among the workers, stage 2 the gradients too, stage 3 the parameters too.

    Raises:
        ConfigurationError: there is no such precision.
    """
    if precision not in _BYTES:
        raise ConfigurationError(f"There is no precision '{precision}'. Choose one of {', '.join(PRECISIONS)}.")
    return sum(
        parameters * size / (workers if stage >= divided_from else 1)
        for size, divided_from in zip(_BYTES[precision], (3, 2, 1), strict=True)
    )


def waiting_time(seconds: float, variation: float, workers: int, batches: int = 1) -> float:
    """Return the expected time for which a batch waits for the slowest worker.

    The times of workers and batches are assumed normal and independent, so those of several batches between two waits
    even out by the square root of their number.

    Args:
        seconds: mean time of a batch.
        variation: standard deviation of that time divided by its mean.
        workers: their number.
        batches: from one wait to the next.
    """
    return seconds * variation * expected_maximum(workers) / math.sqrt(batches)


@lru_cache
def expected_maximum(number: int, reach: float = 12.0, step: float = 0.01) -> float:
    """Return the expected largest of ``number`` values from a standard normal distribution.

    It is the integral of ``1 - F(x)^N`` from -12 to 12, less 12, with the distribution function F, by the trapezoidal
    rule: exact to ten digits, because the integrand is smooth, 1 at the lower end and 0 at the upper one. (Blom's
    approximation is 4 % off for two values.)
    """
    below = NormalDist().cdf
    points = (-reach + index * step for index in range(1, round(2 * reach / step)))
    return 0.0 if number < 2 else (sum(1 - below(x) ** number for x in points) + 0.5) * step - reach
