"""The course of one batch, event by event: when gradients are ready, and when each exchange starts and ends.

A worker has two lanes: one computes, the other one communicates. On each of them one thing happens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from itwinai.benchmark.simulate.workload import Exchange, Workload

Seconds = Callable[[float], float]
"""How long a collective operation takes, by its bytes."""


@dataclass(frozen=True)
class Bucket:
    """Gradients that are exchanged together.

    Attributes:
        size: in bytes.
        ready: when the last of them is ready, as a share of the time of backward.
    """

    size: float
    ready: float


@dataclass(frozen=True)
class Part:
    """A part of the model whose parameters are gathered together.

    Attributes:
        size: of its parameters, and of its gradients, in bytes.
        share: of the computing time.
    """

    size: float
    share: float


@dataclass(frozen=True)
class Overlap:
    """Seconds of the communication of a batch.

    Attributes:
        exposed: during which nothing is computed.
        hidden: that pass while the worker computes.
    """

    exposed: float = 0.0
    hidden: float = 0.0


def buckets_of(workload: Workload, exchange: Exchange) -> list[Bucket]:
    """Return the buckets in the order in which they are ready: the last layer's gradients come first.

    As in PyTorch's DDP (Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB
    2020, section 3.2), a bucket is full once it has reached its size, so no layer is divided.
    """
    if not workload.layers:
        sizes = _pieces(workload.gradient_bytes, exchange.first_bucket_bytes, exchange.bucket_bytes)
        ready, buckets = 0.0, []
        for size in sizes:
            ready += size / workload.gradient_bytes
            buckets.append(Bucket(size, min(ready, 1.0)))
        return buckets
    whole = sum(layer.weight for layer in workload.layers)
    buckets, size, passed = [], 0.0, 0.0
    for layer in reversed(workload.layers):
        size += layer.gradient_bytes
        passed += layer.weight / whole
        if size >= (exchange.bucket_bytes if buckets else exchange.first_bucket_bytes):
            buckets.append(Bucket(size, min(passed, 1.0)))
            size = 0.0
    return [*buckets, Bucket(size, 1.0)] if size else buckets


def parts_of(workload: Workload, exchange: Exchange) -> list[Part]:
    """Return the parts of the model that stage 3 gathers one after the other, in the order of forward."""
    if workload.layers:
        whole = sum(layer.weight for layer in workload.layers)
        return [Part(layer.gradient_bytes, layer.weight / whole) for layer in workload.layers]
    pieces = _pieces(workload.gradient_bytes, exchange.bucket_bytes, exchange.bucket_bytes)
    return [Part(size, size / workload.gradient_bytes) for size in pieces]


def exchange_gradients(backward: float, buckets: Sequence[Bucket], seconds: Seconds, overlap: bool = True) -> Overlap:
    """Return how much of the exchange passes beside backward.

    The exchange of a bucket starts when it is ready and the exchange before it has ended.

    Args:
        backward: seconds of it.
        buckets: in the order in which they are ready.
        seconds: how long the exchange of a bucket takes.
        overlap: without it the first exchange starts after backward.
    """
    lane = _Lane(0.0 if overlap else backward)
    for bucket in buckets:
        lane.run(bucket.ready * backward, seconds(bucket.size))
    exposed = max(lane.free - backward, 0.0)
    return Overlap(exposed, max(lane.busy - exposed, 0.0))


def run_sharded(
    forward: float,
    backward: float,
    parts: Sequence[Part],
    gather: Seconds,
    scatter: Seconds,
    *,
    overlap: bool = True,
    prefetch: bool = True,
) -> Overlap:
    """Return how much communication passes beside the computation if no worker has all parameters: ZeRO's stage 3.

    A part is computed when its parameters are there: they are gathered in forward and once more in backward, after
    which its gradients are reduced and scattered.

    Args:
        forward: seconds of computation in it.
        backward: seconds of computation in it.
        parts: in the order of forward.
        gather: how long it takes to gather the parameters of a part.
        scatter: how long it takes to reduce and scatter its gradients.
        overlap: gradients are scattered while the next part computes; else that waits.
        prefetch: parameters are gathered while the part before computes; else that waits.
    """
    lane = _Lane()
    computed = 0.0
    for duration, order, is_backward in ((forward, parts, False), (backward, parts[::-1], True)):
        begun = computed  # when the part before has begun, and with it the gathering of this one
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
    exposed = max(max(computed, lane.free) - forward - backward, 0.0)
    return Overlap(exposed, max(lane.busy - exposed, 0.0))


class _Lane:
    """Does one thing after the other."""

    def __init__(self, free: float = 0.0) -> None:
        self.free = free
        self.busy = 0.0

    def run(self, ready: float, seconds: float) -> float:
        """Begin something when it is ready and the lane is free, and return when it ends."""
        self.free = max(self.free, ready) + seconds
        self.busy += seconds
        return self.free


def _pieces(size: float, first: float, others: float) -> list[float]:
    pieces: list[float] = []
    while size > 0:
        pieces.append(min(size, others if pieces else first))
        size -= pieces[-1]
    return pieces
