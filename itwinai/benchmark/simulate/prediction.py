"""How long a step takes with more workers, from what one worker takes, and where that time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.simulate.collectives import Algorithm, Cost, all_gather, all_reduce, reduce_scatter
from itwinai.benchmark.simulate.links import Topology
from itwinai.benchmark.simulate.memory import ModelStates, Precision, memory_per_worker
from itwinai.benchmark.simulate.step import Overlap, Seconds, buckets_of, exchange_gradients, parts_of, run_sharded
from itwinai.benchmark.simulate.stragglers import waiting_time
from itwinai.benchmark.simulate.workload import Exchange, Workload

Collective = Callable[[float, int, Topology, Algorithm], Cost]


@dataclass(frozen=True)
class Prediction:
    """A step as it is expected with some number of workers. All times are seconds for one batch of each worker.

    Attributes:
        exchange: how gradients meet.
        workers: their number, over all nodes.
        scaling: how the batch goes with the number of workers.
        compute: forward and backward.
        other: what depends neither on samples nor on workers.
        optimizer: its step, as a mean over the batches between two of them.
        exposed: communication during which nothing is computed, and by which computing becomes slower.
        hidden: communication that costs nothing, because workers compute meanwhile.
        waiting: for the slowest worker.
        speedup: how much more samples per second than one worker trains with.
        losses: by which the step is longer than with ideal scaling, by cause; together they are the whole difference.
            A negative one is a gain: an optimizer whose work is divided.
        samples: of all workers; None if not known.
        memory: on each worker, without activations; None if the number of parameters is not known.
    """

    exchange: Exchange
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
    memory: ModelStates | None = None

    @property
    def step(self) -> float:
        """Duration of the step."""
        return self.compute + self.other + self.optimizer + self.exposed + self.waiting

    @property
    def efficiency(self) -> float:
        """Speed-up by worker; 1 is ideal."""
        return self.speedup / self.workers

    @property
    def throughput(self) -> float | None:
        """Samples per second of all workers; None if the batch is not known."""
        return None if self.samples is None else self.samples / self.step


def simulate(
    workload: Workload,
    topology: Topology,
    exchange: Exchange,
    workers: Sequence[int],
    scaling: Scaling = "strong",
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Predict steps.

    Args:
        workload: what one worker does alone.
        topology: what joins the workers.
        exchange: how their gradients meet.
        workers: numbers of workers to predict for.
        scaling: ``strong`` divides the batch among the workers, ``weak`` gives each of them as many samples as one had.
        precision: of the model, for its memory.

    Raises:
        ConfigurationError: some number of workers is too large for the batch, or needs a link that is not known.
    """
    return [_predict(workload, topology, exchange, number, scaling, precision) for number in workers]


def _predict(
    workload: Workload, topology: Topology, exchange: Exchange, workers: int, scaling: Scaling, precision: Precision
) -> Prediction:
    local = topology.local(workers)
    share = workload.share(workers, scaling)
    alone, slowdown = (workload.cores.slowdown(number) if workload.cores else 1.0 for number in (1, local))
    slower = slowdown / alone  # what was measured has the threads of one worker in it already
    compute, other = workload.compute * share * slower, workload.other * slower
    every = exchange.accumulate
    whole_optimizer = workload.optimizer / every
    divided_optimizer = whole_optimizer / (workers if exchange.stage else 1)
    waiting = waiting_time(compute, workload.variation, workers, every if exchange.keeps_gradients else 1)

    overlap, cost = communicate(workload, topology, exchange, workers, compute)
    # Cores that move bytes cannot compute meanwhile.
    price = overlap.hidden * (workload.cores.cost_of_hiding(local) if workload.cores else 0.0)
    exposed, hidden = overlap.exposed + price, overlap.hidden - price
    by_latency = cost.latency / cost.total if cost.total else 0.0

    grown, parts = (1, workers) if scaling == "strong" else (workers, 1)  # of the batch
    one = workload.compute + workload.other + whole_optimizer
    step = compute + other + divided_optimizer * slower + exposed + waiting
    samples = None if workload.batch is None else workload.batch * grown
    return Prediction(
        exchange,
        workers,
        scaling,
        compute,
        other,
        divided_optimizer * slower,
        exposed,
        hidden,
        waiting,
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
        samples=samples,
        memory=None
        if workload.parameters is None
        else memory_per_worker(workload.parameters, workers, exchange.stage, precision),
    )


def communicate(
    workload: Workload, topology: Topology, exchange: Exchange, workers: int, compute: float
) -> tuple[Overlap, Cost]:
    """Return the communication of one batch, as a mean over the batches between two steps of the optimizer.

    Stages 1 and 2 reduce and scatter the gradients, and gather the parameters after the optimizer's step; stage 3
    gathers the parameters in forward and in backward, and reduces and scatters the gradients: 1.5 times the bytes of an
    all-reduce (Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", 2020,
    section 7). Where workers do not keep all gradients, every batch's are exchanged.

    Args:
        workload: what one worker does alone.
        topology: what joins the workers.
        exchange: how their gradients meet.
        workers: how many there are.
        compute: seconds of forward and backward.

    Returns:
        How much of it passes beside computation, and its cost.
    """
    if workers == 1:
        return Overlap(), Cost()
    costs: list[Cost] = []

    def timed(way: Collective) -> Seconds:
        def seconds(size: float) -> float:
            costs.append(way(size, workers, topology, exchange.algorithm))
            return costs[-1].total

        return seconds

    backward = compute * workload.backward_share
    forward = compute - backward
    if exchange.stage == 3:
        overlap = run_sharded(
            forward,
            backward,
            parts_of(workload, exchange),
            timed(all_gather),
            timed(reduce_scatter),
            overlap=exchange.overlap,
            prefetch=exchange.prefetch and exchange.overlap,
        )
        return overlap, sum(costs, Cost())
    way = timed(reduce_scatter if exchange.stage else all_reduce)
    overlap = exchange_gradients(backward, buckets_of(workload, exchange), way, exchange.overlap)
    times = 1 if exchange.keeps_gradients else exchange.accumulate  # between two steps of the optimizer
    gathering = Cost()
    if exchange.stage:
        gathering = all_gather(workload.gradient_bytes, workers, topology, exchange.algorithm)
    mean = Overlap(
        (overlap.exposed * times + gathering.total) / exchange.accumulate,
        overlap.hidden * times / exchange.accumulate,
    )
    return mean, (sum(costs, Cost()) * times + gathering) * (1 / exchange.accumulate)
