"""How long collective operations take, and how much of it passes beside computation, from the events of a profiler."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from itwinai.profiling.chrome_trace import Event, EventKind

Span = tuple[float, float]
"""Start and end, in microseconds."""

# What carries an operation out: kernels of NCCL or of AMD's RCCL, and what gloo's own threads record while they run it.
_KERNELS = re.compile(r"(nccl|rccl|msccl)", re.IGNORECASE)
_GLOO = "gloo:"

# What only starts an operation, or waits for one. `record_param_comms` holds its arguments.
_LAUNCHES = ("c10d::", "_c10d_functional::", "c10d_functional::", "record_param_comms", "nccl:")

# Operators that stand around others and around the hooks of gradients, in which a worker may be waiting.
_WRAPPERS = ("autograd::engine::", "torch::autograd::")

_COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True)
class CommunicationTime:
    """How long collective operations take in a step, in microseconds.

    An operation lasts until all workers have taken part, so waiting for a slower worker is in it.

    Attributes:
        total_us: time during which at least one operation ran.
        overlapped_us: the part of it during which this worker computed as well.
    """

    total_us: float
    overlapped_us: float

    @property
    def exposed_us(self) -> float:
        """The part during which nothing else was done."""
        return self.total_us - self.overlapped_us


def communication_time(events: Iterable[Event]) -> tuple[CommunicationTime | None, str]:
    """Return how long collective operations took, or why that cannot be known.

    On a GPU the kernels of NCCL are the operations, and all other kernels but copies are the computation. On CPUs
    gloo's threads record their operations, and the operators on other threads are the computation. An operator in which
    Python code waits for a collective counts as computation: nothing in the events tells them apart.

    Args:
        events: in any order, of all threads and streams of one worker.
    """
    operations: list[Span] = []
    launched: set[str] = set()
    waiting: list[Span] = []
    host: list[Span] = []
    device: list[Span] = []
    has_device = False
    for event in events:
        span = (event.start, event.end)
        if event.kind is EventKind.DEVICE:
            has_device = True
            if _KERNELS.match(event.name):
                operations.append(span)
            elif not event.name.startswith(_COPIES):
                device.append(span)
        elif event.kind not in (EventKind.HOST, EventKind.RANGE):
            continue
        elif event.name.startswith(_GLOO):
            operations.append(span)
        elif event.name.startswith(_LAUNCHES):
            launched.add(event.name)
            waiting.append(span)
        elif event.kind is EventKind.HOST and not event.name.startswith(_WRAPPERS):
            host.append(span)
    if operations:
        running = union(operations)
        computing = union(device) if has_device else without(union(host), union(waiting))
        return CommunicationTime(length(running), length(common(running, computing))), ""
    if launched:
        names = ", ".join(sorted(launched))
        return None, f"collective operations were started ({names}), but how long they took is not among the events"
    return None, "the recorded steps show no collective operation"


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the time that is covered by at least one span, as ordered spans that do not touch."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def common(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """Return the time that two results of `union` have in common, as ordered spans."""
    shared = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            shared.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return shared


def without(spans: Sequence[Span], removed: Sequence[Span]) -> list[Span]:
    """Return the time of a result of `union` that is not in another one, as ordered spans."""
    left = []
    j = 0
    for start, end in spans:
        while j < len(removed) and removed[j][1] <= start:
            j += 1
        at = j
        while at < len(removed) and removed[at][0] < end:
            if removed[at][0] > start:
                left.append((start, removed[at][0]))
            start = max(start, removed[at][1])
            at += 1
        if start < end:
            left.append((start, end))
    return left


def length(spans: Iterable[Span]) -> float:
    """Return the sum of the lengths of spans."""
    return sum(end - start for start, end in spans)
