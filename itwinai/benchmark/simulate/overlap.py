"""The communication of a step, and how much of it is hidden behind computation.

A worker computes in one lane and communicates in another. Each lane does one thing at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from itwinai.benchmark.simulate.collectives import Cost, all_gather, all_reduce, reduce_scatter
from itwinai.benchmark.simulate.strategy_models import StrategyModel
from itwinai.benchmark.simulate.topology import Topology
from itwinai.benchmark.simulate.workload import Workload


class Part(NamedTuple):
    """A part of the model: ``size`` bytes of gradients, and its ``share`` of the computing time."""

    size: float
    share: float


class Task(NamedTuple):
    """Seconds of computation, of the communication that has to end before it, and of that which follows it."""

    compute: float
    before: float = 0.0
    after: float = 0.0


class Overlap(NamedTuple):
    """Seconds of communication: ``exposed`` while nothing is computed, ``hidden`` beside computation."""

    exposed: float = 0.0
    hidden: float = 0.0


def communicate(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, compute: float
) -> tuple[Overlap, Cost]:
    """Return the communication of one batch, as a mean over the accumulated batches: its overlap and its cost.

    Stages 1 and 2 reduce-scatter the gradients and all-gather the parameters after the optimizer's step. Stage 3
    gathers the parameters in forward and in backward and scatters the gradients: 1.5 times the bytes of an all-reduce
    (Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", 2020, section 7). If
    workers do not keep all gradients, they exchange those of each batch.

    Args:
        workload: of one worker.
        topology: links between the workers.
        model: how they exchange gradients.
        workers: their number.
        compute: seconds of forward and backward.
    """
    if workers == 1:
        return Overlap(), Cost()
    collective = partial(
        reduce_scatter if model.stage else all_reduce, workers=workers, topology=topology, algorithm=model.algorithm
    )
    backward = compute * workload.backward_share
    if model.stage == 3:
        parts = [(part.share, collective(part.size)) for part in parts_of(workload, model)]
        gathered = [Task(share * (compute - backward), before=cost.total) for share, cost in parts]
        scattered = [Task(share * backward, before=cost.total, after=cost.total) for share, cost in reversed(parts)]
        return schedule([gathered, scattered], model), sum((cost for _, cost in parts), Cost()) * 3
    buckets = [(bucket.share, collective(bucket.size)) for bucket in buckets_of(workload, model)]
    overlap = schedule([[Task(share * backward, after=cost.total) for share, cost in buckets]], model)
    exchanges = (1 if model.keeps_gradients else model.accumulate) / model.accumulate  # of each batch
    gathering = all_gather(workload.gradient_bytes, workers, topology, model.algorithm) if model.stage else Cost()
    gathering *= 1 / model.accumulate
    exposed, hidden = overlap.exposed * exchanges + gathering.total, overlap.hidden * exchanges
    return Overlap(exposed, hidden), sum((cost for _, cost in buckets), Cost()) * exchanges + gathering


def buckets_of(workload: Workload, model: StrategyModel) -> list[Part]:
    """Return the gradients that are exchanged together, in the order of backward: the last layer comes first.

    As in PyTorch's DDP (Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB
    2020, section 3.2), a bucket is full once it has reached its size; layers are not divided.
    """
    buckets, size, share = list[Part](), 0.0, 0.0
    for part in _layers(workload)[::-1] or _pieces(workload, model.first_bucket_bytes, model.bucket_bytes):
        size, share = size + part.size, share + part.share
        if size >= (model.bucket_bytes if buckets else model.first_bucket_bytes):
            buckets.append(Part(size, share))
            size = share = 0.0
    return [*buckets, Part(size, share)] if size else buckets


def parts_of(workload: Workload, model: StrategyModel) -> list[Part]:
    """Return the parts whose parameters stage 3 gathers one after the other, in the order of forward."""
    return _layers(workload) or _pieces(workload, model.bucket_bytes, model.bucket_bytes)


def schedule(phases: Iterable[Sequence[Task]], model: StrategyModel) -> Overlap:
    """Return how much communication is hidden behind the tasks of all phases.

    What a task needs is communicated while the one before it computes; the first task of a phase prefetches nothing.
    What follows a task is communicated while the next ones compute, after what these need.

    Args:
        phases: such as forward and backward; the tasks of each in their order.
        model: whether it prefetches, and whether it communicates at all while it computes.
    """
    phases = list(phases)
    if not model.overlap:
        return Overlap(exposed=sum(task.before + task.after for tasks in phases for task in tasks))
    computed = free = busy = 0.0  # when each lane has ended what it has to do, and seconds of communication
    for tasks in phases:
        began, pending = computed, 0.0
        for task in tasks:
            if task.before:
                free = max(free, began if model.prefetch else computed) + task.before
            began = max(computed, free) if task.before else computed
            free = max(free, computed) + pending
            computed, pending = began + task.compute, task.after
            busy += task.before + task.after
        free = max(free, computed) + pending
    exposed = max(max(computed, free) - sum(task.compute for tasks in phases for task in tasks), 0.0)
    return Overlap(exposed, max(busy - exposed, 0.0))


def _layers(workload: Workload) -> list[Part]:
    """Return the layers of a workload, if they are known, in the order of forward."""
    total = sum(layer.weight for layer in workload.layers)
    return [Part(layer.gradient_bytes, layer.weight / total) for layer in workload.layers]


def _pieces(workload: Workload, first: float, others: float) -> list[Part]:
    """Return parts of these sizes, which compute in proportion to their bytes."""
    pieces, left = list[Part](), workload.gradient_bytes
    while left > 0:
        size = min(left, others if pieces else first)
        pieces.append(Part(size, size / workload.gradient_bytes))
        left -= size
    return pieces
