"""Figures as people read them: with a unit, and with how sure they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itwinai.benchmark.statistics.estimates import Estimate

UNKNOWN = "-"
"""What stands where nothing was measured; never a zero."""


@dataclass(frozen=True)
class Unit:
    """A unit that makes a figure handy.

    Attributes:
        name: of the unit.
        size: how much of the SI unit it is.
    """

    name: str
    size: float = 1.0

    def of(self, value: float) -> float:
        """Return a value of the SI unit in this unit."""
        return value / self.size


_TIMES = (Unit("s"), Unit("ms", 1e-3), Unit("µs", 1e-6), Unit("ns", 1e-9))
_BYTES = (Unit("GiB", 2.0**30), Unit("MiB", 2.0**20), Unit("KiB", 2.0**10), Unit("B"))
_TRAFFIC = (Unit("TB", 1e12), Unit("GB", 1e9), Unit("MB", 1e6), Unit("kB", 1e3), Unit("B"))
_JOULES = (Unit("kJ", 1e3), Unit("J"), Unit("mJ", 1e-3), Unit("µJ", 1e-6))


def time_unit(seconds: float) -> Unit:
    """Return the unit for a time."""
    return _unit(seconds, _TIMES)


def memory_unit(size: float) -> Unit:
    """Return the unit for a number of bytes."""
    return _unit(size, _BYTES)


def energy_unit(joules: float) -> Unit:
    """Return the unit for an energy."""
    return _unit(joules, _JOULES)


def number_text(value: float) -> str:
    """Return a number with three digits, or all before the point: ``12,345``, ``3.41``."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2e}" if 0 < abs(value) < 1e-4 else f"{value:,.{_places(value, 3)}f}"


def estimate_text(estimate: Estimate | None, unit: Unit | None = None) -> str:
    """Return an estimate with its interval: ``12.3 ± 0.4 ms``, or ``3.8 (3.1 to 4.7)`` where the ends differ.

    Args:
        estimate: in the SI unit.
        unit: what to tell it in; by default as it is.
    """
    if estimate is None:
        return UNKNOWN
    unit = unit or Unit("")
    after = f" {unit.name}" if unit.name else ""
    mean = unit.of(estimate.mean)
    if estimate.low is None or estimate.high is None or not math.isfinite(estimate.high):
        return f"{number_text(mean)}{after}"
    low, high = unit.of(estimate.low), unit.of(estimate.high)
    half = (high - low) / 2
    if half <= 1e-9 * abs(mean):
        return f"{number_text(mean)}{after}"
    # As many digits as the interval leaves sure, but at least one of its own.
    places = max(min(_places(half, 2), _places(mean, 3)), _places(half, 1))
    if abs((high - mean) - half) > 0.04 * half:
        return f"{mean:,.{places}f} ({low:,.{places}f} to {high:,.{places}f}){after}"
    return f"{mean:,.{places}f} ± {half:,.{places}f}{after}"


def share_text(share: float) -> str:
    """Return a share in percent: ``31 %``."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def time_text(estimate: Estimate | None) -> str:
    """Return a time with its interval, in a handy unit."""
    return UNKNOWN if estimate is None else estimate_text(estimate, time_unit(estimate.mean))


def seconds_text(seconds: float) -> str:
    """Return a time that is known without an interval, in a handy unit."""
    return time_text(Estimate(seconds, None, None, 1))


def bytes_text(size: float) -> str:
    """Return a number of bytes that is known without an interval, in a handy unit."""
    return memory_text(Estimate(size, None, None, 1))


def traffic_text(size: float) -> str:
    """Return a number of bytes that are sent, in the decimal units of links."""
    unit = _unit(size, _TRAFFIC)
    return f"{number_text(unit.of(size))} {unit.name}"


def memory_text(estimate: Estimate | None) -> str:
    """Return an amount of memory with its interval, in a handy unit."""
    return UNKNOWN if estimate is None else estimate_text(estimate, memory_unit(estimate.mean))


def energy_text(estimate: Estimate | None) -> str:
    """Return an energy with its interval, in a handy unit."""
    return UNKNOWN if estimate is None else estimate_text(estimate, energy_unit(estimate.mean))


def percent_text(estimate: Estimate | None) -> str:
    """Return a share with its interval, in percent."""
    return estimate_text(estimate, Unit("%", 0.01))


def p_text(p: float) -> str:
    """Return a p value: ``p = 0.03``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _unit(value: float, units: tuple[Unit, ...]) -> Unit:
    if not value or not math.isfinite(value):
        return next(unit for unit in units if unit.size == 1)
    return next((unit for unit in units if abs(value) >= 0.9995 * unit.size), units[-1])


def _places(value: float, count: int) -> int:
    """Return the decimal places with which a number has so many digits."""
    if not value:
        return 0
    return max(count - 1 - math.floor(math.log10(abs(float(f"{value:.{count - 1}e}")))), 0)
