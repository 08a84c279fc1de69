"""Quantities that are read again and again, each until it fails for the first time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from itwinai.monitoring.energy import EnergySource

log = logging.getLogger(__name__)

SHARE = 0.005
"""Most of one core's time that a gauge takes; one that is slower is read less often."""


@dataclass(frozen=True)
class Gauge:
    """Some quantities that are read together, and fail together.

    Attributes:
        quantities: their names.
        read: returns their values, in this order; None for one that cannot be known yet, as a rate at first.
        share: most of one core's time that reading takes.
    """

    quantities: tuple[str, ...]
    read: Callable[[], Sequence[float | None]]
    share: float = SHARE


@dataclass(frozen=True)
class Instruments:
    """What some part of a machine can be measured with.

    Attributes:
        gauges: what to read.
        energy: what of it adds up to energy.
        missing: reason by quantity, for what is known from the start not to be there.
        facts: what was found, for people.
        close: called when nothing is read any more.
    """

    gauges: Sequence[Gauge] = ()
    energy: Sequence[EnergySource] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    close: Callable[[], None] | None = None


class Value(NamedTuple):
    """The value of a quantity, and when it was read, by the monotonic clock."""

    quantity: str
    value: float
    at: float


class Gauges:
    """Reads gauges, and drops those that fail.

    Args:
        gauges: what to read, in this order.
        missing: reason by quantity, for what is known from the start not to be there.
        where: name of the node, for the log.

    Attributes:
        missing: reason by quantity, of all that is not read, or not any more.
    """

    def __init__(self, gauges: Iterable[Gauge], missing: Mapping[str, str], where: str) -> None:
        self.missing = dict(missing)
        self._left = dict.fromkeys(gauges, -math.inf)  # when each is due
        self._where = where
        self._began = time.monotonic()
        self._read: set[str] = set()

    def read(self, everything: bool = False) -> Iterator[Value]:
        """Read what is due.

        Args:
            everything: read also what would take more than its share of time.
        """
        for gauge, due in list(self._left.items()):
            at, cost = time.monotonic(), time.thread_time()
            if at < due and not everything:
                continue
            try:
                values = gauge.read()
            except Exception as error:  # any error of a driver: the run is worth more than the quantity
                self._lose(gauge, error, at)
                continue
            self._left[gauge] = at + (time.thread_time() - cost) / gauge.share
            for quantity, value in zip(gauge.quantities, values, strict=True):
                if value is not None:
                    self._read.add(quantity)
                    yield Value(quantity, value, at)

    def _lose(self, gauge: Gauge, error: Exception, at: float) -> None:
        del self._left[gauge]
        reason = str(error) or type(error).__name__
        known = [quantity for quantity in gauge.quantities if quantity in self._read]
        if known:
            reason = f"{reason}; from {at - self._began:.0f} s after the start on"
            log.warning("itwinai: %s: %s can no longer be measured: %s", self._where, ", ".join(known), reason)
        self.missing |= dict.fromkeys(gauge.quantities, reason)


class Rate:
    """Turns a sum that grows into its growth per second.

    Args:
        shortest: seconds; no rate is made of a shorter time, in which the clock ticks of the system show.
    """

    def __init__(self, shortest: float = 0.05) -> None:
        self._shortest = shortest
        self._last: tuple[float, float] | None = None

    def __call__(self, total: float) -> float | None:
        """Return the growth per second since the last rate, or None where there is none yet."""
        now = time.monotonic()
        if self._last is None:
            self._last = total, now
            return None
        before, then = self._last
        if now - then < self._shortest:
            return None
        self._last = total, now
        return (total - before) / (now - then)
