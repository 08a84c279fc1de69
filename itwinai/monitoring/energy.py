"""Energy, added up during a run: from a counter, or from readings of power."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

Method = Literal["counter", "power"]


@dataclass(frozen=True)
class EnergyUse:
    """The energy that was used by something.

    Attributes:
        source: what used it.
        joules: how much.
        seconds: the time that this covers.
        method: ``"counter"``: the difference of a counter of the hardware. ``"power"``: the integral of readings of
            power by the trapezoidal rule, over the times at which they were really taken.
    """

    source: str
    joules: float
    seconds: float
    method: Method


class Meter(Protocol):
    """Adds up energy."""

    method: Method
    joules: float
    seconds: float

    def add(self, value: float, at: float) -> None:
        """Take a reading, at a time in seconds."""


class CounterMeter:
    """Adds up the differences of a counter.

    Args:
        unit: of the counter, in joules.
        wraps_at: highest value of the counter, after which it begins again from 0; None for one that never does.
    """

    method: Method = "counter"

    def __init__(self, unit: float, wraps_at: float | None = None) -> None:
        self.joules = 0.0
        self.seconds = 0.0
        self._unit = unit
        self._wraps_at = wraps_at
        self._last: tuple[float, float] | None = None

    def add(self, value: float, at: float) -> None:
        """Take a reading.

        A counter that goes back without wrapping around was reset, as by a reloaded driver: what it has counted since
        the last reading is not known and not covered.
        """
        if self._last is not None:
            before, then = self._last
            grown = value - before
            if grown < 0 and self._wraps_at is not None:
                grown += self._wraps_at
            if grown >= 0:
                self.joules += grown * self._unit
                self.seconds += at - then
        self._last = value, at


class PowerMeter:
    """Adds up readings of power, in watts, by the trapezoidal rule."""

    method: Method = "power"

    def __init__(self) -> None:
        self.joules = 0.0
        self.seconds = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, value: float, at: float) -> None:
        """Take a reading."""
        if self._last is not None:
            before, then = self._last
            self.joules += (before + value) / 2 * (at - then)
            self.seconds += at - then
        self._last = value, at


@dataclass(frozen=True)
class EnergySource:
    """Something whose energy is added up.

    Attributes:
        name: of the source, as people read it.
        quantity: of a gauge, from whose values the energy is made.
        meter: what adds it up.
    """

    name: str
    quantity: str
    meter: Meter = field(compare=False)

    def use(self) -> EnergyUse | None:
        """Return the energy used until now, or None if unknown."""
        if self.meter.seconds <= 0:
            return None
        return EnergyUse(self.name, self.meter.joules, self.meter.seconds, self.meter.method)
