"""Read the traces that torch's profiler writes, in the format of Chrome's tracing.

To read the text is several times faster than to let torch make objects of its events, and the text is the same for all
versions of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple


class EventKind(Enum):
    """What an event is, and where it took place."""

    HOST = "an operator, or a call of the driver, on a thread of the CPU"
    RANGE = "something that has been named, or a function in Python, on a thread of the CPU"
    DEVICE = "a kernel or a copy, on the device"
    DEVICE_RANGE = "the time between first and last kernel of a range"
    MEMORY = "memory was allocated or freed"


class Event(NamedTuple):
    """Something that took place between two times, in microseconds.

    Attributes:
        name: of the operator, the range, or the kernel.
        place: what it is.
        start: on the clock of the trace.
        end: the same.
        thread: of the CPU, or stream of the device.
        operator: number of an operator; a kernel has that of the operator that has started it. 0 where there is none.
        memory: bytes that were allocated; negative if they were freed.
    """

    name: str
    kind: EventKind
    start: float
    end: float
    thread: Any = 0
    operator: int = 0
    memory: int = 0


_DRIVER = ("cuda_runtime", "cuda_driver")

_PLACES = {
    "cpu_op": EventKind.HOST,
    **dict.fromkeys(_DRIVER, EventKind.HOST),
    "user_annotation": EventKind.RANGE,
    "python_function": EventKind.RANGE,
    "kernel": EventKind.DEVICE,
    "gpu_memcpy": EventKind.DEVICE,
    "gpu_memset": EventKind.DEVICE,
    "gpu_user_annotation": EventKind.DEVICE_RANGE,
}


def read_trace(path: Path) -> list[Event]:
    """Return the events of a trace that is not compressed.

    Raises:
        ValueError: it is not a trace, or was cut off.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        content = json.load(file, strict=False)  # names may hold any character
    return list(_events(content["traceEvents"]))


def _events(entries: list[dict[str, Any]]) -> Iterator[Event]:
    for entry in entries:
        name, start = entry.get("name", ""), entry.get("ts", 0.0)
        if entry.get("ph") == "X":
            category = entry.get("cat", "").lower()
            place = _PLACES.get(category)
            if place is not None:
                # A call of the driver has the number of the operator from which it was called.
                operator = 0 if category in _DRIVER else entry.get("args", {}).get("External id", 0)
                yield Event(name, place, start, start + entry.get("dur", 0.0), entry.get("tid"), operator)
        elif name == "[memory]":
            yield Event(name, EventKind.MEMORY, start, start, entry.get("tid"), memory=entry["args"]["Bytes"])
