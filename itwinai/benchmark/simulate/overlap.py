"""One step event by event: when gradients are ready, and when each exchange starts and ends.

A worker has two lanes: one computes, the other communicates. Each does one thing at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from itwinai.benchmark.simulate.strategy_models import StrategyModel
from itwinai.benchmark.simulate.workload import Workload

Seconds = Callable[[float], float]
"""Time of a collective operation by its bytes."""


class GradientBucket(NamedTuple):
    """Gradients that are exchanged together: ``size`` bytes, ready after the share ``ready`` of backward."""

    size: float
    ready: float


class ModelPart(NamedTuple):
    """A part of the model that ZeRO stage 3 gathers at once: ``size`` bytes, and a ``share`` of the computing time."""

    size: float
    share: float


class Overlap(NamedTuple):
    """Seconds of communication: ``exposed`` while nothing is computed, ``hidden`` beside computation."""

    exposed: float = 0.0
    hidden: float = 0.0


def buckets_of(workload: Workload, model: StrategyModel) -> list[GradientBucket]:
    """Return the buckets in the order in which they are ready: the gradients of the last layer come first.

    As in PyTorch's DDP (Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB
    2020, section 3.2), a bucket is full once it has reached its size; layers are not divided.
    """
    buckets: list[GradientBucket] = []
    if not workload.layers:
        ready = 0.0
        for size in _pieces(workload.gradient_bytes, model.first_bucket_bytes, model.bucket_bytes):
            ready += size / workload.gradient_bytes
            buckets.append(GradientBucket(size, min(ready, 1.0)))
        return buckets
    total, size, ready = sum(layer.weight for layer in workload.layers), 0.0, 0.0
    for layer in reversed(workload.layers):
        size += layer.gradient_bytes
        ready += layer.weight / total
        if size >= (model.bucket_bytes if buckets else model.first_bucket_bytes):
            buckets.append(GradientBucket(size, min(ready, 1.0)))
            size = 0.0
    return [*buckets, GradientBucket(size, 1.0)] if size else buckets


def parts_of(workload: Workload, model: StrategyModel) -> list[ModelPart]:
    """Return the parts of the model that stage 3 gathers one after the other, in the order of forward."""
    if workload.layers:
        total = sum(layer.weight for layer in workload.layers)
        return [ModelPart(layer.gradient_bytes, layer.weight / total) for layer in workload.layers]
    pieces = _pieces(workload.gradient_bytes, model.bucket_bytes, model.bucket_bytes)
    return [ModelPart(size, size / workload.gradient_bytes) for size in pieces]


def exchange_gradients(
    backward: float, buckets: Sequence[GradientBucket], seconds: Seconds, overlap: bool = True
) -> Overlap:
    """Return how much of the exchange is hidden behind backward.

    The exchange of a bucket starts when it is ready and the previous exchange has ended.

    Args:
        backward: its seconds.
        buckets: in the order in which they are ready.
        seconds: time of the exchange of a bucket.
        overlap: without it the first exchange starts after backward.
    """
    lane = _Lane(0.0 if overlap else backward)
    for bucket in buckets:
        lane.run(bucket.ready * backward, seconds(bucket.size))
    return lane.overlap(lane.free - backward)


def run_sharded(
    forward: float,
    backward: float,
    parts: Sequence[ModelPart],
    gather: Seconds,
    scatter: Seconds,
    *,
    overlap: bool = True,
    prefetch: bool = True,
) -> Overlap:
    """Return how much communication is hidden if no worker holds all parameters: ZeRO stage 3.

    A part is computed once its parameters are gathered, in forward and again in backward; then its gradients are
    reduced and scattered.

    Args:
        forward: its seconds.
        backward: its seconds.
        parts: in the order of forward.
        gather: time to gather the parameters of a part.
        scatter: time to reduce and scatter its gradients.
        overlap: gradients are scattered while the next part computes.
        prefetch: parameters are gathered while the previous part computes.
    """
    lane = _Lane()
    computed = 0.0
    for duration, order, is_backward in ((forward, parts, False), (backward, parts[::-1], True)):
        begun = computed  # when the previous part began, and with it the gathering of this one
        unscattered = 0.0
        for part in order:
            gathered = lane.run(begun if prefetch else computed, gather(part.size))
            if unscattered:
                lane.run(computed, scatter(unscattered))
            begun = max(computed, gathered if overlap else lane.free)
            computed = begun + part.share * duration
            unscattered = part.size if is_backward else 0.0
    if unscattered:
        lane.run(computed, scatter(unscattered))
    return lane.overlap(max(computed, lane.free) - forward - backward)


class _Lane:
    """Does one thing after the other."""

    def __init__(self, free: float = 0.0) -> None:
        self.free = free
        self.busy = 0.0

    def run(self, ready: float, seconds: float) -> float:
        """Start something when it is ready and the lane is free, and return when it ends."""
        self.free = max(self.free, ready) + seconds
        self.busy += seconds
        return self.free

    def overlap(self, exposed: float) -> Overlap:
        """Return the exposed seconds, and the rest of the busy ones as hidden."""
        exposed = max(exposed, 0.0)
        return Overlap(exposed, max(self.busy - exposed, 0.0))


def _pieces(size: float, first: float, others: float) -> list[float]:
    pieces: list[float] = []
    while size > 0:
        pieces.append(min(size, others if pieces else first))
        size -= pieces[-1]
    return pieces
