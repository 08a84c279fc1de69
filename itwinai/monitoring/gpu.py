"""What every maker's library tells of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from itwinai.errors import ItwinaiError


class UnavailableError(ItwinaiError):
    """A library that reads GPUs is not there or does not work; or a GPU does not have what was requested."""


@dataclass(frozen=True)
class Gpu:
    """A GPU. Each function raises what its library raises where the GPU does not have what it reads.

    Attributes:
        label: its name and id.
        utilization: percentage of the time in which it computes.
        memory: bytes in use, by whomever.
        memory_total: bytes it has; None if it does not tell.
        power: in watts.
        temperature: in degrees Celsius.
        energy: a counter, in joules; None if it has none.
    """

    label: str
    utilization: Callable[[], float]
    memory: Callable[[], float]
    memory_total: float | None
    power: Callable[[], float]
    temperature: Callable[[], float]
    energy: Callable[[], float] | None


@dataclass(frozen=True)
class Gpus:
    """The GPUs that are visible to the workers of this node.

    Attributes:
        gpus: those that can be read.
        close: called when nothing is read any more.
        missing: reason by what the environment names and cannot be found.
    """

    gpus: Sequence[Gpu]
    close: Callable[[], None]
    missing: Mapping[str, str] = field(default_factory=dict)
